"""Cut out an object: for an encoder, on one colour in a square; for a measure, the pixels under its mask."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .boxes import Box, bounding_box
from .masks import check_mask
from .views import smooth_resize

BACKGROUND_COLOURS = {"black": 0.0, "white": 1.0, "grey": 0.5}
ORIGINAL = "original"
MIN_OBJECT_PX = 8  # minimum length of an object's longer side


def subject_picture(
    image: torch.Tensor,
    mask: torch.Tensor | None,
    side: int,
    background: str = "black",
    margin: float = 0.1,
    name: str = "masks",
    fit: str = "pad",
) -> torch.Tensor:
    """Return the object of one image as a square (1, side, side, 3) in [0, 1], with its aspect ratio.

    The square is the mask's box with `margin` around it. Pixels outside the mask and outside the image get
    the background's colour; soft mask values are blended.

    Args:
        image: (1, H, W, C >= 3) in [0, 1].
        mask: (1, H, W), 1 = object. None needs the background "original": the whole image is the object.
        side: of the result in pixels.
        background: a colour, or "original", which keeps the surroundings and repeats the image's border.
        margin: relative to the longer side of the object's box.
        name: of the input, for errors.
        fit: of what is not square: "pad" as said; "crop" the middle of an image without a mask (CLIP's
            processor); "squash" it to a square (Paint-by-Example).

    Raises:
        ValueError: if the mask is empty, of another size, or of a few pixels.
    """
    image = image[..., :3]
    if mask is None:
        if background != ORIGINAL:
            raise ValueError(
                f"{name}: there is neither a mask nor an alpha channel; paint over the object, or choose the"
                " background 'original' to show the whole picture."
            )
        if fit == "crop":
            image = _middle(image)
        mask, margin = image.new_ones(image.shape[:3]), 0.0
    box = object_box(image, mask, name)
    box = box.expand(round(margin * max(box.height, box.width))) if fit == "squash" else _square(box, margin)
    if background != ORIGINAL:
        alpha = mask.to(image)[..., None]
        image = image * alpha + BACKGROUND_COLOURS[background] * (1 - alpha)
    square = _window(image, box, None if background == ORIGINAL else BACKGROUND_COLOURS[background])
    return smooth_resize(square.movedim(-1, 1), side, side).clamp(0, 1).movedim(1, -1)


def _middle(image: torch.Tensor) -> torch.Tensor:
    """Return the square in the middle of a picture (1, H, W, C)."""
    height, width = image.shape[1:3]
    return image[(slice(None), *Box(0, 0, height, width).square(min(height, width), height, width).slices)]


def object_box(image: torch.Tensor, mask: torch.Tensor, name: str) -> Box:
    """Return the box of the object in mask (1, H, W).

    Raises:
        ValueError: if the mask is empty, of another size than the image, or smaller than MIN_OBJECT_PX.
    """
    check_mask(image, mask, name)
    if not (mask > 0.5).any():
        raise ValueError(f"{name}: it is empty (nothing above 0.5); paint over the object.")
    box = bounding_box(mask[0])
    if max(box.height, box.width) < MIN_OBJECT_PX:
        raise ValueError(
            f"{name}: the object is only {box.width}x{box.height} pixels, too small to recognise; give a"
            " larger picture of it."
        )
    return box


def _square(box: Box, margin: float) -> Box:
    """Return the square about the box's middle, with `margin` of its longer side; it may exceed the image."""
    side = max(1, round(max(box.height, box.width) * (1 + 2 * margin)))
    top, left = (box.top + box.bottom - side) // 2, (box.left + box.right - side) // 2
    return Box(top, left, top + side, left + side)


def _window(image: torch.Tensor, box: Box, fill: float | None) -> torch.Tensor:
    """Return the box of image (1, H, W, C); outside the image `fill`, or the repeated border for None."""
    height, width = image.shape[1:3]
    rows = torch.arange(box.top, box.bottom, device=image.device)
    columns = torch.arange(box.left, box.right, device=image.device)
    window = image[:, rows.clamp(0, height - 1)[:, None], columns.clamp(0, width - 1)]
    if fill is None:
        return window
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    return torch.where(inside[..., None], window, fill)


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
