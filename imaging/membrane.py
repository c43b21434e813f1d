"""Gradient-domain blending: spread the difference at the rim over the inside.

Seamless cloning (Perez, Gangnet and Blake, "Poisson Image Editing", 2003, eq. 4) keeps the gradients of the
pasted part and the colours of the surroundings. Its solution is the pasted part minus a membrane: the
function that equals the difference of the two pictures at the rim and satisfies Laplace's equation inside
(Farbman et al., "Coordinates for Instant Image Cloning", 2009, sec. 3).
"""

import torch
import torch.nn.functional as F

SMALLEST = 12  # pixels of the shorter side of the coarsest grid
SWEEPS = 24  # of relaxation on every grid but the coarsest
LARGE, FEW_SWEEPS = 400, 2  # pixels of a longer side above which few sweeps smooth the rim only


def membrane(values: torch.Tensor, unknown: torch.Tensor) -> torch.Tensor:
    """Fill the unknown pixels with the solution of Laplace's equation, from coarse to fine grids.

    Args:
        values: (C, H, W); what stands at unknown pixels is ignored.
        unknown: (H, W) of booleans. At the border of the picture the normal derivative is zero.

    Returns:
        (C, H, W), unchanged at known pixels; zeros if nothing is known.
    """
    if unknown.all():
        return torch.zeros_like(values)
    if not unknown.any():
        return values.clone()
    height, width = unknown.shape
    known = torch.where(unknown, 0.0, values)
    if min(height, width) <= SMALLEST:
        share = (~unknown).to(values)
        filled = torch.where(unknown, (known.sum((1, 2)) / share.sum())[:, None, None], values)
        return _relaxed(filled, unknown, 4 * (height + width))
    weight = F.avg_pool2d(_even((~unknown).to(values)[None]), 2)
    coarse = F.avg_pool2d(_even(known), 2) / weight.clamp(min=1e-6)
    solved = membrane(coarse, weight[0] == 0)
    fine = F.interpolate(solved[None], scale_factor=2, mode="bilinear")[0, :, :height, :width]
    sweeps = SWEEPS if max(height, width) <= LARGE else FEW_SWEEPS
    return _relaxed(torch.where(unknown, fine, values), unknown, sweeps)


def _even(image: torch.Tensor) -> torch.Tensor:
    """(C, H, W) with its last row and column left as zeros where the size is odd."""
    return F.pad(image, (0, image.shape[2] % 2, 0, image.shape[1] % 2))


def _relaxed(field: torch.Tensor, unknown: torch.Tensor, sweeps: int) -> torch.Tensor:
    """Red-black successive over-relaxation of the unknown pixels."""
    height, width = unknown.shape
    rows, columns = (torch.arange(length, device=unknown.device) for length in (height, width))
    even = (rows[:, None] + columns[None]) % 2 == 0
    for sweep in range(sweeps):
        omega = 1.0 if sweep < 2 else 1.6
        for colour in (unknown & even, unknown & ~even):
            padded = F.pad(field[None], (1, 1, 1, 1), mode="replicate")[0]
            mean = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
            field = torch.where(colour, field + omega * (mean / 4 - field), field)
    return field
