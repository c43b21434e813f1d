"""Find the pixels where a generated image differs from its original, as a mask."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from scipy.ndimage import binary_dilation, binary_fill_holes, label, uniform_filter

TOLERANCE = 0.08  # mean absolute difference of a pixel's channels, of pictures in [0, 1]
WINDOWS_PER_SIDE = 64  # shorter side of the image / radius of the averaging window
SMALLEST_SHARE = 0.005  # minimum area of a changed patch, relative to the image; smaller ones are noise


def change_map(original: torch.Tensor, generated: torch.Tensor, tolerance: float, radius: int) -> np.ndarray:
    """Return (H, W) booleans: where two images (H, W, C) in [0, 1] differ by more than `tolerance`.

    The difference is averaged over a square window of the given radius.
    """
    difference = (generated - original).abs().mean(-1).float().cpu().numpy()
    return uniform_filter(difference, 2 * radius + 1) > tolerance


def patches(pixels: np.ndarray, smallest: float = 1) -> Iterator[np.ndarray]:
    """Yield the connected patches (H, W) of a boolean image, the largest first.

    Args:
        pixels: the boolean image (H, W).
        smallest: minimum number of pixels of a patch.
    """
    labelled, count = label(pixels)  # pyright: ignore[reportGeneralTypeIssues]
    sizes = np.bincount(labelled.ravel(), minlength=count + 1)[1:]
    for index in np.argsort(-sizes, kind="stable"):
        if sizes[index] < smallest:
            return
        yield labelled == 1 + index


def change_mask(
    original: torch.Tensor, generated: torch.Tensor, tolerance: float = TOLERANCE, largest: bool = True
) -> torch.Tensor:
    """Return the changed area as a mask (B, H, W) of zeros and ones, with its holes filled.

    Args:
        original: (B, H, W, C) in [0, 1].
        generated: the same size.
        tolerance: mean absolute difference of a pixel's channels; autoencoders change every pixel a little.
        largest: keep only the largest patch of each image, of any size; else all patches of at least
            SMALLEST_SHARE of the image.

    Raises:
        ValueError: if no image has a change.
    """
    radius = max(1, min(original.shape[1:3]) // WINDOWS_PER_SIDE)
    masks = [_mask(*pair, tolerance, largest, radius) for pair in zip(original, generated, strict=True)]
    mask = torch.from_numpy(np.stack(masks)).to(original)
    if not mask.any():
        where = "nowhere" if largest else f"in no patch of {SMALLEST_SHARE:.1%} of the picture"
        raise ValueError(
            f"generated: it differs from the original {where} by more than {tolerance:g}; lower tolerance."
        )
    return mask


def _mask(original, generated, tolerance: float, largest: bool, radius: int) -> np.ndarray:
    pixels = change_map(original, generated, tolerance, radius)
    union = np.zeros_like(pixels)
    selected = islice(patches(pixels), 1) if largest else patches(pixels, SMALLEST_SHARE * pixels.size)
    for patch in selected:
        union |= patch
    filled: Any = binary_fill_holes(union)
    return binary_dilation(filled, iterations=radius)
