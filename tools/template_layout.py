"""A published template as the front end saves it: parts folded into subgraphs, nodes in fixed columns."""

import json
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from ..headless.node_definitions import inputs_of
from .drawing import drawn_node, wires
from .subgraphs import Ends, SubgraphPlan, draw_subgraph, identity
from .template_plans import MODELS, NOTE, Part, Plan

FOREIGN = Path(__file__).parent / "foreign_nodes.json"
GAP = 22  # between nodes
SIDE, HEADER = 14, 46  # between a group's frame and its nodes
TITLE = 30  # of a node, above its position
VERSION = "0.1.0"
# Pixels that nodes need on the page, where they show more than sockets and values. A message takes its
# place from a picture or a text on its node.
HEIGHTS = {
    "InlayLoadReferences": 440,
    "InlayEditPrompt": 440,
    "InlayCropForPainting": 500,
    "GeminiImage2Node": 420,
    "LanPaint_KSampler": 420,
    "InlayBoxMask": 434,
    "LoadImage": 310,
    "LoadImageMask": 330,
    "SaveImage": 290,
    "PreviewImage": 230,
    "SaveLoRA": 130,
    "SubjectFinetune": 540,
    "CLIPTextEncode": 178,
    "Negative Prompt": 112,
    "AttributeSubstitutionEncode": 290,
    "InlayAttributeDictionary": 340,
}  # by title, else by type
HIDDEN = ("rank", "learning_rate", "batch_size", "resolution")  # of a training, while they are 0
ROW = 26
# pixels that stay free below a node, for a message
FREE = {"IdentityEncoderDINOv2": 80, "InlayPasteBack": 66}
SAMPLES = 460  # below a training that paints samples


@cache
def foreign_nodes() -> dict[str, Any]:
    """Definitions of nodes that a host without account and other packs does not list, by name."""
    return json.loads(FOREIGN.read_text(encoding="utf-8"))


def template(plan: Plan, graph: dict, definitions: dict, note: str, variant: str = "template") -> dict:
    """The template's file, schema 0.4.

    `variant` decides its id, by which the live view knows the workflow whose node is training.
    """
    definitions = foreign_nodes() | definitions
    shown = without(graph, plan.dropped)
    known, subgraphs, folded = dict(definitions), [], {}
    for part in plan.parts:
        shown, definition, subgraph = fold(part, shown, known, plan.graph)
        known[subgraph["id"]] = definition
        subgraphs.append(subgraph)
        folded[subgraph["id"]] = part
    nodes, groups = arrange(plan, shown, known, folded, note)
    for name, label in plan.labels.items():
        key, widget = name.split(".")
        kind = inputs_of(known[shown[key]["class_type"]])[widget][0]
        kind = "COMBO" if isinstance(kind, list) else kind
        socket = {"name": widget, "type": kind, "link": None, "widget": {"name": widget}, "label": label}
        nodes[int(key)]["inputs"].append(socket)
    links = []
    real = {key: node for key, node in nodes.items() if node["type"] != "MarkdownNote"}
    for link, (source, output, target, slot) in enumerate(wires(shown, real), 1):
        there = nodes[source]["outputs"][output]
        links.append([link, source, output, target, slot, there["type"]])
        there["links"].append(link)
        nodes[target]["inputs"][slot]["link"] = link
    for subgraph in subgraphs:
        for node in subgraph["nodes"]:
            mark(node, definitions)
    for node in real.values():
        mark(node, definitions)
    extra: dict[str, Any] = {"ds": {"scale": 0.8, "offset": [90, 110]}}
    if plan.app:
        extra |= {"linearMode": False, "linearData": plan.app}
    return {
        "id": identity(variant, plan.graph),
        "revision": 0,
        "last_node_id": max(nodes),
        "last_link_id": len(links),
        "nodes": list(nodes.values()),
        "links": links,
        "groups": groups,
        "definitions": {"subgraphs": subgraphs},
        "config": {},
        "extra": extra,
        "version": 0.4,
    }


def arrange(
    plan: Plan, shown: dict, known: dict, folded: dict[str, Part], note: str
) -> tuple[dict[int, dict], list[dict]]:
    """The nodes in their columns without wires, and the groups, all of one height."""
    nodes: dict[int, dict] = {}
    groups: list[dict] = []
    left, bottom = 0, 0
    stages = placed(plan, shown)
    for title, columns in stages:
        x = left + SIDE
        for column in columns:
            is_last = title == stages[-1][0] and column is columns[-1]
            width = plan.last if is_last else plan.width
            y = HEADER + TITLE
            for key in column:
                if key == NOTE:
                    node = note_node(1000, note, (x, y), width, len(nodes))
                else:
                    node = sized_node(key, shown[key], known, folded, (x, y), width, len(nodes))
                nodes[node["id"]] = node
                y += node["size"][1] + free_below(node["type"], shown.get(key)) + GAP + TITLE
            bottom = max(bottom, y - TITLE)
            x += width + GAP
        groups.append(
            {
                "id": len(groups) + 1,
                "title": title,
                "bounding": [left, 0, x - GAP + SIDE - left, 0],
                "color": "#3f789e",
                "font_size": 24,
                "flags": {},
            }
        )
        left = x - GAP + SIDE + plan.between
    for group in groups:
        group["bounding"][3] = bottom
    return nodes, groups


def free_below(kind: str, entry: dict | None) -> int:
    """Pixels that stay free below a node, for what it shows later."""
    if entry and kind == "SubjectFinetune" and entry["inputs"].get("preview_every") != 0:
        return SAMPLES
    return FREE.get(kind, 0)


def sized_node(
    key: str,
    entry: dict,
    known: dict,
    folded: dict[str, Part],
    place: tuple[int, int],
    width: int,
    order: int,
) -> dict:
    """A node or a subgraph's node with the size that it needs on the page."""
    kind = entry["class_type"]
    node = drawn_node(int(key), entry, known[kind], place, order)
    node["size"] = [width, HEIGHTS.get(node.get("title", kind), HEIGHTS.get(kind, node["size"][1]))]
    if kind == "SubjectFinetune":
        node["size"][1] += ROW * sum(bool(entry["inputs"].get(name)) for name in HIDDEN)
    if kind in folded:
        widgets = folded[kind].widgets
        node["properties"] = {"proxyWidgets": [widget.split(".") for widget in widgets]}
        node["size"][1] = 24 + 24 * len(node["inputs"]) + 28 * len(widgets)
        node["widgets_values"] = []
    return node


def placed(plan: Plan, shown: dict) -> list[tuple[str, list[list[str]]]]:
    """The plan's groups with the nodes that there are; others, as the tiny variants have, go to the first."""
    groups = [
        (title, [[key for key in column if key == NOTE or key in shown] for column in columns])
        for title, columns in plan.groups
    ]
    known = {key for _, columns in groups for column in columns for key in column}
    groups[0][1][0].extend(key for key in shown if key not in known)
    return groups


def without(graph: dict, dropped: tuple[str, ...]) -> dict:
    """The graph without some nodes and the wires from them."""
    kept = {key: deepcopy(node) for key, node in graph.items() if key not in dropped}
    for node in kept.values():
        node["inputs"] = {
            name: value
            for name, value in node["inputs"].items()
            if not (isinstance(value, list) and value[0] in dropped)
        }
    return kept


def fold(part: Part, graph: dict, definitions: dict, workflow: str) -> tuple[dict, dict, dict]:
    """The graph with each instance as one node, that node's definition, and the subgraph."""
    there = tuple(tuple(key for key in instance if key in graph) for instance in part.instances)
    part = replace(part, instances=there)  # tiny variants may lack a node
    first = part.instances[0]
    inside = {key for instance in part.instances for key in instance}
    outputs = []  # (place in an instance, output) that a node outside reads
    for key, node in graph.items():
        for value in node["inputs"].values():
            if not isinstance(value, list):
                continue
            for instance in part.instances:
                if value[0] in instance and key not in instance:
                    outputs.append((instance.index(value[0]), value[1]))
    outputs = list(dict.fromkeys(outputs))

    def name_of(place: int, output: int) -> str:
        kind = graph[first[place]]["class_type"]
        return definitions[kind]["output_name"][output]

    plan = SubgraphPlan(
        part.name,
        "",
        workflow,
        first,
        " ".join(part.widgets),
        {name_of(place, output): (first[place], output) for place, output in outputs},
        {},
    )
    whole = draw_subgraph(plan, graph, definitions)
    [subgraph], [outer] = whole["definitions"]["subgraphs"], whole["nodes"]
    subgraph["id"] = identity("template", workflow, part.name)
    entries = {source: name for source, (name, _, _) in Ends(plan, graph, definitions).inputs.items()}
    folded = {key: deepcopy(node) for key, node in graph.items() if key not in inside}
    for instance, title in zip(part.instances, part.titles, strict=True):
        inputs = {}
        for place, key in enumerate(first):
            for name, value in graph[key]["inputs"].items():
                if isinstance(value, list) and value[0] not in first:
                    inputs[entries[value[0], value[1]]] = graph[instance[place]]["inputs"][name]
        folded[instance[0]] = {"class_type": subgraph["id"], "_meta": {"title": title}, "inputs": inputs}
    for node in folded.values():
        for name, value in node["inputs"].items():
            for instance in part.instances:
                if isinstance(value, list) and value[0] in instance:
                    node["inputs"][name] = [
                        instance[0], outputs.index((instance.index(value[0]), value[1]))
                    ]  # fmt: skip
    names = {socket["name"]: [socket["type"], {}] for socket in outer["inputs"]}
    definition = {
        "name": subgraph["id"],
        "display_name": part.name,
        "input": {"required": names},
        "input_order": {"required": list(names)},
        "output": [socket["type"] for socket in outer["outputs"]],
        "output_name": [socket["name"] for socket in outer["outputs"]],
        "output_node": False,
    }
    return folded, definition, subgraph


def mark(node: dict, definitions: dict) -> None:
    """Write which pack a node comes from, and where its model files can be had."""
    definition = definitions.get(node["type"])
    if definition is None:  # a subgraph
        return
    ours = definition["python_module"].startswith("custom_nodes.")
    node["properties"] |= definition.get("pack") or ({"cnr_id": "inlay", "ver": VERSION} if ours else CORE)
    models = [
        {"name": value, "url": MODELS[node["type"], value][0], "directory": MODELS[node["type"], value][1]}
        for value in node["widgets_values"]
        if isinstance(value, str) and (node["type"], value) in MODELS
    ]
    if models:
        node["properties"]["models"] = models


CORE = {"cnr_id": "comfy-core", "ver": "0.30.0"}


def note_node(key: int, text: str, place: tuple[int, int], width: int, order: int) -> dict:
    """The template's note; bold, not code, which Nodes 2.0 draws in blue on slate."""
    lines = sum(1 + len(line) // (width // 7) for line in text.splitlines())
    return {
        "id": key,
        "type": "MarkdownNote",
        "pos": list(place),
        "size": [width, 60 + 14 * lines],
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [text],
        "title": "Read me",
    }
