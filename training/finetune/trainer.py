"""One finetuning on plain tensors: a trainable network, the loss of a pass, and the loop over the steps."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ...common import libraries
from ...common.log import logger
from .. import Diverged
from ..objective import (
    NoiseSchedule,
    generator_at,
    min_snr_weight,
    noised,
    reconstruction,
    region_weight,
    target,
    total,
)
from ..optimizers import Average, MixedPrecisionOptimizer, OptimizerSpec, UnfitState
from .data import LATENT_PIXEL, Examples, Reference, TrainingSet, with_subject_references
from .lora import FullAdapter, LokrAdapter, LoraAdapter
from .recipes import Recipe


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train one adapter together, each on its share of every batch."""

    number: int = 0  # of this process
    size: int = 1
    average: Average | None = None  # the mean over all of them, in place

    def share(self, rows: Tensor, batch: int) -> Tensor:
        """Return this process' part of batches laid end to end; each must be a multiple of `size`."""
        return rows.view(-1, batch)[:, self.number :: self.size].flatten()

    def at_most(self, batch: int) -> int:
        """Return how many pictures of such a batch a process holds at most."""
        return -(-batch // self.size)


SINGLE_PROCESS = ProcessGroup()


@dataclass(frozen=True)
class TrainableModel:
    """A network to train: `unet(x, t, context=, y=, transformer_options=)`, its arithmetic and its adapter.

    `inpainting` networks read noisy latent, mask and masked latent (9 channels). `options` makes the
    transformer_options of a step from its rows on the CPU. A transformer is called through
    `host_pass(rows, noise, sigma)`, which returns its prediction; `patch` is the side of one of its tokens in
    latent pixels. `pictures`: of the subject, from which references are drawn.
    """

    unet: nn.Module
    diffusion: NoiseSchedule
    adapter: LoraAdapter | LokrAdapter | FullAdapter
    dtype: torch.dtype
    device: torch.device
    inpainting: bool = True
    options: Callable[[Examples], dict] | None = None
    host_pass: Callable[[Examples, Tensor, Tensor], Tensor] | None = None
    patch: int = 1
    texts: Sequence[tuple[Tensor, Tensor | None]] = ()  # context and pooled of every caption, for UNets
    blank: int = 0  # which caption is empty
    pictures: int = 0
    # Label embeddings (B, P) with the height and width of the pictures in pixels (SDXL with buckets).
    label_at: Callable[[Tensor, int, int], Tensor] | None = None


def loss_of_pass(
    trainable: TrainableModel,
    recipe: Recipe,
    subject: TrainingSet,
    regular: TrainingSet | None,
    seed: int,
    k: int,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Tensor:
    """Return the loss of forward pass k on the examples it draws: DreamCom eq. 1, or DreamMix eq. 7 and 8.

    With a `regular_chance` a pass is on the subject alone or, with that probability, on regular data alone.
    In a group it is the loss of this process' share; the mean over the group is the loss of the whole batch.
    """
    batch = recipe.batch_size
    if regular is not None and recipe.regular_chance:
        chosen = torch.rand((), generator=generator_at(seed, k, 2)) < recipe.regular_chance
        subject, regular = regular if chosen else subject, None

    def errors_of(rows: Examples, stream: int = 0) -> Tensor:
        share = None if group.size == 1 else group.share(torch.arange(len(rows)), batch)
        return per_sample_loss(trainable, recipe, rows, generator_at(seed, k, stream), share)

    rows = subject.rows(batch, k, seed)
    if regular is None:
        return total(errors_of(rows))
    others = regular.rows(batch, k, seed)
    if rows.latent.shape[1:] == others.latent.shape[1:]:
        own, regular_errors = errors_of(rows.joined(others)).chunk(2)
    else:  # of two sizes: one after the other
        own, regular_errors = errors_of(rows), errors_of(others, 3)
    return total(own, regular_errors, recipe.beta)


def per_sample_loss(
    trainable: TrainableModel,
    recipe: Recipe,
    rows: Examples,
    generator: torch.Generator,
    share: Tensor | None = None,
) -> Tensor:
    """Return the error (B,) of each row, or of those in `share`, at a noise level drawn for it."""
    # Drawn on the CPU and for all rows: the same numbers on every device and in every process.
    t, sigma = _drawn_levels(trainable, rows, generator)
    noise = torch.randn(rows.latent.shape, generator=generator).to(rows.latent)
    rows = _with_dropout(rows.drawn(generator), recipe.caption_dropout, trainable.blank, generator)
    rows = _with_references(trainable, recipe, rows, generator)
    if share is not None:
        rows, t, sigma, noise = rows.take(share), t[share], sigma[share], noise[share]
    return errors_at(trainable, recipe, rows, noise, t, sigma)


def _with_references(
    trainable: TrainableModel, recipe: Recipe, rows: Examples, generator: torch.Generator
) -> Examples:
    return with_subject_references(
        rows, recipe.subject_references, trainable.pictures, recipe.reference_dropout, generator
    )


def errors_at(
    trainable: TrainableModel, recipe: Recipe, rows: Examples, noise: Tensor, t: Tensor, sigma: Tensor
) -> Tensor:
    """Return the error (B,) of each row with `noise` at the levels `sigma` (B,); `t` are their indices."""
    options = {} if trainable.options is None else trainable.options(rows)
    rows, noise = rows.to(trainable.device), noise.to(trainable.device)
    sigma = sigma.to(rows.latent)
    predicted = _predict(trainable, rows, noise, t, sigma, options)
    wanted = target(rows.latent, noise, sigma, trainable.diffusion.prediction)
    weight = region_weight(rows.mask, recipe.weight_inside, recipe.weight_outside, recipe.weights_squared)
    errors = reconstruction(predicted.to(wanted.dtype), wanted, rows.valid, weight)
    if recipe.min_snr:
        errors = errors * min_snr_weight(sigma, recipe.min_snr, trainable.diffusion.prediction)
    if recipe.preservation:
        rows = replace(rows, caption=rows.class_caption)
        errors = errors + recipe.preservation * _changed_prediction(trainable, rows, noise, t, sigma, options)
    return errors


def _with_dropout(rows: Examples, share: float, blank: int, generator: torch.Generator) -> Examples:
    """Return rows of which a share, on average, has the empty caption."""
    if not share or rows.caption is None:
        return rows
    dropped = torch.rand(len(rows), generator=generator) < share
    captions = {
        name: torch.where(dropped, blank, caption)
        for name, caption in (("caption", rows.caption), ("class_caption", rows.class_caption))
        if caption is not None
    }
    return replace(rows, **captions)


def _changed_prediction(
    trainable: TrainableModel, rows: Examples, noise: Tensor, t: Tensor, sigma: Tensor, options: dict
) -> Tensor:
    """Return the mean squared difference (B,) that the adapter makes to the prediction of each row."""
    assert not isinstance(trainable.adapter, FullAdapter)
    with torch.no_grad(), trainable.adapter.switched_off():
        before = _predict(trainable, rows, noise, t, sigma, options).float()
    after = _predict(trainable, rows, noise, t, sigma, options).float()
    return (after - before).square().flatten(1).mean(1)


def text_of(trainable: TrainableModel, rows: Examples) -> tuple[Tensor, Tensor | None]:
    """Return context (B,L,D) and label embedding of rows for a UNet.

    Contexts of different length are repeated to the least common multiple: repeating every key does not
    change the softmax of cross-attention.
    """
    if rows.caption is None:
        return rows.context, _label_at_size(trainable, rows.pooled, rows)
    chosen = [trainable.texts[number] for number in rows.caption.tolist()]
    length = math.lcm(*(context.shape[1] for context, _ in chosen))
    contexts = [context.repeat(1, length // context.shape[1], 1) for context, _ in chosen]
    labels = [label for _, label in chosen if label is not None]
    pooled = torch.cat(labels).to(trainable.device) if labels else None
    return torch.cat(contexts).to(trainable.device), _label_at_size(trainable, pooled, rows)


def _label_at_size(trainable: TrainableModel, pooled: Tensor | None, rows: Examples) -> Tensor | None:
    if trainable.label_at is None or pooled is None:
        return pooled
    height, width = rows.latent.shape[-2:]
    return trainable.label_at(pooled, height * LATENT_PIXEL, width * LATENT_PIXEL)


def _drawn_levels(
    trainable: TrainableModel, rows: Examples, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return an index into the table of noise levels (B,), 0 where there is none, and the level (B,)."""
    schedule = trainable.diffusion
    if schedule.draw is None:
        t = torch.randint(len(schedule.sigmas), (len(rows),), generator=generator)
        return t, schedule.sigmas[t]
    sigma = schedule.draw(len(rows), generator, _tokens(trainable, rows))
    return torch.zeros(len(rows), dtype=torch.long), sigma


def _tokens(trainable: TrainableModel, rows: Examples) -> int:
    """Return the number of tokens of a picture."""
    grid = [-(-side // trainable.patch) for side in rows.latent.shape[-2:]]
    return grid[0] * grid[1]


def _predict(
    trainable: TrainableModel, rows: Examples, noise: Tensor, t: Tensor, sigma: Tensor, options: dict
) -> Tensor:
    """Return the network's prediction (B,C,h,w) for rows on its device."""
    if trainable.host_pass is not None:
        return trainable.host_pass(rows, noise, sigma)
    x = noised(rows.latent, noise, sigma)
    if trainable.inpainting:
        x = torch.cat([x, rows.mask, rows.masked], dim=1)
    context, pooled = text_of(trainable, rows)
    return trainable.unet(
        x.to(trainable.dtype),
        t.to(trainable.device, torch.float32),
        context=context.to(trainable.dtype),
        y=None if pooled is None else pooled.to(trainable.dtype),
        transformer_options=options,
    )


HELD_OUT_LEVELS = 8  # noise levels at which a picture that is held out is measured
HELD_OUT_POINTS = 20  # of its curve, beside the one before the first step
HELD_OUT = "held_out"  # the kind of tensor in a checkpoint


class HeldOutLoss:
    """The loss on a picture that takes no part in the training, at noise levels and with noise that stay.

    rows: HELD_OUT_LEVELS examples of the picture, one for each level. points: step and loss so far. show: is
    called with each point.
    """

    def __init__(self, rows: Examples, steps: int, show: Callable[[int, float], None]):
        self.rows, self.steps, self.show = rows, steps, show
        self.every = max(1, math.ceil(steps / HELD_OUT_POINTS))
        self.points: list[tuple[int, float]] = []

    def begin(self, trainable: TrainableModel, recipe: Recipe) -> Callable[[int], None]:
        """Measure before the first step of a run; return the function that measures after one."""
        measure = partial(self.measure, trainable, recipe)
        if not self.points:
            measure(0)
        return measure

    @torch.no_grad()
    def measure(self, trainable: TrainableModel, recipe: Recipe, step: int) -> None:
        """Measure after a step, where one is due; a point that is there already is replaced."""
        if step % self.every and step != self.steps:
            return
        # Preservation is no loss on the picture.
        recipe = replace(recipe, preservation=0.0, reference_dropout=0.0)
        t, sigma = fixed_levels(trainable, self.rows)
        rows = _with_references(trainable, recipe, self.rows, generator_at(0, 0, 2))
        noise = torch.randn(self.rows.latent.shape, generator=generator_at(0, 0))
        errors = [
            float(errors_at(trainable, recipe, rows.take(row), noise[row], t[row], sigma[row]))
            for row in torch.arange(len(self.rows)).split(1)
        ]
        loss = math.fsum(errors) / len(errors)
        self.points = [point for point in self.points if point[0] < step] + [(step, loss)]
        self.show(step, loss)

    def tensors(self) -> dict[str, Tensor]:
        """Return the points as a checkpoint holds them."""
        return {f"{HELD_OUT}.0": torch.tensor(self.points, dtype=torch.float64).reshape(-1, 2)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over the points of an interrupted run from its checkpoint."""
        points = tensors.get(f"{HELD_OUT}.0", torch.zeros(0, 2))
        if points.ndim == 2 and points.shape[1] == 2:
            self.points = [(int(step), float(loss)) for step, loss in points.tolist()]
            for step, loss in self.points:
                self.show(step, loss)


def fixed_levels(trainable: TrainableModel, rows: Examples) -> tuple[Tensor, Tensor]:
    """Return evenly spaced quantiles of the noise levels of a training as indices (B,) and levels (B,).

    A schedule without a table of equally likely levels gives them by 128 drawn numbers for each row.
    """
    schedule, count = trainable.diffusion, len(rows)
    if schedule.draw is None:
        t = ((torch.arange(count) + 0.5) / count * len(schedule.sigmas)).long()
        return t, schedule.sigmas[t]
    drawn = schedule.draw(128 * count, generator_at(0, 0, 1), _tokens(trainable, rows))
    return torch.zeros(count, dtype=torch.long), drawn.sort().values[64::128]


@dataclass
class TrainingState:
    """The state of a run after `step` steps, as a checkpoint holds it."""

    step: int
    losses: list[float]
    tensors: dict[str, Tensor]  # master weights and the optimizer's state, by "<kind>.<index>"


@dataclass(frozen=True)
class Callbacks:
    """What is called while a training runs; none of these changes its result.

    Attributes:
        on_step: called as `on_step(step, loss)` after every step; it may raise to stop.
        on_save: called with the state every so many steps, and with the last finite state when an exception
            stops the run early, unless the exception comes while the weights change. None: nothing is kept.
        on_preview: called as `on_preview(step, picture)` with a sample (H, W, 3) in bytes.
        on_held_out: called as `on_held_out(step, loss)` with the loss on a picture that is held out.
        on_stage: called as `on_stage(stage)` with a few words for each stage before the first step.
    """

    on_step: Callable[[int, float], None] = lambda step, loss: None
    on_save: Callable[[TrainingState], None] | None = None
    on_preview: Callable[[int, Tensor], None] = lambda step, picture: None
    on_held_out: Callable[[int, float], None] = lambda step, loss: None
    on_stage: Callable[[str], None] = lambda stage: None


QUIET = Callbacks()


@dataclass(frozen=True)
class SampleOptions:
    """What the samples of a training show; nothing here changes its result.

    prompts: one sample for each; none: the caption of the training. background: the picture and, as its mask,
    the hole that is filled; None: the first training crop.
    """

    prompts: Sequence[str] = ()
    background: Reference | None = None


CAPTION_ONLY = SampleOptions()


SAVE_EVERY = 100  # steps between checkpoints; an interrupt or an error saves one too


@dataclass(frozen=True)
class RunOptions:
    """How a training runs; nothing here changes its result.

    Attributes:
        checkpointing: gradient checkpointing, less memory for more time; None: where `card` needs it.
        card: gigabytes of the card that a memory preset is made for; 0: none.
        save_every: steps between checkpoints.
        preview_every: steps between samples; 0: none.
        samples: what they show.
        callbacks: what is called meanwhile; `finetune_subject` sets on_save, which saves into the store.
        group: the processes that train together; the first saves and makes the samples.
    """

    checkpointing: bool | None = False
    card: int = 0
    save_every: int = SAVE_EVERY
    preview_every: int = 0
    samples: SampleOptions = CAPTION_ONLY
    callbacks: Callbacks = QUIET
    group: ProcessGroup = SINGLE_PROCESS


DEFAULT_OPTIONS = RunOptions()


class Trainer:
    """Train the adapter of a `TrainableModel` by a recipe.

    The same seed on the same machine gives the same weights, also when the run was stopped and resumed.
    """

    def __init__(
        self, trainable: TrainableModel, recipe: Recipe, seed: int, group: ProcessGroup = SINGLE_PROCESS
    ):
        """Raise ValueError when the batch cannot be shared evenly among the group."""
        if recipe.batch_size % group.size:
            raise ValueError(
                f"batch_size: {recipe.batch_size} pictures cannot be shared evenly among {group.size}"
                f" processes; choose a multiple of {group.size}."
            )
        self.trainable, self.recipe, self.seed, self.group = trainable, recipe, seed, group

    def fit(
        self,
        subject: TrainingSet,
        regular: TrainingSet | None = None,
        resume: TrainingState | None = None,
        callbacks: Callbacks = QUIET,
        save_every: int = 0,
    ) -> list[float]:
        """Train on the subject, and on regular data where there is some; return the loss of every step."""

        def loss_at(k: int) -> Tensor:
            return loss_of_pass(self.trainable, self.recipe, subject, regular, self.seed, k, self.group)

        return run_training_loop(
            self.trainable.adapter.parameters,
            loss_at,
            self.recipe.optimiser,
            self.recipe.steps,
            self.recipe.accumulation,
            resume,
            callbacks,
            save_every,
            self.recipe.ema_decay,
            self.group.average,
        )


def run_training_loop(
    parameters: Sequence[Tensor],
    loss_at: Callable[[int], Tensor],
    optimiser: OptimizerSpec,
    steps: int,
    accumulation: int = 1,
    resume: TrainingState | None = None,
    callbacks: Callbacks = QUIET,
    save_every: int = 0,
    ema_decay: float = 0.0,
    average: Average | None = None,
) -> list[float]:
    """Take `steps` optimiser steps and return the loss of each.

    A run that is resumed from a `TrainingState` gives the same bits as an uninterrupted one.

    Args:
        loss_at: `loss_at(k)` is the scalar loss of the k-th forward pass; a step averages `accumulation` of
            them. Its random numbers must depend on k alone.
        save_every: steps between calls of `callbacks.on_save`; 0: never while all goes well.
        ema_decay, average: as in `MixedPrecisionOptimizer`.

    Raises:
        Diverged: at the first loss or gradient that is not finite.
    """
    on_save = callbacks.on_save
    stepper = MixedPrecisionOptimizer(parameters, optimiser, ema_decay, average)
    losses: list[float] = []
    if resume:
        try:
            if not len(resume.losses) == resume.step <= steps:
                raise UnfitState(f"it has {len(resume.losses)} losses for {resume.step} steps of {steps}")
            stepper.load(resume.tensors, resume.step)
            losses = list(resume.losses)
        except UnfitState as error:
            logger.warning(f"Inlay: the saved state does not fit ({error}); the training starts anew.")
    good = len(losses)
    try:
        for step in range(len(losses), steps):
            if optimiser.warmup or optimiser.schedule != "constant":
                stepper.set_rate(optimiser.rate_at(step, steps))
            loss = _gradients(stepper, loss_at, step * accumulation, accumulation)
            if not math.isfinite(loss) or not stepper.step():
                raise Diverged(_diverged(step, optimiser, kept=on_save is not None))
            losses.append(loss)
            callbacks.on_step(step + 1, loss)
            if on_save and save_every and (step + 1) % save_every == 0 and step + 1 < steps:
                on_save(TrainingState(step + 1, list(losses), stepper.tensors()))
                good = step + 1
    except BaseException:
        whole = stepper.taken == len(losses)  # False where the exception came inside step()
        if on_save and whole and len(losses) > good:
            on_save(TrainingState(len(losses), list(losses), stepper.tensors()))
        raise
    stepper.finish()
    return losses


def _diverged(step: int, optimiser: OptimizerSpec, kept: bool) -> str:
    sentence = (
        f"learning_rate: the loss stopped being a number at step {step + 1} with"
        f" {optimiser.learning_rate:g}; choose a smaller learning rate"
    )
    return sentence + (f" (the checkpoint of step {step} is kept)." if kept and step else ".")


def _gradients(
    stepper: MixedPrecisionOptimizer, loss_at: Callable[[int], Tensor], first: int, count: int
) -> float:
    """Add up the gradients of `count` passes; return their mean loss."""
    losses = []
    for k in range(first, first + count):
        loss = loss_at(k) / count
        stepper.backward(loss)
        losses.append(loss.detach())
    mean = torch.stack(losses).sum()
    if stepper.average:
        stepper.average([mean])
    return float(mean)


# Several processes that train one adapter together, as `accelerate launch` or `torchrun` starts them


def on_cpu() -> bool:
    """Return whether the launcher is set to use no accelerators."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"


def open_group() -> ProcessGroup:
    """Return the group of processes that the launcher started; `SINGLE_PROCESS` without one.

    Call it before the host is opened, which takes the accelerator that is the current one by then.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return SINGLE_PROCESS
    state = libraries.accelerate().PartialState(cpu=on_cpu())
    return ProcessGroup(state.process_index, state.num_processes, average)


def close_group(group: ProcessGroup) -> None:
    """Wait for the others, so that none ends while the first is still saving."""
    if group.size > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in place; all reductions run at once."""
    sums = [torch.distributed.all_reduce(tensor, async_op=True) for tensor in tensors]
    for pending, tensor in zip(sums, tensors, strict=True):
        assert pending is not None
        pending.wait()
        tensor /= torch.distributed.get_world_size()


def any_rank_stopping(group: ProcessGroup, stopping: bool) -> bool:
    """Return whether any process has to stop. All processes call it after the same step."""
    if group.average is None:
        return stopping
    share = torch.tensor(float(stopping), device=libraries.accelerate().PartialState().device)
    group.average([share])
    return share.item() > 0


def split_batch(recipe: Recipe, size: int) -> Recipe:
    """Return the recipe with its pictures per step laid out so that `size` processes can share every batch.

    Where batch_size is no multiple of `size`, passes that were accumulated become rows of one batch.
    Raises ValueError when a step's pictures cannot be divided by `size`.
    """
    if recipe.batch_size % size == 0:
        return recipe
    pictures = recipe.batch_size * recipe.accumulation
    if pictures % size:
        raise ValueError(
            f"batch_size: the {pictures} pictures of a step cannot be shared by {size} processes; choose a"
            f" multiple of {size}."
        )
    return replace(recipe, batch_size=size, accumulation=pictures // size)
