"""Every bundled workflow wires the same in its two forms, and has a note."""

import itertools
import json

import pytest

from inlay.tools import interface
from inlay.tools.drawing import PAINT, STAGES, depths, stage_of
from inlay.tools.templates import WORKFLOWS, notes_of

# Nodes that no bundled workflow shows, and why.
APART = {
    "DisentangledInpaintSamplerAdvanced": "the same as without, with the sampler's parts wired",
    "InlayBackgroundBlending": "a choice beside Paste Back",
    "InlayEditPrompt": "files to download: an edit model and its text encoder",
    "InlayLoadFooocusInpaint": "files to download: Fooocus' patch",
    "InlayLoadImageEncoder": "files to download: an encoder without its adapter",
    "InlayLoadPix2Pix": "files to download: a UNet in diffusers' layout",
    "InlayObjectStitchConditioning": "files to download: ObjectStitch",
    "InlaySubjectScore": "files to download: CLIP or DINOv2",
    "InlayLoadSubject": "names a file that a training has to leave first",
    "InlayLoadRegularData": "names a folder that Save Regular Data has to leave first",
    "InlaySaveRegularData": "for the next training; Regular Images are wired straight in",
}
NAMES = sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json"))


def forms(name: str) -> tuple[dict, dict]:
    api, ui = WORKFLOWS / "api" / f"{name}.json", WORKFLOWS / f"{name}.json"
    return json.loads(api.read_text(encoding="utf-8")), json.loads(ui.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_have_the_same_nodes_and_wires(name):
    graph, ui = forms(name)
    nodes = {node["id"]: node for node in ui["nodes"] if node["type"] != "MarkdownNote"}
    assert {key: node["class_type"] for key, node in graph.items()} == {
        str(key): node["type"] for key, node in nodes.items()
    }
    wires = {
        (source, output, int(key), name)
        for key, node in graph.items()
        for name, value in node["inputs"].items()
        if isinstance(value, list)
        for source, output in [(int(value[0]), value[1])]
    }
    drawn = set()
    for link, source, output, target, slot, kind in ui["links"]:
        socket = nodes[target]["inputs"][slot]
        assert socket["link"] == link
        assert link in nodes[source]["outputs"][output]["links"]
        assert kind == nodes[source]["outputs"][output]["type"]
        drawn.add((source, output, target, socket["name"]))
    assert drawn == wires
    assert ui["last_node_id"] == max(node["id"] for node in ui["nodes"])
    assert ui["last_link_id"] == len(ui["links"])


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_reads_from_left_to_right_and_says_what_it_does(name):
    graph, ui = forms(name)
    column = depths(graph)
    for key, node in graph.items():
        assert all(column[v[0]] < column[key] for v in node["inputs"].values() if isinstance(v, list))
    places = [tuple(node["pos"]) for node in ui["nodes"]]
    assert len(set(places)) == len(places)
    path = WORKFLOWS / "api" / f"{name}.json"
    notes = [(n["title"], *n["widgets_values"]) for n in ui["nodes"] if n["type"] == "MarkdownNote"]
    assert notes == notes_of(path, graph)


def inside(node: dict, group: dict) -> bool:
    left, top, width, height = group["bounding"]
    (x, y), (w, h) = node["pos"], node["size"]
    return left <= x and top <= y - 30 and x + w <= left + width and y + h <= top + height


@pytest.mark.parametrize("name", NAMES)
def test_every_node_stands_in_one_group_and_groups_stand_apart(name):
    _, ui = forms(name)
    assert [g["title"] for g in ui["groups"]] == [
        title for title, _ in STAGES if title in {g["title"] for g in ui["groups"]}
    ]
    for node in ui["nodes"]:
        wanted = 0 if node["type"] == "MarkdownNote" else 1
        assert sum(inside(node, group) for group in ui["groups"]) == wanted
    for left, right in itertools.pairwise(ui["groups"]):
        assert left["bounding"][0] + left["bounding"][2] < right["bounding"][0]


def test_a_node_of_no_list_is_loaded_or_painted_with():
    assert stage_of("InlayLoadAdapter") == 0
    assert stage_of("KSampler") == PAINT


def test_every_node_is_in_a_workflow_or_has_a_reason():
    nodes = json.loads(interface.FILE.read_text(encoding="utf-8"))
    shown = {node["class_type"] for name in NAMES for node in forms(name)[0].values()}
    assert set(nodes) - shown == set(APART)
