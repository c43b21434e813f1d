"""A training whose process was killed goes on where its last checkpoint stood, to the same bits."""

import json
import os
import runpy
import shutil
import subprocess
import sys

import pytest
import torch

from inlay import dev

VICTIM = (dev.PACK / "tests" / "programs" / "train_until_killed.py").read_text(encoding="utf-8")
FINETUNE_CAT = (dev.PACK / "tests" / "programs" / "finetune_cat.py").read_text(encoding="utf-8")
KILLER = (dev.PACK / "tests" / "programs" / "kill_while_training.py").read_text(encoding="utf-8")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("count", [5, pytest.param(200, marks=pytest.mark.repeats)])
@pytest.mark.parametrize("base", ["", "flux2-klein", pytest.param("flux1-fill", marks=pytest.mark.repeats)])
def test_kills_at_any_moment_end_in_the_same_bits(
    random_checkpoint, tmp_path, comfyui_path, base, count, capsys
):
    """Up to five kills in a row, then the end: weights and JSON are an undisturbed run's, bit for bit."""
    (tmp_path / "finetune_cat.py").write_text(FINETUNE_CAT, encoding="utf-8")
    environment = os.environ | {
        "COMFYUI_PATH": str(comfyui_path),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path != str(comfyui_path)),
        "OMP_NUM_THREADS": "1",
    }
    places = [str(path) for path in (base or random_checkpoint, tmp_path / "store", tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", KILLER, *places, str(count)], env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    with capsys.disabled():
        print(f"\n{base or 'a UNet'}: {found}")
    assert found["kills"] >= count
    assert any(".resume" in state for state in found["states"])
    assert found["finished"] >= count // 5
    assert found["failed"] == 0


def test_a_killed_training_goes_on_to_the_same_bits(parts, random_checkpoint, tmp_path, comfyui_path):
    program = tmp_path / "finetune_cat.py"
    program.write_text(FINETUNE_CAT, encoding="utf-8")
    scope = runpy.run_path(str(program))
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
        resumed = scope["finetune_cat"](wired, store, lambda step, loss: taken.append(step))
        shutil.rmtree(store)
        whole = scope["finetune_cat"](wired, store, lambda step, loss: None)
    assert taken == [5, 6, 7, 8]
    assert resumed.subject.losses == whole.subject.losses
    assert all(torch.equal(whole.lora[key], resumed.lora[key]) for key in whole.lora)
