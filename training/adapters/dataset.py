"""Records in an order that follows from a seed alone, so that any number of processes see the same ones.

The k-th record of a run is a function of k: which block, which row, and every random number that its example
needs. Step n of a run with batch B uses the records n B to n B + B - 1, and process r of w those at r, r + w,
...; so two processes see what one would, and a resumed run goes on where it stopped without counting.
"""

import logging
import os
import signal
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ..finetune.data import generator_at
from .shards import Record, Source

ORDER, EXAMPLE = 2, 3  # streams of random numbers, beside those of `generator_at`
TRIES = 10  # records in a row that may be unusable


class EpochShuffle:
    """Which record is the k-th: blocks in random order, rows too within each; anew every epoch."""

    def __init__(self, sizes: Sequence[int], seed: int):
        self.sizes, self.seed = list(sizes), seed
        self.total = sum(sizes)
        if not self.total:
            raise ValueError("--data: there is no record in it; pack a folder of pictures first.")

    def __getitem__(self, k: int) -> tuple[int, int]:
        epoch, place = divmod(k, self.total)
        blocks, ends = _blocks(tuple(self.sizes), self.seed, epoch)
        which = bisect_right(ends, place)
        block = blocks[which]
        row = place - (ends[which] - self.sizes[block])
        return block, int(_rows(self.sizes[block], self.seed, epoch, block)[row])


@lru_cache(maxsize=4)
def _blocks(sizes: tuple[int, ...], seed: int, epoch: int) -> tuple[list[int], list[int]]:
    """The blocks of an epoch in order, and where each ends."""
    order = torch.randperm(len(sizes), generator=generator_at(seed, epoch, ORDER)).tolist()
    return order, list(accumulate(sizes[block] for block in order))


@lru_cache(maxsize=16)
def _rows(size: int, seed: int, epoch: int, block: int) -> torch.Tensor:
    return torch.randperm(size, generator=generator_at(seed, epoch * 1_000_003 + block, ORDER))


class SampleDataset(Dataset):
    """k -> the example made of the k-th record; `make(record, generator)` draws from the generator alone.

    Where that one is unusable, which a warning says, it is the next one's: still a function of k.
    """

    def __init__(
        self, source: Source, seed: int, make: Callable[[Record, torch.Generator], dict[str, torch.Tensor]]
    ):
        self.source, self.seed, self.make = source, seed, make
        self.order = EpochShuffle(source.sizes, seed)

    def __getitem__(self, k: int) -> dict[str, Any]:
        """Raises ValueError, with the last reason, where `TRIES` records in a row are unusable."""
        why: Exception | None = None
        for place in range(k, k + TRIES):
            block, row = self.order[place]
            try:
                record = self.source.read(block, row)
                return {**self.make(record, generator_at(self.seed, k, EXAMPLE)), "number": k}
            except (ValueError, OSError) as error:
                why = error
                logging.warning(f"Record {row} of block {block} is left out: {error}")
        raise ValueError(f"--data: {TRIES} records in a row cannot be used, the last because: {why}") from why


class StepBatchSampler:
    """The records of every step from `start` on, for process `rank` of `world`: a DataLoader's batches.

    A step comes in `passes` batches whose gradients are added. Raises ValueError when they do not divide it.
    """

    def __init__(self, start: int, stop: int, batch: int, passes: int = 1, rank: int = 0, world: int = 1):
        if batch % (world * passes):
            raise ValueError(
                f"--batch: {batch} is no multiple of {world} processes x {passes} passes; choose one that is."
            )
        self.start, self.stop, self.batch, self.passes = start, stop, batch, passes
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            own = list(range(step * self.batch + self.rank, (step + 1) * self.batch, self.world))
            size = len(own) // self.passes
            yield from (own[first : first + size] for first in range(0, len(own), size))

    def __len__(self) -> int:
        return (self.stop - self.start) * self.passes


def loader(examples: SampleDataset, steps: StepBatchSampler, workers: int) -> DataLoader:
    """Batches of examples, made by `workers` processes beside the training (0: none)."""
    return DataLoader(
        examples,
        batch_sampler=steps,  # pyright: ignore[reportArgumentType]
        num_workers=workers,
        persistent_workers=False,
        pin_memory=torch.accelerator.is_available(),
        prefetch_factor=4 if workers else None,
        worker_init_fn=_apart,
    )


def _apart(worker: int) -> None:
    """A signal to the whole group asks the training to stop, which still needs its data until then."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
