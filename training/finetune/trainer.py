"""One finetuning: examples, objective, adapter and loop put together, on any UNet of the host's signature."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..objective import Prediction, noised, reconstruction, region_weight, target, total
from ..optimizers import Average
from .data import Examples, generator_at, rows_of_step
from .lora import FullAdapter, LoraAdapter
from .recipes import Recipe
from .training_loop import TrainingState, run_training_loop


@dataclass(frozen=True)
class NoiseSchedule:
    """A model's noise levels, sigmas (T,) from the smallest to the largest, and what its network predicts."""

    sigmas: Tensor
    prediction: Prediction


@dataclass(frozen=True)
class TrainableModel:
    """A network to train: `unet(x, t, context=, y=, transformer_options=)`, its arithmetic and its adapter.

    `inpainting` networks read noisy latent, mask and masked latent (9 channels). `regions` turns a step's
    holes (B,h,w) on the CPU into transformer_options that keep the words inside them.
    """

    unet: nn.Module
    diffusion: NoiseSchedule
    adapter: LoraAdapter | FullAdapter
    dtype: torch.dtype
    device: torch.device
    inpainting: bool = True
    regions: Callable[[Tensor], dict] | None = None


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train one adapter together, each on its share of every batch."""

    number: int = 0  # of this process
    size: int = 1
    average: Average | None = None  # the mean over all of them, in place

    def share(self, rows: Tensor, batch: int) -> Tensor:
        """This process' part of one or more batches laid end to end; each must be a multiple of `size`."""
        return rows.view(-1, batch)[:, self.number :: self.size].flatten()

    def at_most(self, batch: int) -> int:
        """How many pictures of such a batch a process has to hold."""
        return -(-batch // self.size)


SINGLE_PROCESS = ProcessGroup()


def loss_of_pass(
    trainable: TrainableModel,
    recipe: Recipe,
    subject: Examples,
    regular: Examples | None,
    seed: int,
    k: int,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Tensor:
    """The loss of forward pass k: DreamCom eq. 1, or DreamMix eq. 7 and 8, on the examples the pass draws.

    In a group it is the loss of this process' share; the mean over the group is the loss of the whole batch.
    """
    batch = recipe.batch_size
    rows = subject.take(rows_of_step(len(subject), batch, k, seed))
    if regular is not None:
        rows = rows.joined(regular.take(rows_of_step(len(regular), batch, k, seed)))
    share = None if group.size == 1 else group.share(torch.arange(len(rows)), batch)
    errors = per_sample_loss(trainable, recipe, rows, generator_at(seed, k), share)
    if regular is None:
        return total(errors)
    own, others = errors.chunk(2)
    return total(own, others, recipe.beta)


def per_sample_loss(
    trainable: TrainableModel,
    recipe: Recipe,
    rows: Examples,
    generator: torch.Generator,
    share: Tensor | None = None,
) -> Tensor:
    """The error (B,) of each row, or of those in `share`, at a noise level drawn uniformly from all."""
    # Drawn on the CPU, so that a seed means the same on every device, and for all rows, so that it means the
    # same to every process.
    t = torch.randint(len(trainable.diffusion.sigmas), (len(rows),), generator=generator)
    noise = torch.randn(rows.latent.shape, generator=generator).to(rows.latent)
    if share is not None:
        rows, t, noise = rows.take(share), t[share], noise[share]
    options = {} if trainable.regions is None else trainable.regions(rows.mask[:, 0])
    rows, noise = rows.to(trainable.device), noise.to(trainable.device)
    sigma = trainable.diffusion.sigmas[t].to(rows.latent)
    x = noised(rows.latent, noise, sigma)
    if trainable.inpainting:
        x = torch.cat([x, rows.mask, rows.masked], dim=1)
    predicted = trainable.unet(
        x.to(trainable.dtype),
        t.to(trainable.device, torch.float32),
        context=rows.context.to(trainable.dtype),
        y=None if rows.pooled is None else rows.pooled.to(trainable.dtype),
        transformer_options=options,
    )
    wanted = target(rows.latent, noise, sigma, trainable.diffusion.prediction)
    weight = region_weight(rows.mask, recipe.weight_inside, recipe.weight_outside, recipe.weights_squared)
    return reconstruction(predicted.to(wanted.dtype), wanted, rows.valid, weight)


def finetune(
    trainable: TrainableModel,
    recipe: Recipe,
    subject: Examples,
    seed: int,
    regular: Examples | None = None,
    resume: TrainingState | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    on_save: Callable[[TrainingState], None] | None = None,
    save_every: int = 0,
    group: ProcessGroup = SINGLE_PROCESS,
) -> list[float]:
    """Train `trainable.adapter` on the subject and return every step's loss.

    Callbacks as in `run_training_loop`.

    The same seed on the same machine gives the same weights, also when the run was cut off and resumed.
    Raises ValueError when the batch cannot be shared evenly among the group.
    """
    if recipe.batch_size % group.size:
        raise ValueError(
            f"batch_size: {recipe.batch_size} pictures cannot be shared evenly among {group.size} processes;"
            f" choose a multiple of {group.size}."
        )
    return run_training_loop(
        trainable.adapter.parameters,
        lambda k: loss_of_pass(trainable, recipe, subject, regular, seed, k, group),
        recipe.optimiser,
        recipe.steps,
        recipe.accumulation,
        resume,
        on_step,
        on_save,
        save_every,
        recipe.ema_decay,
        group.average,
    )
