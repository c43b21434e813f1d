"""Encode object images as context rows: image encoders as CLIP_VISION, and adapters that the host manages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..host.encoders import (
    ClipVisionModel,
    casting_layers,
    encoder_devices,
    intermediate_device,
    load_clip_vision,
    load_on_device,
    managed_module,
    network_devices,
)
from ..host.patches import ModelPatcher
from . import dinov2
from .checkpoint_layouts import AdapterCheckpoint, build_adapter, from_published
from .content_adapter import (
    CLIP,
    DINOV2,
    IMAGENET,
    AdapterConfig,
    EncoderSpec,
    as_pixels,
    downsample_tokens,
    scale_context,
)
from .embedding_optimizer import OptimizerConfig

# the host's model types -> our encoder names
ENCODER_KINDS = {"dinov2": DINOV2, "clip_vision_model": CLIP}
CLIP_SIZES = {768: "ViT-B", 1024: "ViT-L/14", 1280: "ViT-H/14", 1664: "ViT-bigG/14"}


class DinoVision(ClipVisionModel):
    """A DINOv2 of any size, with or without registers, as the host's CLIP_VISION.

    Weights keep the file's precision and the arithmetic is float32, as in the training of the adapters.
    """

    def __init__(self, config: dinov2.DinoConfig, state: dict[str, Tensor]):
        self.image_size, (self.image_mean, self.image_std) = config.patch * config.grid, IMAGENET
        self.model_type = "dinov2"
        self.return_all_hidden_states = False
        self.config = {"hidden_size": config.width, "num_register_tokens": config.registers}
        self.load_device, offload = encoder_devices()
        self.dtype = state["layernorm.weight"].dtype
        self.model = HostDino(config, self.dtype, offload, casting_layers()).eval()
        self.model.load_state_dict(state)
        self.patcher = managed_module(self.model, self.load_device, offload)


class HostDino(dinov2.DinoV2):
    """DinoV2 with the host's signature: last, penultimate, pooled and projected states."""

    def forward(self, pixel_values: Tensor, intermediate_output=None):
        """Return (last tokens, penultimate tokens, class token, None) for normalised images (B, 3, H, W)."""
        last, before = self.hidden_states(pixel_values)
        return last, before, last[:, 0], None


def load_vision(state: dict[str, Tensor], config: dinov2.DinoConfig | None = None):
    """Return a CLIP_VISION of DINOv2 weights or of weights that the host recognises.

    Args:
        state: weights under the keys of transformers, of the published DINOv2 files, or of any CLIP vision
            model that the host loads. A CLIP without its last projection returns the unprojected embedding.
        config: the DINOv2's sizes, where the file states them.

    Returns:
        The CLIP_VISION, or None if the weights are not recognised.
    """
    if dinov2.is_facebook(state):
        state, config = from_published(state)
    if dinov2.is_transformers(state):
        return DinoVision(config or dinov2.read_dino_config(state), state)
    return load_clip_vision(state)


@dataclass(frozen=True)
class IdentityAdapter:
    """INLAY_ADAPTER: a content adapter or embedding optimizer the host can load and unload."""

    name: str
    layout: str
    config: AdapterConfig | OptimizerConfig
    patcher: ModelPatcher

    @property
    def encoder_spec(self) -> EncoderSpec:
        """The encoder that the adapter was trained with."""
        return self.config.encoder_spec


def load_adapter(checkpoint: AdapterCheckpoint, name: str) -> IdentityAdapter:
    """Return the adapter of a checkpoint as a module that the host moves between its devices."""
    device, offload = network_devices()
    module = build_adapter(checkpoint.config, torch.float32, offload, casting_layers())
    module.load_state_dict(checkpoint.adapter)
    return IdentityAdapter(
        name, checkpoint.layout, checkpoint.config, managed_module(module.eval(), device, offload)
    )


def encoder_name(kind: str, width: int, registers: int) -> str:
    """Return an encoder's name for messages, such as "DINOv2 ViT-g/14 with registers" or "CLIP ViT-L/14"."""
    if kind == DINOV2:
        size = (
            f"ViT-{dinov2.SIZE_BY_WIDTH[width]}/14" if width in dinov2.SIZE_BY_WIDTH else f"of width {width}"
        )
        return f"DINOv2 {size} {'with' if registers else 'without'} registers"
    if kind == CLIP:
        return f"CLIP {CLIP_SIZES.get(width, f'of width {width}')}"
    return f"{kind} of width {width}"


def check_encoder(vision, adapter: IdentityAdapter) -> None:
    """Check that the encoder is the one that the adapter was trained with.

    Raises:
        ValueError: if it is another, or None; it gives both names.
    """
    spec = adapter.encoder_spec
    expected = encoder_name(spec.encoder, spec.width, spec.registers)
    if vision is None:
        raise ValueError(
            f"encoder: there is none in the adapter's file; load {expected}, the one of {adapter.name}."
        )
    registers = vision.config.get("num_register_tokens", 0)
    kind, width = ENCODER_KINDS.get(vision.model_type, str(vision.model_type)), vision.config["hidden_size"]
    if (kind, width, registers) != (spec.encoder, spec.width, spec.registers):
        raise ValueError(
            f"encoder: this is {encoder_name(kind, width, registers)}, but the adapter {adapter.name}"
            f" was made for {expected}; load that encoder."
        )
    if kind == CLIP and vision.image_size != spec.size:  # DINOv2 takes images of any size
        raise ValueError(
            f"encoder: this {expected} takes {vision.image_size} pixels, but the adapter {adapter.name} was"
            f" made for one of {spec.size}; load that encoder."
        )


class ImageContext(NamedTuple):
    """The sampler's context (1, V * N, C): of the object, and unconditional."""

    context: Tensor
    uncond: Tensor


def encode_views(
    vision,
    adapter: IdentityAdapter,
    pictures: Sequence[Tensor],
    strength: float = 1.0,
    count: int = 0,
    raw: bool = False,
) -> ImageContext:
    """Encode the views of one object as context rows, one view after the other.

    Args:
        vision: CLIP_VISION of the encoder.
        adapter: maps its tokens to context rows.
        pictures: square images (1, S, S, 3) in [0, 1].
        strength: 0 is no object, 1 the object, see `scale_context`.
        count: maximum number of tokens of a view; 0 keeps all.
        raw: pixels from 0 to 255 are normalised, as in the published training of the embedding optimizer.
    """
    check_encoder(vision, adapter)
    spec = adapter.encoder_spec
    batch = torch.cat(list(pictures))
    tokens = vision_tokens(vision, spec, batch, raw)
    empty = None
    if spec.uncond == "picture":
        empty = vision_tokens(vision, spec, torch.zeros_like(batch[:1]), raw)
    load_on_device(adapter.patcher)
    module: Any = adapter.patcher.model
    device = adapter.patcher.load_device
    context = module(tokens.to(device))
    if spec.uncond == "learned":
        uncond = module.nothing.to(context).expand(1, context.shape[1], -1)
    elif empty is not None:
        uncond = module(empty.to(device))
    else:
        uncond = torch.zeros_like(context[:1])
    leading = None if adapter.config.tokens else 1 if spec.tokens == "pooled" else spec.leading
    context, uncond = downsample_tokens(context, count, leading), downsample_tokens(uncond, count, leading)
    context = scale_context(context, uncond.expand_as(context), strength)
    out = intermediate_device()
    views, _, width = context.shape
    return ImageContext(context.reshape(1, -1, width).to(out), uncond.repeat(1, views, 1).to(out))


def vision_tokens(vision, spec: EncoderSpec, pictures: Tensor, raw: bool) -> Tensor:
    """Return the encoder's tokens (B, N, E) that the adapter takes."""
    load_on_device(vision.patcher)
    pictures = pictures.to(vision.load_device, torch.float32)
    pixels = as_pixels(pictures, vision.image_mean, vision.image_std, raw)
    tokens = vision.model(pixel_values=pixels, intermediate_output=-2)[0]
    if spec.tokens in ("normed", "pooled"):
        tokens = vision.model.vision_model.post_layernorm(tokens)
    return tokens[:, :1] if spec.tokens == "pooled" else tokens
