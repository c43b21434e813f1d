"""What is kept: found by content, whole or not at all, readable later."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from inlay.common import files as disk
from inlay.training.finetune.data import Concept, Reference
from inlay.training.finetune.recipes import DREAMCOM, DREAMMIX, RECIPES
from inlay.training.finetune.store import (
    LONGEST_NAME,
    Store,
    content_key,
    fingerprint,
    released_key,
    rounded_samples,
)
from inlay.training.finetune.subject import Subject, is_subject
from inlay.training.finetune.trainer import TrainingState

SUBJECT = Subject(
    "sks", "cat", "a photo of sks cat", "inlay/cat.safetensors", "DreamCom", "sd15", 400, 1, 16, losses=[1.0]
)
LORA = {"a.lora_up.weight": torch.ones(2, 3)}


def pictures(height=4, width=4, shade=0.0, mask=None, count=1, caption="a photo of sks cat"):
    reference = Reference(
        torch.full((height, width, 3), shade), torch.ones(height, width) if mask is None else mask
    )
    return Concept(caption, [reference] * count)


def key(**changes):
    facts = {"concepts": [pictures()], "recipe": DREAMCOM, "size": 64, "seed": 0, "base": "abc"}
    return content_key(**(facts | changes))


def test_a_subject_of_the_released_version_has_the_hosts_name_of_its_family():
    """Version 0.1 stored "SD15"; now it is our own name, and nothing else of the subject changes."""
    released = (
        '{"token": "sks", "class_name": "cat", "caption": "a photo of sks cat",'
        ' "lora": "inlay/cat.safetensors", "recipe": "DreamCom", "family": "%s", "steps": 400, "seed": 1,'
        ' "rank": 16, "attributes": {}, "losses": [1.0], "version": 1, "previous": ""}'
    )
    assert Subject.from_json(released % "SD15") == SUBJECT
    assert Subject.from_json(SUBJECT.to_json()) == SUBJECT
    names = {name: Subject.from_json(released % name).family for name in ("SD20", "SDXL", "SSD1B", "Unknown")}
    assert names == {"SD20": "sd2", "SDXL": "sdxl", "SSD1B": "sdxl", "Unknown": "Unknown"}


def test_everything_that_decides_the_result_is_in_the_key():
    changes = [
        {"concepts": [pictures(shade=1e-3)]},
        {"concepts": [pictures(mask=torch.eye(4))]},
        {"concepts": [pictures(count=2)]},
        {"concepts": [pictures(2, 8)]},
        {"concepts": [pictures(caption="a photo of sks dog")]},
        {"concepts": [pictures(), pictures(caption="a cat")]},
        {"recipe": DREAMMIX},
        {"recipe": DREAMCOM.with_choices(learning_rate=2e-4)},
        {"size": 128},
        {"seed": 1},
        {"base": "abd"},
    ]
    assert key() == key()
    assert len({key(), *(key(**change) for change in changes)}) == len(changes) + 1


def test_what_decides_nothing_is_not_in_the_key():
    soft = torch.linspace(0, 1, 16).view(4, 4)
    assert key(concepts=[pictures(mask=soft)]) == key(concepts=[pictures(mask=(soft > 0.5).float())])
    assert key(recipe=replace(DREAMCOM, name="another")) == key()
    assert key(recipe=replace(DREAMCOM, sample_posterior=True)) != key()


def test_names_of_version_0_1_0_are_known():
    """Written down from version 0.1.0: `Store.name` of its `content_key` for these pictures and recipes."""
    mask = torch.zeros(6, 5)
    mask[1:4, 1:3] = 1
    concept = Concept("a photo of sks cat", [Reference(torch.arange(90).view(6, 5, 3) / 90, mask)])
    written = {
        "DreamCom": "tea-cup-dreamcom-c0661f3174528ba5",
        "DreamCom (full UNet)": "tea-cup-dreamcom-full-unet-3235699564c4a961",
        "DreamMix": "tea-cup-dreammix-e0060b1e870b9990",
    }
    for name, expected in written.items():
        recipe = RECIPES[name].with_choices(steps=7)
        released = released_key([concept], recipe, 64, 3, "abc")
        assert released
        assert Store.released_name("Tea Cup", recipe, released) == expected
    assert released_key([concept], replace(DREAMCOM, sample_posterior=True), 64, 3, "abc") is None


def test_the_rounding_of_a_computed_tensor_hides_its_last_bits_only():
    for seed in range(20):
        tensor = torch.randn(77, 768, generator=torch.Generator().manual_seed(seed))
        kept = rounded_samples(tensor)
        assert not torch.equal(rounded_samples(tensor * (1 + 0.01 * torch.randn(tensor.shape))), kept)
        assert not torch.equal(rounded_samples(tensor[:-1]), kept)
        off = rounded_samples(tensor + 1e-7 * torch.randn(tensor.shape)) - kept
        assert (off != 0).sum() <= 1


def test_the_fingerprint_sees_every_tensor():
    weights = {f"w{i}": torch.randn(40, 30, generator=torch.Generator().manual_seed(i)) for i in range(3)}
    whole = fingerprint(weights.items())
    assert fingerprint(weights.items()) == whole
    for name in weights:
        assert fingerprint({**weights, name: weights[name] * 1.001}.items()) != whole
    assert fingerprint({"x" + name: weight for name, weight in weights.items()}.items()) != whole


class Elsewhere(torch.Tensor):
    """As on another device: it cannot be joined before it is moved."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.cat:
            raise RuntimeError("Expected all tensors to be on the same device")
        result = super().__torch_function__(func, types, args, kwargs or {})
        return torch.Tensor.as_subclass(result, torch.Tensor) if func is torch.Tensor.cpu else result


def test_the_fingerprint_does_not_mind_where_a_tensor_is():
    weight = torch.randn(30, 20)
    here, there = ([("a", torch.ones(3)), ("b", w)] for w in (weight, weight.as_subclass(Elsewhere)))
    assert fingerprint(there) == fingerprint(here)


def test_a_finished_subject_is_found_again_and_its_resume_file_is_gone(tmp_path):
    store = Store(tmp_path / "loras" / "inlay")
    assert store.find("cat") is None
    store.save_state("cat", TrainingState(3, [3.0, 2.0, 1.0], {"master.0": torch.ones(2)}))
    store.save("cat", SUBJECT, LORA, {"inlay": "x"})
    found = store.find("cat")
    assert found
    subject, lora = found
    assert subject == SUBJECT
    assert torch.equal(lora["a.lora_up.weight"], LORA["a.lora_up.weight"])
    assert sorted(file.name for file in store.folder.iterdir()) == ["cat.json", "cat.safetensors"]


def test_a_state_comes_back_as_it_went(tmp_path):
    store = Store(tmp_path)
    tensors = {"master.0": torch.randn(3, 2), "step.0": torch.tensor(7.0)}
    store.save_state("cat", TrainingState(7, [0.1, 1 / 3], tensors))
    state = store.find_state("cat")
    assert state
    assert (state.step, state.losses) == (7, [0.1, 1 / 3])
    assert all(torch.equal(state.tensors[name], tensor) for name, tensor in tensors.items())


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux' list of mapped files")
def test_a_state_does_not_hold_on_to_its_file(tmp_path):
    store = Store(tmp_path)
    store.save_state("cat", TrainingState(1, [0.1], {"master.0": torch.randn(300, 200)}))
    state = store.find_state("cat")
    assert state
    with open("/proc/self/maps", encoding="utf-8") as mapped:
        assert "cat.resume" not in mapped.read()


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.save("cat", SUBJECT, LORA, {})

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("inlay.training.finetune.store.save_file", full)
    with pytest.raises(ValueError, match=r"could not be written.*No space left.*make room"):
        store.save("cat", SUBJECT, {"a.lora_up.weight": torch.zeros(2, 3)}, {})
    found = store.find("cat")
    assert found
    assert torch.equal(found[1]["a.lora_up.weight"], LORA["a.lora_up.weight"])
    assert not list(tmp_path.glob("*.partial"))


def test_what_is_written_reaches_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    done: list[tuple[str, str]] = []
    settle, rename = disk._fsync, os.replace

    def note_settled(path):
        done.append(("settled", path.name.partition(".")[0]))
        settle(path)

    def note_renamed(old, new):
        done.append(("renamed", new.name))
        rename(old, new)

    monkeypatch.setattr(disk, "_fsync", note_settled)
    monkeypatch.setattr(os, "replace", note_renamed)
    Store(tmp_path).save_state("cat", TrainingState(1, [0.1], {"master.0": torch.ones(2)}))
    assert done == [("settled", "cat"), ("renamed", "cat.resume"), ("settled", tmp_path.name)]
    done.clear()
    checkpoint = tmp_path / "partial"
    (checkpoint / "inside").mkdir(parents=True)
    (checkpoint / "inside" / "weights").write_bytes(b"1")
    disk.atomic_replace(checkpoint, tmp_path / "step")
    assert {name for what, name in done[:-2] if what == "settled"} == {"weights", "inside", "partial"}
    assert done[-2:] == [("renamed", "step"), ("settled", tmp_path.name)]
    assert (tmp_path / "step" / "inside" / "weights").read_bytes() == b"1"


def test_damaged_files(tmp_path, caplog):
    store = Store(tmp_path)
    store.save("cat", SUBJECT, LORA, {})
    store.lora_path("cat").write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match=r"is damaged.*delete it to train again"):
        store.find("cat")
    for text in ("{}", "[1]", '{"token": ', '{"version": "x"}', "\u00e9"):
        (tmp_path / "cat.json").write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=r"cat\.json is damaged.*delete it to train again"):
            store.find("cat")
    (tmp_path / "cat.resume").write_bytes(b"\x00" * 20)
    assert store.find_state("cat") is None
    assert "starts from the beginning" in caplog.text


@pytest.mark.parametrize(
    "metadata", [{}, {"step": "3"}, {"step": "three", "losses": "[]"}, {"step": "3", "losses": "[1.0,"}]
)
def test_a_checkpoint_that_says_too_little_is_passed_over(tmp_path, caplog, metadata):
    save_file({"master.0": torch.ones(2)}, tmp_path / "cat.resume", metadata)
    assert Store(tmp_path).find_state("cat") is None
    assert "cat.resume is damaged" in caplog.text


def test_a_truncated_file_is_damaged_not_half_read(tmp_path, caplog):
    store = Store(tmp_path)
    store.save("cat", SUBJECT, {"a": torch.randn(100, 100)}, {})
    store.save_state("dog", TrainingState(3, [1.0], {"master.0": torch.randn(100, 100)}))
    for name in ("cat.safetensors", "dog.resume"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cat.safetensors is damaged"):
        store.find("cat")
    assert store.find_state("dog") is None


def test_a_full_disk_is_said_before_training_and_while_saving(tmp_path, monkeypatch):
    store = Store(tmp_path / "inlay")
    store.check_room(1)
    with pytest.raises(ValueError, match=r"MB are free on that disk but .* need about \d+ MB; make room"):
        store.check_room(2**60)

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    store.save_state("cat", TrainingState(3, [1.0], {"master.0": torch.ones(2)}))
    monkeypatch.setattr("inlay.training.finetune.store.save_file", full)
    with pytest.raises(ValueError, match=r"cat.resume could not be written.*No space left.*queue again"):
        store.save_state("cat", TrainingState(4, [1.0], {"master.0": torch.ones(2)}))
    state = store.find_state("cat")
    assert state
    assert state.step == 3
    assert not list(store.folder.glob("*.partial"))


def test_samples_are_kept_beside_the_subject(tmp_path):
    store = Store(tmp_path)
    store.save("cat", SUBJECT, LORA, {}, Image.new("RGB", (30, 20), "#336699"))
    store.save("dog", SUBJECT, LORA, {})
    strip = store.find_strip("cat")
    assert strip
    assert strip.size == (30, 20)
    assert store.find_strip("dog") is None


def test_damaged_samples_are_left_out(tmp_path, caplog):
    store = Store(tmp_path)
    store.save("cat", SUBJECT, LORA, {}, Image.new("RGB", (30, 20), "#336699"))
    whole = (tmp_path / "cat.png").read_bytes()
    for damaged in (b"", b"no picture", whole[:60]):
        (tmp_path / "cat.png").write_bytes(damaged)
        assert store.find_strip("cat") is None
        assert "cat.png is damaged" in caplog.text
        caplog.clear()


def test_a_subject_of_a_newer_version_is_refused():
    newer = SUBJECT.to_json().replace('"version": 1', '"version": 2')
    for text in (newer, newer.replace("caption", "sentence")):
        with pytest.raises(ValueError, match="newer Inlay"):
            Subject.from_json(text)
    with pytest.raises(ValueError, match="cannot be read"):
        Subject.from_json('{"token": "sks"}')


def test_other_programs_notes_are_told_from_a_subject():
    own = json.loads(SUBJECT.to_json())
    notes = {"description": "", "sd version": "SD1", "activation text": "sks cat", "preferred weight": 0.8}
    assert is_subject(json.dumps(own))
    assert not any(map(is_subject, (json.dumps(notes), "[]", "", "{")))
    both = json.dumps(own | notes)  # they write into a file that is there
    assert is_subject(both)
    assert Subject.from_json(both) == SUBJECT


def test_names_are_safe_for_every_file_system():
    name = Store.name("../Tea Cup: \u00e9!", DREAMCOM, "0123")
    assert name == "tea-cup-dreamcom-0123"
    long = Store.name("teapot " * 60, DREAMCOM, "0123456789abcdef")
    assert len(long) <= LONGEST_NAME + 17
    assert long.endswith("t-0123456789abcdef")


def test_a_file_that_another_process_is_writing_stays(tmp_path):
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        machine = disk._owner().rpartition("-")[0]
        live = tmp_path / f"cat.resume.{machine}-{sleeper.pid}.1-1.partial"
        old = tmp_path / f"cat.resume.{sleeper.pid}.partial"  # as version 0.1.0 named it
        for path in (live, old):
            path.write_bytes(b"half")
        Store(tmp_path).save_state("cat", TrainingState(1, [0.1], {"master.0": torch.ones(2)}))
        assert live.exists()
        assert old.exists()
    finally:
        sleeper.kill()
        sleeper.communicate()
    Store(tmp_path).save_state("cat", TrainingState(1, [0.1], {"master.0": torch.ones(2)}))
    assert [path.name for path in tmp_path.iterdir()] == ["cat.resume"]


def test_a_folder_that_cannot_be_written_is_named_before_a_training(tmp_path, monkeypatch):
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"")
    message = r"could not be stored there \(.*\); make it a folder that ComfyUI may write to"
    places = [file]
    if os.name != "nt":  # where links need a privilege
        link.symlink_to(tmp_path / "gone" / "away")
        places.append(link)
    for place in places:
        with pytest.raises(ValueError, match=message):
            Store(place).check_room(1)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.name == "nt" or os.access(locked, os.W_OK):  # an administrator may write everywhere

        def refuse(*_, **__):
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(ValueError, match=message):
        Store(locked).check_room(1)
    locked.chmod(0o700)


def test_the_oldest_interrupted_runs_go_beyond_a_limit(tmp_path, caplog):
    store = Store(tmp_path)
    now = time.time()
    for day, name in enumerate(["new", "own", "older", "oldest"]):
        store.save_state(name, TrainingState(1, [0.1], {"master.0": torch.ones(1000)}))
        os.utime(store.resume_path(name), (now - day * 86400 - 60, now - day * 86400 - 60))
    size = store.resume_path("new").stat().st_size
    with caplog.at_level("INFO", logger="inlay"):
        store.prune_states("own", limit=2 * size)
    assert {path.stem for path in tmp_path.iterdir()} == {"new", "own", "older"}
    assert f"2 interrupted trainings (0 MB) wait in {tmp_path} as .resume files" in caplog.text
    store.prune_states("own", limit=0)
    assert {path.stem for path in tmp_path.iterdir()} == {"new", "own"}  # new: another process may write it
