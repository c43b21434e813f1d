"""The store of subjects: two processes that save one name, and kill -9 at any moment."""

import os
import random
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from inlay import dev
from inlay.training.finetune.store import Store
from inlay.training.finetune.subject import Subject

pytestmark = pytest.mark.slow
SUBJECT = Subject(
    "sks", "cat", "a photo of sks cat", "inlay/cat.safetensors", "DreamCom", "sd15", 400, 1, 16, losses=[1.0]
)
LORA = {"a.lora_up.weight": torch.ones(2, 3)}
WRITER = (dev.PACK / "tests" / "programs" / "store_writer.py").read_text(encoding="utf-8")


def test_kill_9_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path):
    rng, store = random.Random(0), Store(tmp_path)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert writer.stdout
        assert writer.stdout.readline().strip() == b"ready"
        time.sleep(rng.uniform(0, 0.3))
        writer.kill()
        writer.wait()
        writer.stdout.close()
        state, found = store.find_state("cat"), store.find("dog")
        assert state
        assert (state.tensors["master.0"] == state.step).all()
        assert state.losses == [float(state.step)]
        assert found
        assert (found[1]["up"] == found[1]["up"][0]).all()
        assert found[0].steps - 1 <= found[1]["up"][0] <= found[0].steps + 1
    store.save_state("cat", state)
    store.save("dog", replace(SUBJECT), LORA, {})
    assert not list(tmp_path.glob("*.partial"))  # what the killed ones left is gone


SAVER = (dev.PACK / "tests" / "programs" / "state_saver.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("rounds", [40, pytest.param(200, marks=pytest.mark.repeats)])
def test_two_processes_save_one_name(tmp_path, rounds):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path), str(rounds), str(number)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True,
        )
        for number in (1, 2)
    ]  # fmt: skip
    for writer in writers:  # both begin at once
        assert writer.stdout
        assert writer.stdout.readline().strip() == "ready"
    for writer in writers:
        assert writer.stdin
        writer.stdin.write("go\n")
        writer.stdin.flush()
    while any(writer.poll() is None for writer in writers):  # a reader sees one of the two, and whole
        found = Store(tmp_path).find("cat")
        assert found is None or (found[1]["up"] == found[1]["up"][0]).all()
        time.sleep(0.05)
    ends = [writer.communicate() for writer in writers]
    assert [out.strip() for out, _ in ends] == ["0", "0"], ends
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]
