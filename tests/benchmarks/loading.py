"""Does streaming keep up? Records a second from shards, against what a training step of the tiny model needs.

    python dev.py bench loading [WORKERS]

Packs 2000 rendered objects (pictures of 256 pixels with masks) into shards, reads them as a run of stage
`compose` would, and times a step of the tiny world's identity model on batches of 32. Then reads by number
from a thousand shards' worth of a made-up index, to see what memory that takes.
"""

import io
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from inlay.encoders.content_adapter import EncoderSpec
from inlay.lab import scenes
from inlay.training.adapters.dataset import EpochShuffle, SampleDataset, StepBatchSampler, loader
from inlay.training.adapters.samples import Compositions
from inlay.training.adapters.shards import open_source, write_shards

OBJECTS, BATCH, STEPS, RENDERED = 2000, 32, 40, 50


def png(array: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(array).save(data, "PNG")
    return data.getvalue()


def rendered():
    """Objects of two views; a few pictures are rendered and named again and again."""
    rng, pictures = np.random.default_rng(0), []
    for _ in range(RENDERED):
        record = {}
        for view in range(2):
            picture = scenes.render(scenes.sample_scene(rng), 256)
            record[f"{view:03d}.png"] = png(picture.image)
            record[f"{view:03d}.mask.png"] = png((picture.mask * 255).astype(np.uint8))
        pictures.append(record)
    return ((f"{number:06d}", pictures[number % RENDERED]) for number in range(OBJECTS))


def records_a_second(folder: Path, workers: int) -> float:
    examples = SampleDataset(open_source(folder), 0, Compositions(EncoderSpec(width=192, size=84), side=96))
    batches = iter(loader(examples, StepBatchSampler(0, STEPS, BATCH), workers))
    next(batches)  # the workers start
    begun = time.perf_counter()
    count = sum(len(batch["number"]) for batch in batches)
    return count / (time.perf_counter() - begun)


def step_needs() -> float:
    """Records a second that a training step of the tiny model takes in."""
    from inlay.lab.models.object_training import inputs_of
    from inlay.lab.models.train_imprint import new_adapter, new_encoder, new_trainee, stage_of
    from inlay.training.adapters.identity_stages import freeze, pixel_normalization

    stage, trainee = stage_of("compose"), new_trainee(new_encoder("dino"), new_adapter("dino"))
    freeze(trainee.parts, stage)
    batch = {
        "latent": torch.randn(BATCH, 4, 16, 16),
        "look": torch.randn(BATCH, 16, 16, 16),
        "beside": torch.randn(BATCH, 5, 16, 16),
        "object": torch.rand(BATCH, 84, 84, 3),
    }
    seconds = []
    for step in range(4):
        begun = time.perf_counter()
        generator = torch.Generator().manual_seed(step)
        trainee(inputs_of(batch, stage, pixel_normalization(trainee.encoder_spec), generator)).backward()
        seconds.append(time.perf_counter() - begun)
    return BATCH / min(seconds[1:])


def memory_of_order(shards: int) -> float:
    """Megabytes that reading by number takes, with a thousand records in each shard."""
    tracemalloc.start()
    order = EpochShuffle([1000] * shards, 0)
    for k in range(0, order.total, order.total // 1000):
        order[k]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def main() -> None:
    workers = int(sys.argv[1]) if sys.argv[1:] else 2
    with tempfile.TemporaryDirectory() as folder:
        write_shards(rendered(), Path(folder), 500)
        given = records_a_second(Path(folder), workers)
    needed = step_needs()
    print(f"{given:.0f} records a second from {workers} workers; training takes in {needed:.0f} a second")
    print(f"loading is {given / needed:.1f} times as fast as training")
    for shards in (1, 1000):
        print(f"{shards * 1000:8d} records: {memory_of_order(shards):.2f} MB")


if __name__ == "__main__":
    main()
