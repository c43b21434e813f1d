"""The training loop: a few parameters, one callable for the loss, nothing about models."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..optimizers import Average, MixedPrecisionOptimizer
from .recipes import OptimizerSpec


class Diverged(ValueError):
    """The loss or its gradients are no longer numbers."""


@dataclass
class TrainingState:
    """Where a run stands: what a checkpoint holds beside the parameters themselves."""

    step: int
    losses: list[float]
    tensors: dict[str, Tensor]  # master weights and the optimiser's state, by "<kind>.<index>"


def run_training_loop(
    parameters: Sequence[Tensor],
    loss_at: Callable[[int], Tensor],
    optimiser: OptimizerSpec,
    steps: int,
    accumulation: int = 1,
    resume: TrainingState | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    on_save: Callable[[TrainingState], None] | None = None,
    save_every: int = 0,
    ema_decay: float = 0.0,
    average: Average | None = None,
) -> list[float]:
    """Take `steps` optimiser steps and return the loss of each.

    A run that is resumed from a `TrainingState` gives the same bits as an uninterrupted one.

    Args:
        loss_at: `loss_at(k)` is the scalar loss of the k-th forward pass; a step averages `accumulation` of
            them. Its random numbers must depend on k alone.
        on_step: called as `on_step(step, loss)`; it may raise to stop.
        on_save: called with the state every `save_every` steps (0: never) and when an exception stops the
            run early, with the last finite state; not if the exception comes while the weights change.
        ema_decay, average: as in `MixedPrecisionOptimizer`.

    Raises:
        Diverged: at the first loss or gradient that is not finite.
    """
    stepper = MixedPrecisionOptimizer(parameters, optimiser, ema_decay, average)
    losses: list[float] = []
    if resume:
        stepper.load(resume.tensors, resume.step)
        losses = list(resume.losses)
    good = len(losses)
    try:
        for step in range(len(losses), steps):
            loss = _gradients(stepper, loss_at, step * accumulation, accumulation)
            if not math.isfinite(loss) or not stepper.step():
                raise Diverged(_diverged(step, optimiser, kept=on_save is not None))
            losses.append(loss)
            on_step(step + 1, loss)
            if on_save and save_every and (step + 1) % save_every == 0 and step + 1 < steps:
                on_save(TrainingState(step + 1, list(losses), stepper.tensors()))
                good = step + 1
    except BaseException:
        whole = stepper.taken == len(losses)  # not cut off while the weights moved
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
    """Add up the gradients of `count` passes; their mean loss."""
    losses = []
    for k in range(first, first + count):
        loss = loss_at(k) / count
        stepper.backward(loss)
        losses.append(loss.detach())
    mean = torch.stack(losses).sum()
    if stepper.average:
        stepper.average([mean])
    return float(mean)
