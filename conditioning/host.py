"""The host's side of conditions: CONDITIONING, and which channels a MODEL reads in which order."""

import math

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor

CHANNELS = "concat_keys"  # the host's list of what a model reads beside the noisy latent
# background's latent, 1 - mask: ObjectStitch and Paint-by-Example; the host's own order is mask, background
OBJECT_FIRST = ("masked_image", "mask_inverted")


def as_conditioning(context: Tensor) -> list:
    """Context rows (B, N, C) as the host's CONDITIONING."""
    return [[context, {"pooled_output": None}]]


def read_object_first(model: ModelPatcher) -> ModelPatcher:
    """A clone of an inpainting MODEL that reads (noisy latent, background's latent, 1 - mask).

    Raises ValueError for a model of other than 9 channels.
    """
    channels = model.model.model_config.unet_config.get("in_channels")
    if channels != 9:
        raise ValueError(
            f"model: it reads {channels} channels; load the checkpoint of ObjectStitch or Paint-by-Example"
            " (9 channels)."
        )
    model = model.clone()
    model.add_object_patch(CHANNELS, OBJECT_FIRST)
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
