"""Crop the subject out of an image: the pixels under its mask, in a square, on grey."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..imaging.boxes import Box, bounding_box


def square_crop(image: Tensor, box: Box, size: int, margin: float = 0.0, fill: float = 0.5) -> Tensor:
    """Return the square around `box` of an image (C, H, W), resized with antialiasing to (C, size, size).

    Args:
        image: the image.
        box: inside or outside the image.
        size: side of the result in pixels.
        margin: added on each side, relative to the box's longer side.
        fill: value outside the image.
    """
    side = max(1, round(max(box.height, box.width) * (1 + 2 * margin)))
    top, left = (box.top + box.bottom - side) // 2, (box.left + box.right - side) // 2
    inside = Box(top, left, top + side, left + side).clamp(*image.shape[-2:])
    rows, columns = inside.slices
    padding = (inside.left - left, left + side - inside.right, inside.top - top, top + side - inside.bottom)
    square = F.pad(image[:, rows, columns], padding, value=fill)
    return F.interpolate(square[None], (size, size), mode="bilinear", antialias=True)[0]


def subject_crops(
    images: Tensor, masks: Tensor, size: int, margin: float = 0.05, fill: float = 0.5
) -> Tensor:
    """Return the subjects (B, 3, size, size) of images (B, 3, H, W) in [0, 1].

    Pixels outside the masks (B, H, W), 1 = subject, become `fill`, so that the background does not affect
    measures of the subject. A mask that is a filled box keeps the whole box.

    Raises:
        ValueError: if a mask is empty.
    """
    masked = torch.where(masks[:, None] > 0.5, images, fill)
    boxes = [bounding_box(mask) for mask in masks]
    return torch.stack(
        [square_crop(image, box, size, margin, fill) for image, box in zip(masked, boxes, strict=True)]
    )
