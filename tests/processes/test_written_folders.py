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
from inlay.headless.jobs import GraphJob
from inlay.headless.results import load_result
from inlay.imaging.references import read_reference
from inlay.training.finetune.regular_data import list_regular

pytestmark = pytest.mark.slow
GRAPH = {"1": {"class_type": "SaveImage", "_meta": {"title": "Save"}, "inputs": {}}}
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
    place = folder / "cat" / "room"
    try:
        before = version_of(place)
        facts = load_result(GraphJob(GRAPH, ("cat", "room")), folder)
        contents = {(place / name).read_bytes() for name in (facts or {}).get("files", ())}
        if version_of(place) != before:
            return  # replaced between the reads
    except FileNotFoundError:
        return  # not there, or replaced between the reads
    assert facts is not None, "the folder appeared before its record"
    assert contents == {bytes([int(facts["seconds"])]) * 50_000}


def version_of(folder: Path) -> tuple[int, int]:
    """Return what tells a folder from another one that takes its place."""
    facts = folder.stat()
    return facts.st_ino, facts.st_ctime_ns


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("rounds", [40, pytest.param(200, marks=pytest.mark.repeats)])
def test_two_processes_write_one_folder(tmp_path, kind, rounds):
    folder = tmp_path / "out"
    writers = [start(kind, folder, rounds, number) for number in (1, 2)]
    for writer in writers:
        go(writer)
    while any(writer.poll() is None for writer in writers):
        check_whole(kind, folder)
        time.sleep(0.02)
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
