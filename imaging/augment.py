"""Augment references as DreamCom does: random windows, zoomed in or out, that keep the subject.

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
    size: int | tuple[int, int],
    generator: torch.Generator,
    recipe: Augmentation = Augmentation(),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw one random view of every sample.

    Args:
        image: (B, C, H, W) in [-1, 1].
        mask: of the subject, (B, 1, H, W), 1 = subject.
        size: side of square views in pixels, or their height and width.
        generator: on the CPU.
        recipe: the ranges.

    Returns:
        The image (B, C, h, w), the mask (B, 1, h, w) and valid (B, 1, h, w): 1 inside the image and 0 on the
        filled border, which the loss leaves out.

    Raises:
        ValueError: if a mask is empty.
    """
    shape = (size, size) if isinstance(size, int) else size
    views = [
        _view(x[None], m, shape, draw_window(m[0], generator, recipe, shape), recipe.fill)
        for x, m in zip(image, mask, strict=True)
    ]
    images, masks, valid = (torch.cat(parts) for parts in zip(*views, strict=True))
    return images, masks, valid


def draw_window(
    mask: torch.Tensor, generator: torch.Generator, recipe: Augmentation, shape: tuple[int, int] = (1, 1)
) -> Box:
    """Draw a window that holds more than `keep` of the subject in `mask` (H, W).

    It is the largest window with the ratio of `shape` (height, width) in the picture, divided by the zoom; a
    square has the side short_side / zoom.

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
        window = _draw_window(height, width, generator, recipe, shape)
        inner = window.clamp(height, width)
        count = table[inner.bottom, inner.right] - table[inner.top, inner.right]
        count = count - table[inner.bottom, inner.left] + table[inner.top, inner.left]
        if count > (recipe.keep - recipe.relax * (rejected // recipe.patience)) * total:
            return window
        rejected += 1


def _draw_window(
    height: int, width: int, generator: torch.Generator, recipe: Augmentation, shape: tuple[int, int]
) -> Box:
    chance, zoom, down, right = torch.rand(4, generator=generator).tolist()
    scale = 1 + recipe.scale_range * (2 * zoom - 1) if chance < recipe.scale_chance else 1.0
    fit = min(height / shape[0], width / shape[1]) / scale
    tall, wide = (max(1, round(part * fit)) for part in shape)
    top, left = (
        int(share * (length - side + 1)) if side <= length else (length - side) // 2
        for share, length, side in ((down, height, tall), (right, width, wide))
    )
    return Box(top, left, top + tall, left + wide)


def _view(
    image: torch.Tensor, mask: torch.Tensor, size: tuple[int, int], window: Box, fill: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the window of image (1, C, H, W) and mask (1, H, W), resized to `size`, the border filled.

    The visible part is resized on its own, so that the border colour does not mix into it.
    """
    inner = window.clamp(*mask.shape[-2:])
    inside, (down, across) = inner.shift(-window.top, -window.left), size
    rows_scale, columns_scale = down / window.height, across / window.width
    target = Box(
        round(inside.top * rows_scale),
        round(inside.left * columns_scale),
        round(inside.bottom * rows_scale),
        round(inside.right * columns_scale),
    )
    shape = (target.height, target.width)
    rows, columns = inner.slices
    content = smooth_resize(image[..., rows, columns], *shape, mode="bilinear")
    subject = resize_mask(mask[:, rows, columns], *shape)

    rows, columns = target.slices
    view = torch.full((1, image.shape[1], *size), fill).to(image)
    view_mask, valid = view.new_zeros(1, 1, *size), view.new_zeros(1, 1, *size)
    view[..., rows, columns] = content
    view_mask[:, 0, rows, columns] = subject
    valid[..., rows, columns] = 1.0
    return view, view_mask, valid
