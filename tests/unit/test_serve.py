"""The pictures and workflows that `dev.py serve` puts into ComfyUI."""

import pytest
from PIL import Image

from inlay.tools.serve import copy_pictures, with_tiny_pictures
from inlay.tools.template_plans import PLANS
from inlay.tools.tiny import read_graph, tiny_graph

INSERTIONS = [plan.graph for plan in PLANS if plan.graph.startswith("insert")]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("input")
    for _ in range(2):  # a second start finds the files of the first
        copy_pictures(folder)
    return folder


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("name", INSERTIONS)
def test_the_box_lies_inside_the_served_picture(pictures, name, tiny):
    graph = with_tiny_pictures(tiny_graph(name)) if tiny else read_graph(name)
    for node in graph.values():
        if node["class_type"] == "InlayLoadReferences":
            assert len(list((pictures / node["inputs"]["folder"]).glob("*.png"))) == 4
        if node["class_type"] == "InlayBoxMask":
            box, picture = node["inputs"], graph[node["inputs"]["image"][0]]["inputs"]["image"]
            width, height = Image.open(pictures / picture).size
            assert box["x"] + box["width"] <= width
            assert box["y"] + box["height"] <= height
