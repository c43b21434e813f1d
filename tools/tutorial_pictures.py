"""Make the pictures of docs/tutorial.md from two photographs that scikit-image ships, both CC0.

    python dev.py tool tutorial_pictures    writes docs/tutorial/*.jpg

The photographs are "coffee" (Rachel Michetti) and "chelsea" (Stefan van der Walt). The outline of the cup
was drawn by hand, as a user draws one in the mask editor.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance
from skimage import data

PAGES = Path(__file__).resolve().parent.parent / "docs" / "tutorial"
SAUCER, CUP = (76, 66, 482, 390), (170, 15, 412, 215)  # ellipses of the coffee photograph, in pixels
BOX = (322, 176, 441, 284)  # left, top, right, bottom in the cat's photograph, in pixels
QUALITY = 85


def cup_mask(size: tuple[int, int]) -> Image.Image:
    """Return the cup with its saucer as a mask, white on black."""
    mask = Image.new("L", size)
    drawing = ImageDraw.Draw(mask)
    for ellipse in (SAUCER, CUP):
        drawing.ellipse(ellipse, fill=255)
    return mask


def darkened(photo: Image.Image, mask: Image.Image) -> Image.Image:
    """Return the photo with everything outside of the mask dark, as Load References shows it."""
    return Image.composite(photo, ImageEnhance.Brightness(photo).enhance(0.2), mask)


def with_box(photo: Image.Image) -> Image.Image:
    """Return the photo with the box drawn on it, as Box Mask shows it."""
    shown = photo.copy()
    ImageDraw.Draw(shown).rectangle(BOX, outline=(255, 220, 0), width=3)
    return shown


def main() -> int:
    PAGES.mkdir(parents=True, exist_ok=True)
    cup = Image.fromarray(np.asarray(data.coffee()))
    mask = cup_mask(cup.size)
    pictures = {
        "photo": cup,
        "mask": mask.convert("RGB"),
        "cut_out": darkened(cup, mask),
        "box": with_box(Image.fromarray(np.asarray(data.chelsea()))),
    }
    for name, picture in pictures.items():
        picture.save(PAGES / f"{name}.jpg", quality=QUALITY, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
