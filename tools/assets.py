"""The pictures that the bundled workflows start from with the tiny UNet: four photos of one subject, a small
and a large room, one photo of an object, and a shape to insert it in.

    python dev.py tool assets

Writes tools/assets/inlay_*. A photo's alpha channel is its subject's mask; the rooms' boxes are BOX and
LARGE_BOX. `example_pictures` draws the pictures of the published workflows.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from ..lab import world

PACK = Path(__file__).parent.parent
TINY = PACK / "tools" / "assets"
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


def references(size: int = world.SIZE, count: int = 4, seed: int = 20) -> list[world.Picture]:
    """The subject in `count` rooms and poses."""
    rng = np.random.default_rng(seed)
    scenes = [world.sample_scene(rng, subject=SUBJECT, others=0, scale=(0.60, 0.78)) for _ in range(count)]
    return [world.render(scene, size) for scene in scenes]


def background(size: int = world.SIZE, seed: int = 7) -> np.ndarray:
    """An empty room with things standing about."""
    rng = np.random.default_rng(seed)
    scene = world.sample_scene(rng, others=2)
    return world.render(world.Scene(scene.room, None, scene.others), size).image


def photo(size: int = world.SIZE, seed: int = 21) -> world.Picture:
    """The object, large in a room of its own."""
    scene = world.sample_scene(np.random.default_rng(seed), subject=OBJECT, others=0, scale=(0.6, 0.78))
    return world.render(scene, size)


def shape(size: int = world.SIZE) -> np.ndarray:
    """The object's outline (size, size) in bytes, tilted, where it may stand in the background."""
    posed = OBJECT.posed(x=0.53, y=0.66, scale=0.5, tilt=0.3, mirrored=True)
    room = world.sample_room(np.random.default_rng(0))
    return (world.render(world.Scene(room, posed), size).mask * 255 + 0.5).astype(np.uint8)


def large_room(size: int = 640, seed: int = 8) -> np.ndarray:
    """A room (size * 3 / 4, size, 3) with a car in it and space for something small."""
    rng = np.random.default_rng(seed)
    scene = world.sample_scene(rng, others=2, scale=(0.2, 0.3))
    top = size * 3 // 20
    return world.render(world.Scene(scene.room, None, scene.others), size).image[top : top + size * 3 // 4]


def cut_out(image: np.ndarray, mask: np.ndarray) -> Image.Image:
    """A picture (H, W, 3) in bytes with its subject's mask (H, W), 1 = subject, for transparency."""
    alpha = (mask[..., None] * 255 + 0.5).astype(np.uint8)
    return Image.fromarray(np.concatenate([image, alpha], -1))


def save(folder: Path, prefix: str, subject: list[Image.Image], **pictures: Image.Image) -> None:
    """Write the subject's photos into FOLDER/PREFIX_subject, and pictures as FOLDER/PREFIX_NAME.png."""
    (folder / f"{prefix}_subject").mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(subject, 1):
        picture.save(folder / f"{prefix}_subject" / f"{number}.png", optimize=True)
    for name, picture in pictures.items():
        picture.save(folder / f"{prefix}_{name}.png", optimize=True)


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    shown = photo()
    save(
        TINY,
        "inlay",
        [cut_out(picture.image, picture.mask) for picture in references()],
        background=Image.fromarray(background()),
        large_room=Image.fromarray(large_room()),
        object=cut_out(shown.image, shown.mask),
        shape=Image.fromarray(shape()),
    )
