"""Load the networks that adapter training starts from: diffusers' UNet and autoencoder, DINOv2 or CLIP.

All of them are folders of the user; nothing is downloaded.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ...common import libraries
from ...common.files import read_json
from ...encoders import checkpoint_layouts as layouts
from ...encoders import dinov2
from ...encoders.content_adapter import CLIP, AdapterConfig, EncoderSpec
from ...encoders.embedding_optimizer import OptimizerConfig
from ..objective import NoiseSchedule
from .identity_stages import widen_input_convolution

NOISE_LEVELS, BETA_START, BETA_END = 1000, 0.00085, 0.012  # Stable Diffusion: sqrt(beta) is linear in t


class DiffusersVae:
    """diffusers' AutoencoderKL, frozen; implements `identity_stages.Vae`."""

    def __init__(self, folder: Path, device: torch.device):
        self.vae: Any = libraries.diffusers().AutoencoderKL.from_pretrained(folder, local_files_only=True)
        self.vae.requires_grad_(False).eval().to(device)

    def _posterior(self, pictures: Tensor):
        return self.vae.encode(2 * pictures.movedim(-1, 1) - 1).latent_dist

    def sample(self, pictures: Tensor, noise: Tensor) -> Tensor:
        """Return a sample of the posterior, drawn with `noise` (B, 4, h, w) and scaled for the UNet."""
        posterior = self._posterior(pictures)
        return (posterior.mean + posterior.std * noise) * self.vae.config.scaling_factor

    def mode(self, pictures: Tensor, scaled: bool) -> Tensor:
        """Return the mode of the posterior, scaled for the UNet if `scaled`."""
        return self._posterior(pictures).mode() * (self.vae.config.scaling_factor if scaled else 1)


def load_unet(folder: Path, channels: int, file: Path | None = None) -> nn.Module:
    """Load diffusers' UNet2DConditionModel and widen its input to `channels` if it has fewer.

    Args:
        folder: a UNet folder in diffusers' layout.
        channels: input channels of the stage.
        file: weights of an earlier training, instead of the folder's.

    Raises:
        ValueError: if the UNet has more input channels.
    """
    unet: Any = libraries.diffusers().UNet2DConditionModel.from_pretrained(folder, local_files_only=True)
    if unet.config.in_channels > channels:
        raise ValueError(
            f"--unet: it reads {unet.config.in_channels} channels, but this stage gives it {channels}; choose"
            " a UNet with no more."
        )
    if unet.config.in_channels < channels:
        unet.conv_in = widen_input_convolution(unet.conv_in, channels)
        unet.register_to_config(in_channels=channels)
    if file is not None:
        unet.load_state_dict(load_file(file))
    return unet


def load_diffusion(folder: Path | None) -> NoiseSchedule:
    """Return the noise levels of a diffusers scheduler folder, or those of Stable Diffusion for None."""
    values = read_json(folder / "scheduler_config.json", "--scheduler") if folder else {}
    levels = values.get("num_train_timesteps", NOISE_LEVELS)
    first, last = values.get("beta_start", BETA_START), values.get("beta_end", BETA_END)
    if values.get("beta_schedule", "scaled_linear") != "scaled_linear":
        raise ValueError(
            f"--scheduler: its beta_schedule is {values['beta_schedule']}; give one with scaled_linear."
        )
    betas = torch.linspace(first**0.5, last**0.5, levels, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    prediction = {"epsilon": "epsilon", "v_prediction": "v"}[values.get("prediction_type", "epsilon")]
    return NoiseSchedule(((1 - alphas) / alphas).sqrt().float(), prediction)  # pyright: ignore[reportArgumentType]


def load_object_encoder(folder: Path) -> nn.Module:
    """Load a DINOv2 (our module) or a CLIP (transformers' module) from a transformers folder.

    Raises:
        ValueError: if it is another model.
    """
    values = read_json(folder / "config.json")
    kind = values.get("model_type", "")
    if kind.startswith("dinov2"):
        state = {}
        for file in sorted(folder.glob("*.safetensors")):
            state |= load_file(file)
        encoder = dinov2.DinoV2(dinov2.read_dino_config(state, values["num_attention_heads"]))
        encoder.load_state_dict(state)
        return encoder
    if kind in ("clip", "clip_vision_model"):
        clip: Any = libraries.transformers().CLIPVisionModel.from_pretrained(folder, local_files_only=True)
        return clip.float()  # transformers 5 keeps the file's dtype; training sets its own precision
    raise ValueError(f"--encoder: {folder} holds a {kind or 'nameless'} model; give a DINOv2 or a CLIP.")


def read_adapter(file: Path) -> tuple[nn.Module, nn.Module | None]:
    """Return the adapter of an earlier training, and its DINOv2 if the file contains it."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() or {}
    checkpoint = layouts.recognise_checkpoint(load_file(file), metadata, file.name)
    adapter = layouts.build_adapter(checkpoint.config)
    adapter.load_state_dict(checkpoint.adapter)
    if checkpoint.encoder is None or checkpoint.dino is None:
        return adapter, None
    encoder = dinov2.DinoV2(checkpoint.dino)
    encoder.load_state_dict(checkpoint.encoder)
    return adapter, encoder


def new_content_adapter(
    encoder: nn.Module, optimizer: bool, context: int, size: int, **numbers: int
) -> nn.Module:
    """Return a newly initialised adapter for an encoder: an embedding optimizer or a content adapter.

    Args:
        encoder: DINOv2 or CLIP.
        optimizer: make an embedding optimizer.
        context: width of the UNet's context.
        size: side of the encoder's images in pixels.
        numbers: width, depth, heads and tokens of a content adapter; tokens of an embedding optimizer.
    """
    spec = encoder_spec_of(encoder, size, "zeros" if optimizer else "learned")
    if optimizer:
        return layouts.build_adapter(OptimizerConfig(spec, context, numbers.get("tokens") or 77))
    return layouts.build_adapter(AdapterConfig(spec, context=context, **numbers))  # pyright: ignore[reportArgumentType]


def check_encoder_matches(encoder: nn.Module, adapter: nn.Module, context: int) -> None:
    """Check that the adapter was made for this encoder and for the UNet's context width.

    Raises:
        ValueError: if it was not.
    """
    config: Any = adapter.config
    spec: EncoderSpec = config.encoder_spec
    actual = encoder_spec_of(encoder, spec.size, spec.uncond)
    for field in ("encoder", "width", "registers", "size"):
        if getattr(actual, field) != getattr(spec, field):
            raise ValueError(
                f"--encoder: its {field} is {getattr(actual, field)}, but the adapter was made for"
                f" {getattr(spec, field)}; give the encoder it was trained with."
            )
    if config.context != context:
        raise ValueError(
            f"--adapter: its context is {config.context} wide, but the UNet reads {context}; give an adapter"
            " for this UNet."
        )


def encoder_spec_of(encoder: nn.Module, size: int, uncond: str) -> EncoderSpec:
    """Return the spec of an encoder for a new adapter: all tokens, square images of `size` pixels.

    With `uncond` "zeros" (embedding optimizer) the object is shown with its surroundings, unless an alpha
    channel cuts it out.
    """
    config: Any = encoder.config
    zeros = uncond == "zeros"
    values: dict[str, Any] = {"uncond": uncond, "background": "original" if zeros else "black"}
    if isinstance(encoder, dinov2.DinoV2):
        return EncoderSpec(width=config.width, registers=config.registers, size=size, **values)
    return EncoderSpec(
        CLIP, config.hidden_size, 0, config.image_size, "last" if zeros else "normed", **values
    )
