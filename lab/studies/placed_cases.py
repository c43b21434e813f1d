"""Small things in large rooms: one thing, one square box, several rooms, and how it truly looks in each."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...imaging.boxes import Box
from ...imaging.masks import fill_box
from .. import world
from .quality import HELD_OUT, to_image

FILLED = 0.9  # of the box's side is the thing's longer side
PROBE = 0.4  # the scale at which a thing is measured
DIFFERENT = 0.35  # at least this far are two colours in sRGB, to be told from one another


@dataclass(frozen=True)
class Case:
    """Rooms (B, S, S, 3) in [0, 1] without the thing, its box, and their looks with it and with its edit."""

    rooms: Tensor
    box: Box
    truth: Tensor
    edited: Tensor

    @property
    def hole(self) -> Tensor:
        """The box, filled (1, S, S)."""
        return fill_box(self.box, *self.rooms.shape[1:3])


def placed(thing: world.Thing, x: float, y: float, side: float) -> world.Thing:
    """The thing with its outline centred at (x, y) and FILLED * side long, all in shares of the picture."""
    size = 2 * world.SIZE
    alone = world.Scene(world.sample_room(np.random.default_rng(0)), thing.posed(x=0.5, y=0.5, scale=PROBE))
    box = world.render(alone, size).box
    assert box
    top, left, bottom, right = (edge / size for edge in box)
    zoom = FILLED * side / max(bottom - top, right - left)
    across, down = (left + right) / 2 - 0.5, (top + bottom) / 2 - 0.5
    return thing.posed(x=x - zoom * across, y=y - zoom * down, scale=zoom * PROBE)


def other_colour(rng: np.random.Generator, thing: world.Thing) -> str:
    """A colour that is neither the thing's nor close to it or to its trim."""
    taken = np.array([world.COLOURS[thing.colour], world.TRIMS[thing.trim]])
    free = [
        name
        for name, colour in world.COLOURS.items()
        if np.linalg.norm(taken - np.array(colour), axis=1).min() > DIFFERENT
    ]
    return str(rng.choice(free))


def held_out_case(index: int, thing: world.Thing, colour: str, side: float, rooms: int, size: int) -> Case:
    """Case number `index`: a thing in a box whose side is that share of the picture, on the rooms' tables."""
    rng = np.random.default_rng([HELD_OUT, 2, index, round(1000 * side)])
    pixels = round(side * size)
    bottom = round(rng.uniform(0.74, 0.94) * size)
    left = round(rng.uniform(0.04, 0.96 - side) * size)
    box = Box(bottom - pixels, left, bottom, left + pixels)
    tilted = thing.posed(tilt=float(rng.normal(0, 0.08)), mirrored=bool(rng.integers(2)))
    there = placed(tilted, (box.left + box.right) / 2 / size, (box.top + box.bottom) / 2 / size, side)
    pictures = []
    for _ in range(rooms):
        room = world.sample_room(rng)
        scene = world.Scene(room, there, _bystanders(rng, room, there, side))
        versions = scene, replace(scene, subject=None), replace(scene, subject=there.posed(colour=colour))
        pictures.append([world.render(version, size) for version in versions])
    columns = zip(*pictures, strict=True)
    truth, empty, edited = (torch.stack([to_image(picture) for picture in column]) for column in columns)
    return Case(empty, box, truth, edited)


def portraits(thing: world.Thing, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The thing large in rooms of its own (N, 96, 96, 3) and its masks (N, 96, 96), as references show it."""
    rng = np.random.default_rng([HELD_OUT, 3, seed])
    scenes = [world.sample_scene(rng, subject=thing, others=0, scale=(0.60, 0.80)) for _ in range(count)]
    pictures = [world.render(scene) for scene in scenes]
    masks = torch.from_numpy(np.stack([p.mask > 0.5 for p in pictures])).float()
    return torch.stack([to_image(p) for p in pictures]), masks


def _bystanders(rng: np.random.Generator, room: world.Room, thing: world.Thing, side: float):
    """Up to two other things, clear of the box."""
    others = [world.sample_scene(rng, room=room, others=0, scale=(0.2, 0.4)).subject for _ in range(2)]
    return tuple(o for o in others if o and abs(o.x - thing.x) > 0.6 * (o.scale + side) + 0.02)


def rim(box: Box, height: int, width: int) -> Tensor:
    """A mask (1, H, W) of the box's outermost twentieth, at least a pixel: the room's, not the thing's."""
    inner = box.expand(-max(1, round(0.05 * box.height)))
    return fill_box(box, height, width) - fill_box(inner, height, width)
