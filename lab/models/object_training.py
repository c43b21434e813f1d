"""The loop that trains the tiny identity models: AdamW, the stage's rates, averaged weights, resume."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...encoders.content_adapter import as_pixels
from ...training.adapters.identity_stages import (
    Part,
    Stage,
    TrainableAdapter,
    conditioning_dropout,
    freeze,
    pixel_normalization,
    rate_at,
)
from ...training.objective import noised
from . import autoencoders, files, low_rank, quantised, runs
from .assemble import SD_SCALE
from .inpainting_unet import WINDOW, LookHead, alphas_cumprod, new_unet, sample_times
from .latents import encode
from .object_cache import VIEW, ObjectBank

COOLING = 0.3  # the share of a run's last steps in which all rates fall to nothing
GREY = 0.5
HOLE = 0.5  # the hole that a UNet which reads a source is given for it at first: neither kept nor painted
LOOK = 3.0  # weight of the look's error
OUTSIDE = 0.2  # weight of the error where nothing is to be painted
KEPT = 0.6  # the same where no mask will put the picture's own pixels back there


@dataclass(frozen=True)
class Run:
    """How long, in which portions, and when to stop for now; the schedule runs over `steps`."""

    path: Path
    steps: int
    batch: int
    seed: int = 0
    minutes: float = math.inf
    whole: float = 0.0  # the share of the last steps that see whole pictures
    half: bool = False  # compute in bfloat16 where torch's autocast does; weights stay in float32


class TinyTrainee(TrainableAdapter):
    """The trainee with the tiny UNet's own loss: the error in epsilon, which counts 1 / sqrt(alpha bar) and
    more where something is painted, and the look's. Its UNet learns a low-rank difference."""

    def __init__(self, encoder, adapter, unet: Any, diffusion, denoise):
        low_rank.attach(unet)
        super().__init__(encoder, adapter, unet, diffusion, denoise)
        self.look = LookHead(unet.model_channels)
        unet.output_blocks[3][-1].register_forward_hook(self.look.keep)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        sigma = self.diffusion.sigmas[inputs["t"]]
        x = noised(inputs["latent"], inputs["noise"], sigma)
        x = torch.cat([x, inputs["beside"]], 1).to(memory_format=torch.channels_last)
        context = self.context(inputs["pixels"], inputs["keep"])
        error = (self.denoise(self.unet, x, inputs["t"], context) - inputs["noise"]).square()
        # as in the UNet's own training: an error counts 1 / sqrt(alpha bar)
        error = error * (1 + sigma.square()).sqrt().view(-1, 1, 1, 1)
        return (inputs["weight"] * error).mean() + LOOK * self.look(inputs["look"], inputs["weight"])


def shipped_unet(channels: int, hole: float = HOLE) -> nn.Module:
    """The shipped UNet of nine channels; of eight, it reads a source as `low_rank.without_source` says."""
    unet = new_unet(in_channels=channels)
    state = quantised.load(files.WEIGHTS / "unet.safetensors")
    if channels == 8:
        first = f"{low_rank.FIRST}.weight"
        state[first], bias = low_rank.without_source(state[first], SD_SCALE, hole)
        state[f"{low_rank.FIRST}.bias"] += bias
    unet.load_state_dict(state)
    return unet


def tiny_sigmas() -> Tensor:
    alphas = alphas_cumprod()
    return ((1 - alphas) / alphas).sqrt()


def grey_latent(side: int = VIEW) -> Tensor:
    """(4, h, w): of a grey picture, which lies beside a view that is asked for, all of it a hole."""
    model = autoencoders.trained_autoencoder(None, 4)
    return encode(model, torch.full((1, 3, side, side), GREY))[0]


def painted(batch: Mapping[str, Tensor]) -> Tensor:
    """The cells (B, 1, h, w) that are to be painted: the hole, else where the object will be."""
    beside = batch.get("beside")
    if beside is not None and beside.shape[1] == 5:
        return beside[:, :1]
    return (batch["look"][:, 12:].amax(1, keepdim=True) > 0.1).float()


def cut(batch: dict[str, Tensor], window: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """The batch in windows of so many cells a side, each holding all that is to be painted, if one can."""
    names = [name for name in ("latent", "look", "beside") if name in batch]
    places = [place(mask[0] > 0.5, window, rng) for mask in painted(batch)]
    small = {
        name: torch.stack(
            [
                example[:, top : top + window, left : left + window]
                for example, (top, left) in zip(batch[name], places, strict=True)
            ]
        )
        for name in names
    }
    return batch | small


def place(mask: Tensor, window: int, rng: np.random.Generator) -> tuple[int, int]:
    """(top, left) of a window on a mask (h, w)."""
    corner = []
    for cells, side in ((mask.any(1).nonzero(), len(mask)), (mask.any(0).nonzero(), mask.shape[1])):
        first, last = (int(cells.min()), int(cells.max())) if len(cells) else (0, side - 1)
        low, high = max(0, last + 1 - window), min(first, side - window)
        middle = min(max((first + last + 1 - window) // 2, 0), side - window)
        corner.append(int(rng.integers(low, high + 1)) if low <= high else middle)
    return corner[0], corner[1]


def inputs_of(
    batch: Mapping[str, Tensor], stage: Stage, normal, generator: torch.Generator, empty: Tensor | None = None
) -> dict[str, Tensor]:
    """What the trainee reads. empty (4, h, w): `grey_latent`, for examples with nothing beside them."""
    latent, outside = batch["latent"], KEPT if stage.channels == 8 else OUTSIDE
    keep, seen = conditioning_dropout(stage, torch.rand(len(latent), generator=generator))
    if "beside" in batch:
        beside = batch["beside"] * (seen.float().view(-1, 1, 1, 1) if stage.drop_image else 1)
    else:
        assert empty is not None
        beside = torch.cat([torch.ones_like(latent[:, :1]), empty.expand_as(latent)], 1)
    return {
        "latent": latent,
        "look": batch["look"],
        "noise": torch.randn(latent.shape, generator=generator),
        "t": sample_times(len(latent), alphas_cumprod(), generator),
        "keep": keep.float(),
        "pixels": as_pixels(batch["object"], *normal),
        "beside": beside,
        "weight": outside + (1 - outside) * painted(batch),
    }


def fit_stage(
    trainee: TinyTrainee, stage: Stage, bank: ObjectBank, run: Run, without: str = ""
) -> dict[str, Any]:
    """Train one stage's parts and return the state; `without` names layers of the UNet that learn nothing."""
    groups = freeze(trainee.parts, stage)
    low_rank.keep_small(trainee.unet, first=stage.channels == 8, without=without)
    empty = None if "beside" in bank.tensors else grey_latent()
    normal = pixel_normalization(trainee.encoder_spec)

    def loss_of(step: int, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        batch = bank.batch(rng, run.batch)
        if step < run.steps * (1 - run.whole) and batch["latent"].shape[-1] > WINDOW:
            batch = cut(batch, WINDOW, rng)
        return trainee(inputs_of(batch, stage, normal, generator, empty))

    learning: dict[Part, list[nn.Parameter]] = {
        part: [p for p in own if p.requires_grad] for part, own in groups.items()
    }

    def rate_of(part: Part) -> Callable[[int], float]:
        return lambda step: rate_at(stage, part, step, run.steps)

    rates = [rate_of(part) for part in learning]
    parts = [*learning.values(), list(trainee.look.parameters())]
    return fit(trainee, list(zip(parts, [*rates, lambda step: 1e-3], strict=True)), loss_of, run)


def fit(
    module: nn.Module,
    groups: Sequence[tuple[list[nn.Parameter], Callable[[int], float]]],
    loss_of: Callable[[int, np.random.Generator, torch.Generator], Tensor],
    run: Run,
) -> dict[str, Any]:
    """Go on from the state at `run.path` until its last step or its time is over, and return the state.

    `groups` are the parameters that learn and their rates by step. In the state, `learned` holds them by name
    as they are and `mean` their running average; `log` has (step, seconds, loss) of every 25 steps.
    """
    learns = {
        name: p for name, p in module.named_parameters() if any(p is q for own, _ in groups for q in own)
    }
    optimiser = torch.optim.AdamW(
        [{"params": own, "lr": 0.0} for own, _ in groups], betas=(0.9, 0.99), weight_decay=1e-3
    )
    state = runs.load(run.path) or {"step": 0, "seconds": 0.0, "log": []}
    mean = {name: p.detach().clone() for name, p in learns.items()}
    if "learned" in state:
        module.load_state_dict(state["learned"], strict=False)
        optimiser.load_state_dict(state["optimiser"])
        mean = state["mean"]
    step, before, log, losses = state["step"], state["seconds"], state["log"], []
    rng = np.random.default_rng([run.seed, step])
    generator = torch.Generator().manual_seed(run.seed * 1_000_003 + step)
    begun = saved = time.time()
    while True:
        seconds = before + time.time() - begun
        over = step >= run.steps or time.time() - begun > 60 * run.minutes
        if over or time.time() - saved > 120:
            learned = {name: p.detach() for name, p in learns.items()}
            state = {"learned": learned, "mean": mean, "optimiser": optimiser.state_dict()}
            state |= {"step": step, "steps": run.steps, "seconds": seconds, "log": log}
            runs.save(state, run.path)
            saved = time.time()
        if over:
            return state
        cool = min(1.0, (run.steps - step) / (COOLING * run.steps))
        for group, (_, rate) in zip(optimiser.param_groups, groups, strict=True):
            group["lr"] = cool * rate(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=run.half):
            loss = loss_of(step, rng, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(list(learns.values()), 1.0)
        optimiser.step()
        step += 1
        decay = min(0.999, (1 + step) / (10 + step))
        for name, parameter in learns.items():
            mean[name].lerp_(parameter.detach(), 1 - decay)
        losses.append(loss.item())
        if step % 25 == 0 or step == run.steps:
            log.append([step, before + time.time() - begun, float(np.mean(losses))])
            line = {"step": step, "minutes": round(log[-1][1] / 60, 2), "loss": round(log[-1][2], 5)}
            print(json.dumps(line), flush=True)
            losses = []


def part_of(state: Mapping[str, Any], part: str) -> dict[str, Tensor]:
    """What a part learned in a run, averaged."""
    return {k.removeprefix(f"{part}."): v for k, v in state["mean"].items() if k.startswith(f"{part}.")}
