"""The hole on the latent grid, and the pictures behind the condition of a 9-channel inpainting UNet.

One rule for training, the mask channel, the noise mask and attention of UNets: a latent pixel lies in the
hole where the first picture pixel under it does (nearest neighbour, as inpainting models are trained and as
DreamCom masks attention). A hole that would vanish keeps every latent pixel that it touches.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .composite import distance_to
from .masks import binarize, match_batch
from .views import View, pad_to_multiple

CELL = 8  # pixels of the picture to a latent pixel, in every VAE of the UNet families


def snap_hole(hole: Tensor, grid: Sequence[int], cell: int = CELL) -> Tensor:
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
    """Return a snapped hole (B, h, w) at the picture's size; any resizing of it gives the same hole."""
    return F.interpolate(snapped[:, None], (height, width), mode="nearest")[:, 0]


def view_hole(mask: Tensor, view: View) -> Tensor:
    """Return the hole (B, height, width) that is painted on a view, of the picture's mask (B, H, W)."""
    shown = view.mask(mask)
    return grow_mask(shown, view.grow) if view.grow else shown


def with_soft_values(hole: Tensor, mask: Tensor, grow: int = 0) -> Tensor:
    """Return a hole (B, h, w) of zeros and ones with the soft values of its mask: over 0.5 inside, 0 outside.

    mask: (B, H, W), what the hole was made of. grow: by which the hole was grown, in its own pixels; the rim
    has the largest value within reach.
    """
    if not ((mask > 0.5) & (mask < 1)).any():
        return hole
    values = F.interpolate(mask[:, None].to(hole), hole.shape[1:], mode="nearest-exact").clamp(0, 1)
    near = values
    for sides in ((1, 0), (0, 1)):
        reach = [grow * side for side in sides]
        near = F.max_pool2d(near, [2 * r + 1 for r in reach], 1, reach)
    values = torch.where(values > 0.5, values, near)[:, 0]
    return hole * torch.where(values > 0.5, values, 1.0)


def grow_mask(hole: Tensor, grow: int) -> Tensor:
    """m' (DreamMix, sec. 3.2): the mask (B, h, w) and everything within `grow` pixels of it."""
    return (distance_to(hole, grow) <= grow).to(hole)


def snap_labels(labels: Tensor, grid: Sequence[int], view: View | None = None) -> Tensor:
    """Regions (N, H, W), 0 = background, on the latent's grid (N, h, w): each snapped as a hole is.

    Where regions meet, the one with the lower number wins. `view`: the part that the latent shows.
    """
    snapped = labels.new_zeros(len(labels), *grid)
    for region in range(int(labels.max()), 0, -1):
        mask = (labels == region).float()
        hole = mask if view is None else view_hole(mask, view)
        snapped[snap_hole(hole, grid) > 0] = region
    return snapped


UNET_CHANNELS = 4  # of the latents of SD 1.5, SD 2 and SDXL


def snapped_hole(mask: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    """Return the hole (B, H, W) snapped to the latent's grid, at the picture's size.

    mask (B, H, W), padded as the picture of the latent (B, C, h, w), or (B, C, 1, h, w), was.
    """
    height, width = mask.shape[1:]
    grid = latent.shape[-2], latent.shape[-1]
    return to_pixels(snap_hole(mask, grid, height // grid[0]), height, width)


def grey_hole(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """x * (1 - m) with x = 2 image - 1: the hole is 0 in [-1, 1], middle grey in [0, 1].

    image (B, H, W, 3) in [0, 1], mask (B, H, W) of zeros and ones.
    """
    return (image - 0.5) * (1 - mask[..., None]) + 0.5


def inpaint_pictures(
    image: torch.Tensor, mask: torch.Tensor, grid: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what the autoencoder and the UNet get to see, on the autoencoder's grid.

    image (B, H, W, C >= 3) in [0, 1], mask (B, H, W); a batch of one stands for all of the other.
    Returns, padded to multiples of `grid`: image and masked image (B, H', W', 3), mask (B, H', W').
    """
    image, mask = match_batch(image=image[..., :3], mask=mask)
    image, mask = pad_to_multiple(image, grid), pad_to_multiple(binarize(mask).to(image), grid)
    return image, grey_hole(image, mask), mask
