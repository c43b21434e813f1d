"""Sheets of many small pictures with their captions, for people to look at what a table counts."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...imaging.boxes import Box
from .sheet import ACCENT, FAINT, INK, MARGIN, PAPER, TITLE, enlarge, with_box

TEXT = 13
GAP, SPACE = 4, 22


class Cell(NamedTuple):
    """Pictures side by side, and the lines of text below them."""

    pictures: Sequence[Image.Image]
    lines: Sequence[str]
    good: bool = True


def to_picture(image: Tensor) -> Image.Image:
    """An image (H, W, 3) in [0, 1] as eight bits."""
    return Image.fromarray((image.clamp(0, 1) * 255).round().byte().cpu().numpy())


def shown(image: Tensor, side: int, box: Box | None = None) -> Image.Image:
    """The image (H, W, 3) enlarged to `side`, with a box drawn on it if there is one."""
    picture = to_picture(image)
    return enlarge(picture, side) if box is None else with_box(picture, box, side)


def grid(title: str, cells: Sequence[Cell], columns: int) -> Image.Image:
    """Cells of one size in rows of `columns`, under a title; the text of a cell that is not good is red."""
    width = max(sum(p.width + GAP for p in cell.pictures) - GAP for cell in cells)
    height = max(p.height for cell in cells for p in cell.pictures)
    tall = height + 6 + max(len(cell.lines) for cell in cells) * (TEXT + 4)
    rows = -(-len(cells) // columns)
    top = MARGIN + TITLE + 20
    size = (2 * MARGIN + columns * (width + SPACE) - SPACE, top + rows * (tall + SPACE) + MARGIN - SPACE)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 8), title, INK, ImageFont.load_default(TITLE * 2 // 3))
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        left, up = MARGIN + column * (width + SPACE), top + row * (tall + SPACE)
        for picture in cell.pictures:
            sheet.paste(picture, (left, up))
            left += picture.width + GAP
        left = MARGIN + column * (width + SPACE)
        for line, text in enumerate(cell.lines):
            ink = ACCENT if not cell.good else FAINT if line else INK
            draw.text((left, up + height + 5 + line * (TEXT + 4)), text, ink, ImageFont.load_default(TEXT))
    return sheet
