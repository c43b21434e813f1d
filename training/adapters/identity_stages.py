"""Training an identity adapter: IMPRINT's two stages, and the embedding optimizer, on plain torch modules.

What a stage trains, at which rates and with which dropout is data; every number carries its source, "ours"
where neither paper nor code states it. The loss is DreamCom eq. 1 without a mask: the UNet's mean squared
error at a noise level drawn uniformly.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ...encoders.content_adapter import CLIP, IMAGENET, OPENAI, EncoderSpec, as_pixels
from ..finetune.data import generator_at
from ..finetune.trainer import NoiseSchedule
from ..objective import noised, reconstruction, target

NOISE = 4  # the stream of random numbers of a training example, beside those of the data
Part = Literal["encoder", "adapter", "unet"]
# Of a UNet, by the first part of a weight's name: diffusers' names, and the original ones.
DECODER = ("up_blocks", "conv_norm_out", "conv_out", "output_blocks", "out")
CROSS_ATTENTION = "attn2"
Share = Literal["all", "decoder", "cross_attention"]


@dataclass(frozen=True)
class LearningPhase:
    """Learning rates for a share of the run."""

    share: float
    rates: Mapping[Part, float]


@dataclass(frozen=True)
class Stage:
    """One way to train: on which examples, what of which part, how fast, with what left out how often."""

    name: str
    data: Literal["views", "compositions", "insertions"]
    channels: int  # of the UNet's input
    trains: Mapping[Part, Share]
    phases: tuple[LearningPhase, ...]
    drop_object: float
    drop_image: float = 0.0
    batch: int = 256
    warm_up: int = 500  # steps; ours
    weight_decay: float = 1e-2  # AdamW's, ours
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
HIGH, LOW = 4e-5, 4e-6  # ours: the text we have does not hold IMPRINT's two rates
COMPOSE = Stage(
    name="compose",
    data="compositions",
    channels=9,
    trains={"adapter": "all", "unet": "all"},  # IMPRINT sec. 3.2: DINOv2 is frozen
    # Sequential collaborative training, IMPRINT sec. 3.4: the adapter first, then the UNet; halves are ours.
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
    drop_object=0.05,  # its conditioning dropout p: the object for r < 2 p, the picture for p <= r < 3 p
    drop_image=0.05,
    batch=64,  # ours
)
STAGE_CONFIGS = {stage.name: stage for stage in (VIEWS_STAGE, COMPOSE, INSERT)}


class Vae(Protocol):
    """The autoencoder of the UNet, frozen. Pictures (B, H, W, 3) in [0, 1] to latents (B, 4, h, w)."""

    def sample(self, pictures: Tensor, noise: Tensor) -> Tensor:
        """Drawn from the posterior with `noise` (B, 4, h, w), scaled as the network sees it."""
        ...

    def mode(self, pictures: Tensor, scaled: bool) -> Tensor:
        """The posterior's mode; not scaled in InstructPix2Pix's convention."""
        ...


def freeze(parts: Mapping[Part, nn.Module], stage: Stage) -> dict[Part, list[nn.Parameter]]:
    """Let the stage's parameters learn and no others; returns them by part, none of them empty.

    Raises ValueError for a part that holds nothing of what the stage trains.
    """
    learning: dict[Part, list[nn.Parameter]] = {}
    for part, module in parts.items():
        share = stage.trains.get(part)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(share is not None and _learns(name, share))
        if share is not None:
            learning[part] = [p for p in module.parameters() if p.requires_grad]
            if not learning[part]:
                raise ValueError(f"--{part}: it has no weights that stage '{stage.name}' trains ({share}).")
    return learning


def _learns(name: str, share: Share) -> bool:
    if name.endswith("mask_token"):
        return False  # no picture of ours reaches it
    if share == "decoder":
        return name.split(".")[0] in DECODER
    if share == "cross_attention":
        return CROSS_ATTENTION in name.split(".")
    return True


def rate_at(stage: Stage, part: Part, step: int, steps: int) -> float:
    """The learning rate of a part at a step (from 0) of a run: its phase's, rising over the warm-up."""
    end = 0.0
    phase = stage.phases[-1]
    for phase in stage.phases:
        end += phase.share
        if step < round(end * steps):
            break
    return phase.rates[part] * min(1.0, (step + 1) / max(1, stage.warm_up))


def read_tokens(encoder: nn.Module, reading: EncoderSpec, pixels: Tensor) -> Tensor:
    """The tokens (B, N, E) an adapter reads, from normalised pixels (B, 3, S, S).

    `encoder` is our DINOv2 or transformers' CLIPVisionModel.
    """
    if reading.encoder != CLIP:
        return encoder(pixels)
    clip: Any = encoder
    tokens = clip(pixel_values=pixels).last_hidden_state
    if reading.tokens == "last":
        return tokens
    tokens = getattr(clip, "vision_model", clip).post_layernorm(tokens)  # before transformers 5: inside
    return tokens[:, :1] if reading.tokens == "pooled" else tokens


class TrainableAdapter(nn.Module):
    """Encoder, adapter and UNet as one module, whose forward pass is the loss of each row (B,).

    `denoise(unet, x, t, context)` calls the UNet: see `by_diffusers` and `by_host`.
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
        self.reading: EncoderSpec = config.reading

    @property
    def parts(self) -> dict[Part, nn.Module]:
        return {"encoder": self.encoder, "adapter": self.adapter, "unet": self.unet}

    def context(self, pixels: Tensor, keep: Tensor) -> Tensor:
        """The adapter's rows (B, M, C) for the objects; what stands for none where `keep` (B,) is 0."""
        rows = self.adapter(read_tokens(self.encoder, self.reading, pixels))
        if self.reading.nothing == "learned":
            nothing = self.adapter.nothing.to(rows).expand_as(rows)  # pyright: ignore
        elif self.reading.nothing == "picture":
            nothing = self.adapter(read_tokens(self.encoder, self.reading, self.empty(pixels[:1])))
        else:
            nothing = torch.zeros_like(rows[:1])
        return torch.lerp(nothing.expand_as(rows), rows, keep.view(-1, 1, 1).to(rows))

    def empty(self, pixels: Tensor) -> Tensor:
        """A picture of zeros as the encoder takes it."""
        return as_pixels(torch.zeros_like(pixels).movedim(1, -1), *normal_of(self.reading))

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        sigma = self.diffusion.sigmas.to(inputs["latent"].device)[inputs["t"]]
        x = noised(inputs["latent"], inputs["noise"], sigma)
        if "beside" in inputs:
            x = torch.cat([x, inputs["beside"]], 1)
        context = self.context(inputs["pixels"], inputs["keep"])
        predicted = self.denoise(self.unet, x, inputs["t"], context)
        wanted = target(inputs["latent"], inputs["noise"], sigma, self.diffusion.prediction)
        return reconstruction(predicted.float(), wanted, torch.ones_like(wanted[:, :1]))


def normal_of(reading: EncoderSpec):
    """Mean and deviation of the pixels that the reading's encoder takes."""
    return OPENAI if reading.encoder == CLIP else IMAGENET


@torch.no_grad()
def prepare_batch(
    stage: Stage, vae: Vae, reading: EncoderSpec, batch: Mapping[str, Tensor], seed: int, levels: int
) -> dict[str, Tensor]:
    """What `TrainableAdapter` reads, from a batch of pictures on the training device.

    Every random number follows from the seed and the record's number, whoever computes it: noise, timestep,
    and what is left out.
    """
    pictures = batch["target"]
    draws = [generator_at(seed, int(number), NOISE) for number in batch["number"]]
    shape = vae.mode(pictures[:1], scaled=True).shape[1:]
    noise, spread = (torch.stack([torch.randn(shape, generator=g) for g in draws]) for _ in range(2))
    t = torch.stack([torch.randint(levels, (), generator=g) for g in draws])
    r = torch.stack([torch.rand((), generator=g) for g in draws])
    keep, seen = exported_tensors(stage, r)
    device = pictures.device
    inputs = {
        "latent": vae.sample(pictures, spread.to(pictures)),
        "noise": noise.to(pictures),
        "t": t.to(device),
        "keep": keep.to(pictures),
        "pixels": as_pixels(batch["object"], *normal_of(reading)),
    }
    if stage.channels == 9:
        hole = batch["hole"][:, None] if "hole" in batch else torch.ones_like(pictures[:, None, :, :, 0])
        grey = (pictures - 0.5) * (1 - hole[:, 0, ..., None]) + 0.5
        small = nn.functional.interpolate(hole, shape[1:], mode="nearest")
        inputs["beside"] = torch.cat([small, vae.mode(grey, scaled=True)], 1)
    if stage.channels == 8:
        inputs["beside"] = vae.mode(batch["source"], scaled=False) * seen.to(pictures).view(-1, 1, 1, 1)
    return inputs


def exported_tensors(stage: Stage, r: Tensor) -> tuple[Tensor, Tensor]:
    """(whether the object stays, whether the picture stays), for r (B,) uniform in [0, 1).

    With a picture to drop, as InstructPix2Pix: no object for r < 2 p, no picture for p <= r < 3 p, so that
    both are missing for p <= r < 2 p.
    """
    p = stage.drop_object
    if not stage.drop_image:
        return r >= p, torch.ones_like(r, dtype=torch.bool)
    q = stage.drop_image
    return r >= p + q, (r < p) | (r >= p + 2 * q)


def by_diffusers(unet: nn.Module, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
    return unet(x, t, encoder_hidden_states=context).sample


def by_host(unet: nn.Module, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
    return unet(x, t.float(), context=context)


def widen(convolution: nn.Conv2d, channels: int) -> nn.Conv2d:
    """The first convolution for more input channels; the new ones start at zero, so nothing changes yet."""
    wide = type(convolution)(channels, convolution.out_channels, 3, padding=1).to(convolution.weight)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, : convolution.in_channels] = convolution.weight
        assert wide.bias is not None
        assert convolution.bias is not None
        wide.bias.copy_(convolution.bias)
    return wide
