"""The pictures and workflows that `dev.py serve` puts into ComfyUI."""

import re

import pytest
from PIL import Image

from inlay.tools.serve import copy_pictures, put_workflows, with_tiny_pictures
from inlay.tools.template_plans import PLANS, TINY_ONLY
from inlay.tools.templates import note_of
from inlay.tools.tiny import read_graph, served_graph, tiny_note

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
    graph = with_tiny_pictures(served_graph(name)) if tiny else read_graph(name)
    for node in graph.values():
        if node["class_type"] == "InlayLoadReferences":
            assert len(list((pictures / node["inputs"]["folder"]).glob("*.png"))) == 4
        if node["class_type"] == "InlayBoxMask":
            box, picture = node["inputs"], graph[node["inputs"]["image"][0]]["inputs"]["image"]
            width, height = Image.open(pictures / picture).size
            assert box["x"] + box["width"] <= width
            assert box["y"] + box["height"] <= height


def test_a_restart_keeps_what_the_user_changed_and_brings_what_is_new(tmp_path):
    folder, record = tmp_path / "tiny", tmp_path / "record.json"
    files = {"one.json": "1", "two.json": "2", "three.json": "3"}
    assert put_workflows(files, folder, record) == []
    (folder / "one.json").write_text("mine", encoding="utf-8")
    before = (folder / "three.json").stat().st_mtime_ns
    for _ in range(2):
        assert put_workflows(files | {"two.json": "newer"}, folder, record) == ["one.json"]
        assert [(folder / name).read_text(encoding="utf-8") for name in files] == ["mine", "newer", "3"]
    assert (folder / "three.json").stat().st_mtime_ns == before  # the page keeps its unsaved changes
    (folder / "one.json").unlink()
    assert put_workflows(files, folder, record) == []
    assert [(folder / name).read_text(encoding="utf-8") for name in files] == ["1", "2", "3"]


@pytest.mark.parametrize("plan", [*PLANS, *TINY_ONLY], ids=lambda plan: plan.graph)
def test_a_tiny_variants_note_names_nodes_that_it_has(plan):
    note, graph = tiny_note(note_of(plan)), served_graph(plan.graph)
    titles = {node["_meta"]["title"] for node in graph.values()}
    published = {node["_meta"]["title"] for node in read_graph(plan.graph).values()}
    named = set(re.findall(r"\*\*(.+?)\*\*", note))
    assert not named & (published - titles)
    assert "models/checkpoints" not in note or plan in TINY_ONLY
    assert note.count("**The model**") == 1
