"""Seams for changes to a MODEL: its patcher, weight, object and picture patches, the attention function."""

import copy
import math
from collections.abc import Callable
from typing import Any

import comfy.ldm.modules.attention
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.weight_adapter import LoRAAdapter, WeightAdapterBase
from torch import Tensor

__all__ = [
    "APPLY_MODEL",
    "CONCAT_KEYS",
    "SCALE_KNOWN_LATENT",
    "ModelPatcher",
    "WeightAdapterBase",
    "crop_picture_patches",
    "misfitting_patches",
    "optimized_attention",
    "with_object_patch",
]


# Attributes of the host's BaseModel that an object patch replaces.
CONCAT_KEYS = "concat_keys"  # which conditions the network reads beside the noisy latent, in their order
SCALE_KNOWN_LATENT = "scale_latent_inpaint"  # (sigma, latent_image) -> the sampler's x of the known latent


def with_object_patch(model: ModelPatcher, name: str, value) -> ModelPatcher:
    """Return a clone of MODEL with one attribute of its BaseModel replaced; None removes such a patch."""
    model = model.clone()
    model.object_patches.pop(name, None)
    if value is not None:
        model.add_object_patch(name, value)
    return model


def misfitting_patches(patcher) -> list[str]:
    """Return the weights of a MODEL or CLIP whose LoRA patches have other shapes; the host leaves those out.

    Looks at low-rank products and differences; other kinds of patches count as fitting.
    """
    patcher = getattr(patcher, "patcher", patcher)  # a CLIP has one inside
    return [
        key
        for key, patches in patcher.patches.items()
        if not all(_fits(patch, comfy.utils.get_attr(patcher.model, key).shape) for patch in patches)
    ]


def _fits(patch: tuple, shape: torch.Size) -> bool:
    _, value, _, offset, _ = patch
    wanted = list(shape)
    if offset is not None:  # (axis, start, length): a part of the weight
        wanted[offset[0]] = offset[2]
    if isinstance(value, LoRAAdapter):
        up, down, _, middle, _, reshape = value.weights
        if reshape is not None:
            return True
        kernel = down.shape[2:] if middle is None else middle.shape[2:]
        same_rank = middle is not None or up.shape[1:].numel() == down.shape[0]
        return same_rank and up.shape[0] * down.shape[1] * math.prod(kernel) == math.prod(wanted)
    if isinstance(value, tuple) and len(value) == 2 and value[0] == "diff":
        return list(value[1][0].shape) == wanted
    return True


# Classes of the host that hold a whole picture: the first two encode it, Anima's reads its pixels.
ENCODED_PICTURES = ("ZImageControlPatch", "DiffSynthCnetPatch")  # of nodes_model_patch.py
PIXELS = "AnimaLLLitePatch"  # of comfy.ldm.anima.lllite, as those that refer to it
LINKED_TO_PIXELS = ("AnimaLLLiteAttentionPatch", "AnimaLLLiteMLPPatch")
PICTURE_PATCHES = (*ENCODED_PICTURES, PIXELS, *LINKED_TO_PIXELS)


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
    """Return a patch of the part; the same one where a patch stands in two lists."""
    kind = type(patch).__name__
    if kind not in PICTURE_PATCHES:
        return patch
    if id(patch) in made:
        return made[id(patch)]
    if kind in ENCODED_PICTURES:
        keywords = {} if patch.mask is None else {"mask": crop_mask(patch.mask)}
        if getattr(patch, "inpaint_image", None) is not None:
            keywords["inpaint_image"] = crop(patch.inpaint_image)
        image = None if patch.image is None else crop(patch.image)
        part = type(patch)(patch.model_patch, patch.vae, image, patch.strength, **keywords).to(device)
    else:
        part = copy.copy(patch)
        if kind == PIXELS:
            part.image = crop(patch.image)
            part.mask = None if patch.mask is None else crop_mask(patch.mask)
        else:
            part.patch = _cropped(patch.patch, device, crop, crop_mask, made)
    made[id(patch)] = part
    return part


APPLY_MODEL = WrappersMP.APPLY_MODEL  # wrappers around one call of the network


def optimized_attention(*args, **kwargs):
    """Call the attention backend that the host has chosen; looked up at every call, because it can change."""
    return comfy.ldm.modules.attention.optimized_attention(*args, **kwargs)
