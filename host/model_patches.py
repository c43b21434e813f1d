"""Model patches of the host that hold pictures: control models of Z-Image and Qwen-Image."""

from collections.abc import Callable
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

PICTURE_PATCHES = ("ZImageControlPatch", "DiffSynthCnetPatch")  # of nodes_model_patch.py


def crop_picture_patches(
    options: dict,
    model: ModelPatcher,
    crop: Callable[[Tensor], Tensor],
    crop_mask: Callable[[Tensor], Tensor],
) -> None:
    """Replace patches that hold a whole picture by patches of a part of it, in transformer_options.

    Args:
        options: transformer_options of this run alone; its lists of patches are replaced.
        model: whose load device the new patches go to.
        crop: IMAGE (B, H, W, C) -> the part.
        crop_mask: a mask (..., H, W) -> the part.
    """
    made: dict[int, Any] = {}
    for kind, patches in options.get("patches", {}).items():
        if any(type(patch).__name__ in PICTURE_PATCHES for patch in patches):
            options["patches"][kind] = [
                _cropped(patch, model.load_device, crop, crop_mask, made) for patch in patches
            ]


def _cropped(patch: Any, device: torch.device, crop, crop_mask, made: dict[int, Any]) -> Any:
    """A patch of the part; the same one where a patch stands in two lists."""
    if type(patch).__name__ not in PICTURE_PATCHES:
        return patch
    if id(patch) not in made:
        keywords = {} if patch.mask is None else {"mask": crop_mask(patch.mask)}
        if getattr(patch, "inpaint_image", None) is not None:
            keywords["inpaint_image"] = crop(patch.inpaint_image)
        image = None if patch.image is None else crop(patch.image)
        part = type(patch)(patch.model_patch, patch.vae, image, patch.strength, **keywords)
        made[id(patch)] = part.to(device)
    return made[id(patch)]
