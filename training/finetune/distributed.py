"""Several processes that train one adapter together, as `accelerate launch` or `torchrun` starts them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..optimizers import Average
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


def on_cpu() -> bool:
    """Return whether the launcher was told not to use accelerators."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"


def open_group() -> ProcessGroup:
    """Return the group of processes that the launcher started; `SINGLE_PROCESS` without one.

    Call it before the host is opened, which takes the accelerator that is the current one by then.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return SINGLE_PROCESS
    from accelerate import PartialState  # comes with PEFT

    state = PartialState(cpu=on_cpu())
    return ProcessGroup(state.process_index, state.num_processes, average)


def close_group(group: ProcessGroup) -> None:
    """Wait for the others, so that none ends while the first is still saving."""
    if group.size > 1:
        from accelerate import PartialState

        state = PartialState()
        state.wait_for_everyone()
        state.destroy_process_group()


def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in place."""
    from accelerate.utils import reduce

    for tensor in tensors:
        tensor.copy_(reduce(tensor, "mean"))  # pyright: ignore[reportArgumentType]


def any_rank_stopping(group: ProcessGroup, told: bool) -> bool:
    """Return whether any process was told to stop. All processes call it after the same step."""
    if group.average is None:
        return told
    from accelerate import PartialState

    share = torch.tensor(float(told), device=PartialState().device)
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
