"""`python -m inlay run` against a real ComfyUI: single runs, batches that are killed, errors."""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from inlay import dev
from inlay.headless import Client, Server
from inlay.headless import run_cli as cli
from inlay.headless.jobs import plan
from inlay.headless.workflow import Setting, as_graph
from inlay.tools.template_layout import foreign_nodes, template, without
from inlay.tools.template_plans import PLANS
from inlay.tools.tiny import read_graph

SIDE = 600  # large enough that a job takes a moment
GRAPH = {
    "1": {"class_type": "LoadImage", "_meta": {"title": "Room"}, "inputs": {"image": "none.png"}},
    "2": {"class_type": "LoadImageMask", "inputs": {"image": "none.png", "channel": "red"}},
    "3": {"class_type": "ImageScale", "_meta": {"title": "Enlarge"}, "inputs": {
        "image": ["1", 0], "upscale_method": "lanczos", "width": SIDE, "height": SIDE, "crop": "disabled"}},
    "4": {"class_type": "SaveImage", "_meta": {"title": "The Result"}, "inputs": {
        "images": ["3", 0], "filename_prefix": "run"}},
    "5": {"class_type": "MaskPreview", "inputs": {"mask": ["2", 0]}},
}  # fmt: skip


@pytest.fixture
def workflow(tmp_path):
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(GRAPH), encoding="utf-8")
    return path


@pytest.fixture
def folders(tmp_path):
    """Four rooms and two masks, the second with a setting of its own."""
    for kind, names in (("rooms", "abcd"), ("masks", "xy")):
        (tmp_path / kind).mkdir()
        for shade, name in enumerate(names):
            Image.new("RGB", (8, 8), (40 * shade, 7, 9)).save(tmp_path / kind / f"{name}.png")
    settings = json.dumps({"Enlarge.width": 32})
    (tmp_path / "masks" / "y.json").write_text(settings, encoding="utf-8")
    return tmp_path


def attempt(*words) -> tuple[int, dict]:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return cli.attempt(parser.parse_args(list(map(str, words))))


def start(*words) -> subprocess.Popen:
    command = [sys.executable, *dev.module("inlay", "run", *map(str, words))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def batch(folders: Path, *hosts: str, out: str = "out") -> list[str]:
    each = [f"LoadImageMask.image={folders / 'masks'}", f"Room.image={folders / 'rooms'}"]
    words = [str(folders / "workflow.json"), "-o", str(folders / out)]
    words += [word for text in each for word in ("--each", text)]
    return words + [word for url in hosts for word in ("--host", url)]


def prompts(server: Server) -> int:
    """How many graphs the host has been sent."""
    return server.log.read_text(encoding="utf-8").count("got prompt")


def results(folder: Path) -> list[Path]:
    """The records of the jobs that are done."""
    return sorted(folder.glob("[xy]/[abcd]/result.json"))


def pictures(folder: Path) -> dict[str, np.ndarray]:
    found = sorted(folder.rglob("the_result.png"))
    return {path.relative_to(folder).as_posix(): np.asarray(Image.open(path)) for path in found}


def test_a_run_saves_its_pictures_under_their_titles_and_says_so_in_json(server, workflow, folders):
    words = ["--set", f"Room.image={folders / 'rooms' / 'c.png'}", "--set", "Enlarge.width=16"]
    words += ["--set", f"2.image={folders / 'masks' / 'x.png'}", "-o", folders / "out", "--json"]
    run = start(workflow, *words, "--host", server.url)
    said, progress = run.communicate(timeout=1800)
    assert run.returncode == 0, progress
    report = json.loads(said)
    assert report["status"] == "finished"
    assert sorted(report["files"]) == ["maskpreview.png", "the_result.png"]
    picture = Image.open(folders / "out" / "the_result.png")
    assert picture.size == (16, SIDE)
    assert np.abs(np.asarray(picture, dtype=int) - (80, 7, 9)).max() <= 1
    assert "The Result" in progress


def test_a_picture_that_comfyui_saved_is_a_workflow_too(server, workflow, folders):
    sets = [f"Room.image={folders / 'rooms' / 'a.png'}", f"2.image={folders / 'masks' / 'x.png'}"]
    options = ["--host", server.url, "-o", folders / "out", *(w for s in sets for w in ("--set", s))]
    assert attempt(workflow, *options)[0] == 0
    made = (folders / "out" / "the_result.png").rename(folders / "made.png")
    code, report = attempt(made, "--set", "Enlarge.height=24", *options)
    assert (code, report["status"]) == (0, "finished")
    assert Image.open(folders / "out" / "the_result.png").size == (SIDE, 24)


def test_a_host_is_started_and_ended_with_the_run(comfyui_path, workflow, folders):
    own = next((comfyui_path / "input").glob("*.png"))  # what is in its input folder can be named
    before = set((comfyui_path / "output").glob("run*"))
    sets = [f"Room.image={own.name}", f"2.image={folders / 'masks' / 'x.png'}"]
    run = start(workflow, *(w for s in sets for w in ("--set", s)), "-o", folders / "out", "--json")
    child = psutil.Process(run.pid)
    hosts = []
    while run.poll() is None and not hosts:
        hosts = child.children()
        time.sleep(0.05)
    said, progress = run.communicate(timeout=1800)
    assert run.returncode == 0, progress
    assert "ComfyUI is up" in progress
    assert json.loads(said)["status"] == "finished"
    assert (folders / "out" / "the_result.png").is_file()
    (kept,) = set((comfyui_path / "output").glob("run*")) - before  # it outlives the host that was started
    kept.unlink()
    assert hosts
    assert not any(host.is_running() for host in hosts)


def test_a_batch_killed_half_way_goes_on_and_equals_one_that_was_not(server, workflow, folders):
    for number in range(20):  # a batch that ends before it is killed proves nothing
        words = ["--set", f"Enlarge.height={SIDE + number}"]
        before = prompts(server)
        killed = start(*batch(folders, server.url), *words)
        # A folder that is being written is hidden: it is no result yet, and does not count.
        while len(results(folders / "out")) < 3:
            assert killed.poll() in (None, 0), killed.communicate()[1]
            time.sleep(0.01)
        killed.kill()
        killed.communicate()
        done = results(folders / "out")
        if len(done) < 8:
            break
        shutil.rmtree(folders / "out")
    assert 3 <= len(done) < 8
    written = {path: path.stat().st_mtime_ns for path in done}
    code, report = attempt(*batch(folders, server.url), *words)
    assert code == 0
    assert report["counts"] == {"kept": len(done), "finished": 8 - len(done)}
    assert {path: path.stat().st_mtime_ns for path in done} == written
    assert prompts(server) - before == 8  # the one that was under way when we were killed is not sent again

    # The host no longer has the jobs, so that they run again.
    client = Client(server.url)
    assert client.session.post(f"{client.url}/history", json={"clear": True}, timeout=600).ok
    code, whole = attempt(*batch(folders, server.url, out="whole"), *words)
    assert (code, whole["counts"]) == (0, {"finished": 8})
    assert prompts(server) - before == 16
    one, other = pictures(folders / "out"), pictures(folders / "whole")
    assert list(one) == [f"{mask}/{room}/the_result.png" for mask in "xy" for room in "abcd"]
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert {image.shape[1] for name, image in one.items() if name.startswith("y")} == {32}
    assert {p.name for p in (folders / "out").rglob("*")} == {p.name for p in (folders / "whole").rglob("*")}


def test_a_job_that_the_host_took_on_before_is_fetched_and_not_sent_again(server, workflow, folders):
    definitions = Client(server.url).object_info()
    sets = [Setting.parse(f"2.image={folders / 'masks' / 'x.png'}"), Setting.parse("Enlarge.width=48")]
    each = [Setting.parse(f"Room.image={folders / 'rooms'}")]
    jobs = plan(GRAPH, sets, each, definitions)
    client = Client(server.url)
    for upload in jobs[1].uploads:
        upload.to(client)
    client.submit(jobs[1].graph, jobs[1].prompt_id)
    before = prompts(server)
    words = ["--set", str(sets[0]), "--set", str(sets[1]), "--each", str(each[0]), "--host", server.url]
    code, report = attempt(workflow, *words, "-o", folders / "out")
    assert (code, report["counts"]) == (0, {"finished": 4})
    assert prompts(server) - before == 3
    assert len(pictures(folders / "out")) == 4


def test_changed_settings_are_run_anew_and_only_they(server, workflow, folders):
    words = batch(folders, server.url)
    assert attempt(*words)[0] == 0
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folders / "rooms" / "b.png")
    code, report = attempt(*words)
    assert (code, report["counts"]) == (0, {"kept": 6, "finished": 2})
    assert np.abs(pictures(folders / "out")["x/b/the_result.png"].astype(int) - (1, 2, 3)).max() <= 1


def test_two_hosts_share_a_batch_and_one_that_is_gone_leaves_it_to_the_other(
    server, comfyui_path, workflow, folders
):
    with Server(comfyui=comfyui_path) as other:
        words = [*batch(folders, server.url, other.url, "http://127.0.0.1:9"), "--set", "Enlarge.height=601"]
        code, report = attempt(*words)
        assert (code, report["counts"]) == (0, {"finished": 8})
        assert {job["host"] for job in report["jobs"]} == {server.url, other.url}
    assert len(pictures(folders / "out")) == 8


def test_a_failed_job_does_not_stop_the_others_and_is_tried_again(server, workflow, folders):
    (folders / "rooms" / "b.png").write_bytes(b"no picture")
    code, report = attempt(*batch(folders, server.url))
    assert code == cli.FAILED
    assert report["counts"] == {"finished": 6, "failed": 2}
    (failed,) = [job for job in report["jobs"] if job["labels"] == ["x", "b"]]
    assert "Room" in failed["error"]
    Image.new("RGB", (8, 8)).save(folders / "rooms" / "b.png")
    code, report = attempt(*batch(folders, server.url))
    assert (code, report["counts"]) == (0, {"kept": 6, "finished": 2})


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--set", "Rom.image=a"], cli.WRONG, "no node Rom: did you mean Room"),
        (["--set", "Enlarge.widht=3"], cli.WRONG, "no input widht: did you mean width"),
        (["--set", "Enlarge.upscale_method=cubic"], cli.WRONG, "there is no upscale_method 'cubic'.*bicubic"),
        (["--set", "Enlarge"], cli.WRONG, "write NODE.input=value"),
        (["--each", "Room.image=nowhere/"], cli.WRONG, "there is no such folder"),
        (["--host", "http://127.0.0.1:9"], cli.NO_HOST, "No host answers"),
        (["--comfyui", "nowhere"], cli.NO_HOST, "no main.py"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_an_exit_code(server, workflow, tmp_path, words, code, said):
    own_host = any(word in ("--host", "--comfyui") for word in words)
    where = [] if own_host else ["--host", server.url]
    found, report = attempt(workflow, *words, *where, "-o", tmp_path / "out")
    text = report.get("error") or report["jobs"][0]["error"]
    assert (found, text.count("\n")) == (code, 0)
    assert re.search(said, text)
    assert not list(tmp_path.rglob("the_result.png"))


def test_a_missing_model_names_the_nearest_that_is_there(server, tiny_checkpoint, tmp_path):
    path = tmp_path / "graph.json"
    graph = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "inlay_tyni.safetensors"}},
             "3": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}}  # fmt: skip
    path.write_text(json.dumps(graph), encoding="utf-8")
    code, report = attempt(path, "--host", server.url, "-o", tmp_path)
    assert code == cli.WRONG
    assert "no ckpt_name 'inlay_tyni.safetensors' on this host; did you mean inlay_tiny" in report["error"]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.graph)
def test_the_ui_form_of_every_template_gives_its_api_form(server, plan):
    """Without subgraphs, and with what the API form leaves to defaults filled in."""
    definitions = foreign_nodes() | Client(server.url).object_info()
    graph = without(read_graph(plan.graph), plan.dropped)
    wanted = as_graph(graph, definitions)
    found = as_graph(template(replace(plan, parts=()), graph, definitions, ""), definitions)
    assert found.keys() == wanted.keys()
    for key, node in wanted.items():
        assert found[key]["class_type"] == node["class_type"]
        assert {name: found[key]["inputs"].get(name) for name in node["inputs"]} == node["inputs"]
