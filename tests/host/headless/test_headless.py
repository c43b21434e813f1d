"""The headless host and its client, against a real ComfyUI and its stock nodes."""

import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from PIL import Image

from inlay import dev
from inlay.headless import (
    Client,
    HostDied,
    HostError,
    HostGone,
    Interrupted,
    NodeFailed,
    PromptRefused,
    Server,
)
from inlay.tests.shared_host import unclean_state


def invert(name: str) -> dict:
    """A stock graph: load a picture, invert it, save and preview it."""
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "inverted"}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }


def endless(checkpoint: str) -> dict:
    """A stock graph that samples for an hour, unless it is interrupted."""
    sampler = {"seed": 0, "steps": 10_000, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal"}
    wires = {"model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0]}
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a mug"}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 768, "height": 768, "batch_size": 2}},
        "4": {"class_type": "KSampler", "inputs": {**sampler, **wires, "denoise": 1.0}},
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
    }


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "gradient.png"
    Image.linear_gradient("L").convert("RGB").save(path)
    return path


def test_a_graph_comes_back_with_its_pictures(client, picture):
    seen = []
    name = client.upload(picture, subfolder="headless")
    assert name == "headless/gradient.png"
    result = client.run(invert(name), seen.append)
    assert set(result) == {"3", "4"}
    inverted = np.asarray(Image.open(io.BytesIO(result["3"].images[0])), dtype=int)
    original = np.asarray(Image.open(picture), dtype=int)
    assert np.abs(inverted + original - 255).max() <= 1  # the host cuts to bytes instead of rounding
    assert {progress.node for progress in seen if progress.state == "finished"} == {"1", "2", "3", "4"}


def test_a_notebook_whose_own_loop_runs_can_wait_for_a_graph(client, picture):
    graph = invert(client.upload(picture))

    async def cell():
        return client.run(graph)

    assert asyncio.run(cell())["3"].images


def test_what_is_cached_is_reported_so(client, picture):
    graph = invert(client.upload(picture))
    client.run(graph)
    for _ in range(30):  # a host with little free memory drops what it has cached
        seen = []
        again = client.run(graph, seen.append)
        assert again["3"].images
        cached = {progress.node for progress in seen if progress.state == "cached"}
        if cached >= {"1", "2"}:
            return
        time.sleep(1)
    pytest.fail(f"only {cached} was cached")


def test_a_bad_value_is_one_sentence_that_names_node_and_input(client, picture):
    graph = invert(client.upload(picture))
    graph["2"] = {
        "class_type": "ImageScale",
        "_meta": {"title": "Enlarge"},
        "inputs": {"image": ["1", 0], "upscale_method": "nope", "width": 8, "height": 8, "crop": "disabled"},
    }
    with pytest.raises(PromptRefused, match=r"Enlarge \(node 2\): there is no upscale_method 'nope'"):
        client.run(graph)


def test_one_bad_branch_stops_the_whole_graph(client, picture):
    graph = invert(client.upload(picture))
    graph["5"] = {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}
    with pytest.raises(PromptRefused, match=r"SaveImage \(node 5\): Required input is missing \(images\)"):
        client.run(graph)


def test_an_unknown_node_is_named(client):
    with pytest.raises(PromptRefused, match="NoSuchNode"):
        client.run({"1": {"class_type": "NoSuchNode", "inputs": {}}})


def replace_text(pattern: str) -> dict:
    """A stock graph without pictures; the host checks the pattern only when the node runs."""
    inputs = {"string": "a mug", "regex_pattern": pattern, "replace": "the"}
    return {
        "1": {"class_type": "RegexReplace", "inputs": inputs},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }


def test_text_comes_back(client):
    assert client.run(replace_text("^a"))["2"].text == ["the mug"]


def test_a_node_that_raises_is_named(client):
    with pytest.raises(NodeFailed, match=r"^RegexReplace \(node 1\): .*unterminated subpattern"):
        client.run(replace_text("("))


def test_a_waiting_run_that_somebody_takes_out_of_the_queue_ends(client, server, tiny_checkpoint, picture):
    """The host says no more than that its queue has changed."""
    graph = invert(client.upload(picture))
    first, second, name = Client(server.url), Client(server.url), str(uuid.uuid4())
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(first.run, endless(tiny_checkpoint))
        try:
            while not client.queued() and not running.done():
                time.sleep(0.01)
            waiting = pool.submit(second.run, graph, prompt_id=name)
            while name not in client.queued() and not waiting.done():
                time.sleep(0.01)
            assert client.session.post(f"{server.url}/queue", json={"delete": [name]}, timeout=600).ok
            with pytest.raises(Interrupted, match="taken out of the host's queue"):
                waiting.result(timeout=600)
            assert not running.done()
            assert unclean_state(server, patience=0) == "left jobs in its queue (1)"
        finally:
            client.interrupt()
        with pytest.raises(Interrupted, match="was interrupted"):
            running.result(timeout=600)


def test_the_host_is_gone_after_the_block(comfyui_path, tmp_path):
    with Server(tmp_path, comfyui=comfyui_path) as server:
        pid = server.pid
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)
    assert "Import times" in server.log.read_text(encoding="utf-8")


def test_a_taken_port_is_said_and_nothing_is_started(comfyui_path, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = Server(tmp_path, comfyui=comfyui_path, port=port)
        with pytest.raises(HostError, match=f"Port {port} is taken"), server:
            pass
    assert not (tmp_path / "host.log").exists()


def test_a_host_that_dies_at_the_start_names_its_log(comfyui_path, tmp_path):
    broken = Server(tmp_path, comfyui=comfyui_path, extra=("--no-such-flag",))
    with pytest.raises(HostDied, match="unrecognized arguments: --no-such-flag") as caught, broken:
        pass
    assert str(tmp_path / "host.log") in str(caught.value)


def test_a_host_that_is_killed_under_a_graph_names_its_log(comfyui_path, tmp_path, picture):
    server = Server(tmp_path, comfyui=comfyui_path)
    with pytest.raises(HostDied, match=r"ended by itself; its log is .*host\.log"), server:  # noqa: PT012
        client = Client(server.url)
        graph = invert(client.upload(picture))
        host = psutil.Process(server.pid)
        host.kill()
        host.wait(timeout=600)
        assert unclean_state(server) == "ended it"
        with pytest.raises(HostGone):
            client.run(graph)
        client.run(graph)
    assert server.process is None


def test_a_host_that_falls_silent_is_gone(server, tiny_checkpoint, monkeypatch):
    """Such as one on a machine that sleeps: its connection stays open."""
    from inlay.headless import client as module

    monkeypatch.setattr(module, "HEARTBEAT", 1)
    host, name = psutil.Process(server.pid), str(uuid.uuid4())

    class Watcher(Client):
        def submit(self, graph, prompt_id=None):
            number = super().submit(graph, prompt_id)
            host.suspend()
            return number

        def _is_known(self, prompt_id):  # asked when a message came that was sent before
            return True

    try:
        with pytest.raises(HostGone, match="went away while the graph was running"):
            Watcher(server.url).run(endless(tiny_checkpoint), prompt_id=name)
    finally:
        host.resume()
        end(Client(server.url), name)


def end(client: Client, prompt_id: str) -> None:
    """Interrupt the job until it is gone; an interrupt before its first node has no effect."""
    while prompt_id in client.queued():
        client.interrupt(prompt_id)
        time.sleep(0.1)


PARENT = dev.PACK / "tests" / "programs" / "hold_server.py"


@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_the_host_ends_with_the_one_who_asked(comfyui_path, tmp_path, how):
    if how == "interrupt" and os.name == "nt":
        pytest.skip("a Ctrl-C cannot be sent to one process on Windows")
    parent = subprocess.Popen(
        [sys.executable, str(PARENT), str(comfyui_path), str(tmp_path)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert parent.stdout is not None
    host = psutil.Process(int(parent.stdout.readline()))
    if how == "kill":
        parent.kill()
    else:
        parent.send_signal(signal.SIGINT)
    parent.wait(timeout=600)
    host.wait(timeout=600)
    assert not host.is_running()
