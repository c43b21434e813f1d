"""The host is asked to end while it trains: the state is saved first, and the next run goes on from there."""

import os
import signal
import threading
import time

import pytest
from safetensors import safe_open

DUE = 100  # steps between the checkpoints that are written anyway


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process at once")
def test_the_hosts_sigterm_leaves_a_state(comfyui_path, tmp_path):
    step = step_of_the_state(comfyui_path, tmp_path / "first")
    if step % DUE == 0:  # the signal came in the step of a checkpoint that was due, which proves nothing
        step = step_of_the_state(comfyui_path, tmp_path / "second")
    assert 2 < step < 5000
    assert step % DUE


def step_of_the_state(comfyui_path, folder) -> int:
    """The step of the state that a host leaves which gets SIGTERM while it trains."""
    from inlay.headless import Client, HostDied, Server
    from inlay.lab.models.assemble import random_checkpoint, write_checkpoint

    models = {kind: folder / "models" / kind for kind in ("checkpoints", "loras", "inlay")}
    write_checkpoint(models["checkpoints"] / "tiny.safetensors", random_checkpoint(0))
    graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny.safetensors"}},
        "2": {"class_type": "EmptyImage", "inputs": {
            "width": 64, "height": 64, "batch_size": 1, "color": 255}},
        "5": {"class_type": "SubjectFinetune", "inputs": {
            "model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "images": ["2", 0],
            "class_name": "cat", "token": "sks", "recipe": "DreamCom", "steps": 5000, "rank": 2,
            "learning_rate": 1e-4, "batch_size": 1, "seed": 0, "resolution": 64}},
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["5", 4]}},
    }  # fmt: skip
    with Server(folder / "work", comfyui=comfyui_path, models=models) as host:
        client = Client(host.url)
        queued = threading.Thread(target=lambda: run_quietly(Client(host.url), graph), daemon=True)
        queued.start()
        while not any(run["step"] > 2 for run in trainings(client)):
            assert queued.is_alive(), host.log_tail("The training has ended")
            time.sleep(0.05)
        os.kill(host.pid, signal.SIGTERM)
        with pytest.raises(HostDied):
            host.wait()
    (state,) = (models["loras"] / "inlay").glob("*.resume")
    with safe_open(state, "pt") as file:
        return int(file.metadata()["step"])


def run_quietly(client, graph):
    """Queues the graph; the host ends before it answers."""
    try:
        client.run(graph)
    except Exception:
        return


def trainings(client):
    return client.session.get(f"{client.url}/inlay/training", timeout=600).json()
