"""The hole on the latent grid: one rule for training, the mask channel, the noise mask and attention.

A latent pixel lies in the hole where the first picture pixel under it does (nearest neighbour, as inpainting
models are trained and as DreamCom masks attention). A hole that would vanish keeps every latent pixel that it
touches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .composite import distance_to
from .masks import binarize
from .padding import pad_to_multiple
from .views import View

CELL = 8  # pixels of the picture to a latent pixel, in every VAE of the UNet families


def snap_hole(hole: Tensor, grid: tuple[int, int], cell: int = CELL) -> Tensor:
    """Holes (B, H, W) on the latents' grid, as zeros and ones (B, h, w).

    A picture that was padded to multiples of `cell` for the autoencoder has its hole padded alike; any other
    size is sampled in proportion.
    """
    hole = binarize(hole)
    padded = tuple(-(-length // cell) for length in hole.shape[1:])
    if padded == tuple(grid):
        hole = pad_to_multiple(hole, cell)
    small = F.interpolate(hole[:, None], tuple(grid), mode="nearest")[:, 0]
    lost = small.amax((1, 2), keepdim=True) == 0
    if not lost.any():
        return small
    return torch.where(lost, F.adaptive_max_pool2d(hole[:, None], tuple(grid))[:, 0], small)


def to_pixels(snapped: Tensor, height: int, width: int) -> Tensor:
    """A snapped hole (B, h, w) at the picture's size, from which every resizing gives the same hole again."""
    return F.interpolate(snapped[:, None], (height, width), mode="nearest")[:, 0]


def view_hole(mask: Tensor, view: View) -> Tensor:
    """The hole (B, height, width) that is painted on a view, of the picture's mask (B, H, W)."""
    shown = view.mask(mask)
    return grow_mask(shown, view.grow) if view.grow else shown


def grow_mask(hole: Tensor, grow: int) -> Tensor:
    """m' (DreamMix, sec. 3.2): the mask (B, h, w) and everything within `grow` pixels of it."""
    return (distance_to(hole, grow) <= grow).to(hole)


def snap_labels(labels: Tensor, grid: tuple[int, int], view: View | None = None) -> Tensor:
    """Regions (N, H, W), 0 = background, on the latent's grid (N, h, w): each snapped as a hole is.

    Where regions meet, the one with the lower number wins. `view`: the part that the latent shows.
    """
    snapped = labels.new_zeros(len(labels), *grid)
    for region in range(int(labels.max()), 0, -1):
        mask = (labels == region).float()
        hole = mask if view is None else view_hole(mask, view)
        snapped[snap_hole(hole, grid) > 0] = region
    return snapped
