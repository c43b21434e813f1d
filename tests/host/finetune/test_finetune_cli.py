"""`finetune` from the command line: the engine without a graph, alone and in a group, stopped and gone on."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from inlay import dev
from inlay.headless import finetune_cli
from inlay.headless.server import loopback_port

CONFIG = """
checkpoint = "tiny.safetensors"
references = "photos"
class_name = "cat"
out = "{out}"
regular = "regular_cat"
save_every = {save_every}

[recipe]
base = "DreamMix"
steps = {steps}
batch_size = 2
accumulation = 1
resolution = 64
copies = 2

[attributes]
colour = ["brown"]
"""


TERMINATED = dev.PACK / "tests" / "programs" / "terminate_at_line.py"


@pytest.fixture(scope="module")
def folder(in_process_host, tmp_path_factory):
    """A checkpoint, two photos with masks and one regular picture, in a folder of their own."""
    from inlay.lab.models.assemble import random_checkpoint, write_checkpoint

    place = tmp_path_factory.mktemp("cli")
    write_checkpoint(place / "tiny.safetensors", random_checkpoint(0))
    generator = np.random.default_rng(0)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 20:50] = 255
    files = ["photos/1.png", "photos/2.png", "regular_cat/a_brown_cat/7-image.png"]
    for name in files:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
        marked = path.name.replace("-image", "-mask") if "-image" in name else f"{path.stem}_mask.png"
        Image.fromarray(mask).save(path.with_name(marked))
    return place


def command(folder, out, steps=4, save_every=100, launcher=()):
    path = folder / f"{out}.toml"
    path.write_text(CONFIG.format(out=out, steps=steps, save_every=save_every), encoding="utf-8")
    return [sys.executable, *launcher, str(dev.PACK), "finetune", "--config", str(path)]


def run(command, folder, comfyui_path):
    """Without `inlay` on the import path: the folder itself is what is run, whatever it is called."""
    environment = os.environ | {
        "COMFYUI_PATH": str(comfyui_path),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)
    return done.returncode, done.stdout, done.stderr


def learned(folder, comfyui_path, **changes):
    code, printed, said = run(command(folder, **changes), folder, comfyui_path)
    assert code == 0, said[-3000:]
    facts = json.loads(printed.splitlines()[-1])
    return facts, load_file(facts["lora"]), said


@pytest.fixture(scope="module")
def alone(folder, comfyui_path):
    return learned(folder, comfyui_path, out="alone")


def test_a_config_becomes_a_lora_with_its_facts(folder, alone):
    facts, lora, said = alone
    assert "step 4 of 4" in said
    assert facts["words"] == "sks cat"
    assert facts["recipe"] == "DreamMix"
    assert facts["loss"] > 0
    layers = {layer for key in lora for layer in re.findall(r"to_[a-z]+", key)}
    assert layers == {"to_k", "to_v"}  # DreamMix trains no other
    (stored,) = (folder / "alone").glob("*.json")
    subject = json.loads(stored.read_text(encoding="utf-8"))
    assert subject["attributes"] == {"colour": ["brown"]}
    assert subject["caption"] == "a sks cat"


def test_the_same_config_is_not_trained_again(folder, comfyui_path, alone):
    facts, lora, said = learned(folder, comfyui_path, out="alone")
    assert facts["lora"] == alone[0]["lora"]
    assert "step" not in said
    assert all(torch.equal(lora[key], alone[1][key]) for key in lora)


def test_two_processes_learn_what_one_learns(folder, comfyui_path, alone):
    """At the same global batch of 2, to 1e-4 of every matrix.

    Only the order of float32 sums differs. Adam divides a gradient by its own size, so single numbers whose
    gradient is next to nothing may differ by more.
    """
    # what `accelerate launch` itself uses on accelerators; of CPU processes it starts one alone
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(loopback_port())]
    facts, lora, _ = learned(folder, comfyui_path, out="group", launcher=launcher)
    assert (alone[0]["processes"], facts["processes"]) == (1, 2)
    assert lora.keys() == alone[1].keys()
    assert facts["loss"] == pytest.approx(alone[0]["loss"], rel=1e-4)
    for key, weight in alone[1].items():
        assert float((lora[key] - weight).norm()) <= 1e-4 * float(weight.norm()) + 1e-8, key
    assert [path.suffix for path in (folder / "group").iterdir() if path.suffix == ".resume"] == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to catch")
def test_a_machine_that_is_taken_back_leaves_a_run_that_goes_on(folder, comfyui_path, alone):
    """The signal comes in step 2 of 4, whatever else the machine does."""
    words = command(folder, "taken")
    stopped = [words[0], str(TERMINATED), "SIGTERM", "step 2 of", *words[1:]]
    code, _, said = run(stopped, folder, comfyui_path)
    assert code == 130, said[-3000:]
    assert "goes on from here" in said
    (state,) = (folder / "taken").glob("*.resume")
    with safe_open(state, "pt") as file:
        assert file.metadata()["step"] == "2"
    _, lora, _ = learned(folder, comfyui_path, out="taken")
    assert all(torch.equal(lora[key], alone[1][key]) for key in lora)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("checkpoint = 'no.safetensors'\nreferences = 'photos'\nclass_name = 'cat'", "there is no file"),
        ("checkpoint = 'tiny.safetensors'\nreferences = 'none'\nclass_name = 'cat'", "there is no folder"),
    ],
)
def test_a_file_that_is_not_there_is_2_and_a_sentence(folder, comfyui_path, capsys, text, message):
    """In the host of this process: a new one takes seconds to start."""
    path = folder / "wrong.toml"
    path.write_text(text, encoding="utf-8")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        code = finetune_cli.main(argparse.Namespace(config=path, comfyui=comfyui_path))
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_what_is_asked_for_wrongly_ends_with_2_and_a_sentence(folder, comfyui_path):
    path = folder / "wrong.toml"
    path.write_text("checkpoint = 1\nreferences = 'photos'\nclass_name = 'cat'", encoding="utf-8")
    code, _, said = run(
        [sys.executable, str(dev.PACK), "finetune", "--config", str(path)], folder, comfyui_path
    )
    assert code == 2
    assert "checkpoint: 1 is not text" in said.splitlines()[-1]
    assert "Traceback" not in said


def test_no_host_ends_with_3(folder):
    code, _, said = run(command(folder, "nowhere"), folder, folder)
    assert code == 3
    assert "COMFYUI_PATH" in said
