"""Every subgraph is the part of a bundled workflow that it says, with its ends wired."""

import json

import pytest

from inlay.tools.subgraphs import INPUTS, OUTPUTS, SUBGRAPHS, inner_graph
from inlay.tools.templates import SUBGRAPH_FOLDER, WORKFLOWS


@pytest.fixture(params=SUBGRAPHS, ids=lambda plan: plan.name)
def parts(request):
    """(plan, the workflow it is taken from, the node outside, the definition of its inside)."""
    plan = request.param
    graph = json.loads((WORKFLOWS / "api" / f"{plan.workflow}.json").read_text(encoding="utf-8"))
    file = json.loads((SUBGRAPH_FOLDER / f"{plan.name}.json").read_text(encoding="utf-8"))
    [outside], [inside] = file["nodes"], file["definitions"]["subgraphs"]
    return plan, graph, outside, inside


def test_every_wire_is_drawn_once_and_known_at_both_ends(parts):
    plan, graph, _, inside = parts
    nodes = {node["id"]: node for node in inside["nodes"]}
    assert {str(key): node["type"] for key, node in nodes.items()} == {
        key: graph[key]["class_type"] for key in plan.nodes
    }
    inner, entering, leaving = set(), set(), set()
    for link in inside["links"]:
        origin, target = link["origin_id"], link["target_id"]
        if target == OUTPUTS:
            end = inside["outputs"][link["target_slot"]]
            leaving.add((end["name"], str(origin), link["origin_slot"]))
        else:
            socket = nodes[target]["inputs"][link["target_slot"]]
            assert socket["link"] == link["id"]
        if origin == INPUTS:
            end = inside["inputs"][link["origin_slot"]]
            entering.add((end["name"], str(target), socket["name"]))
        else:
            there = nodes[origin]["outputs"][link["origin_slot"]]
            assert link["id"] in there["links"]
            assert there["type"] == link["type"]
        if origin == INPUTS or target == OUTPUTS:
            assert link["id"] in end["linkIds"]
            assert end["type"] == link["type"]
        else:
            inner.add((str(origin), link["origin_slot"], str(target), socket["name"]))
    wires = [
        (*value, key, name)
        for key in plan.nodes
        for name, value in graph[key]["inputs"].items()
        if isinstance(value, list)
    ]
    assert inner == {wire for wire in wires if wire[0] in plan.nodes}
    assert {end[1:] for end in entering} == {wire[2:] for wire in wires if wire[0] not in plan.nodes}
    assert leaving == {(name, *there) for name, there in plan.outputs.items()}


def test_the_node_outside_has_the_ends_and_widgets_of_its_inside(parts):
    plan, _, outside, inside = parts
    assert outside["type"] == inside["id"]
    for side in ("inputs", "outputs"):
        names = [(end["name"], end["type"]) for end in outside[side]]
        assert names == [(end["name"], end["type"]) for end in inside[side]]
        assert len(set(names)) == len(names)
    shown = outside["properties"]["proxyWidgets"]
    assert shown == [widget.split(".") for widget in plan.widgets.split()]
    graph = inner_graph(plan, parts[1])
    assert all(not isinstance(graph[key]["inputs"][name], list) for key, name in shown)
