"""The demo as a user runs it: what it makes, what it says when it fails, and that no process stays behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from inlay import dev
from inlay.headless import Client, Interrupted
from inlay.tools import demo_options as job
from inlay.tools.demo import INLAY, PLAIN, arguments, picture

PATIENCE = 1800  # seconds, for a very busy machine


@pytest.fixture(scope="module")
def models(comfyui_path):
    """The host's own models folder with the tiny Fill model in it, as the demo leaves it."""
    from inlay.lab.models import shipped

    shipped.install(comfyui_path / "models")


def start(tmp_path: Path, *options: str, **environment: str) -> subprocess.Popen:
    """The demo in a process of its own, started somewhere else, with its files in `tmp_path`."""
    folders = [word for name in ("work", "out", "loras") for word in (f"--{name}", str(tmp_path / name))]
    return subprocess.Popen(
        [sys.executable, *dev.module("inlay.tools.demo", *folders, *options)],
        cwd=tmp_path,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def hosts_of(tmp_path: Path) -> list[psutil.Process]:
    """Processes that work in `tmp_path`: the demo, and its host with a `--port`."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(tmp_path / "work") in word for word in process.info["cmdline"] or ())
    ]


def test_the_demo_makes_its_pictures_and_leaves_nothing_running(models, tmp_path):
    demo = start(tmp_path, "--steps", "2")
    said, complaints = demo.communicate(timeout=PATIENCE)
    assert demo.returncode == 0, complaints
    assert hosts_of(tmp_path) == []
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"contact_sheet.png", "plain.png", "with_inlay.png", "loss.png"}
    assert str(Path("out") / "contact_sheet.png") in said
    assert re.search(r"Learn the Subject +\[#+\] +2/2", said)

    graph = job.read_graph()
    where = graph["4"]["inputs"] | graph["15"]["inputs"]
    before = np.asarray(Image.open(job.ASSETS / graph["3"]["inputs"]["image"]).convert("RGB"), dtype=int)
    for name in ("plain", "with_inlay"):
        after = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"), dtype=int)
        change = np.abs(after - before).max(-1)
        inside = np.zeros_like(change, dtype=bool)
        inside[where["y"] : where["y"] + where["height"], where["x"] : where["x"] + where["width"]] = True
        assert change[inside].mean() > 1
        near = np.asarray(binary_dilation(inside, iterations=where["feather"] + 1), dtype=bool)
        assert change[~near].max() <= 1  # the host cuts to bytes instead of rounding


def test_pictures_of_any_size_go_through_the_bundled_graph(client, server, tiny_fill, tmp_path):
    """Jpegs of other sizes than the model's, one mask in a file beside its picture, an odd background."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "things"
    folder.mkdir()
    for number, (width, height) in enumerate([(97, 130), (150, 96)]):
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(folder / f"{number}.jpg")
        mask = Image.new("L", (width, height))
        mask.paste(255, (20, 20, 70, 80))
        mask.save(folder / f"{number}_mask.png")
    Image.fromarray(rng.integers(0, 255, (131, 203, 3), np.uint8)).save(tmp_path / "room.png")
    line = ["--references", str(folder), "--background", str(tmp_path / "room.png"), "--class-name", "mug"]
    line += ["--box", "150,40,300,60", "--steps", "1"]
    asked = job.check(arguments().parse_args(line))
    job.put_inputs(asked, server.work / "input")
    graph = job.fill_in(job.read_graph(), asked)
    graph["10"]["inputs"]["steps"] = graph["11"]["inputs"]["steps"] = 2
    result = client.run(graph)
    for node in (PLAIN, INLAY):
        after = np.asarray(picture(result, node), dtype=int)
        assert after.shape == (131, 203, 3)
        change = np.abs(after - np.asarray(asked.background, dtype=int))
        assert change[:, :140].max() <= 1
        assert change[40:100, 150:].mean() > 1


@pytest.mark.skipif(os.name == "nt", reason="a Ctrl-C cannot be sent to one process on Windows")
def test_ctrl_c_stops_the_training_and_the_host(models, tmp_path):
    demo = start(tmp_path, "--steps", "100000")
    try:
        wait_for_training(demo, tmp_path)
        demo.send_signal(signal.SIGINT)
        _, complaints = demo.communicate(timeout=PATIENCE)
    finally:
        demo.kill()  # its host ends with it
    assert demo.returncode == 130
    assert "Stopped" in complaints
    assert hosts_of(tmp_path) == []
    assert "Processing interrupted" in (tmp_path / "work" / "host.log").read_text(encoding="utf-8")


def wait_for_training(demo: subprocess.Popen, tmp_path: Path) -> None:
    """Wait until the demo's training has taken a step."""
    assert demo.stdout is not None
    assert any("Your Subject" in line for line in demo.stdout)  # the last node before the training
    [words] = [found for process in hosts_of(tmp_path) if "--port" in (found := process.cmdline())]
    client = Client(f"127.0.0.1:{words[words.index('--port') + 1]}")
    while not any(run["step"] > 1 for run in client.session.get(f"{client.url}/inlay/training").json()):
        assert demo.poll() is None, demo.communicate()[1]
        time.sleep(0.05)


def test_an_interrupt_stops_the_training_at_once(client, server, tiny_fill):
    asked = job.check(arguments().parse_args(["--steps", "4000"]))
    job.put_inputs(asked, server.work / "input")
    graph = job.fill_in(job.read_graph(), asked)
    steps = []

    def interrupt_when_it_trains(progress):
        if progress.node == "5" and progress.value > 1:
            steps.append(progress.value)
            if len(steps) == 1:
                client.interrupt()

    with pytest.raises(Interrupted):
        client.run(graph, interrupt_when_it_trains)
    assert max(steps) < 2000  # minutes before its end, on any machine


def failed(demo: subprocess.Popen, tmp_path: Path) -> str:
    """What the demo complains of; it has failed and left nothing running."""
    _, complaints = demo.communicate(timeout=PATIENCE)
    assert demo.returncode == 1, complaints
    assert "Traceback" not in complaints
    assert hosts_of(tmp_path) == []
    return complaints


def test_a_file_that_is_no_checkpoint_is_named_with_the_log(comfyui_path, tmp_path):
    (tmp_path / "cat.safetensors").write_bytes(b"\xff" * 100)
    complaints = failed(start(tmp_path, "--checkpoint", "cat.safetensors"), tmp_path)
    assert "Load Checkpoint" in complaints
    assert str(Path("work") / "host.log") in complaints


def test_a_taken_port_is_said(models, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"Port {port} is taken" in failed(start(tmp_path, "--port", port), tmp_path)


def test_a_host_that_breaks_names_its_log(tmp_path):
    broken = tmp_path / "ComfyUI"
    (broken / "custom_nodes").mkdir(parents=True)
    dev.link(broken / "custom_nodes" / "inlay", dev.PACK)
    (broken / "main.py").write_text("raise SystemExit('a library is missing')", encoding="utf-8")
    (tmp_path / "cat.safetensors").touch()
    demo = start(tmp_path, "--checkpoint", "cat.safetensors", COMFYUI_PATH=str(broken))
    complaints = failed(demo, tmp_path)
    assert "a library is missing" in complaints
    assert str(tmp_path / "work" / "host.log") in complaints


def test_without_a_network_the_set_up_names_its_log(tmp_path):
    for name in ("dev.py", "pyproject.toml"):
        (tmp_path / name).write_text((dev.PACK / name).read_text(encoding="utf-8"), encoding="utf-8")
    offline = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
        "PIP_RETRIES": "0",
    }
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("COMFYUI", "PYTHON"))}
    command = [sys.executable, str(tmp_path / "dev.py"), "demo"]
    done = subprocess.run(command, env=mine | offline, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Could not install ComfyUI" in done.stderr
    assert "network" in done.stderr
    assert str(tmp_path / ".inlay" / "setup.log") in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / ".inlay" / "ComfyUI").exists()
