"""Masks (B, H, W), 1 = the hole, where the subject goes: shapes, sizes, batches, checks in user's words."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .boxes import Box, bounding_box


def binarize(mask: torch.Tensor) -> torch.Tensor:
    """1 where the mask is above 0.5, else 0, in the mask's own dtype: the host's `mask.round()` on [0, 1]."""
    return (mask > 0.5).to(mask.dtype)


def fill_box(box: Box, height: int, width: int) -> torch.Tensor:
    """Return a mask (1, H, W) that is 1 inside the box; the box may reach over the border."""
    mask = torch.zeros(1, height, width)
    rows, columns = box.clamp(height, width).slices
    mask[:, rows, columns] = 1.0
    return mask


def fill_boxes(boxes: Sequence[Box], height: int, width: int) -> torch.Tensor:
    """Return a mask (1, H, W) that is 1 inside each of the boxes."""
    return torch.cat([fill_box(box, height, width) for box in boxes]).amax(0, keepdim=True)


def box_mask(mask: torch.Tensor) -> torch.Tensor:
    """Each sample's bounding box, filled (B, H, W): DreamCom's training hole (sec. 4.1).

    Raises ValueError when a sample is empty.
    """
    return torch.cat([fill_box(bounding_box(m), *m.shape) for m in mask]).to(mask)


def resize_mask(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Binary mask (B, H, W) on another grid: a pixel is masked when it touches a masked pixel of the old one.

    So shrinking never loses a thin subject, and the same size changes nothing.
    """
    return F.adaptive_max_pool2d(binarize(mask)[:, None], (height, width))[:, 0]


def touching(pixels: torch.Tensor, axis: int, count: int) -> torch.Tensor:
    """Booleans (H, W) with `count` pixels along an axis: true where one touches a true one, as above.

    It needs no numbers of 32 bits, so a large mask takes little memory.
    """
    length = pixels.shape[axis]
    number = torch.arange(count, device=pixels.device)
    first, end = number * length // count, ((number + 1) * length + count - 1) // count
    result = pixels.index_select(axis, first)
    for step in range(1, int((end - first).max())):
        result |= pixels.index_select(axis, torch.minimum(first + step, end - 1))
    return result


def match_batch(**batches: torch.Tensor) -> list[torch.Tensor]:
    """Return the named tensors (b, ...), every batch of one expanded to the largest batch.

    Raises ValueError, naming the input, when a batch is neither one nor the largest.
    """
    largest = max(batches, key=lambda name: len(batches[name]))
    batch = len(batches[largest])
    for name, tensor in batches.items():
        if len(tensor) not in (1, batch):
            raise ValueError(
                f"{name}: there are {len(tensor)} in the batch but {batch} in {largest};"
                " give one for all of them, or one for each."
            )
    return [tensor.expand(batch, *tensor.shape[1:]) for tensor in batches.values()]


def check_mask(image: torch.Tensor, mask: torch.Tensor, name: str = "mask") -> None:
    """Raise ValueError unless `mask` (B, H, W) has the size of `image` (B, H, W, C) and holds numbers."""
    (height, width), (rows, columns) = image.shape[1:3], mask.shape[-2:]
    if (height, width) != (rows, columns):
        raise ValueError(
            f"{name}: it is {columns}x{rows} pixels but the image is {width}x{height};"
            " draw the mask on that image or resize it to the same size."
        )
    check_finite_mask(mask, name)


def check_finite_mask(mask: torch.Tensor, name: str = "mask") -> None:
    """Raise ValueError when a mask of any shape holds NaN or infinite values."""
    if not mask.sum(dtype=torch.float32).isfinite():  # one pass over a large mask, and no copy of it
        raise ValueError(f"{name}: it holds NaN or infinite values; make the mask again.")


def check_not_empty(mask: torch.Tensor, name: str = "mask") -> None:
    """Raise ValueError when one of the masks (B, H, W) has no value above 0.5."""
    if not (mask > 0.5).flatten(1).any(1).all():
        raise ValueError(f"{name}: it is empty (nothing above 0.5); paint where the subject goes.")


def check_not_full(mask: torch.Tensor, name: str = "mask") -> None:
    """Raise ValueError when a mask of the batch (B, H, W) is above 0.5 everywhere."""
    if (mask > 0.5).flatten(1).all(1).any():
        raise ValueError(f"{name}: it covers the whole image; leave the background unpainted.")
