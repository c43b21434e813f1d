"""Where a generated picture shows something else than the one it was made from: a mask that nobody drew."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch

TOLERANCE = 0.08  # mean absolute difference of a pixel's channels, of pictures in [0, 1]
SQUARES = 64  # radii of the squares that differences are averaged over, to the shorter side
SMALLEST_SHARE = 0.005  # share of the picture that has to change, together, to be more than a speck


def change_map(original: torch.Tensor, generated: torch.Tensor, tolerance: float, radius: int) -> np.ndarray:
    """(H, W) of booleans: where two pictures (H, W, C) in [0, 1] differ by more, averaged over a square."""
    from scipy.ndimage import uniform_filter  # the host brings it, and needs a while for it

    difference = (generated - original).abs().mean(-1).float().cpu().numpy()
    return uniform_filter(difference, 2 * radius + 1) > tolerance


def patches(pixels: np.ndarray, smallest: float = 1) -> Iterator[np.ndarray]:
    """Connected patches (H, W) of a picture of booleans, of so many pixels at least, the largest first."""
    from scipy.ndimage import label

    labelled, count = label(pixels)  # pyright: ignore[reportGeneralTypeIssues]
    sizes = np.bincount(labelled.ravel(), minlength=count + 1)[1:]
    for place in np.argsort(-sizes, kind="stable"):
        if sizes[place] < smallest:
            return
        yield labelled == 1 + place


def change_mask(
    original: torch.Tensor, generated: torch.Tensor, tolerance: float = TOLERANCE, largest: bool = True
) -> torch.Tensor:
    """1 where the generated picture shows something new, (B, H, W), zeros and ones; holes in it are filled.

    original and generated (B, H, W, C) in [0, 1]. `largest`: the largest patch of each picture alone, however
    small; else all that are no specks. What changes by no more than `tolerance`, as an autoencoder changes
    everything, is left out. Raises ValueError when nothing in any picture changed.
    """
    radius = max(1, min(original.shape[1:3]) // SQUARES)
    masks = [_mask(*pair, tolerance, largest, radius) for pair in zip(original, generated, strict=True)]
    mask = torch.from_numpy(np.stack(masks)).to(original)
    if not mask.any():
        where = "nowhere" if largest else f"in no patch of {SMALLEST_SHARE:.1%} of the picture"
        raise ValueError(
            f"generated: it differs from the original {where} by more than {tolerance:g}; lower tolerance."
        )
    return mask


def _mask(original, generated, tolerance: float, largest: bool, radius: int) -> np.ndarray:
    from scipy.ndimage import binary_dilation, binary_fill_holes

    pixels = change_map(original, generated, tolerance, radius)
    whole = np.zeros_like(pixels)
    found = islice(patches(pixels), 1) if largest else patches(pixels, SMALLEST_SHARE * pixels.size)
    for patch in found:
        whole |= patch
    filled: Any = binary_fill_holes(whole)
    return binary_dilation(filled, iterations=radius)
