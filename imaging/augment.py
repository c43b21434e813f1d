"""Augment references as DreamCom does: random square windows, zoomed in or out, that keep the subject.

DreamCom, sec. 6.1: "When scaling down, the outer rings are filled with white pixel [...]. When scaling up or
randomly cropping, the foreground object occupies no less than 80% of the original size."
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .boxes import Box
from .masks import resize_mask
from .views import smooth_resize


@dataclass(frozen=True)
class Augmentation:
    """DreamCom's settings."""

    scale_chance: float = 0.6  # probability of zooming (released code)
    scale_range: float = 0.2  # zoom is uniform in [1 - range, 1 + range] (released code)
    keep: float = 0.8  # share of the subject's area that must stay in the window (paper, sec. 6.1)
    relax: float = 0.02  # decrease of `keep` ... (released code)
    patience: int = 20  # ... after so many consecutive rejected windows (released code)
    fill: float = 1.0  # border value in [-1, 1]: white as in the paper; the released code uses -1


def augment(
    image: torch.Tensor,
    mask: torch.Tensor,
    size: int,
    generator: torch.Generator,
    recipe: Augmentation = Augmentation(),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw one random square view of every sample.

    Args:
        image: (B, C, H, W) in [-1, 1].
        mask: of the subject, (B, 1, H, W), 1 = subject.
        size: side of the views in pixels.
        generator: on the CPU.
        recipe: the ranges.

    Returns:
        The image (B, C, size, size), the mask (B, 1, size, size) and valid (B, 1, size, size): 1 inside the
        image and 0 on the filled border, which the loss leaves out.

    Raises:
        ValueError: if a mask is empty.
    """
    views = [
        _view(x[None], m, size, draw_window(m[0], generator, recipe), recipe.fill)
        for x, m in zip(image, mask, strict=True)
    ]
    images, masks, valid = (torch.cat(parts) for parts in zip(*views, strict=True))
    return images, masks, valid


def draw_window(mask: torch.Tensor, generator: torch.Generator, recipe: Augmentation) -> Box:
    """Draw a square of side short_side / zoom that holds more than `keep` of the subject in `mask` (H, W).

    A window larger than the image (zoom < 1) is centred on it; others have a random position.
    """
    height, width = mask.shape
    # summed-area table: table[i, j] = number of mask pixels above row i and left of column j
    table = F.pad((mask > 0.5).long().cpu().cumsum(0).cumsum(1), (1, 0, 1, 0))
    total = int(table[-1, -1])
    if not total:
        raise ValueError("mask: a reference has an empty mask; paint over the subject in every reference.")
    rejected = 0
    while True:
        window = _draw_square(height, width, generator, recipe)
        inner = window.clamp(height, width)
        count = table[inner.bottom, inner.right] - table[inner.top, inner.right]
        count = count - table[inner.bottom, inner.left] + table[inner.top, inner.left]
        if count > (recipe.keep - recipe.relax * (rejected // recipe.patience)) * total:
            return window
        rejected += 1


def _draw_square(height: int, width: int, generator: torch.Generator, recipe: Augmentation) -> Box:
    chance, zoom, down, right = torch.rand(4, generator=generator).tolist()
    scale = 1 + recipe.scale_range * (2 * zoom - 1) if chance < recipe.scale_chance else 1.0
    side = max(1, round(min(height, width) / scale))
    top, left = (
        int(share * (length - side + 1)) if side <= length else (length - side) // 2
        for share, length in ((down, height), (right, width))
    )
    return Box(top, left, top + side, left + side)


def _view(
    image: torch.Tensor, mask: torch.Tensor, size: int, window: Box, fill: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the window of image (1, C, H, W) and mask (1, H, W), resized to `size`, with the border filled.

    The visible part is resized on its own, so that the border colour does not mix into it.
    """
    inner = window.clamp(*mask.shape[-2:])
    target = inner.shift(-window.top, -window.left).scale(size / window.height)
    shape = (target.height, target.width)
    rows, columns = inner.slices
    content = smooth_resize(image[..., rows, columns], *shape, mode="bilinear")
    subject = resize_mask(mask[:, rows, columns], *shape)

    rows, columns = target.slices
    view = torch.full((1, image.shape[1], size, size), fill).to(image)
    view_mask, valid = view.new_zeros(1, 1, size, size), view.new_zeros(1, 1, size, size)
    view[..., rows, columns] = content
    view_mask[:, 0, rows, columns] = subject
    valid[..., rows, columns] = 1.0
    return view, view_mask, valid
