"""DreamCom's augmentation of references: random square windows, zoomed in or out, that keep the subject.

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
    """DreamCom's numbers."""

    scale_chance: float = 0.6  # how often the picture is zoomed at all (released code)
    scale_range: float = 0.2  # zoom drawn from 1 - range to 1 + range (released code)
    keep: float = 0.8  # share of the subject's area that must stay in the window (paper, sec. 6.1)
    relax: float = 0.02  # the share asked for falls by this much ... (released code)
    patience: int = 20  # ... after so many windows refused in a row (released code)
    fill: float = 1.0  # the ring's colour in [-1, 1]: white, the paper's word; the released code fills -1


def augment(
    image: torch.Tensor,
    mask: torch.Tensor,
    size: int,
    generator: torch.Generator,
    recipe: Augmentation = Augmentation(),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One random square view of every sample.

    image (B, C, H, W) in [-1, 1] and the subject's mask (B, 1, H, W), of any size; `generator` is on the CPU.
    Returns image (B, C, size, size), mask (B, 1, size, size), and valid (B, 1, size, size): 1 where the view
    shows the picture, 0 on the filled ring, which the loss leaves out. Raises ValueError for an empty mask.
    """
    views = [
        _view(x[None], m, size, draw_window(m[0], generator, recipe), recipe.fill)
        for x, m in zip(image, mask, strict=True)
    ]
    images, masks, valid = (torch.cat(parts) for parts in zip(*views, strict=True))
    return images, masks, valid


def draw_window(mask: torch.Tensor, generator: torch.Generator, recipe: Augmentation) -> Box:
    """A square of side short/s, s the zoom, that holds more than `keep` of the subject in `mask` (H, W).

    Reaches outside the picture where it is larger (s < 1): centred there, placed at random elsewhere.
    """
    height, width = mask.shape
    # table[i, j] = masked pixels above row i and left of column j, so that a window costs four look-ups
    table = F.pad((mask > 0.5).long().cpu().cumsum(0).cumsum(1), (1, 0, 1, 0))
    total = int(table[-1, -1])
    if not total:
        raise ValueError("mask: a reference has an empty mask; paint over the subject in every reference.")
    refused = 0
    while True:
        window = _draw_square(height, width, generator, recipe)
        seen = window.clamp(height, width)
        kept = table[seen.bottom, seen.right] - table[seen.top, seen.right]
        kept = kept - table[seen.bottom, seen.left] + table[seen.top, seen.left]
        if kept > (recipe.keep - recipe.relax * (refused // recipe.patience)) * total:
            return window
        refused += 1


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
    """The window of image (1, C, H, W) and mask (1, H, W), resized to `size` with the ring filled.

    The part that shows the picture is resized on its own, so that no ring colour bleeds into it.
    """
    seen = window.clamp(*mask.shape[-2:])
    place = seen.shift(-window.top, -window.left).scale(size / window.height)
    shape = (place.height, place.width)
    rows, columns = seen.slices
    shown = smooth_resize(image[..., rows, columns], *shape, mode="bilinear")
    subject = resize_mask(mask[:, rows, columns], *shape)

    rows, columns = place.slices
    view = torch.full((1, image.shape[1], size, size), fill).to(image)
    view_mask, valid = view.new_zeros(1, 1, size, size), view.new_zeros(1, 1, size, size)
    view[..., rows, columns], view_mask[:, 0, rows, columns], valid[..., rows, columns] = shown, subject, 1.0
    return view, view_mask, valid
