"""Pictures and masks as other packs hand them on, in the one form that the engine reads."""

import torch
from torch import Tensor


def as_masks(mask: Tensor | None, name: str = "mask") -> Tensor:
    """Return a mask of any rank as (B, H, W), floating; a (B, H, W) tensor as it is.

    Reads (H, W), (B, 1, H, W), (B, H, W, 1), batches of batches (..., H, W), booleans, bytes up to 255.
    Raises ValueError, naming the input, when there is none or it is no mask.
    """
    if mask is None:
        raise ValueError(f"{name}: there is none; connect a mask that is 1 where the subject goes.")
    if not isinstance(mask, Tensor):
        raise ValueError(f"{name}: it is a {type(mask).__name__} and no mask; connect a node that makes one.")
    if mask.ndim < 2 or not mask.numel():
        raise ValueError(f"{name}: it has the shape {tuple(mask.shape)}, which is no mask; make it again.")
    if mask.ndim == 4 and mask.shape[-1] == 1 and mask.shape[1] != 1:
        mask = mask[..., 0]
    if mask.ndim == 4 and mask.shape[-1] in (3, 4) and mask.shape[1] > 4:
        raise ValueError(f"{name}: it is a picture with {mask.shape[-1]} channels; convert it to a mask.")
    if mask.ndim != 3:
        mask = mask.reshape(-1, *mask.shape[-2:])
    if mask.dtype == torch.uint8 and mask.max() > 1:
        return mask.float() / 255
    if mask.dtype == torch.bfloat16:
        return mask.float()  # numpy does not take it
    return mask if mask.is_floating_point() else mask.float()


def as_image(image: Tensor | None, name: str = "image") -> Tensor:
    """Return a picture as (B, H, W, 3 or 4), floating; one that is so already as it is.

    Reads (H, W, C), one channel (grey) and two (grey and alpha). Raises ValueError, naming the input, when
    there is none or it is no picture.
    """
    if image is None:
        raise ValueError(f"{name}: there is none; connect a picture.")
    if not isinstance(image, Tensor):
        raise ValueError(f"{name}: it is a {type(image).__name__} and no picture; connect Load Image.")
    if image.ndim == 3 and image.shape[-1] in (1, 3, 4):
        image = image[None]
    if image.ndim != 4 or image.shape[-1] not in (1, 2, 3, 4) or not image.numel():
        raise ValueError(
            f"{name}: it has the shape {tuple(image.shape)}, which is no picture (batch, height, width,"
            " channels); load it again."
        )
    if image.shape[-1] < 3:
        grey = image[..., :1].expand(*image.shape[:3], 3)
        image = torch.cat([grey, image[..., 1:]], -1)
    if image.dtype == torch.bfloat16:
        return image.float()  # neither numpy nor the host's previews take it
    return image if image.is_floating_point() else image.float() / 255


def check_finite(image: Tensor, name: str = "image") -> None:
    """Raise ValueError when a picture (B, H, W, C) holds NaN or infinite values."""
    if not image.sum(dtype=torch.float32).isfinite():  # one pass, and no copy
        raise ValueError(f"{name}: it holds NaN or infinite values; load the picture again.")


def as_masks_each(masks: list[Tensor] | None, name: str = "masks") -> list[Tensor] | None:
    """`as_masks` of every batch of a list input; None where it is not wired."""
    return None if masks is None else [as_masks(mask, name) for mask in masks]


def as_images_each(images: list[Tensor], name: str = "images") -> list[Tensor]:
    """`as_image` of every batch of a list input."""
    return [as_image(image, name) for image in images]


def optional_masks(mask: Tensor | None, name: str = "mask") -> Tensor | None:
    """`as_masks`, or None where nothing is connected."""
    return None if mask is None else as_masks(mask, name)
