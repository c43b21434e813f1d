"""Resampling: a picture at other positions, in one pass that keeps exact pixels exact.

The kernel is the cubic one of Keys (1981, "Cubic convolution interpolation", eq. 15, a = -1/2), widened
where the picture shrinks, as in the host's bicubic resizing. Positions are continuous pixels: the centre of
the first pixel is 0.5.
"""

import math

import torch

from .boxes import Box
from .views import resize_image

PIXELS_AT_ONCE = 2**16  # pixels that are calculated at once
TAPS = (-1, 0, 1, 2)  # pixels that a cubic kernel reaches from the one before a position


def resample(picture: torch.Tensor, rows: tuple[float, float, int], columns: tuple[float, float, int]):
    """Sample (B, H, W, C) on a grid along its rows and columns.

    Args:
        picture: (B, H, W, C), any floating dtype; calculated in 32 bits at least.
        rows: (step, start, count): output row i lies at start + step * (i + 0.5) of the picture.
        columns: The same for columns. Beyond the border the picture's last pixels are repeated.

    Returns:
        (B, rows, columns, C) in the picture's dtype; values may overshoot its range.
    """
    first, last = _reached(columns, picture.shape[2])
    picture, columns = picture[:, :, first:last], (columns[0], columns[1] - first, columns[2])
    step, start, count = rows
    sampled = picture.new_empty(len(picture), count, columns[2], picture.shape[3])
    strip = max(1, PIXELS_AT_ONCE // max(columns[2], picture.shape[2]))
    for top in range(0, count, strip):
        bottom = min(top + strip, count)
        first, last = _reached((step, start + step * top, bottom - top), picture.shape[1])
        part = (step, start + step * top - first, bottom - top)
        sampled[:, top:bottom] = _strip(picture[:, first:last], part, columns)
    return sampled


def _reached(grid: tuple[float, float, int], length: int) -> tuple[int, int]:
    """(first, last + 1) of `length` pixels that the kernel reaches from a grid, at least one."""
    step, start, count = grid
    reach = 2 * max(1.0, abs(step)) + 1
    ends = start + step * 0.5, start + step * (count - 0.5)
    first = min(max(0, math.floor(min(ends) - reach)), length - 1)
    return first, max(min(length, math.ceil(max(ends) + reach)), first + 1)


def _strip(picture: torch.Tensor, rows: tuple[float, float, int], columns: tuple[float, float, int]):
    """`resample` in one piece."""
    real = picture.to(torch.promote_types(picture.dtype, torch.float32))
    axes = [(1, rows), (2, columns)]
    axes.sort(key=lambda axis: axis[1][2] / picture.shape[axis[0]])  # the axis that shrinks most comes first
    for axis, grid in axes:
        real = _along(real, axis, *grid)
    return real


def _along(picture: torch.Tensor, axis: int, step: float, start: float, count: int) -> torch.Tensor:
    length = picture.shape[axis]
    if step == 1 and start == int(start) and start >= 0 and start + count <= length:
        return picture.narrow(axis, int(start), count)
    width = max(1.0, abs(step))
    centres = start + step * (torch.arange(count, dtype=torch.float64) + 0.5)
    first = torch.floor(centres - 2 * width + 0.5).long()
    shape = [1] * picture.dim()
    shape[axis] = count
    weights, total = [], torch.zeros(count, dtype=torch.float64)
    for tap in range(math.ceil(4 * width) + 1):
        weights.append(_keys((first + tap + 0.5 - centres) / width))
        total += weights[-1]
    result = None
    for tap, weight in enumerate(weights):
        if not weight.any():
            continue
        index = (first + tap).clamp(0, length - 1).to(picture.device)
        taken = picture.index_select(axis, index)
        factor = (weight / total).to(picture.dtype).to(picture.device).view(shape)  # Apple GPUs: no float64
        result = taken.mul_(factor) if result is None else result.addcmul_(taken, factor)
    assert result is not None
    return result


def _keys(distance: torch.Tensor) -> torch.Tensor:
    x = distance.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


def crop_resized(picture: torch.Tensor, box: Box, height: int, width: int) -> torch.Tensor:
    """Return the part of (B, H, W, C) inside a box at another size, in [0, 1].

    The box may reach over the border.
    """
    if box == box.clamp(*picture.shape[1:3]):
        rows, columns = box.slices
        part = picture[:, rows, columns]
        if (height, width) == (box.height, box.width):
            return part.clamp(0, 1)
        channels = [resize_image(channel[..., None], height, width) for channel in part.unbind(-1)]
        return torch.cat(channels, -1)  # one by one: resizing copies what it reads
    rows = (box.height / height, float(box.top), height)
    columns = (box.width / width, float(box.left), width)
    return resample(picture, rows, columns).clamp(0, 1)


def warp_affine(picture: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """(B, H, W, C) sampled at matrix[:, :2] @ (row, column) + matrix[:, 2] by bicubic interpolation.

    Args:
        picture: (B, H, W, C) in [0, 1].
        matrix: (2, 3) float64, continuous pixels of the picture.

    Returns:
        The picture of the same size; beyond the border its last pixels are repeated.
    """
    batch, height, width, channels = picture.shape
    real = torch.promote_types(picture.dtype, torch.float32)
    flat = picture.reshape(batch, height * width, channels).to(real)
    moved = torch.empty_like(flat)
    rows = max(1, PIXELS_AT_ONCE // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        moved[:, top * width : bottom * width] = _warped(flat, matrix, (height, width), top, bottom)
    return moved.view(picture.shape).to(picture.dtype)


def _warped(
    flat: torch.Tensor, matrix: torch.Tensor, size: tuple[int, int], top: int, bottom: int
) -> torch.Tensor:
    """Rows top to bottom of `warp_affine`, as (B, pixels, C)."""
    y = torch.arange(top, bottom, dtype=torch.float64)[:, None] + 0.5
    x = torch.arange(size[1], dtype=torch.float64)[None] + 0.5
    weights, indices = [], []
    for (down, right, shift), length in zip(matrix.tolist(), size, strict=True):
        position = (down * y + right * x + shift).flatten() - 0.5
        first = position.floor()
        weights.append([_keys(first + tap - position).to(flat.dtype).to(flat.device) for tap in TAPS])
        indices.append([(first.long() + tap).clamp(0, length - 1).to(flat.device) for tap in TAPS])
    moved = torch.zeros_like(flat[:, : weights[0][0].numel()])
    for row, row_weight in zip(indices[0], weights[0], strict=True):
        for column, weight in zip(indices[1], weights[1], strict=True):
            moved.addcmul_(flat.index_select(1, row * size[1] + column), (row_weight * weight)[:, None])
    return moved
