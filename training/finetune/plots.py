"""Pictures of a training, drawn with Pillow: the curve of its loss and a strip of its samples."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, GRID, RAW, SMOOTH = "#fbfaf7", "#3b3a37", "#e4e1d8", "#e9b99a", "#c2410c"
FINE = 2  # drawn this much larger and shrunk, for smooth lines
WIDTH = 768
MAX_STRIP_SAMPLES = 6  # in a row at most


def smoothed(losses: Sequence[float], span: int) -> list[float]:
    """Return the exponential mean over about `span` steps, bias-corrected (Kingma & Ba 2015, sec. 3)."""
    decay, mean, weight, out = 1 - 1 / max(span, 1), 0.0, 0.0, []
    for loss in losses:
        mean, weight = decay * mean + (1 - decay) * loss, decay * weight + (1 - decay)
        out.append(mean / weight)
    return out


def draw_curve(
    losses: Sequence[float], title: str, width: int = WIDTH, height: int = 432, notes: Sequence[str] = ()
) -> torch.Tensor:
    """Draw the loss of every step and its running mean as an IMAGE (1,height,width,3) in [0,1].

    `notes` are warnings that the user should see, written under the title.
    """
    image = Image.new("RGB", (width * FINE, height * FINE), PAPER)
    draw = ImageDraw.Draw(image)
    text, heading = (ImageFont.load_default(size * FINE) for size in (13, 17))
    left, top, right, bottom = (v * FINE for v in (64, 52, width - 24, height - 44))
    high = max(losses) * 1.05 or 1.0

    def place(step: int, loss: float) -> tuple[float, float]:
        return left + (right - left) * step / max(len(losses) - 1, 1), bottom - (bottom - top) * loss / high

    for part in range(5):
        y = bottom - (bottom - top) * part / 4
        draw.line([(left, y), (right, y)], fill=GRID, width=FINE)
        draw.text((left - 10 * FINE, y), f"{high * part / 4:.3g}", fill=INK, font=text, anchor="rm")
    for step in sorted({0, len(losses) // 2, len(losses) - 1}):
        draw.text((place(step, 0)[0], bottom + 10 * FINE), f"{step + 1}", fill=INK, font=text, anchor="mt")
    mean = smoothed(losses, max(len(losses) // 12, 1))
    for values, colour, thickness in ((losses, RAW, 1), (mean, SMOOTH, 3)):
        points = [place(step, value) for step, value in enumerate(values)]
        draw.line([points[0], *points], fill=colour, width=thickness * FINE, joint="curve")
    draw.text((left, 16 * FINE), title, fill=INK, font=heading)
    draw.text((right, 18 * FINE), f"loss {mean[-1]:.4g}", fill=SMOOTH, font=text, anchor="ra")
    small = ImageFont.load_default(11 * FINE)
    for line, note in enumerate(notes):
        draw.text((left, (36 + 14 * line) * FINE), note, fill=SMOOTH, font=small)
    return image_to_tensor(image.resize((width, height), Image.Resampling.LANCZOS))


def draw_strip(samples: Mapping[int, torch.Tensor], width: int = WIDTH) -> Image.Image:
    """Draw samples over time, (H,W,3) in bytes by their step, side by side with the steps beneath.

    Of more than SAMPLES of them, evenly spaced ones with the first and the last.
    """
    steps = sorted(samples)
    places = np.linspace(0, len(steps) - 1, min(len(steps), MAX_STRIP_SAMPLES)).round().astype(int)
    gap, foot = 8, 26
    side = (width - gap * (MAX_STRIP_SAMPLES + 1)) // MAX_STRIP_SAMPLES
    image = Image.new("RGB", (width, side + 2 * gap + foot), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    for column, step in enumerate(steps[place] for place in places):
        picture = Image.fromarray(samples[step].numpy())
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        if max(picture.size) < side:
            picture = picture.resize((side, round(side * picture.height / picture.width)))
        left = gap + column * (side + gap)
        image.paste(picture, (left, gap))
        draw.text((left + side // 2, side + 2 * gap), f"step {step}", fill=INK, font=font, anchor="mt")
    return image


def image_to_tensor(image: Image.Image) -> torch.Tensor:
    """Return a picture as an IMAGE (1,H,W,3) in [0,1]."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)[None]
