"""Many trainings in one process: memory does not grow."""

import ctypes
import gc
import sys

import psutil
import pytest
import torch

MEGABYTE = 2**20
ROOM = 8  # megabytes that an allocator may keep for itself


def resident(process: psutil.Process) -> float:
    """Megabytes in use: what the C allocator holds for later is given back first, where it can be."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim:
            trim(0)
    return process.memory_info().rss / MEGABYTE


@pytest.mark.parametrize("count", [12, pytest.param(100, marks=pytest.mark.repeats)])
def test_memory_does_not_grow(pictures, store_folder, run, count, capsys):
    process, sizes = psutil.Process(), []
    for seed in range(count):
        run(*pictures, seed=seed, steps=1, preview_every=1 if seed % 4 == 0 else 0)
        sizes.append(resident(process))
    settled = max(sizes[count // 3 : count // 2])
    with capsys.disabled():
        seen = f"{sizes[0]:.0f} MB after the first, {settled:.0f} MB settled, {sizes[-1]:.0f} MB at the end"
        print(f"\n{count} trainings: {seen}")
        if torch.cuda.is_available():
            print(f"reserved on the accelerator: {torch.cuda.memory_reserved() / MEGABYTE:.0f} MB")
    assert max(sizes[-count // 3 :]) - settled < ROOM
