"""The pictures behind the condition of a 9-channel inpainting UNet (noisy latent, mask, masked image)."""

import torch

from ..imaging.latent_mask import snap_hole, to_pixels
from ..imaging.masks import binarize, match_batch
from ..imaging.padding import pad_to_multiple

UNET_CHANNELS = 4  # of the latents of SD 1.5, SD 2 and SDXL


def snapped_hole(mask: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    """The hole (B, H, W) as the latent's grid knows it, at the picture's size.

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
    """What the autoencoder and the UNet get to see, on the autoencoder's grid.

    image (B, H, W, C >= 3) in [0, 1], mask (B, H, W); a batch of one stands for all of the other.
    Returns, padded to multiples of `grid`: image and masked image (B, H', W', 3), mask (B, H', W').
    """
    image, mask = match_batch(image=image[..., :3], mask=mask)
    image, mask = pad_to_multiple(image, grid), pad_to_multiple(binarize(mask).to(image), grid)
    return image, grey_hole(image, mask), mask
