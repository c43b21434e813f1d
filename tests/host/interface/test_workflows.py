"""The bundled workflows on the tiny model, and their two forms."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from inlay.lab.models import assemble, identity
from inlay.tools import templates
from inlay.tools.demo_options import ASSETS
from inlay.tools.tiny import BOXES, tiny_graph

SHORT = {"SubjectFinetune": 2, "DisentangledInpaintSampler": 2, "InlayRegularImages": 1}  # steps
# workflow -> the bundled picture it paints into, and the nodes that save what they painted
PAINTED = {
    "insert_small": ("inlay_large_room.png", ("10", "11")),
    "edit_attribute": ("inlay_background.png", ("11", "12")),
    "dreammix": ("inlay_large_room.png", ("9",)),
}


def read(name: str) -> dict:
    return tiny_graph(name)


def shortened(graph: dict) -> dict:
    for node in graph.values():
        if node["class_type"] in SHORT:
            node["inputs"]["steps"] = SHORT[node["class_type"]]
    return graph


@pytest.mark.parametrize("name", PAINTED)
def test_a_workflow_paints_its_box_and_nothing_else(name, client, server, tiny_checkpoint):
    shutil.copytree(ASSETS, server.work / "input", dirs_exist_ok=True)
    background, outputs = PAINTED[name]
    x, y, width, height = BOXES[background]
    graph = read(name)
    box = next(node["inputs"] for node in graph.values() if node["class_type"] == "InlayBoxMask")
    assert (box["x"], box["y"], box["width"], box["height"]) == (x, y, width, height)
    result = client.run(shortened(graph))
    before = np.asarray(Image.open(ASSETS / background).convert("RGB"), dtype=int)
    inside = np.zeros(before.shape[:2], dtype=bool)
    inside[y : y + height, x : x + width] = True
    near = np.asarray(binary_dilation(inside, np.ones((3, 3)), iterations=3), dtype=bool)
    pictures = [np.asarray(Image.open(io.BytesIO(result[node].images[0])), dtype=int) for node in outputs]
    for picture in pictures:
        change = np.abs(picture - before).max(-1)
        assert change[inside].mean() > 1
        assert change[~near].max() <= 1  # the host cuts to bytes instead of rounding
    assert all((picture != pictures[0]).any() for picture in pictures[1:])


@pytest.fixture(scope="module")
def identity_models(server, tiny_checkpoint):
    """The tiny models of one photo, where `server` looks."""
    return identity.install(server.work / "models")


@pytest.mark.parametrize("name", ["insert_one_photo", "insert_by_shape", "insert_without_mask"])
def test_one_photo_is_enough(name, client, server, identity_models):
    shutil.copytree(ASSETS, server.work / "input", dirs_exist_ok=True)
    graph = read(name)
    kinds = {node["class_type"]: key for key, node in graph.items()}
    before = np.asarray(Image.open(ASSETS / "inlay_background.png").convert("RGB"), dtype=int)
    result = client.run(graph)
    for picture in result[kinds["SaveImage"]].images:
        change = np.abs(np.asarray(Image.open(io.BytesIO(picture)), dtype=int) - before).max(-1)
        assert (change > 30).mean() > 0.01
        if "InlayPasteBack" in kinds:  # else there is no mask, and all of the picture is painted
            assert (change > 1).mean() < 0.5


def test_what_was_removed_is_said(client, server, tiny_checkpoint):
    shutil.copytree(ASSETS, server.work / "input", dirs_exist_ok=True)
    result = client.run(shortened(read("edit_attribute")))
    assert "Removed orange (1 rows, joint, strength 1)." in "".join(result["6"].text)


def test_the_two_forms_of_every_workflow_agree(client):
    for path, text in templates.drawn(client.object_info()).items():
        assert path.read_text(encoding="utf-8") == text, (
            f"python dev.py tool templates writes {path.name} anew"
        )


# workflow -> the node that saves what it painted, with models of Flux.1's class, or a stand-in for a service
TRANSFORMERS = {
    "insert_klein": "9",
    "insert_easy": "9",
    "insert_qwen": "9",
    "insert_z_image": "11",
    "insert_fill": "11",
    "edit_box": "15",
    "insert_api": "11",
    "insert_other_sampler": "16",
}


@pytest.fixture(scope="module")
def transformers(server):
    """Untrained models of Flux.1's class where `server` looks: they prove the wires, not the pictures."""
    parts = assemble.random_parts(0)
    del parts["unet"]  # its checkpoint is trained
    return assemble.assemble(parts, server.work / "models")


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_workflow_of_todays_models_paints_its_box_and_nothing_else(name, client, server, transformers):
    shutil.copytree(ASSETS, server.work / "input", dirs_exist_ok=True)
    graph = shortened(read(name))
    for node in graph.values():
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = 2
    result = client.run(graph)
    [picture] = result[TRANSFORMERS[name]].images  # one, however many photos there are
    picture = np.asarray(Image.open(io.BytesIO(picture)), dtype=int)
    background = next(
        node["inputs"]["image"]
        for node in graph.values()
        if node["class_type"] == "LoadImage" and "background" in node["inputs"]["image"]
    )
    before = np.asarray(Image.open(ASSETS / background).convert("RGB"), dtype=int)
    x, y, width, height = BOXES[background]
    inside = np.zeros(before.shape[:2], dtype=bool)
    inside[y : y + height, x : x + width] = True
    near = np.asarray(binary_dilation(inside, np.ones((3, 3)), iterations=3), dtype=bool)
    change = np.abs(picture - before).max(-1)
    assert change[inside].mean() > 1
    assert change[~near].max() <= 1  # the host cuts to bytes instead of rounding
