"""What adapter training starts from: diffusers' UNet and autoencoder, DINOv2 or CLIP.

All of them are folders of the user's; nothing is downloaded.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ...common.text_files import read_json
from ...encoders import checkpoint_layouts as layouts
from ...encoders import dinov2
from ...encoders.content_adapter import CLIP, AdapterConfig, EncoderSpec
from ...encoders.embedding_optimizer import OptimizerConfig
from ..finetune.trainer import NoiseSchedule
from .identity_stages import widen

NOISE_LEVELS, BETA_START, BETA_END = 1000, 0.00085, 0.012  # Stable Diffusion's noise: sqrt(beta) rises evenly


class DiffusersVae:
    """diffusers' AutoencoderKL, frozen; see `adapters.Vae`."""

    def __init__(self, folder: Path, device: torch.device):
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        self.vae: Any = AutoencoderKL.from_pretrained(folder, local_files_only=True)
        self.vae.requires_grad_(False).eval().to(device)

    def _posterior(self, pictures: Tensor):
        return self.vae.encode(2 * pictures.movedim(-1, 1) - 1).latent_dist

    def sample(self, pictures: Tensor, noise: Tensor) -> Tensor:
        posterior = self._posterior(pictures)
        return (posterior.mean + posterior.std * noise) * self.vae.config.scaling_factor

    def mode(self, pictures: Tensor, scaled: bool) -> Tensor:
        return self._posterior(pictures).mode() * (self.vae.config.scaling_factor if scaled else 1)


def load_unet(folder: Path, channels: int, file: Path | None = None) -> nn.Module:
    """diffusers' UNet2DConditionModel, its first convolution widened to `channels` where it has fewer.

    `file`: weights of an earlier training in place of the folder's. Raises ValueError where it has more.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet: Any = UNet2DConditionModel.from_pretrained(folder, local_files_only=True)
    if unet.config.in_channels > channels:
        raise ValueError(
            f"--unet: it reads {unet.config.in_channels} channels, but this stage gives it {channels}; choose"
            " a UNet with no more."
        )
    if unet.config.in_channels < channels:
        unet.conv_in = widen(unet.conv_in, channels)
        unet.register_to_config(in_channels=channels)
    if file is not None:
        unet.load_state_dict(load_file(file))
    return unet


def load_diffusion(folder: Path | None) -> NoiseSchedule:
    """The noise levels of a diffusers scheduler folder, or Stable Diffusion's."""
    facts = read_json(folder / "scheduler_config.json", "--scheduler") if folder else {}
    levels = facts.get("num_train_timesteps", NOISE_LEVELS)
    first, last = facts.get("beta_start", BETA_START), facts.get("beta_end", BETA_END)
    if facts.get("beta_schedule", "scaled_linear") != "scaled_linear":
        raise ValueError(f"--scheduler: its noise is {facts['beta_schedule']}; only scaled_linear is known.")
    betas = torch.linspace(first**0.5, last**0.5, levels, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    prediction = {"epsilon": "epsilon", "v_prediction": "v"}[facts.get("prediction_type", "epsilon")]
    return NoiseSchedule(((1 - alphas) / alphas).sqrt().float(), prediction)  # pyright: ignore[reportArgumentType]


def load_object_encoder(folder: Path) -> nn.Module:
    """A DINOv2 (ours) or a CLIP (transformers') from a transformers folder. Raises ValueError for another."""
    facts = read_json(folder / "config.json")
    kind = facts.get("model_type", "")
    if kind.startswith("dinov2"):
        state = {}
        for file in sorted(folder.glob("*.safetensors")):
            state |= load_file(file)
        encoder = dinov2.DinoV2(dinov2.read_dino_config(state, facts["num_attention_heads"]))
        encoder.load_state_dict(state)
        return encoder
    if kind in ("clip", "clip_vision_model"):
        from transformers import CLIPVisionModel

        clip: Any = CLIPVisionModel.from_pretrained(folder, local_files_only=True)
        return clip.float()  # transformers 5 keeps the file's precision; training has its own
    raise ValueError(f"--encoder: {folder} holds a {kind or 'nameless'} model; give a DINOv2 or a CLIP.")


def read_adapter(file: Path) -> tuple[nn.Module, nn.Module | None]:
    """An adapter of an earlier training, and its DINOv2 if the file holds it."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() or {}
    found = layouts.recognise_checkpoint(load_file(file), metadata, file.name)
    adapter = layouts.build_adapter(found.config)
    adapter.load_state_dict(found.adapter)
    if found.encoder is None or found.dino is None:
        return adapter, None
    encoder = dinov2.DinoV2(found.dino)
    encoder.load_state_dict(found.encoder)
    return adapter, encoder


def new_content_adapter(
    encoder: nn.Module, optimizer: bool, context: int, size: int, **numbers: int
) -> nn.Module:
    """A fresh adapter for that encoder: an embedding optimizer or a content adapter.

    `numbers` are width, depth, heads and tokens of a content adapter, tokens of an optimizer.
    """
    reading = encoder_spec_of(encoder, size, "zeros" if optimizer else "learned")
    if optimizer:
        return layouts.build_adapter(OptimizerConfig(reading, context, numbers.get("tokens") or 77))
    return layouts.build_adapter(AdapterConfig(reading, context=context, **numbers))  # pyright: ignore[reportArgumentType]


def check_encoder_matches(encoder: nn.Module, adapter: nn.Module, context: int) -> None:
    """Raises ValueError for an adapter of another encoder, or of another width than the UNet's context."""
    config: Any = adapter.config
    reads: EncoderSpec = config.reading
    given = encoder_spec_of(encoder, reads.size, reads.nothing)
    for what in ("encoder", "width", "registers", "size"):
        if getattr(given, what) != getattr(reads, what):
            raise ValueError(
                f"--encoder: its {what} is {getattr(given, what)}, but the adapter was made for"
                f" {getattr(reads, what)}; give the encoder it was trained with."
            )
    if config.context != context:
        raise ValueError(
            f"--adapter: its context is {config.context} wide, but the UNet reads {context}; give an adapter"
            " for this UNet."
        )


def encoder_spec_of(encoder: nn.Module, size: int, nothing: str) -> EncoderSpec:
    """What an adapter will read of the encoder: all tokens, of pictures `size` pixels square.

    An optimizer, whose nothing is "zeros", sees objects in their surroundings unless an alpha channel cuts
    them out.
    """
    config: Any = encoder.config
    zeros = nothing == "zeros"
    facts: dict[str, Any] = {"nothing": nothing, "background": "original" if zeros else "black"}
    if isinstance(encoder, dinov2.DinoV2):
        return EncoderSpec(width=config.width, registers=config.registers, size=size, **facts)
    return EncoderSpec(CLIP, config.hidden_size, 0, config.image_size, "last" if zeros else "normed", **facts)
