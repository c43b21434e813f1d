"""The contact sheet: what went in and what came out, side by side, for people to look at."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ...imaging.boxes import Box

PAPER, INK, FAINT, ACCENT = "#faf9f6", "#1f1f1f", "#8a867d", "#e8542f"
PANEL, MARGIN, GAP = 448, 40, 24
TITLE, LABEL, NOTE = 30, 19, 15


def enlarge(picture: Image.Image, side: int) -> Image.Image:
    """`picture` scaled so that its longer side is `side`."""
    scale = side / max(picture.size)
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    return picture.resize(size, Image.Resampling.LANCZOS)


def with_box(picture: Image.Image, box: Box, side: int) -> Image.Image:
    """`picture` enlarged to `side`, with `box` (in its own pixels) drawn on it."""
    shown = enlarge(picture, side)
    scale = side / max(picture.size)
    corners = [round(edge * scale) for edge in (box.left, box.top, box.right, box.bottom)]
    ImageDraw.Draw(shown).rectangle(corners, outline=ACCENT, width=4)
    return shown


def mosaic(pictures: Sequence[Image.Image], side: int, gap: int = 8) -> Image.Image:
    """Pictures in a square of `side`, in as few columns as hold them, each whole."""
    columns = next(n for n in range(1, len(pictures) + 1) if n * n >= len(pictures))
    cell = (side - gap * (columns - 1)) // columns
    sheet = Image.new("RGB", (side, side), PAPER)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        shown = enlarge(picture, cell)
        left = column * (cell + gap) + (cell - shown.width) // 2
        top = row * (cell + gap) + (cell - shown.height) // 2
        sheet.paste(shown, (left, top))
    return sheet


def contact_sheet(title: str, panels: Sequence[tuple[str, Image.Image]], note: str = "") -> Image.Image:
    """Panels from left to right under their labels, with a title above and a note below.

    Each picture should be at most PANEL wide and high; it is centred in its panel.
    """
    top = MARGIN + TITLE + 28 + LABEL + 14
    width = 2 * MARGIN + len(panels) * PANEL + (len(panels) - 1) * GAP
    sheet = Image.new("RGB", (width, top + PANEL + 20 + NOTE + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 6), title, INK, ImageFont.load_default(TITLE))
    for number, (label, picture) in enumerate(panels):
        left = MARGIN + number * (PANEL + GAP)
        last = number == len(panels) - 1
        draw.text((left, top - LABEL - 12), label, ACCENT if last else INK, ImageFont.load_default(LABEL))
        sheet.paste(picture, (left + (PANEL - picture.width) // 2, top + (PANEL - picture.height) // 2))
    draw.text((MARGIN, top + PANEL + 20), note, FAINT, ImageFont.load_default(NOTE))
    return sheet
