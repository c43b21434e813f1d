"""The workflows for sharing a subject and for comparing, on the tiny model."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from inlay.headless import Graph
from inlay.tools.demo_options import ASSETS
from inlay.tools.tiny import BOXES, tiny_graph

SHORT = {"SubjectFinetune": 2, "DisentangledInpaintSampler": 2, "KSampler": 2}  # steps


@pytest.fixture
def short(server, tiny_checkpoint):
    """Opens a bundled workflow with few steps; a learning rate at which two of them are seen."""
    shutil.copytree(ASSETS, server.work / "input", dirs_exist_ok=True)

    def read(name: str) -> Graph:
        graph = tiny_graph(name)
        for node in graph.values():
            if node["class_type"] in SHORT:
                node["inputs"]["steps"] = SHORT[node["class_type"]]
            if node["class_type"] == "SubjectFinetune":
                node["inputs"]["learning_rate"] = 0.05
        return graph

    return read


def pictures(output) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(image)).convert("RGB"), dtype=int) for image in output.images]


def test_what_is_shared_is_what_was_learned(short, client, server):
    graph = short("train_and_share")
    graph["5"]["inputs"]["class_name"] = "shared lamp"  # of this test alone
    [given] = pictures(client.run(graph)["11"])
    [copy] = (server.work / "output" / "loras").glob("my_subject*.safetensors")
    [file] = (server.models["loras"] / "inlay").glob("shared-lamp-*.safetensors")
    kept = load_file(file)
    shared = load_file(copy)
    assert {name: tensor.tolist() for name, tensor in shared.items()} == {
        name: tensor.tolist() for name, tensor in kept.items()
    }
    graph["10"]["inputs"]["model"] = ["5", 0]
    [own] = pictures(client.run(graph)["11"])
    assert (given == own).all()
    graph["10"]["inputs"]["model"] = ["1", 0]
    [without] = pictures(client.run(graph)["11"])
    assert (given != without).any()


def test_a_comparison_shows_three_ways_for_every_seed(short, client):
    shown = pictures(client.run(short("compare"))["22"])
    background = np.asarray(Image.open(ASSETS / "inlay_background.png").convert("RGB"), dtype=int)
    height, width = background.shape[:2]
    x, y, w, h = BOXES["inlay_background.png"]
    assert [picture.shape for picture in shown] == [(height, 3 * width + 2 * 4, 3)] * 3
    for picture in shown:
        ways = [picture[:, left : left + width] for left in (0, width + 4, 2 * (width + 4))]
        assert all((way[:, : x - 4] == background[:, : x - 4]).all() for way in ways)
        boxes = [way[y : y + h, x : x + w] for way in ways]
        assert all((a != b).any() for a, b in zip(boxes, boxes[1:] + boxes[:1], strict=True))
    assert (shown[0] != shown[1]).any()
