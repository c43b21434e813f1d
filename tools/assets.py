"""The pictures that the bundled workflows start from: four photos of one subject, a small and a large room,
one photo of an object, and a shape to insert it in.

    python -m inlay.tools.assets [FOLDER]

A photo's alpha channel is its subject's mask; the rooms' boxes are BOX and LARGE_BOX.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from ..lab import world

FOLDER = Path(__file__).parent.parent / "workflows" / "assets"
SUBJECT = world.Thing(
    kind="mug",
    colour="orange",
    pattern="banded",
    trim="navy",
    accessory="hat",
    shape=(0.3, 0.2, 0.0),
    pattern_angle=0.0,
    pattern_phase=0.5,
)
OBJECT = world.Thing(
    kind="mug",
    colour="red",
    pattern="dotted",
    trim="ivory",
    accessory="none",
    shape=(0.3, 0.5, -0.2),
    pattern_angle=0.0,
    pattern_phase=0.6,
)
BOX = (44, 34, 46, 54)  # x, y, width, height in pixels of the background
LARGE_BOX = (150, 238, 58, 66)  # the same in the large room


def references(count: int = 4, seed: int = 20) -> list[world.Picture]:
    """The subject in `count` rooms and poses."""
    rng = np.random.default_rng(seed)
    scenes = [world.sample_scene(rng, subject=SUBJECT, others=0, scale=(0.60, 0.78)) for _ in range(count)]
    return [world.render(scene) for scene in scenes]


def background(seed: int = 7) -> np.ndarray:
    """An empty room with things standing about."""
    rng = np.random.default_rng(seed)
    scene = world.sample_scene(rng, others=2)
    return world.render(world.Scene(scene.room, None, scene.others)).image


def photo(seed: int = 21) -> world.Picture:
    """The object, large in a room of its own."""
    scene = world.sample_scene(np.random.default_rng(seed), subject=OBJECT, others=0, scale=(0.6, 0.78))
    return world.render(scene)


def shape() -> np.ndarray:
    """The object's outline (96, 96) in bytes, tilted, where it may stand in the background."""
    posed = OBJECT.posed(x=0.53, y=0.66, scale=0.5, tilt=0.3, mirrored=True)
    room = world.sample_room(np.random.default_rng(0))
    return (world.render(world.Scene(room, posed)).mask * 255 + 0.5).astype(np.uint8)


def large_room(seed: int = 8) -> np.ndarray:
    """A room (480, 640, 3) with a car in it and space for something small."""
    rng = np.random.default_rng(seed)
    scene = world.sample_scene(rng, others=2, scale=(0.2, 0.3))
    return world.render(world.Scene(scene.room, None, scene.others), 640).image[96:576]


def cut_out(picture: world.Picture) -> Image.Image:
    """The picture with its subject's mask for transparency."""
    alpha = (picture.mask[..., None] * 255 + 0.5).astype(np.uint8)
    return Image.fromarray(np.concatenate([picture.image, alpha], -1))


def write(folder: Path):
    subject = folder / "inlay_subject"
    subject.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(references(), 1):
        cut_out(picture).save(subject / f"{number}.png")
    Image.fromarray(background()).save(folder / "inlay_background.png")
    Image.fromarray(large_room()).save(folder / "inlay_large_room.png", optimize=True)
    cut_out(photo()).save(folder / "inlay_object.png")
    Image.fromarray(shape()).save(folder / "inlay_shape.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    write(parser.parse_args().folder)
