"""Subgraphs: a part of a bundled workflow as one node, as the host lists it from subgraphs/*.json.

What is wired into the part from outside becomes the node's inputs.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from .drawing import drawn_nodes

INPUTS, OUTPUTS = -10, -20  # the front end's ids of a subgraph's two ends
SLOT = 20  # pixels between their sockets
# the recipe's own
OWN: dict[str, Any] = dict.fromkeys(("steps", "rank", "learning_rate", "batch_size", "resolution"), 0)
SAMPLING: dict[str, Any] = {"steps": 30, "cfg": 7.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}


@dataclass(frozen=True)
class SubgraphPlan:
    """`nodes` of a workflow, with `values` (node -> input -> value) for models larger than the tiny one.

    `widgets`, as "node.input" with spaces between, are shown on the outside; `outputs` are
    name -> (node, output).
    """

    name: str
    description: str
    workflow: str
    nodes: tuple[str, ...]
    widgets: str
    outputs: dict[str, tuple[str, int]]
    values: dict[str, dict[str, Any]]


SUBGRAPHS = [
    SubgraphPlan(
        "Insert Subject",
        "Learns a subject from a few photos and paints it into the mask, which its words alone may fill.",
        "insert_subject",
        ("5", "6", "7", "8", "9", "11", "13", "15"),
        "5.class_name 5.token 7.text 5.steps 11.seed 11.steps 11.cfg",
        {"image": ("15", 0), "subject": ("5", 3), "curve": ("5", 4)},
        {"5": OWN, "11": SAMPLING, "15": {"feather": 8}},
    ),
    SubgraphPlan(
        "Edit Subject",
        "Learns a subject from a few photos and paints it into the mask with another colour or material.",
        "edit_attribute",
        ("5", "6", "7", "9"),
        "5.class_name 5.token 5.attributes 6.prompt 6.remove 6.strength 5.steps 9.seed 9.steps 9.cfg",
        {"image": ("9", 0), "subject": ("5", 3)},
        {"5": OWN, "9": SAMPLING | {"close_up_size": 0, "soft_edge": 16}},
    ),
    SubgraphPlan(
        "Only the Box Changes",
        "Crops around a mask, edits the crop with an edit model, and pastes it back aligned, in the right"
        " colours; every pixel outside the mask stays as it is.",
        "edit_box",
        ("7", "8", "9", "10", "11", "12", "13", "14"),
        "8.text 7.context 12.seed 12.steps 12.cfg 14.area 14.align 14.colour",
        {"image": ("14", 0), "report": ("14", 1), "check": ("14", 2)},
        {},
    ),
]


def identity(*words: str) -> str:
    """The same UUID for the same words."""
    return str(uuid5(NAMESPACE_URL, "/".join(("inlay", *words))))


def draw_subgraph(plan: SubgraphPlan, graph: dict, definitions: dict) -> dict:
    """The file's contents: one node on the outside, and the definition of its inside."""
    inside = inner_graph(plan, graph)
    nodes = drawn_nodes(inside, definitions)
    ends = Ends(plan, graph, definitions)
    links = ends.connect(nodes)
    right = max(node["pos"][0] + node["size"][0] for node in nodes.values())
    inputs, outputs = ends.sockets(ends.inputs, -160), ends.sockets(ends.outputs, right + 80)
    shown = [(name, kind) for name, kind, _ in ends.inputs.values()]
    given = [(name, kind) for name, kind, _ in ends.outputs.values()]
    subgraph = {
        "id": identity(plan.name),
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": max(nodes), "lastLinkId": len(links), "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": plan.name,
        "inputNode": {"id": INPUTS, "bounding": [-280, 0, 120, 40 + SLOT * len(inputs)]},
        "outputNode": {"id": OUTPUTS, "bounding": [right + 60, 0, 120, 40 + SLOT * len(outputs)]},
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": list(nodes.values()),
        "groups": [],
        "links": links,
        "extra": {},
        "category": "Inlay",
        "description": plan.description,
    }
    outside = {
        "id": 1,
        "type": subgraph["id"],
        "pos": [0, 0],
        "size": [400, 60 + 24 * max(len(shown), len(given)) + 28 * len(plan.widgets.split())],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [{"name": name, "type": kind, "link": None} for name, kind in shown],
        "outputs": [{"name": name, "type": kind, "links": []} for name, kind in given],
        "properties": {"proxyWidgets": [widget.split(".") for widget in plan.widgets.split()]},
        "widgets_values": [],
        "title": plan.name,
    }
    return {
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [outside],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [subgraph]},
        "extra": {},
    }


def inner_graph(plan: SubgraphPlan, graph: dict) -> dict:
    """The plan's nodes in API form with its values, without the wires from outside."""
    inside = {key: deepcopy(graph[key]) for key in plan.nodes}
    for key, node in inside.items():
        node["inputs"] = {
            name: value
            for name, value in (node["inputs"] | plan.values.get(key, {})).items()
            if not isinstance(value, list) or value[0] in inside
        }
    return inside


class Ends:
    """What goes in and comes out: (node, output) in the workflow -> (name, type, links)."""

    def __init__(self, plan: SubgraphPlan, graph: dict, definitions: dict):
        def kind(source: str, output: int) -> str:
            return definitions[graph[source]["class_type"]]["output"][output]

        self.plan, self.graph = plan, graph
        self.inputs: dict[tuple[str, int], tuple[str, str, list[int]]] = {}
        for key in plan.nodes:
            for name, value in graph[key]["inputs"].items():
                outside = isinstance(value, list) and value[0] not in plan.nodes
                if outside and tuple(value) not in self.inputs:
                    self.inputs[value[0], value[1]] = (self._unused(name), kind(*value), [])
        self.outputs = {there: (name, kind(*there), []) for name, there in plan.outputs.items()}

    def _unused(self, name: str) -> str:
        """The name, with a number if another input has it already."""
        taken = {known for known, _, _ in self.inputs.values()}
        names = (name, *(f"{name}_{number}" for number in range(2, 99)))
        return next(free for free in names if free not in taken)

    def connect(self, nodes: dict[int, dict]) -> list[dict]:
        """Return the links of the inside, both ends' included, and enter them in their sockets."""
        links: list[dict] = []

        def link(origin: int, output: int, target: int, slot: int, kind: str) -> int:
            links.append({"id": len(links) + 1, "origin_id": origin, "origin_slot": output})
            links[-1] |= {"target_id": target, "target_slot": slot, "type": kind}
            return len(links)

        incoming, outgoing = list(self.inputs), list(self.outputs)
        for key, node in nodes.items():
            for slot, socket in enumerate(node["inputs"]):
                value = self.graph[str(key)]["inputs"].get(socket["name"])
                if not isinstance(value, list):
                    continue
                if tuple(value) in self.inputs:
                    kind, known = self.inputs[tuple(value)][1:]
                    socket["link"] = link(INPUTS, incoming.index(tuple(value)), key, slot, kind)
                    known.append(socket["link"])
                else:
                    there = nodes[int(value[0])]["outputs"][value[1]]
                    socket["link"] = link(int(value[0]), value[1], key, slot, there["type"])
                    there["links"].append(socket["link"])
        for (source, output), (_, kind, known) in self.outputs.items():
            known.append(link(int(source), output, OUTPUTS, outgoing.index((source, output)), kind))
            nodes[int(source)]["outputs"][output]["links"].append(known[-1])
        return links

    def sockets(self, ends: dict, left: int) -> list[dict]:
        """One end's sockets, for the subgraph's definition."""
        side = "in" if ends is self.inputs else "out"
        return [
            {
                "id": identity(self.plan.name, side, name),
                "name": name,
                "type": kind,
                "linkIds": links,
                "pos": [left, 20 + SLOT * number],
            }
            for number, (name, kind, links) in enumerate(ends.values())
        ]
