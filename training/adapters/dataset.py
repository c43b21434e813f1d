"""Read records in an order that depends on the seed alone, for any number of processes.

The k-th record of a run is a function of k: its block, its row and every random number of its sample. Step n
of a run with batch size B uses the records n B to n B + B - 1; process r of w processes uses those at r,
r + w, ... So two processes use the same records as one, and a resumed run continues without counting.
"""

import os
import signal
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ...common.log import logger
from ..objective import generator_at
from .shards import Record, Source

ORDER_STREAM, SAMPLE_STREAM = 2, 3  # random streams: each gives `generator_at` its own seeds
TRIES = 10  # maximum number of consecutive unusable records


class EpochShuffle:
    """Map k to the k-th record: blocks in random order and rows shuffled in each, anew in every epoch.

    Raises:
        ValueError: if there are no records.
    """

    def __init__(self, sizes: Sequence[int], seed: int):
        self.sizes, self.seed = list(sizes), seed
        self.total = sum(sizes)
        if not self.total:
            raise ValueError("--data: the folder has no records; pack a folder of images first.")

    def __getitem__(self, k: int) -> tuple[int, int]:
        """Return (block, row) of the k-th record."""
        epoch, position = divmod(k, self.total)
        blocks, ends = _blocks(tuple(self.sizes), self.seed, epoch)
        index = bisect_right(ends, position)
        block = blocks[index]
        row = position - (ends[index] - self.sizes[block])
        return block, int(_rows(self.sizes[block], self.seed, epoch, block)[row])


@lru_cache(maxsize=4)
def _blocks(sizes: tuple[int, ...], seed: int, epoch: int) -> tuple[list[int], list[int]]:
    """Return the blocks of an epoch in order, and the cumulative number of records after each."""
    order = torch.randperm(len(sizes), generator=generator_at(seed, epoch, ORDER_STREAM)).tolist()
    return order, list(accumulate(sizes[block] for block in order))


@lru_cache(maxsize=16)
def _rows(size: int, seed: int, epoch: int, block: int) -> torch.Tensor:
    """Return the order of the rows of a block in an epoch."""
    return torch.randperm(size, generator=generator_at(seed, epoch * 1_000_003 + block, ORDER_STREAM))


class SampleDataset(Dataset):
    """Map k to the sample made from the k-th record.

    If that record is unusable, a warning is logged and the next record is used: still a function of k.

    Args:
        source: the records.
        seed: of the order and of every sample.
        make: makes a sample from a record; draws random numbers from the given generator only.
    """

    def __init__(
        self, source: Source, seed: int, make: Callable[[Record, torch.Generator], dict[str, torch.Tensor]]
    ):
        self.source, self.seed, self.make = source, seed, make
        self.order = EpochShuffle(source.sizes, seed)

    def __getitem__(self, k: int) -> dict[str, Any]:
        """Return the k-th sample, with its number under "number".

        Raises:
            ValueError: if `TRIES` consecutive records are unusable; it gives the last reason.
        """
        last_error: Exception | None = None
        for position in range(k, k + TRIES):
            block, row = self.order[position]
            try:
                record = self.source.read(block, row)
                return {**self.make(record, generator_at(self.seed, k, SAMPLE_STREAM)), "number": k}
            except (ValueError, OSError) as error:
                last_error = error
                logger.warning(f"Record {row} of block {block} is left out: {error}")
        raise ValueError(
            f"--data: {TRIES} records in a row cannot be used, the last because: {last_error}"
        ) from last_error


class StepBatchSampler:
    """Yield the record numbers of every step for one process, as batches for a DataLoader.

    Args:
        start: the first step.
        stop: the step after the last one.
        batch: records per step, over all processes.
        passes: batches per step and process; their gradients are accumulated.
        rank: number of this process.
        world: number of processes.

    Raises:
        ValueError: if `batch` is not divisible by processes x passes.
    """

    def __init__(self, start: int, stop: int, batch: int, passes: int = 1, rank: int = 0, world: int = 1):
        if batch % (world * passes):
            raise ValueError(
                f"--batch: {batch} is no multiple of {world} processes x {passes} passes; choose a multiple."
            )
        self.start, self.stop, self.batch, self.passes = start, stop, batch, passes
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            mine = list(range(step * self.batch + self.rank, (step + 1) * self.batch, self.world))
            size = len(mine) // self.passes
            yield from (mine[first : first + size] for first in range(0, len(mine), size))

    def __len__(self) -> int:
        return (self.stop - self.start) * self.passes


def loader(samples: SampleDataset, steps: StepBatchSampler, workers: int) -> DataLoader:
    """Return a DataLoader over the samples; `workers` processes make them (0: the training process does)."""
    return DataLoader(
        samples,
        batch_sampler=steps,  # pyright: ignore[reportArgumentType]
        num_workers=workers,
        persistent_workers=False,
        pin_memory=torch.accelerator.is_available(),
        prefetch_factor=4 if workers else None,
        worker_init_fn=_ignore_group_signals,
    )


def _ignore_group_signals(worker: int) -> None:
    """Protect a worker from signals to the process group: training needs its data until it has stopped."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
