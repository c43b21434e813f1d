"""The adapter trainings in two processes: the losses of one, killed workers, stops, damaged checkpoints."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inlay.headless import train_cli
from inlay.tests.adapter_training import common, cut, losses, pack_shards, write_world
from inlay.training.adapters import run_checkpoints as runs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    write_world(root)
    pack_shards(root)
    return root


def launch(packed, out, processes, *more):
    """The command in so many processes, told of one another as `torchrun` tells them.

    On a CPU `accelerate launch` starts one, whatever it is asked for.
    """
    import inlay

    command = [sys.executable, "-m", "inlay", "train", "views", *common(packed, "shards", out)]
    command = [str(part) for part in (*command, "--encoder", packed / "dino", *more)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = {"PYTHONPATH": str(Path(inlay.__path__[0]).parent), "OMP_NUM_THREADS": "1"}
    others = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": processes}
    started = []
    for rank in range(processes):
        own = {**paths, **others, "RANK": rank, "LOCAL_RANK": rank, "ACCELERATE_USE_CPU": "true"}
        environment = os.environ | {name: str(value) for name, value in own.items()}
        said = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
        started.append(
            subprocess.Popen(
                command, cwd=out.parent, env=environment, stdout=subprocess.DEVNULL, stderr=said, text=True
            )
        )
    return started


def finish(processes, code=0):
    _, said = processes[0].communicate()
    assert [process.wait() for process in processes] == [code] * len(processes), said


def wait_for(processes, out, steps):
    """Until so many steps are done, or the training has ended too soon."""
    log = out.with_suffix(".run") / "log.jsonl"
    while processes[0].poll() is None:
        if log.exists() and log.read_text(encoding="utf-8").count("\n") >= steps:
            return
        time.sleep(0.05)
    pytest.fail(f"it ended before step {steps}: {processes[0].communicate()[1]}")


@pytest.fixture(scope="module")
def undisturbed(packed, tmp_path_factory):
    """The losses of the first so many steps in two processes; the views' rates do not depend on how many."""
    known: list[float] = []

    def of_steps(count: int) -> list[float]:
        if len(known) < count:
            out = tmp_path_factory.mktemp("undisturbed") / "out.safetensors"
            finish(launch(packed, out, 2, "--steps", max(count, 30)))
            known[:] = losses(out)
        return known[:count]

    return of_steps


def test_two_processes_give_the_losses_of_one(packed, tmp_path, undisturbed):
    out = tmp_path / "alone.safetensors"
    finish(launch(packed, out, 1, "--steps", 6))
    assert len(losses(out)) == 6
    assert losses(out) == pytest.approx(undisturbed(6), rel=1e-4)


def test_killed_workers_go_on_from_the_last_checkpoint(packed, tmp_path, undisturbed):
    killed = tmp_path / "killed.safetensors"
    processes = launch(packed, killed, 2, "--steps", 100_000, "--save-every", 5)
    wait_for(processes, killed, 12)
    for process in processes:
        process.kill()
        process.communicate()
    count = len(losses(killed)) + 10  # whenever it was killed
    finish(launch(packed, killed, 2, "--steps", count, "--save-every", 5))
    assert losses(killed) == pytest.approx(undisturbed(count), rel=1e-4)


@pytest.mark.skipif(os.name == "nt", reason="there a process cannot be told to stop")
def test_processes_agree_on_the_step_they_stop_after(packed, tmp_path):
    """Only one process gets the signal."""
    out = tmp_path / "out.safetensors"
    processes = launch(packed, out, 2, "--steps", 4000, "--save-every", 4000)
    wait_for(processes, out, 3)
    processes[1].send_signal(signal.SIGTERM)
    finish(processes, train_cli.STOPPED)
    ((step, folder),) = runs.checkpoints(out.with_suffix(".run"))
    assert step == len(losses(out))
    assert len(list(folder.glob("random_states_*.pkl"))) == 2


def test_processes_go_on_together_from_the_checkpoint_before_a_damaged_one(packed, tmp_path, undisturbed):
    damaged = tmp_path / "damaged.safetensors"
    finish(launch(packed, damaged, 2, "--steps", 6, "--save-every", 4))
    cut(damaged.with_suffix(".run") / "step-000006" / "model.safetensors")
    finish(launch(packed, damaged, 2, "--steps", 7, "--save-every", 4))
    assert losses(damaged) == pytest.approx(undisturbed(7), rel=1e-4)
