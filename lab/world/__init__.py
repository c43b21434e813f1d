"""The earlier tiny world: things on tables in lit rooms, each picture with its caption, mask and box.

The models of the repository's demo were trained on it. `lab.scenes` is the later world, with shaded solids.
"""

from .render import SIZE, Picture, render
from .scene import (
    ACCESSORIES,
    CLASSES,
    COLOURS,
    PATTERNS,
    TRIMS,
    Room,
    Scene,
    Thing,
    caption,
    phrase,
    sample_room,
    sample_scene,
    sample_thing,
)

__all__ = [
    "ACCESSORIES",
    "CLASSES",
    "COLOURS",
    "PATTERNS",
    "SIZE",
    "TRIMS",
    "Picture",
    "Room",
    "Scene",
    "Thing",
    "caption",
    "phrase",
    "render",
    "sample_room",
    "sample_scene",
    "sample_thing",
]
