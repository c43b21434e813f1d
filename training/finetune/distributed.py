"""Several processes that train one adapter together, as `accelerate launch` or `torchrun` starts them."""

import os
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .recipes import Recipe
from .trainer import SINGLE_PROCESS, ProcessGroup


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
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in place."""
    sums = [torch.distributed.all_reduce(tensor, async_op=True) for tensor in tensors]
    for pending, tensor in zip(sums, tensors, strict=True):
        assert pending is not None
        pending.wait()
        tensor /= torch.distributed.get_world_size()


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
