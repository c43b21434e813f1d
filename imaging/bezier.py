"""Draw DreamMix's training masks: random round shapes around the subject that hide its outline."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy import ndimage

from .boxes import Box, bounding_box


@dataclass(frozen=True)
class BezierMask:
    """DreamMix's settings (released code)."""

    # distance of the control points from the sides, relative to the box
    ratios: tuple[float, ...] = tuple(tenth / 10 for tenth in range(1, 11))
    samples: int = 19  # points on each of the four curves
    jitter: tuple[int, int] = (1, 20)  # maximum shift of the points, drawn from this range, inclusive ...
    jitter_at: int = 1024  # ... in pixels of an image with this short side, DreamMix's working size


def bezier_mask(
    mask: torch.Tensor, generator: torch.Generator, recipe: BezierMask = BezierMask()
) -> torch.Tensor:
    """Draw a random shape (B, H, W) over every connected part of the subject's masks (B, H, W).

    Args:
        mask: 1 = subject.
        generator: on the CPU.
        recipe: the ranges.

    Raises:
        ValueError: if a mask is empty.
    """
    return torch.stack([_blobs(m, generator, recipe) for m in mask]).to(mask)


def bezier_outline(box: Box, ratio: float, samples: int) -> torch.Tensor:
    """Return points (4 * samples, 2) as (x, y), clockwise: a quadratic Bezier curve over each side.

    B(t) = (1 - t)^2 p + 2 t (1 - t) c + t^2 q, from corner p to corner q of the box. The control point c lies
    outward from the side's middle by `ratio` times the box's extent that way; the curve bulges by half of it.
    """
    left, top, right, bottom = box.left, box.top, box.right - 1, box.bottom - 1  # pixel centres
    corners = torch.tensor([[left, top], [right, top], [right, bottom], [left, bottom]], dtype=torch.float32)
    p, q = corners[:, None], corners.roll(-1, 0)[:, None]
    outward = torch.tensor([[0, -box.height], [box.width, 0], [0, box.height], [-box.width, 0]])
    c = (p + q) / 2 + ratio * outward[:, None]
    # without t = 1: a curve ends where the next one starts
    t = (torch.arange(samples) / samples)[None, :, None]
    return ((1 - t) ** 2 * p + 2 * t * (1 - t) * c + t**2 * q).reshape(-1, 2)


def _blobs(mask: torch.Tensor, generator: torch.Generator, recipe: BezierMask) -> torch.Tensor:
    bounding_box(mask)  # raises ValueError if the mask is empty
    height, width = mask.shape
    parts = np.zeros(mask.shape, np.int32)
    ndimage.label((mask > 0.5).cpu().numpy(), np.ones((3, 3)), output=parts)
    canvas = Image.new("L", (width, height))
    for rows, columns in ndimage.find_objects(parts):
        box = Box(rows.start, columns.start, rows.stop, columns.stop)
        ratio = recipe.ratios[int(torch.randint(len(recipe.ratios), (), generator=generator))]
        points = bezier_outline(box, ratio, recipe.samples)
        points += _jitter(points.shape, min(height, width), generator, recipe)
        ImageDraw.Draw(canvas).polygon([(x, y) for x, y in points.tolist()], fill=1)
    return torch.from_numpy(np.array(canvas))


def _jitter(
    shape: torch.Size, short_side: int, generator: torch.Generator, recipe: BezierMask
) -> torch.Tensor:
    """Return random shifts in pixels, scaled to an image with this short side."""
    low, high = recipe.jitter
    reach = int(torch.randint(low, high + 1, (), generator=generator)) * short_side / recipe.jitter_at
    return reach * (2 * torch.rand(shape, generator=generator) - 1)
