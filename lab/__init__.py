"""Experiments on two tiny rendered worlds, where the truth is known.

`world` is the earlier one (outlines in 2D, 96 pixels), with the models and tables of the repository's demo;
`scenes` is the later one (shaded solids, 128 pixels), with the modules whose names begin with `scene_`.
"""
