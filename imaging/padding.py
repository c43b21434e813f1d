"""Pad images of any size at the bottom and right to a model's grid, and crop them back exactly."""

import torch

GRIDS = (8, 16, 32)  # pixels per latent cell of the known autoencoders


def padded_size(height: int, width: int, multiple: int) -> tuple[int, int]:
    """Return the smallest multiples of `multiple` that hold the image."""
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def pad_to_multiple(picture: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad an IMAGE (B, H, W, C) or MASK (B, H, W) to `padded_size` by repeating its last row and column.

    A mask that touches the border is extended with it, so the hole does not end at the image's edge.
    """
    height, width = picture.shape[1:3]
    rows, columns = (
        torch.arange(padded, device=picture.device).clamp(max=length - 1)
        for padded, length in zip(padded_size(height, width, multiple), (height, width), strict=True)
    )
    return picture[:, rows[:, None], columns]


def crop_back(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return the (B, height, width, ...) part of an image that was padded to one of the `GRIDS`.

    Raises:
        ValueError: for any other size; nothing is resized.
    """
    rows, columns = picture.shape[1:3]
    if (rows, columns) not in {(height, width), *(padded_size(height, width, grid) for grid in GRIDS)}:
        raise ValueError(
            f"generated: it is {columns}x{rows} pixels but the original is {width}x{height};"
            " connect the picture that was generated from this original, or resize it to that size first."
        )
    return picture[:, :height, :width]
