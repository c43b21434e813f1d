"""Many trainings and many samplings in one process: memory does not grow."""

import ctypes
import gc
import re
import sys
from pathlib import Path

import psutil
import pytest
import torch

MEGABYTE = 2**20
ROOM = 8  # megabytes that an allocator may keep for itself


def allocated() -> float:
    """Megabytes in use: what the C allocator holds for later is given back first, where it can be.

    On Linux anonymous memory, swapped out or not, and mapped safetensors files: a machine short of memory
    drops pages of files and reads them again, so the resident size depends on what else runs.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim:
            trim(0)
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        anonymous = re.findall(r"(?:RssAnon|VmSwap):\s+(\d+) kB", status)
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
        mapped = re.findall(r"^(\w+)-(\w+) .*\.safetensors", maps, re.MULTILINE)
        if anonymous:
            return (
                sum(map(int, anonymous)) * 1024 + sum(int(end, 16) - int(start, 16) for start, end in mapped)
            ) / MEGABYTE
    return psutil.Process().memory_info().rss / MEGABYTE


COUNTS = [12, pytest.param(100, marks=pytest.mark.repeats)]


def check_flat(sizes: list[float], what: str, capsys) -> None:
    """The last third of the sizes (MB) is at most `ROOM` above those after the first third."""
    count = len(sizes)
    settled = max(sizes[count // 3 : count // 2])
    with capsys.disabled():
        seen = f"{sizes[0]:.0f} MB after the first, {settled:.0f} MB settled, {sizes[-1]:.0f} MB at the end"
        print(f"\n{count} {what}: {seen}")
        if torch.cuda.is_available():
            print(f"reserved on the accelerator: {torch.cuda.memory_reserved() / MEGABYTE:.0f} MB")
    assert max(sizes[-count // 3 :]) - settled < ROOM


@pytest.mark.parametrize("count", COUNTS)
def test_memory_does_not_grow(pictures, store_folder, run, count, capsys):
    sizes = []
    for seed in range(count):
        run(*pictures, seed=seed, steps=1, preview_every=1 if seed % 4 == 0 else 0)
        sizes.append(allocated())
    check_flat(sizes, "trainings", capsys)


@pytest.mark.parametrize("count", COUNTS)
def test_memory_does_not_grow_with_samplings(random_tiny, count, capsys):
    """Each with another picture, another box and Masked Attention, as in a batch of jobs."""
    from inlay import nodes

    def execute(name, *arguments, **inputs):
        return getattr(nodes, name).PREPARE_CLASS_CLONE(None).execute(*arguments, **inputs).result

    sizes = []
    with torch.inference_mode():
        model, _, vae = random_tiny(9)
        for seed in range(count):
            generator = torch.Generator().manual_seed(seed)
            picture = torch.rand(1, 64, 80, 3, generator=generator)
            mask = torch.zeros(1, 64, 80)
            top, left = (int(v) for v in torch.randint(0, 40, (2,), generator=generator))
            mask[:, top : top + 20, left : left + 16] = 1
            text = [[torch.randn(1, 77, 768, generator=generator), {"pooled_output": None}]]
            patched = execute("MaskedAttentionPatch", model, mask=mask)[0]
            execute(
                "DisentangledInpaintSampler",
                patched, text, text, vae, picture, mask, seed, 2, 4.0, "euler", "normal",
                close_up_share=0.5, close_up_size=64,
            )  # fmt: skip
            sizes.append(allocated())
    check_flat(sizes, "samplings", capsys)
