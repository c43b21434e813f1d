"""DreamMix's training masks: round blobs about the subject, which do not give its outline away."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy import ndimage

from .boxes import Box, bounding_box


@dataclass(frozen=True)
class BezierMask:
    """DreamMix's numbers (released code)."""

    ratios: tuple[float, ...] = tuple(tenth / 10 for tenth in range(1, 11))  # of the box's extent
    samples: int = 19  # points on each of the four curves
    jitter: tuple[int, int] = (1, 20)  # points move by at most a number drawn from these, both included ...
    jitter_at: int = 1024  # ... in pixels of a picture with this short side, DreamMix's working size


def bezier_mask(
    mask: torch.Tensor, generator: torch.Generator, recipe: BezierMask = BezierMask()
) -> torch.Tensor:
    """A random blob (B, H, W) over every connected part of the subject's masks (B, H, W).

    `generator` is on the CPU. Raises ValueError when a mask is empty.
    """
    return torch.stack([_blobs(m, generator, recipe) for m in mask]).to(mask)


def bezier_outline(box: Box, ratio: float, samples: int) -> torch.Tensor:
    """Points (4 * samples, 2) as (x, y), clockwise: a quadratic Bezier curve over each side of the box.

    B(t) = (1 - t)^2 p + 2 t (1 - t) c + t^2 q, from corner p to corner q, with c above the side's middle by
    `ratio` times the box's extent that way: the curve bulges outward by half of that.
    """
    left, top, right, bottom = box.left, box.top, box.right - 1, box.bottom - 1  # pixel centres
    corners = torch.tensor([[left, top], [right, top], [right, bottom], [left, bottom]], dtype=torch.float32)
    p, q = corners[:, None], corners.roll(-1, 0)[:, None]
    outward = torch.tensor([[0, -box.height], [box.width, 0], [0, box.height], [-box.width, 0]])
    c = (p + q) / 2 + ratio * outward[:, None]
    t = (torch.arange(samples) / samples)[None, :, None]  # the end of a curve is the start of the next
    return ((1 - t) ** 2 * p + 2 * t * (1 - t) * c + t**2 * q).reshape(-1, 2)


def _blobs(mask: torch.Tensor, generator: torch.Generator, recipe: BezierMask) -> torch.Tensor:
    bounding_box(mask)  # says so when the mask is empty
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
    low, high = recipe.jitter
    reach = int(torch.randint(low, high + 1, (), generator=generator)) * short_side / recipe.jitter_at
    return reach * (2 * torch.rand(shape, generator=generator) - 1)
