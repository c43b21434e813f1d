"""Result folders and regular data: two processes that write one folder, and kill -9."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inlay import dev
from inlay.imaging.references import read_reference
from inlay.training.finetune.regular_data import list_regular

pytestmark = pytest.mark.slow
WRITERS = ("results", "regular")
PROGRAM = dev.PACK / "tests" / "programs" / "write_folders.py"


def start(kind: str, folder: Path, rounds: int, number: int) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), str(folder), str(rounds), str(number), kind]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    writer = subprocess.Popen(command, env=environment, text=True, **pipes)
    assert writer.stdout
    assert writer.stdout.readline().strip() == "ready"
    return writer


def go(writer: subprocess.Popen) -> None:
    assert writer.stdin
    writer.stdin.write("go\n")
    writer.stdin.flush()


def check_whole(kind: str, folder: Path) -> None:
    """What a reader finds is whole: the files of one writer, and pictures that open."""
    if kind == "regular":
        if any(folder.glob("*/*-image.png")):
            for file in list_regular(folder):
                read_reference(file.image, file.mask)
        return
    files = files_of(folder / "cat" / "room")
    if files is not None:
        assert "result.json" in files, "the folder is there before its record"
        facts = json.loads(files.pop("result.json"))
        assert sorted(facts["files"]) == sorted(files)
        assert set(files.values()) == {bytes([int(facts["seconds"])]) * 50_000}


def files_of(folder: Path) -> dict[str, bytes] | None:
    """Return the contents of a folder at one moment; None if it is not there or was replaced meanwhile."""
    if os.name == "nt":  # a folder cannot be held open there
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        contents = {}
        for name in os.listdir(handle):
            with open(os.open(name, os.O_RDONLY, dir_fd=handle), "rb") as file:
                contents[name] = file.read()
        return contents if os.path.samestat(os.fstat(handle), folder.stat()) else None
    except FileNotFoundError:
        return None
    finally:
        os.close(handle)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("rounds", [40, pytest.param(200, marks=pytest.mark.repeats)])
def test_two_processes_write_one_folder(tmp_path, kind, rounds):
    folder = tmp_path / "out"
    writers = [start(kind, folder, rounds, number) for number in (1, 2)]
    for writer in writers:
        go(writer)
    while any(writer.poll() is None for writer in writers):
        check_whole(kind, folder)
        time.sleep(0.002 if kind == "results" else 0.02)
    ends = [writer.communicate() for writer in writers]
    assert [out.split() for out, _ in ends] == [["written", "0"]] * 2, ends
    names = [path.name for path in folder.rglob("*") if path.name.endswith(".partial")]
    assert names == []
    if kind == "results":
        facts = json.loads((folder / "cat" / "room" / "result.json").read_text(encoding="utf-8"))
        contents = {(folder / "cat" / "room" / name).read_bytes() for name in facts["files"]}
        assert len(contents) == 1
        assert contents.pop()[0] == facts["seconds"]
    else:
        assert len(list_regular(folder)) == 4


@pytest.mark.parametrize("kind", WRITERS)
def test_kill_9_leaves_whole_folders_and_what_it_left_goes(tmp_path, kind):
    rng, folder = random.Random(0), tmp_path / "out"
    for _ in range(2):
        writer = start(kind, folder, 10_000_000, 1)
        go(writer)
        assert writer.stdout
        assert writer.stdout.readline().strip() == "written"
        time.sleep(rng.uniform(0, 0.1))  # into some later write
        writer.kill()
        writer.communicate()
        check_whole(kind, folder)
    writer = start(kind, folder, 4, 1)
    go(writer)
    out, errors = writer.communicate()
    assert (out.split(), errors) == (["written", "0"], "")
    check_whole(kind, folder)
    assert not list(folder.rglob("*.partial"))
