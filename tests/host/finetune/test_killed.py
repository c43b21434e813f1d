"""A training whose process was killed goes on where its last checkpoint stood, to the same bits."""

import json
import os
import runpy
import shutil
import subprocess
import sys

import pytest
import torch

VICTIM = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, os.environ["COMFYUI_PATH"])
from comfy.cli_args import args
args.cpu = True
import comfy.sd
import torch
sys.path.insert(0, sys.argv[3])
import lesson

with torch.inference_mode():
    wired = comfy.sd.load_checkpoint_guess_config(sys.argv[1])[:3]
    def on_step(step, loss):
        if step == 5:
            print("here", flush=True)
            time.sleep(600)

    lesson.teach_cat(wired, Path(sys.argv[2]), on_step)
"""
LESSON = """
import torch
from inlay.training.finetune.data import Concept, Reference
from inlay.training.finetune.recipes import RECIPES
from inlay.training.finetune.store import Store
from inlay.training.finetune.finetune_subject import RunOptions, finetune_subject
from inlay.training.finetune.pipeline import Pipeline
from inlay.training.finetune.spec import FinetuneSpec
from inlay.training.finetune.trainer import Callbacks

def teach_cat(wired, folder, on_step):
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(64, 64)
    mask[10:50, 20:50] = 1
    references = [Reference(torch.rand(64, 64, 3, generator=generator), mask) for _ in range(3)]
    recipe = RECIPES["DreamCom"].with_choices(steps=8, rank=4, batch_size=2)
    lesson = FinetuneSpec("sks", "cat", recipe, Concept("a photo of sks cat", references), [], 64, 3)
    options = RunOptions(save_every=1, callbacks=Callbacks(on_step))
    return finetune_subject(Pipeline(*wired), lesson, Store(folder), options)
"""

KILLER = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
sys.path.insert(0, os.environ["COMFYUI_PATH"])
from comfy.cli_args import args
args.cpu = True
import comfy.sd
import torch
from safetensors import safe_open
sys.path.insert(0, sys.argv[3])
import lesson

torch.set_num_threads(1)  # so that a fork is whole
with torch.inference_mode():
    wired = comfy.sd.load_checkpoint_guess_config(sys.argv[1])[:3]
store, count, rng = Path(sys.argv[2]), int(sys.argv[4]), random.Random(0)

def start():
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with torch.inference_mode():
            lesson.teach_cat(wired, store, lambda step, loss: None)
        code = 0
    finally:
        os._exit(code)

def result():
    (lora,), (facts,) = store.glob("*.safetensors"), store.glob("*.json")
    left = [path.name for path in store.iterdir() if path.suffix not in (".safetensors", ".json")]
    with safe_open(lora, "pt") as file:  # the order of the metadata in the file is random
        weights = {key: file.get_tensor(key).numpy().tobytes() for key in file.keys()}
        return (weights, file.metadata()), facts.read_bytes(), left

begun = time.monotonic()
assert os.waitpid(start(), 0)[1] == 0
seconds, whole = time.monotonic() - begun, result()
shutil.rmtree(store)
kills = finished = failed = 0
states = set()
while kills < count:
    child = start()
    time.sleep(rng.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        kills += 1
        states.add(tuple(sorted(path.suffix for path in store.iterdir())) if store.exists() else ())
        if kills % 5:
            continue  # the next one goes on, and is killed as well
        assert os.waitpid(start(), 0)[1] == 0
    finished += 1
    lora, facts, left = result()
    failed += (lora, facts, left) != (*whole[:2], [])
    print(kills, finished, failed, flush=True)
    shutil.rmtree(store)
print(json.dumps({"kills": kills, "finished": finished, "failed": failed, "states": sorted(states)}))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("count", [5, pytest.param(200, marks=pytest.mark.repeats)])
def test_kills_at_any_moment_end_in_the_same_bits(random_checkpoint, tmp_path, comfyui_path, count, capsys):
    """Up to five kills in a row, then the end: weights and JSON are an undisturbed run's, bit for bit."""
    (tmp_path / "lesson.py").write_text(LESSON, encoding="utf-8")
    environment = os.environ | {
        "COMFYUI_PATH": str(comfyui_path),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path != str(comfyui_path)),
        "OMP_NUM_THREADS": "1",
    }
    places = [str(path) for path in (random_checkpoint, tmp_path / "store", tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", KILLER, *places, str(count)], env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    with capsys.disabled():
        print(f"\n{found}")
    assert found["kills"] == count
    assert found["finished"] >= count // 5
    assert found["failed"] == 0


def test_a_killed_training_goes_on_to_the_same_bits(parts, random_checkpoint, tmp_path, comfyui_path):
    lesson = tmp_path / "lesson.py"
    lesson.write_text(LESSON, encoding="utf-8")
    scope = runpy.run_path(str(lesson))
    wired, store = (parts.model, parts.clip, parts.vae), tmp_path / "store"
    environment = os.environ | {
        "COMFYUI_PATH": str(comfyui_path),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path != str(comfyui_path)),
    }
    command = [sys.executable, "-c", VICTIM, str(random_checkpoint), str(store), str(tmp_path)]
    victim = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    assert victim.stdout
    assert any(line.strip() == "here" for line in victim.stdout)
    victim.kill()
    victim.wait()
    victim.stdout.close()
    assert [file.suffix for file in store.iterdir() if file.suffix != ".partial"] == [".resume"]

    taken: list[int] = []
    with torch.inference_mode():
        resumed = scope["teach_cat"](wired, store, lambda step, loss: taken.append(step))
        shutil.rmtree(store)
        whole = scope["teach_cat"](wired, store, lambda step, loss: None)
    assert taken == [5, 6, 7, 8]
    assert resumed.subject.losses == whole.subject.losses
    assert all(torch.equal(whole.lora[key], resumed.lora[key]) for key in whole.lora)
