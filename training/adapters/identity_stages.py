"""Define the training stages of an identity adapter, and its loss, on plain torch modules.

IMPRINT has two stages (views, compose); the embedding optimizer has one (insert). A stage is data: trained
parts, learning rates, dropout. Every number carries its source, "ours" where neither paper nor code states
it. The loss is DreamCom eq. 1 without a mask: the UNet's mean squared error at a uniformly drawn noise level.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ...encoders.content_adapter import CLIP, IMAGENET, OPENAI, EncoderSpec, as_pixels
from ...imaging.latent_mask import snap_hole
from ..objective import NoiseSchedule, generator_at, noised, reconstruction, target

NOISE = 4  # random stream of the training noise; the data uses other streams
Part = Literal["encoder", "adapter", "unet"]
# First parts of the names of a UNet's decoder weights: diffusers' names, then the original ones.
DECODER = ("up_blocks", "conv_norm_out", "conv_out", "output_blocks", "out")
CROSS_ATTENTION = "attn2"
Share = Literal["all", "decoder", "cross_attention"]


@dataclass(frozen=True)
class LearningPhase:
    """Learning rates of each part for a share of the run, in (0, 1]."""

    share: float
    rates: Mapping[Part, float]


@dataclass(frozen=True)
class Stage:
    """One training stage: its data, the trained weights, learning rates and conditioning dropout."""

    name: str
    data: Literal["views", "compositions", "insertions"]
    channels: int  # of the UNet's input: 4 latent, 8 with an image, 9 with hole and masked image
    trains: Mapping[Part, Share]
    phases: tuple[LearningPhase, ...]
    drop_object: float
    drop_image: float = 0.0
    batch: int = 256
    warm_up: int = 500  # steps of linear warm-up; ours
    weight_decay: float = 1e-2  # of AdamW; ours
    clip_norm: float = 1.0  # ours


VIEWS_STAGE = Stage(
    name="views",
    data="views",
    channels=4,
    trains={"encoder": "all", "adapter": "all", "unet": "decoder"},  # IMPRINT sec. 3.1, table 4 no. 10
    phases=(LearningPhase(1.0, {"encoder": 4e-6, "adapter": 4e-5, "unet": 4e-5}),),  # ours
    drop_object=0.05,  # IMPRINT sec. 4.1
    batch=256,  # IMPRINT sec. 4.1
)
HIGH, LOW = 4e-5, 4e-6  # ours: IMPRINT's text does not state its two rates
COMPOSE = Stage(
    name="compose",
    data="compositions",
    channels=9,
    trains={"adapter": "all", "unet": "all"},  # IMPRINT sec. 3.2: DINOv2 is frozen
    # Sequential collaborative training, IMPRINT sec. 3.4: adapter first, then UNet; equal halves are ours.
    phases=(
        LearningPhase(0.5, {"adapter": HIGH, "unet": LOW}),
        LearningPhase(0.5, {"adapter": LOW, "unet": HIGH}),
    ),
    drop_object=0.10,  # IMPRINT sec. 4.1
    batch=256,  # IMPRINT sec. 4.1
)
INSERT = Stage(
    name="insert",
    data="insertions",
    channels=8,
    trains={"adapter": "all", "unet": "cross_attention"},  # slides, "Train Cross Attention Layers in UNet"
    phases=(LearningPhase(1.0, {"adapter": 5e-5, "unet": 5e-5}),),  # diffusers' InstructPix2Pix example
    drop_object=0.05,  # InstructPix2Pix' conditioning dropout, see conditioning_dropout
    drop_image=0.05,
    batch=64,  # ours
)
STAGE_CONFIGS = {stage.name: stage for stage in (VIEWS_STAGE, COMPOSE, INSERT)}


class Vae(Protocol):
    """The frozen autoencoder of the UNet: images (B, H, W, 3) in [0, 1] to latents (B, 4, h, w)."""

    def sample(self, pictures: Tensor, noise: Tensor) -> Tensor:
        """Return a sample of the posterior, drawn with `noise` (B, 4, h, w) and scaled for the UNet."""
        ...

    def mode(self, pictures: Tensor, scaled: bool) -> Tensor:
        """Return the mode of the posterior; InstructPix2Pix uses it without scaling."""
        ...


def freeze(parts: Mapping[Part, nn.Module], stage: Stage) -> dict[Part, list[nn.Parameter]]:
    """Make the parameters that the stage trains require gradients, and no others.

    Returns:
        The trained parameters of each trained part.

    Raises:
        ValueError: if a part has no weights that the stage trains.
    """
    trained: dict[Part, list[nn.Parameter]] = {}
    for part, module in parts.items():
        share = stage.trains.get(part)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(share is not None and is_trained(name, share))
        if share is not None:
            trained[part] = [p for p in module.parameters() if p.requires_grad]
            if not trained[part]:
                raise ValueError(f"--{part}: it has no weights that stage '{stage.name}' trains ({share}).")
    return trained


def is_trained(name: str, share: Share) -> bool:
    """Return whether a share of the network trains the parameter of that name."""
    if name.endswith("mask_token"):
        return False  # only masked pretraining uses it
    if share == "decoder":
        return name.split(".")[0] in DECODER
    if share == "cross_attention":
        return CROSS_ATTENTION in name.split(".")
    return True


def rate_at(stage: Stage, part: Part, step: int, steps: int) -> float:
    """Return the learning rate of a part at a step (counted from 0), with linear warm-up."""
    end = 0.0
    phase = stage.phases[-1]
    for phase in stage.phases:
        end += phase.share
        if step < round(end * steps):
            break
    return phase.rates[part] * min(1.0, (step + 1) / max(1, stage.warm_up))


def read_tokens(encoder: nn.Module, encoder_spec: EncoderSpec, pixels: Tensor) -> Tensor:
    """Return the encoder tokens (B, N, E) that an adapter takes.

    Args:
        encoder: our DINOv2 or transformers' CLIPVisionModel.
        encoder_spec: selects the tokens.
        pixels: normalised images (B, 3, S, S).
    """
    if encoder_spec.encoder != CLIP:
        return encoder(pixels)
    clip: Any = encoder
    tokens = clip(pixel_values=pixels).last_hidden_state
    if encoder_spec.tokens == "last":
        return tokens
    # up to transformers 4 the layer is a part of vision_model
    tokens = getattr(clip, "vision_model", clip).post_layernorm(tokens)
    return tokens[:, :1] if encoder_spec.tokens == "pooled" else tokens


class TrainableAdapter(nn.Module):
    """Encoder, adapter and UNet as one module, whose forward pass returns the loss of each sample (B,).

    Args:
        encoder: gives the tokens of the object image.
        adapter: maps tokens to context rows.
        unet: the denoising network.
        diffusion: noise levels and prediction type.
        denoise: calls the UNet as `denoise(unet, x, t, context)`, see `denoise_with_diffusers`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        adapter: nn.Module,
        unet: nn.Module,
        diffusion: NoiseSchedule,
        denoise: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor],
    ):
        super().__init__()
        self.encoder, self.adapter, self.unet = encoder, adapter, unet
        self.diffusion, self.denoise = diffusion, denoise
        config: Any = adapter.config
        self.encoder_spec: EncoderSpec = config.encoder_spec

    @property
    def parts(self) -> dict[Part, nn.Module]:
        """The three modules by name."""
        return {"encoder": self.encoder, "adapter": self.adapter, "unet": self.unet}

    def context(self, pixels: Tensor, keep: Tensor) -> Tensor:
        """Return the adapter's context rows (B, M, C); unconditional rows where `keep` (B,) is 0."""
        rows = self.adapter(read_tokens(self.encoder, self.encoder_spec, pixels))
        if self.encoder_spec.uncond == "learned":
            uncond = self.adapter.nothing.to(rows).expand_as(rows)  # pyright: ignore
        elif self.encoder_spec.uncond == "picture":
            uncond = self.adapter(read_tokens(self.encoder, self.encoder_spec, self.empty(pixels[:1])))
        else:
            uncond = torch.zeros_like(rows[:1])
        return torch.lerp(uncond.expand_as(rows), rows, keep.view(-1, 1, 1).to(rows))

    def empty(self, pixels: Tensor) -> Tensor:
        """Return a normalised image of zeros, as the encoder takes it."""
        return as_pixels(torch.zeros_like(pixels).movedim(1, -1), *pixel_normalization(self.encoder_spec))

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the loss (B,) for the tensors that `prepare_batch` returned."""
        sigma = self.diffusion.sigmas.to(inputs["latent"].device)[inputs["t"]]
        x = noised(inputs["latent"], inputs["noise"], sigma)
        if "beside" in inputs:
            x = torch.cat([x, inputs["beside"]], 1)
        context = self.context(inputs["pixels"], inputs["keep"])
        predicted = self.denoise(self.unet, x, inputs["t"], context)
        target_value = target(inputs["latent"], inputs["noise"], sigma, self.diffusion.prediction)
        return reconstruction(predicted.float(), target_value, torch.ones_like(target_value[:, :1]))


def pixel_normalization(encoder_spec: EncoderSpec):
    """Return (mean, standard deviation) per channel of the pixels that the encoder takes."""
    return OPENAI if encoder_spec.encoder == CLIP else IMAGENET


@torch.no_grad()
def prepare_batch(
    stage: Stage, vae: Vae, encoder_spec: EncoderSpec, batch: Mapping[str, Tensor], seed: int, levels: int
) -> dict[str, Tensor]:
    """Return the inputs of `TrainableAdapter` for a batch of images on the training device.

    Noise, timestep and conditioning dropout depend only on the seed and on the record's number, so they are
    the same in every process.
    """
    pictures = batch["target"]
    generators = [generator_at(seed, int(number), NOISE) for number in batch["number"]]
    shape = vae.mode(pictures[:1], scaled=True).shape[1:]
    noise, posterior_noise = (
        torch.stack([torch.randn(shape, generator=g) for g in generators]) for _ in range(2)
    )
    t = torch.stack([torch.randint(levels, (), generator=g) for g in generators])
    r = torch.stack([torch.rand((), generator=g) for g in generators])
    keep_object, keep_image = conditioning_dropout(stage, r)
    device = pictures.device
    inputs = {
        "latent": vae.sample(pictures, posterior_noise.to(pictures)),
        "noise": noise.to(pictures),
        "t": t.to(device),
        "keep": keep_object.to(pictures),
        "pixels": as_pixels(batch["object"], *pixel_normalization(encoder_spec)),
    }
    if stage.channels == 9:
        hole = batch["hole"][:, None] if "hole" in batch else torch.ones_like(pictures[:, None, :, :, 0])
        grey = (pictures - 0.5) * (1 - hole[:, 0, ..., None]) + 0.5
        small = snap_hole(hole[:, 0], shape[1:])[:, None]
        inputs["beside"] = torch.cat([small, vae.mode(grey, scaled=True)], 1)
    if stage.channels == 8:
        inputs["beside"] = vae.mode(batch["source"], scaled=False) * keep_image.to(pictures).view(-1, 1, 1, 1)
    return inputs


def conditioning_dropout(stage: Stage, r: Tensor) -> tuple[Tensor, Tensor]:
    """Return (keep_object, keep_image), booleans (B,), for r (B,) uniform in [0, 1).

    With image dropout, as in InstructPix2Pix: the object is dropped for r < 2 p, the image for p <= r < 3 p,
    so that both are dropped for p <= r < 2 p.
    """
    p = stage.drop_object
    if not stage.drop_image:
        return r >= p, torch.ones_like(r, dtype=torch.bool)
    q = stage.drop_image
    return r >= p + q, (r < p) | (r >= p + 2 * q)


def denoise_with_diffusers(unet: nn.Module, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
    """Call diffusers' UNet: x (B, C, h, w), t (B,), context (B, M, D)."""
    return unet(x, t, encoder_hidden_states=context).sample


def denoise_with_host(unet: nn.Module, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
    """Call the host's UNet: x (B, C, h, w), t (B,), context (B, M, D)."""
    return unet(x, t.float(), context=context)


def widen_input_convolution(convolution: nn.Conv2d, channels: int) -> nn.Conv2d:
    """Return the input convolution with `channels` input channels.

    The added weights are zero, so the network's output is unchanged at the start.
    """
    wide = type(convolution)(channels, convolution.out_channels, 3, padding=1).to(convolution.weight)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, : convolution.in_channels] = convolution.weight
        assert wide.bias is not None
        assert convolution.bias is not None
        wide.bias.copy_(convolution.bias)
    return wide
