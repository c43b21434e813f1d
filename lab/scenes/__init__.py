"""The tiny world of shaded objects in lit rooms: every picture with its captions, masks and boxes.

Objects are solids seen from any side, the lamp that lights them is in the picture, rooms have any tint, and
emblems are details that no caption names.
"""

from .render import SIZE, Picture, bounds, render
from .scene import (
    ACCESSORIES,
    CLASSES,
    COLOURS,
    EMPTY,
    PATTERNS,
    TRIMS,
    Room,
    Scene,
    Thing,
    caption,
    looks_of,
    phrase,
    sample_pose,
    sample_room,
    sample_scene,
    sample_thing,
)

__all__ = [
    "ACCESSORIES",
    "CLASSES",
    "COLOURS",
    "EMPTY",
    "PATTERNS",
    "SIZE",
    "TRIMS",
    "Picture",
    "Room",
    "Scene",
    "Thing",
    "bounds",
    "caption",
    "looks_of",
    "phrase",
    "render",
    "sample_pose",
    "sample_room",
    "sample_scene",
    "sample_thing",
]
