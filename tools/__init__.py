"""Maintainers' tools: demo, serve, generators of templates, thumbnails and screenshots. Not published."""
