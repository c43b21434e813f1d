"""Convert a workflow in the front end's file format to the graph that the host runs.

Widgets are saved as a list of values without names; the names come from the host's definitions. The front
end adds its own values to that list (what happens to a seed after a run, an upload button). Notes and muted
nodes are left out; bypassed nodes and reroutes are followed; primitive nodes give their value.
"""

from typing import Any

from .client import Graph
from .errors import HostError, nearest
from .node_definitions import DYNAMIC_COMBO, Definition, default, inputs_of, is_widget

NOTES = ("Note", "MarkdownNote")
MUTED, BYPASSED = 2, 4  # node modes of the front end
AFTER_A_RUN = ("fixed", "increment", "decrement", "randomize", "increment-wrap")
UPLOAD_BUTTON = "image"


def is_ui_form(document: dict[str, Any]) -> bool:
    """Return whether the document has the front end's file format."""
    return isinstance(document.get("nodes"), list)


def to_graph(document: dict[str, Any], definitions: dict[str, Definition]) -> Graph:
    """Return the graph in API form.

    Raises:
        HostError: if there is a subgraph, or a node type that the host does not have.
    """
    return Converter(document, definitions).graph()


class Converter:
    """The nodes and links of one workflow file."""

    def __init__(self, document: dict[str, Any], definitions: dict[str, Definition]):
        self.nodes = {node["id"]: node for node in document["nodes"]}
        self.links = dict(map(_origin, document.get("links", [])))
        self.definitions = definitions
        self.subgraphs = {
            inner["id"]: inner["name"] for inner in document.get("definitions", {}).get("subgraphs", [])
        }

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

    def _is_read(self, link: int) -> bool:
        """Whether a link ends in a node that the host would run."""
        return any(
            socket.get("link") == link and node["type"] in self.definitions
            for node in self.nodes.values()
            for socket in node.get("inputs", [])
        )

    def _definition(self, node: dict[str, Any]) -> Definition:
        kind = node["type"]
        if kind in self.subgraphs:
            raise HostError(
                f"The workflow holds a subgraph, {self.subgraphs[kind]}; unpack it in ComfyUI, or save with"
                " File > Export (API), and give that file."
            )
        if kind not in self.definitions:
            raise HostError(f"The host has no node {kind}: {nearest(kind, self.definitions)}")
        return self.definitions[kind]

    def _inputs(self, node: dict[str, Any]) -> dict[str, Any]:
        inputs = widget_values(self._definition(node), node.get("widgets_values") or [])
        for socket in node.get("inputs", []):
            if socket.get("link") is None:
                continue
            source = self._source(socket["link"])
            if source is not None:
                inputs[socket["name"]] = source
        return inputs

    def _source(self, link: int) -> Any:
        """Return the source of a link.

        It is [node, slot], the value of a primitive node, or None if the link ends in a muted node.
        """
        key, slot = self.links[link]
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


def _origin(link: list | dict) -> tuple[int, tuple[int, int]]:
    """Return (link, (node, slot)) from the older or the newer form of the schema."""
    if isinstance(link, dict):
        return link["id"], (link["origin_id"], link["origin_slot"])
    return link[0], (link[1], link[2])


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
