"""Two processes that share every batch against one that takes it whole, on the CPU, started by accelerate."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from inlay import dev
from inlay.headless.server import loopback_port

pytestmark = pytest.mark.slow
TRAIN = (dev.PACK / "tests" / "programs" / "train_in_group.py").read_text(encoding="utf-8")
STOP = (dev.PACK / "tests" / "programs" / "stop_in_group.py").read_text(encoding="utf-8")


def launch(tmp_path, processes, accumulation, steps):
    out = tmp_path / f"{processes}.safetensors"
    run(tmp_path, TRAIN, processes, out, accumulation, steps)
    return load_file(out)


def run(tmp_path, text, processes, *arguments):
    script = tmp_path / "train.py"
    script.write_text(text, encoding="utf-8")
    start = [sys.executable]
    if processes > 1:
        # what `accelerate launch` itself uses on accelerators; of CPU processes it starts one alone
        start += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        start += ["--master_port", str(loopback_port())]
    command = [*start, str(script), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_learn_what_one_learns(tmp_path):
    """The same examples, noise and steps; only the order of float32 sums differs: 1e-5 after 20 steps."""
    one, two = (launch(tmp_path, processes, accumulation=2, steps=20) for processes in (1, 2))
    assert (one.pop("processes"), two.pop("processes")) == (1, 2)
    assert one.keys() == two.keys()
    assert one["losses"][-1] < one["losses"][0]
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-5, msg=name)


def test_processes_stop_after_the_same_step(tmp_path):
    """Only the second process gets the signal."""
    run(tmp_path, STOP, 2, tmp_path)
    assert [(tmp_path / f"stopped-{number}").read_text() for number in range(2)] == ["4", "4"]
