"""Draw the icon and the banner that the node registry shows: a thing let into a picture, as an inlay is.

python dev.py tool make_logo    writes docs/icon.png (400 x 400) and docs/banner.png (1260 x 540)
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

DOCS = Path(__file__).resolve().parent.parent / "docs"
NIGHT, PAPER, LAND, HILL, SUN = "#1b2430", "#f4efe6", "#5b8a72", "#3f6b57", "#e8743b"
FINE = 4  # drawn so much larger, then shrunk: smooth edges


def emblem(side: int, ground: str | None = NIGHT) -> Image.Image:
    """A framed landscape with a round piece let into it, on a rounded square of `ground`."""
    unit = side * FINE / 100
    picture = Image.new("RGBA", (side * FINE, side * FINE))
    draw = ImageDraw.Draw(picture)

    def at(*numbers: float) -> list[float]:
        return [number * unit for number in numbers]

    if ground:
        draw.rounded_rectangle(at(0, 0, 100, 100), 20 * unit, fill=ground)
    draw.rounded_rectangle(at(14, 20, 86, 80), 6 * unit, fill=PAPER)
    draw.rectangle(at(19, 25, 81, 75), fill="#b9d5e0")
    draw.polygon(at(19, 62, 40, 42, 60, 75, 19, 75), fill=HILL)
    draw.polygon(at(34, 75, 64, 48, 81, 64, 81, 75), fill=LAND)
    draw.ellipse(at(43, 33, 75, 65), fill=NIGHT)
    draw.ellipse(at(45.5, 35.5, 72.5, 62.5), fill=SUN)
    draw.arc(at(50, 40, 68, 58), 200, 290, fill=PAPER, width=round(2.5 * unit))
    return picture.resize((side, side), Image.Resampling.LANCZOS)


def banner(width: int, height: int) -> Image.Image:
    """The emblem beside the name and one line, 21:9."""
    picture = Image.new("RGB", (width, height), NIGHT)
    side = round(height * 0.8)
    drawn = emblem(side, None)
    picture.paste(drawn, (round(height * 0.12), (height - side) // 2), drawn)
    draw = ImageDraw.Draw(picture)
    left = round(height * 1.0)
    name, line = (ImageFont.load_default(round(height * share)) for share in (0.26, 0.085))
    draw.text((left, height * 0.27), "Inlay", font=name, fill=PAPER)
    draw.text((left, height * 0.62), "your subject, in your picture", font=line, fill="#b9d5e0")
    return picture


def main() -> None:
    for name, picture in (("icon", emblem(400)), ("banner", banner(1260, 540))):
        path = DOCS / f"{name}.png"
        picture.quantize(64, method=Image.Quantize.FASTOCTREE).save(path, optimize=True)
        print(f"{path} ({path.stat().st_size / 1024:.0f} KB)")


if __name__ == "__main__":
    main()
