"""The subject's own picture: what lies under its mask, in a square, on grey."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..imaging.boxes import Box, bounding_box


def square_crop(image: Tensor, box: Box, size: int, margin: float = 0.0, fill: float = 0.5) -> Tensor:
    """The square around `box` of an image (C, H, W), resized to (C, size, size) without changing its shape.

    The square's side is the longer side of the box, `margin` of it added at each end; what reaches over the
    border is `fill`. Shrinking is antialiased.
    """
    side = max(1, round(max(box.height, box.width) * (1 + 2 * margin)))
    top, left = (box.top + box.bottom - side) // 2, (box.left + box.right - side) // 2
    inside = Box(top, left, top + side, left + side).clamp(*image.shape[-2:])
    rows, columns = inside.slices
    over = (inside.left - left, left + side - inside.right, inside.top - top, top + side - inside.bottom)
    square = F.pad(image[:, rows, columns], over, value=fill)
    return F.interpolate(square[None], (size, size), mode="bilinear", antialias=True)[0]


def subject_crops(
    images: Tensor, masks: Tensor, size: int, margin: float = 0.05, fill: float = 0.5
) -> Tensor:
    """Subjects (B, 3, size, size) of images (B, 3, H, W) in [0, 1] under masks (B, H, W), 1 = subject.

    Everything outside the mask becomes `fill` before the square around the mask's bounding box is cut out, so
    that no measure of the subject sees its background. A filled box as mask keeps the whole box.
    Raises ValueError for an empty mask.
    """
    hidden = torch.where(masks[:, None] > 0.5, images, fill)
    boxes = [bounding_box(mask) for mask in masks]
    return torch.stack(
        [square_crop(image, box, size, margin, fill) for image, box in zip(hidden, boxes, strict=True)]
    )
