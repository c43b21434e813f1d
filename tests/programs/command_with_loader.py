"""A command of the pack that loads data in spawned workers; tests put it in the place of `train_cli`."""

import importlib
import multiprocessing
from pathlib import Path

import torch


def add_arguments(parser):
    parser.add_argument("folder", type=Path)


def make(record, generator):
    return {"length": torch.tensor(len(record["a.png"]))}


def main(options):
    # the modules of the copy that is run: a worker that took another `inlay` would not find its data
    pack = (__package__ or "").rpartition(".")[0]
    shards = importlib.import_module(f"{pack}.training.adapters.shards")
    dataset = importlib.import_module(f"{pack}.training.adapters.dataset")
    multiprocessing.set_start_method("spawn")
    shards.write_shards(((str(i), {"a.png": bytes(i)}) for i in range(4)), options.folder, 2)
    examples = dataset.SampleDataset(shards.open_source(options.folder), 0, make)
    batches = list(dataset.loader(examples, dataset.StepBatchSampler(0, 2, 2), 1))
    print(*sorted(length for batch in batches for length in batch["length"].tolist()))
    return 0
