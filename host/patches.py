"""Seams for changes to a MODEL: the patcher, weight patches, object patches."""

import math

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import LoRAAdapter, WeightAdapterBase

__all__ = [
    "CONCAT_KEYS",
    "SCALE_KNOWN_LATENT",
    "ModelPatcher",
    "WeightAdapterBase",
    "misfitting_patches",
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
    """The weights of a MODEL or CLIP whose LoRA patches have other shapes; the host leaves those out.

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
