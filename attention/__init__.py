"""Regions on token grids, masked attention, the layer map, and the patch on a MODEL."""
