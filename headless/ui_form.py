"""Convert a workflow in the front end's file format to the graph that the host runs.

Widgets are saved as a list of values without names; the names come from the host's definitions. The front
end adds its own values to that list (what happens to a seed after a run, an upload button). Notes and muted
nodes are left out; bypassed nodes and reroutes are followed; primitive nodes give their value. The nodes of a
subgraph take its place, under the ids that the front end gives them: "SUBGRAPH:NODE".
"""

from typing import Any

from .client import Graph
from .errors import HostError, nearest
from .node_definitions import DYNAMIC_COMBO, Definition, default, inputs_of, is_widget

NOTES = ("Note", "MarkdownNote")
MUTED, BYPASSED = 2, 4  # node modes of the front end
AFTER_A_RUN = ("fixed", "increment", "decrement", "randomize", "increment-wrap")
UPLOAD_BUTTON = "image"
SUBGRAPH_INPUT, SUBGRAPH_OUTPUT = -10, -20  # the ids of a subgraph's own ends


def is_ui_form(document: dict[str, Any]) -> bool:
    """Return whether the document has the front end's file format."""
    return isinstance(document.get("nodes"), list)


def to_graph(document: dict[str, Any], definitions: dict[str, Definition]) -> Graph:
    """Return the graph in API form.

    Raises:
        HostError: if there is a node type that the host does not have, or if the file is damaged.
    """
    try:
        return Converter(document, definitions).graph()
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError) as error:
        raise HostError(
            "The workflow is damaged: a node or a link in it lacks a part; open it in ComfyUI and save it"
            " again."
        ) from error


class Converter:
    """The nodes and links of one workflow file."""

    def __init__(self, document: dict[str, Any], definitions: dict[str, Definition]):
        self.nodes: dict[Any, dict[str, Any]] = {}
        self.links: dict[Any, tuple[Any, int]] = {}  # link -> (node, slot) that it comes from
        self.entries: dict[Any, Any] = {}  # a link from a subgraph's input -> the link outside, or None
        self.exits: dict[tuple[Any, int], Any] = {}  # (subgraph node, slot) -> the link inside
        self.promoted: dict[Any, dict[str, Any]] = {}  # node -> widget values set on the subgraph around it
        self.definitions = definitions
        subgraphs = document.get("definitions", {}).get("subgraphs", [])
        self.subgraphs = {inner["id"]: inner for inner in subgraphs}
        self._add(document["nodes"], document.get("links", []))

    def _add(self, nodes: list[dict[str, Any]], links: list, parent: dict[str, Any] | None = None) -> None:
        """Add the nodes and links of one level; `parent` is the subgraph's node that they replace."""

        def named(key: Any) -> Any:
            return key if parent is None or key is None else f"{parent['id']}:{key}"

        for link in links:
            key, (origin, slot), (target, target_slot) = _ends(link)
            if parent is not None and origin == SUBGRAPH_INPUT:
                inputs = parent.get("inputs", [])
                self.entries[named(key)] = inputs[slot].get("link") if slot < len(inputs) else None
            else:
                self.links[named(key)] = named(origin), slot
            if parent is not None and target == SUBGRAPH_OUTPUT:
                self.exits[parent["id"], target_slot] = named(key)
        for node in nodes:
            renamed = node | {"id": named(node["id"])}
            renamed["inputs"] = [s | {"link": named(s.get("link"))} for s in node.get("inputs", [])]
            inner = self.subgraphs.get(node["type"])
            if inner is None or node.get("mode") in (MUTED, BYPASSED):
                self.nodes[renamed["id"]] = renamed
                continue
            values = node.get("widgets_values") or []
            for (key, widget), value in zip(node["properties"].get("proxyWidgets", []), values, strict=False):
                self.promoted.setdefault(f"{renamed['id']}:{key}", {})[widget] = value
            self._add(inner["nodes"], inner["links"], renamed)

    def graph(self) -> Graph:
        """Return the graph in API form."""
        return {
            str(key): {
                "class_type": node["type"],
                "_meta": {"title": node.get("title") or self._definition(node)["display_name"]},
                "inputs": self._inputs(node),
            }
            for key, node in self.nodes.items()
            if node.get("mode") not in (MUTED, BYPASSED)
            and node["type"] not in (*NOTES, "Reroute", "PrimitiveNode")
            and not self._is_page_only(node)
        }

    def _is_page_only(self, node: dict[str, Any]) -> bool:
        """Labels, bypassers and the like, which the host does not have and no other node reads."""
        if node["type"] in self.definitions or node["type"] in self.subgraphs:
            return False
        outputs = node.get("outputs") or []
        return not any(self._is_read(link) for output in outputs for link in output.get("links") or [])

    def _is_read(self, link: Any) -> bool:
        """Whether a link ends in a node that the host would run."""
        return any(
            socket.get("link") == link and node["type"] in self.definitions
            for node in self.nodes.values()
            for socket in node.get("inputs", [])
        )

    def _definition(self, node: dict[str, Any]) -> Definition:
        kind = node["type"]
        if kind not in self.definitions:
            raise HostError(f"The host has no node {kind}: {nearest(kind, self.definitions)}")
        return self.definitions[kind]

    def _inputs(self, node: dict[str, Any]) -> dict[str, Any]:
        inputs = widget_values(self._definition(node), node.get("widgets_values") or [])
        inputs |= self.promoted.get(node["id"], {})
        for socket in node.get("inputs", []):
            if socket.get("link") is None:
                continue
            source = self._source(socket["link"])
            if source is not None:
                inputs[socket["name"]] = source
        return inputs

    def _source(self, link: Any) -> Any:
        """Return the source of a link.

        It is [node, slot], the value of a primitive node, or None if the link ends in a muted node.
        """
        if link in self.entries:
            outside = self.entries[link]
            return None if outside is None else self._source(outside)
        key, slot = self.links[link]
        if (key, slot) in self.exits:
            return self._source(self.exits[key, slot])
        node = self.nodes[key]
        if node["type"] == "PrimitiveNode":
            return node["widgets_values"][0]
        if node.get("mode") == MUTED:
            return None
        if node["type"] == "Reroute":
            next_link = node["inputs"][0].get("link")
        elif node.get("mode") == BYPASSED:
            next_link = _bypass(node, slot)
        else:
            return [str(key), slot]
        return None if next_link is None else self._source(next_link)


def _ends(link: list | dict) -> tuple[int, tuple[int, int], tuple[Any, Any]]:
    """Return (link, (origin node, slot), (target node, slot)) from either form of the schema."""
    if isinstance(link, dict):
        target = link.get("target_id"), link.get("target_slot")
        return link["id"], (link["origin_id"], link["origin_slot"]), target
    return link[0], (link[1], link[2]), (link[3], link[4])


def _bypass(node: dict[str, Any], slot: int) -> int | None:
    """Return the link that a bypassed node passes on: by the output's position, else by its type."""
    kind, inputs = node["outputs"][slot]["type"], node.get("inputs", [])
    same_type = [socket for socket in inputs if socket["type"] == kind]
    if slot < len(inputs) and inputs[slot]["type"] == kind:
        return inputs[slot].get("link")
    return same_type[0].get("link") if same_type else None


def widget_values(definition: Definition, saved: list | dict[str, Any]) -> dict[str, Any]:
    """Return input -> value from a node's saved widgets; inputs newer than the file get their default.

    Raises:
        HostError: if the node has inputs that depend on a choice.
    """
    widgets = {
        name: (kind, options)
        for name, (kind, options) in inputs_of(definition).items()
        if is_widget(kind, options)
    }
    defaults = {name: default(*widget) for name, widget in widgets.items()}
    if isinstance(saved, dict):
        return {name: saved.get(name, value) for name, value in defaults.items()}
    if any(kind == DYNAMIC_COMBO for kind, _ in inputs_of(definition).values()):
        raise HostError(
            f"{definition['display_name']} has inputs that change with a choice; save the workflow with"
            " File > Export (API)."
        )
    values, remaining = {}, list(saved)
    for name, (_, options) in widgets.items():
        values[name] = remaining.pop(0) if remaining else defaults[name]
        seed = options.get("control_after_generate") or name in ("seed", "noise_seed")
        upload = any(key.endswith("_upload") and on for key, on in options.items())
        if remaining and (
            (seed and remaining[0] in AFTER_A_RUN) or (upload and remaining[0] == UPLOAD_BUTTON)
        ):
            del remaining[0]
    return values
