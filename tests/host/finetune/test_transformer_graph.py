"""A graph that trains a transformer through the host's own execution, with stock loaders."""

import shutil

import pytest

from inlay.lab.models import assemble
from inlay.tools import tiny
from inlay.tools.demo_options import ASSETS


@pytest.fixture(scope="module")
def captioned(server):
    """The name of a folder of photos of which one has a caption; with untrained models of Flux.1's class."""
    parts = assemble.random_parts(0)
    del parts["unet"]  # its checkpoint is trained
    assemble.assemble(parts, server.work / "models")
    folder = server.work / "input" / "captioned"
    shutil.copytree(ASSETS / "inlay_subject", folder)
    (folder / "1.txt").write_text("on a red chair", encoding="utf-8")
    return folder.name


def graph_of(folder: str, **changes) -> dict:
    """Photos and captions of a folder, and Train Subject with its options on an edit model in three files."""
    inputs = {
        "class_name": "mug", "token": "sks", "recipe": "DreamCom (output preservation)", "steps": 2,
        "rank": 2, "learning_rate": 1e-3, "batch_size": 1, "seed": 0, "resolution": 64, "preview_every": 2,
    } | changes  # fmt: skip
    options = {
        "rank": 0, "learning_rate": 0.0, "batch_size": 0, "resolution": 0, "precision": "preset",
        "optimiser": "preset", "gradient_checkpointing": "on", "ema_decay": 0.0, "attributes": "",
        "hole": "reference", "adapter": "DoRA", "schedule": "cosine", "warmup_steps": 1,
        "caption_dropout": 0.2, "sample_prompts": "a sks mug\na sks mug at night", "aspect_ratios": "buckets",
    }  # fmt: skip
    return {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": tiny.EDIT, "weight_dtype": "default"}},
        "2": {"class_type": "CLIPLoader", "inputs": tiny.SETTINGS["CLIPLoader"]},
        "3": {"class_type": "VAELoader", "inputs": tiny.SETTINGS["VAELoader"]},
        "4": {"class_type": "InlayLoadReferences", "inputs": {"folder": folder}},
        "5": {"class_type": "InlayTrainingOptions", "inputs": options},
        "6": {"class_type": "SubjectFinetune", "inputs": {
            "model": ["1", 0], "clip": ["2", 0], "vae": ["3", 0], "images": ["4", 0], "masks": ["4", 1],
            "captions": ["4", 2], "options": ["5", 0], **inputs}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 4]}},
    }  # fmt: skip


def test_a_graph_trains_a_transformer_on_captioned_photos_once(client, captioned):
    def last_run():
        runs = client.session.get(f"{client.url}/inlay/training", timeout=60).json()
        return next(run for run in runs if run["node"] == "6")

    assert client.run(graph_of(captioned))["7"].images
    trained = last_run()
    assert (trained["state"], trained["step"]) == ("finished", 2)
    assert [step for step, _ in trained["samples"]] == [2]
    client.run(graph_of(captioned, preview_every=3))  # runs the node again
    assert last_run()["state"] == "loaded"
    assert last_run()["points"] == trained["points"]
