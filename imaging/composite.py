"""Paste-back: the generated picture inside the mask, the original's own pixels outside a soft edge."""

import torch
from scipy.ndimage import distance_transform_edt

from .boxes import Box, bounding_box

SCIPY_REACH = 32  # pixels from which the transform is faster than so many shifts


def paste_back(
    original: torch.Tensor, generated: torch.Tensor, mask: torch.Tensor, feather: int = 0
) -> torch.Tensor:
    """original * (1 - alpha) + generated * alpha, with alpha = `soft_edge(mask, feather)`.

    original and generated (B, H, W, C), both floating or both uint8; mask (B, H, W), not empty. Where alpha
    is 0 or 1 the result has the bits of one of the two. Raises ValueError when nothing is masked.
    """
    result = original.clone()
    paste_into(result, original, generated, Box(0, 0, *mask.shape[1:]), mask, feather)
    return result


def paste_into(
    result: torch.Tensor,
    original: torch.Tensor,
    generated: torch.Tensor,
    box: Box,
    mask: torch.Tensor,
    feather: int = 0,
) -> None:
    """`paste_back` of a picture that lies at `box` of the original, written into `result` where alpha > 0.

    generated (B, h, w, C) of the box's size; the box holds the mask (b, H, W) and its soft edge, so far as
    they lie in the picture. Nothing outside the box is read, nor written beyond the soft edge.
    """
    size = mask.shape[1:]
    seen = box.clamp(*size)
    rows, columns = seen.slices
    inside = bounding_box(mask[:, rows, columns].amax(0)).shift(seen.top, seen.left)
    window = inside.expand(feather).clamp(*size)
    rows, columns = window.slices
    alpha = soft_edge(mask[:, rows, columns], feather)[..., None]
    old = original[:, rows, columns]
    inner_rows, inner_columns = window.shift(-box.top, -box.left).slices
    new = generated[:, inner_rows, inner_columns]

    real = torch.promote_types(old.dtype, torch.float32)
    mixed = torch.lerp(old.to(real), new.to(real), alpha.to(real))
    if not old.is_floating_point():
        mixed = mixed.round()
    result[:, rows, columns] = torch.where(alpha > 0, mixed.to(old.dtype), result[:, rows, columns])


def soft_edge(mask: torch.Tensor, feather: int) -> torch.Tensor:
    """alpha (B, H, W): 1 inside the mask, falling over `feather` pixels outside it, 0 at greater distances.

    alpha = t^2 (3 - 2t) with t = 1 - d / (feather + 1), d the Euclidean distance to the mask in pixels.
    """
    distance = distance_to(mask, feather)
    ramp = torch.where(distance <= feather, 1 - distance / (feather + 1), 0.0)
    return ramp * ramp * (3 - 2 * ramp)


def distance_to(mask: torch.Tensor, reach: int) -> torch.Tensor:
    """Euclidean distance (B, H, W) of a pixel to the nearest masked one; exact up to `reach`, larger beyond.

    Squares separate: d^2 = min over dx of dx^2 + (min over dy of dy^2 + (0 where masked, else inf)). On the
    CPU scipy's transform is faster where the reach is long.
    """
    if mask.device.type == "cpu" and reach > SCIPY_REACH:
        return torch.stack([_transform(m) for m in mask])
    squared = torch.where(mask > 0.5, 0.0, torch.inf)
    for axis in (1, 2):
        squared = _nearest_along(axis, squared, reach)
    return squared.sqrt()


def _transform(mask: torch.Tensor) -> torch.Tensor:
    """`distance_to` of one mask (H, W), exact everywhere; infinite where nothing is masked."""
    outside = (mask <= 0.5).numpy()
    if outside.all():
        return torch.full(mask.shape, torch.inf)
    return torch.from_numpy(distance_transform_edt(outside)).float()


def _nearest_along(axis: int, squared: torch.Tensor, reach: int) -> torch.Tensor:
    """min over |k| <= reach of squared[i + k] + k^2 along the axis."""
    length = squared.shape[axis]
    nearest = squared.clone()
    for k in range(1, min(reach, length - 1) + 1):
        nearest.narrow(axis, 0, length - k).clamp_(max=squared.narrow(axis, k, length - k) + k * k)
        nearest.narrow(axis, k, length - k).clamp_(max=squared.narrow(axis, 0, length - k) + k * k)
    return nearest
