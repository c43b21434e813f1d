"""The pictures that the published workflows start from: four photos of one subject, a small and a large
room, one photo of an object, and a shape to insert it in.

    python dev.py tool example_pictures

Draws scenes of `lab.scenes`: into workflows/examples at the size that real models like, and the same at 128
pixels into tools/assets, for the tiny models. A photo's alpha channel is its subject's mask.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..lab import scenes

PACK = Path(__file__).resolve().parent.parent
TINY = PACK / "tools" / "assets"
EXAMPLES = PACK / "workflows" / "examples"
SIDE, LARGE_SIDE = 512, 1280  # pixels of the examples
SUBJECT = scenes.Thing(
    kind="mug",
    colour="orange",
    pattern="striped",
    trim="navy",
    accessory="hat",
    shape=(0.3, 0.2, 0.0),
    pattern_phase=0.5,
)
OBJECT = replace(SUBJECT, colour="red", pattern="dotted", trim="ivory", accessory="none", pattern_phase=0.6)
BOX = (14, 44, 60, 66)  # x, y, width, height in the background of 128 pixels
EXAMPLE_BOX = (56, 176, 240, 264)  # the same in the example
LARGE_BOX = (288, 470, 190, 210)  # in the large room of 1280 pixels
SMALL_LARGE_BOX = (72, 117, 48, 53)  # in the large room of 320 pixels
ROOM, LARGE_ROOM, PHOTOS, PHOTO = 36, 66, 20, 55  # seeds


def references(size: int, count: int = 4) -> list[scenes.Picture]:
    """Draw the subject in `count` rooms and poses."""
    rng = np.random.default_rng(PHOTOS)
    drawn = [scenes.sample_scene(rng, SUBJECT, others=0, scale=(0.60, 0.75)) for _ in range(count)]
    return [scenes.render(scene, size) for scene in drawn]


def background(size: int) -> np.ndarray:
    """Draw a room with one thing standing in it (size, size, 3)."""
    scene = scenes.sample_scene(np.random.default_rng(ROOM), others=2)
    return scenes.render(replace(scene, subject=None), size).image


def large_room(size: int) -> np.ndarray:
    """Draw a room (size * 3 / 4, size, 3) with one small thing in it and space for another."""
    scene = scenes.sample_scene(np.random.default_rng(LARGE_ROOM), others=0, scale=(0.2, 0.3))
    top = size * 3 // 20
    return scenes.render(scene, size).image[top : top + size * 3 // 4]


def photo(size: int) -> scenes.Picture:
    """Draw the object, large in a room of its own."""
    scene = scenes.sample_scene(np.random.default_rng(PHOTO), OBJECT, others=0, scale=(0.6, 0.75))
    return scenes.render(scene, size)


def shape(size: int) -> np.ndarray:
    """Draw the object's outline (size, size) in bytes, seen from another side, where it may stand."""
    scene = scenes.sample_scene(np.random.default_rng(ROOM), others=2)
    posed = OBJECT.posed(x=-0.42, z=0.1, scale=0.62, yaw=0.9)
    return (scenes.render(scenes.Scene(scene.room, posed), size).mask * 255 + 0.5).astype(np.uint8)


def cut_out(image: np.ndarray, mask: np.ndarray) -> Image.Image:
    """Return a picture (H, W, 3) in bytes with its subject's mask (H, W), 1 = subject, for transparency."""
    alpha = (mask[..., None] * 255 + 0.5).astype(np.uint8)
    return Image.fromarray(np.concatenate([image, alpha], -1))


def write(folder: Path, size: int, large: Image.Image) -> None:
    """Write all pictures into FOLDER as squares of `size` pixels, and the large room as it is."""
    (folder / "inlay_subject").mkdir(parents=True, exist_ok=True)
    shown = photo(size)
    pictures = {
        "background": Image.fromarray(background(size)),
        "large_room": large,
        "object": cut_out(shown.image, shown.mask),
        "shape": Image.fromarray(shape(size)),
    }
    for number, picture in enumerate(references(size), 1):
        pictures[f"subject/{number}"] = cut_out(picture.image, picture.mask)
    for name, picture in pictures.items():
        picture.save(folder / f"inlay_{name}.png", optimize=True)


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    write(TINY, scenes.SIZE, Image.fromarray(large_room(LARGE_SIDE // 4)))
    write(EXAMPLES, SIDE, Image.fromarray(large_room(LARGE_SIDE)))
