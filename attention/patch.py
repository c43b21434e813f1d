"""Masked attention as replacements in a UNet's `transformer_options`, chained over what is there.

The host calls a replacement with the projected (q, k, v) and looks for it under (block, number, index) first,
under (block, number) second. Ours sit at (block, number), so that a neighbour who sets a whole block later
(perturbed-attention guidance does, for one pass) is not overruled, and around every finer key already set.

A replacement that was there before ours is called with full queries and keys; what it returns is masked like
plain attention. So what an image-prompt adapter adds to a cross-attention layer stays inside the box too.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..common.log import logger
from .layers import LAYER_PRESETS, Layer, listed_layers, preset_layers, unet_layers
from .masked import (
    Attend,
    cross_blocks,
    masked_rows,
    plain_attention,
    replaced_cross,
    replaced_self,
    self_blocks,
)
from .regions import GridRegions, RegionPlan, region_labels

PLAN = "inlay_regions"  # where the plan of the current batch stands in transformer_options
CONDITIONAL, UNCONDITIONAL = 0, 1  # the host's numbers in transformer_options["cond_or_uncond"]
APPLY_TO = {
    "both": None,  # every pass: a guider of three prompts numbers its passes otherwise
    "conditional": (CONDITIONAL,),
    "unconditional": (UNCONDITIONAL,),
}


@dataclass(frozen=True)
class Masking:
    """Which layers to mask and how: strengths from 0 (unmasked) to 1, operator as in `masked`."""

    cross_layers: tuple[Layer, ...]
    self_layers: tuple[Layer, ...]
    cross_strength: float = 1.0
    self_strength: float = 1.0
    operator: str = "paper"
    plan: str = PLAN


def choose_masking(
    unet: nn.Module,
    cross_strength: float = 1.0,
    self_layers: str = "auto",
    self_strength: float = 1.0,
    operator: str = "paper",
    plan: str = PLAN,
) -> Masking:
    """Every cross-attention layer, and the self-attention layers of a preset or of a free list (`layers`).

    A strength of 0 leaves the layers out. Raises ValueError for an unknown network or list.
    """
    layers = unet_layers(unet)
    choose = preset_layers if self_layers in LAYER_PRESETS else listed_layers
    chosen = choose(layers, self_layers)
    masked = tuple(layer for layer in layers if layer in chosen and layer.self_attention)
    return Masking(
        cross_layers=tuple(layers) if cross_strength > 0 else (),
        self_layers=masked if self_strength > 0 else (),
        cross_strength=cross_strength,
        self_strength=self_strength,
        operator=operator,
        plan=plan,
    )


def region_options(
    unet: nn.Module,
    mask: Tensor | Sequence[Tensor],
    *,
    batch: int | None = None,
    cross_strength: float = 1.0,
    self_layers: str = "none",
    self_strength: float = 1.0,
    operator: str = "paper",
    text: Sequence[Collection[int] | None] | None = None,
    released: bool = False,
    apply_to: str = "both",
    attend: Callable[..., Tensor] = plain_attention,
    device: torch.device | None = None,
    transformer_options: dict | None = None,
) -> dict:
    """Return new `transformer_options` that mask a UNet's attention for one batch, without a ModelPatcher.

    mask: (B,H,W) in [0,1] at image size, one per image or one for all; a sequence of them, one per subject.
    batch: images in the batch, where it is not the mask's. device: where the UNet runs, default the mask's.
    text: per subject the positions of the text tokens it sees, None for all; released: see
    `text_positions`. attend: the host's `optimized_attention`, or one called like it. The other options as
    in `choose_masking` and `row_masks`. Replacements already in transformer_options are called, not lost;
    its "cond_or_uncond" gives how many copies of the images the batch holds (default: one, conditional).
    """
    masks = [mask] if isinstance(mask, Tensor) else list(mask)
    options = dict(transformer_options or {})
    labels = region_labels(masks)
    chunks = options.get("cond_or_uncond", [CONDITIONAL])
    rows = row_masks(labels.shape[0], batch or labels.shape[0], chunks, apply_to)
    masking = choose_masking(unet, cross_strength, self_layers, self_strength, operator)
    options[masking.plan] = RegionPlan(labels, rows, text, released, device or masks[0].device)
    return with_replacements(options, masking, attend)


def row_masks(masks: int, images: int, chunks: Sequence[int], apply_to: str = "both") -> list[int | None]:
    """For every row of a batch the mask that applies to it, or None.

    masks: how many there are, 1 or one per image. chunks: the host's "cond_or_uncond", one number per copy of
    the images in the batch. apply_to: "both" (every pass of the guider) | "conditional" | "unconditional".
    Raises ValueError where the masks fit neither.
    """
    if masks not in (1, images):
        raise ValueError(
            f"There are {masks} masks for {images} image(s): give one mask for all, or one for each image."
        )
    numbers = range(images) if masks == images else [0] * images
    passes = APPLY_TO[apply_to]
    masked = [passes is None or chunk in passes for chunk in chunks]
    return [number if inside else None for inside in masked for number in numbers]


def with_replacements(options: dict, masking: Masking, attend: Callable[..., Tensor]) -> dict:
    """Return a copy of transformer_options with our replacements, chained over those it has."""
    replaced = dict(options.get("patches_replace", {}))
    for name, layers, make in (
        ("attn1", masking.self_layers, self_replacement),
        ("attn2", masking.cross_layers, cross_replacement),
    ):
        there = replaced.get(name, {})
        ours = dict(there)
        for block in dict.fromkeys((layer.block, layer.number) for layer in layers):
            indices = frozenset(layer.index for layer in layers if (layer.block, layer.number) == block)
            ours[block] = make(masking, indices, attend, there.get(block))
            for key in there:
                if key[:2] == block and len(key) == 3:
                    ours[key] = make(masking, indices, attend, there[key])
        if ours:
            replaced[name] = ours
    return {**options, "patches_replace": replaced}


class Replacement:
    """A replacement of attention; packs that add to it (IPAdapter calls `add`) get an error.

    What they add would not be masked, and stay on the MODEL that was patched before theirs.
    """

    def __init__(self, attention: Callable[..., Tensor]):
        self.attention = attention

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict, **kwargs) -> Tensor:
        """Return one attention of the host's block: q, k and v are (B, L, C)."""
        return self.attention(q, k, v, extra_options, **kwargs)

    def add(self, *_, **__):
        """Raise ValueError: a patch that adds to this attention would not be masked."""
        raise ValueError(
            "Masked Attention stands before a node that adds to its attention, such as IPAdapter or"
            " InstantID; wire the model through that node first and through Masked Attention after it."
        )


def self_replacement(masking: Masking, indices: frozenset[int], attend, previous=None):
    """Return the replacement of a block's self-attention; indices: which of its transformers are masked."""

    def masked_self_attention(q, k, v, extra_options, **kwargs):
        call = _unmasked(attend, previous, extra_options, kwargs)
        regions = _regions(masking.plan, indices, q, extra_options)
        if regions is None or k.shape[1] != q.shape[1]:
            return call(q, k, v)
        if previous is not None:
            return replaced_self(q, k, v, regions, call, masking.operator, masking.self_strength)
        return masked_rows(q, k, v, regions, self_blocks, call, masking.operator, masking.self_strength)

    return Replacement(masked_self_attention)


def cross_replacement(masking: Masking, indices: frozenset[int], attend, previous=None):
    """Return the replacement of a block's cross-attention; indices: which of its transformers are masked."""

    def masked_cross_attention(q, k, v, extra_options, **kwargs):
        call = _unmasked(attend, previous, extra_options, kwargs)
        regions = _regions(masking.plan, indices, q, extra_options)
        if regions is None:
            return call(q, k, v)
        plan = extra_options[masking.plan]
        if previous is not None:
            return replaced_cross(q, k, v, regions, plan, call, masking.operator, masking.cross_strength)
        blocks = cross_blocks(plan, k.shape[1])
        return masked_rows(q, k, v, regions, blocks, call, masking.operator, masking.cross_strength)

    return Replacement(masked_cross_attention)


def _unmasked(attend, previous, extra_options: dict, kwargs: dict) -> Attend:
    """Return what runs here without us: the replacement that was there, or the host's attention."""
    if previous is not None:
        return lambda q, k, v: previous(q, k, v, extra_options, **kwargs)
    heads, precision = extra_options["n_heads"], extra_options["attn_precision"]
    return lambda q, k, v: attend(q, k, v, heads, attn_precision=precision, transformer_options=extra_options)


def _regions(plan_name: str, indices: frozenset[int], q: Tensor, extra_options: dict) -> GridRegions | None:
    """Return the regions on this layer's grid, or None where it is not masked.

    Patches that tile or merge tokens (HyperTile, ToMe) hand on queries that no longer lie on the layer's
    grid: such a layer stays unmasked.
    """
    plan = extra_options.get(plan_name)
    if plan is None or extra_options.get("block_index", 0) not in indices:
        return None
    height, width = extra_options["activations_shape"][-2:]
    if q.shape[0] != len(plan.row_masks) or q.shape[1] != height * width:
        if not torch.compiler.is_compiling():
            _say_once(plan, extra_options["block"])
        return None
    latent_height, latent_width = extra_options["original_shape"][-2:]
    return plan.at((latent_height, latent_width), (height, width))


def _say_once(plan: RegionPlan, block: tuple) -> None:
    if block not in plan.unmasked:
        plan.unmasked.add(block)
        logger.warning("Masked attention: %s %s stays unmasked, another patch regroups its tokens.", *block)
