"""Fooocus' inpaint patch for SDXL (lllyasviel/fooocus_inpaint), as Acly's pack hands it on: INPAINT_PATCH.

An INPAINT_PATCH is (head, deltas): a module whose `head` (320, 5, 3, 3) looks at mask and masked latent, and
a dict `diffusion_model.*` -> (uint8 tensor, min, max) of differences to SDXL's weights. The host's side.
"""

import uuid
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..host.families import config_name
from ..host.patches import ModelPatcher, WeightAdapterBase

KNOWN_HEADS: "weakref.WeakKeyDictionary[torch.nn.Module, uuid.UUID]" = weakref.WeakKeyDictionary()


class InpaintPatch(NamedTuple):
    """Fooocus' inpaint patch: the head, and weight -> (difference, minimum, maximum)."""

    head: torch.nn.Module
    deltas: dict[str, tuple[Tensor, Tensor, Tensor]]


class InpaintHead(torch.nn.Module):
    """Carries the weights of the head; `InpaintHead()(cat([mask, masked latent], 1))` is its feature."""

    def __init__(self, head: Tensor):
        super().__init__()
        self.head = torch.nn.Parameter(head, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head's feature map, which the first block adds, for the head's input (B, 5, H, W)."""
        return head_feature(self.head, x)


class QuantizedDelta(WeightAdapterBase):
    """delta = w / 255 * (max - min) + min, w a byte: turned into floats only while it is added."""

    name = "fooocus"

    def __init__(self, loaded_keys: set[str], weights: Sequence[Tensor]):
        # the host makes copies like this when it moves weights: type(value)(value.loaded_keys, moved)
        self.loaded_keys = loaded_keys
        self.weights = list(weights)

    def calculate_weight(
        self, weight, key, strength, strength_model, offset, function,
        intermediate_dtype=torch.float32, original_weight=None,
    ):  # fmt: skip
        """Add strength times the delta to the weight in place, and return it; called by the host."""
        w, low, high = (part.to(device=weight.device, dtype=torch.float32) for part in self.weights)
        delta = w / 255 * (high - low) + low
        weight += function(strength * delta.to(weight.dtype))
        return weight


def head_feature(head: Tensor, x: Tensor) -> Tensor:
    """Return a 3x3 convolution (320, 5, 3, 3) without bias over x (B, 5, h, w), the border repeated."""
    return F.conv2d(F.pad(x, (1, 1, 1, 1), "replicate"), head.to(x))


def patch_weights(model: ModelPatcher, patch: InpaintPatch) -> ModelPatcher:
    """Return a clone of the MODEL with the differences added to its weights.

    Raises ValueError when the weights have other names or shapes: the patch is made for SDXL.
    """
    weights = model.model_state_dict("diffusion_model.")
    fitting = {
        key: QuantizedDelta({key}, delta)
        for key, delta in patch.deltas.items()
        if key in weights and weights[key].shape == delta[0].shape
    }
    if len(fitting) < len(patch.deltas) / 2:
        raise ValueError(
            f"inpaint_patch: it fits {len(fitting)} of {len(patch.deltas)} weights of this"
            f" {config_name(model)} model; Fooocus' patch is made for SDXL, load one."
        )
    patched = model.clone()
    patched.add_patches(fitting)
    # The host patches weights anew when this changes: every execution would add all differences again.
    patched.patches_uuid = uuid.uuid5(model.patches_uuid, _identity(patch))
    return patched


def _identity(patch: InpaintPatch) -> str:
    """Return a name of a loaded patch, the same as long as it is in memory."""
    head = KNOWN_HEADS.setdefault(patch.head, uuid.uuid4())
    return f"{head} {id(patch.deltas)} {len(patch.deltas)}"


def block_patch(patch: InpaintPatch, mask: Tensor, masked: Tensor):
    """Return the host's `input_block_patch` that adds the head's feature to the first convolution's output.

    mask (B, 1, h, w) of zeros and ones; masked (B, 4, h, w), the masked picture's latent as UNets see it.
    The patch raises ValueError for a prompt with an area, which the host samples on a part of the latent.
    """
    feature = head_feature(patch.head.get_parameter("head"), torch.cat([mask.to(masked), masked], 1))

    def add_feature(h: Tensor, transformer_options: dict) -> Tensor:
        if transformer_options["block"] != ("input", 0):
            return h
        if h.shape[-2:] != feature.shape[-2:]:
            raise ValueError(
                "inpaint_patch: it does not go with prompts limited to an area; limit them by mask"
                " (set_cond_area: default)."
            )
        return h + feature.to(h).repeat(h.shape[0] // feature.shape[0], 1, 1, 1)

    return add_feature
