"""A workflow from a file, and the user's settings on it: `NODE.input=value`.

NODE is a node's title, type or id; where a title or type names several nodes, only the id will do.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..common.files import parse_json, read_text
from .client import Graph, title_of
from .errors import HostError, nearest
from .node_definitions import Definition, combo_choices, inputs_of, is_combo, is_widget
from .ui_form import is_ui_form, to_graph

TRUE_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Setting:
    """One `NODE.input=value` as it was typed."""

    node: str
    input: str
    value: str

    @classmethod
    def parse(cls, text: str) -> "Setting":
        """Raise HostError for a text of another form."""
        where, equals, value = text.partition("=")
        node, dot, name = where.rpartition(".")
        if not (equals and dot and node and name):
            raise HostError(f"{text}: write NODE.input=value, such as SubjectFinetune.steps=200.")
        return cls(node.strip(), name.strip(), value)

    def __str__(self) -> str:
        return f"{self.node}.{self.input}={self.value}"


def read_workflow(path: Path) -> dict[str, Any]:
    """Return what the file holds, in UI or API form.

    JSON, or a picture that ComfyUI saved with its graph inside.

    Raises:
        HostError: when there is no such file, or no workflow in it.
    """
    if not path.is_file():
        raise HostError(f"There is no workflow {path}.")
    try:
        document = parse_json(_text(path), str(path))
    except (ValueError, OSError) as error:
        raise HostError(f"{path} is no workflow: {error}") from error
    if not isinstance(document, dict) or not document:
        raise HostError(f"{path} is no workflow: it should hold an object with nodes.")
    document = document.get("prompt", document) if "nodes" not in document else document
    if not isinstance(document, dict):
        raise HostError(f"{path} is no workflow: its prompt should be an object with nodes.")
    if not is_ui_form(document) and not all(_is_node(entry) for entry in document.values()):
        raise HostError(f"{path} is no workflow: not every entry has a class_type and inputs.")
    return document


def _text(path: Path) -> str:
    if path.suffix.lower() != ".png":
        return read_text(path)
    from PIL import Image

    with Image.open(path) as picture:
        if "prompt" not in picture.info:
            raise HostError(f"{path} is a picture without a graph inside; give one that ComfyUI saved.")
        return picture.info["prompt"]


def _is_node(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("class_type"), str)
        and isinstance(entry.get("inputs"), dict)
    )


def as_graph(document: dict[str, Any], definitions: dict[str, Definition]) -> Graph:
    """Return the graph in API form, of node types that the host has.

    Raises:
        HostError: that names the node types most like an unknown one.
    """
    graph = to_graph(document, definitions) if is_ui_form(document) else document
    for key, entry in graph.items():
        kind = str(entry["class_type"])
        if kind not in definitions:
            raise HostError(f"The host has no node {kind} (node {key}): {nearest(kind, definitions)}")
    return graph


def find_node(graph: Graph, name: str) -> str:
    """Return the id of the node that the user calls `name`.

    Raises:
        HostError: when none or several are called so.
    """
    if name in graph:
        return name
    found = [key for key, entry in graph.items() if name in (title_of(key, graph), entry["class_type"])]
    if len(found) == 1:
        return found[0]
    if found:
        raise HostError(f"{name} names {len(found)} nodes; use an id: {', '.join(found)}.")
    known = {title_of(key, graph) for key in graph} | {entry["class_type"] for entry in graph.values()}
    raise HostError(f"The workflow has no node {name}: {nearest(name, known)}")


def resolve_setting(graph: Graph, setting: Setting, definitions: dict[str, Definition]) -> Setting:
    """Return the setting with node and input separated, where an input's own name has a dot.

    A.b.c is b.c of A.
    """
    parts = f"{setting.node}.{setting.input}".split(".")
    named = {title_of(key, graph) for key in graph} | {entry["class_type"] for entry in graph.values()}
    for place in range(len(parts) - 1, 0, -1):
        node, name = ".".join(parts[:place]), ".".join(parts[place:])
        if node not in graph and node not in named:
            continue
        if name in inputs_of(definitions[graph[find_node(graph, node)]["class_type"]]):
            return replace(setting, node=node, input=name)
    return setting


def find_input(graph: Graph, setting: Setting, definitions: dict[str, Definition]) -> tuple[str, Any, dict]:
    """(node id, the input's type, its options) of what a setting is about.

    Raises:
        HostError: when there is no such input, or none that takes a value.
    """
    key = find_node(graph, setting.node)
    inputs = inputs_of(definitions[graph[key]["class_type"]])
    if setting.input not in inputs:
        editable = [name for name, (kind, options) in inputs.items() if is_widget(kind, options)]
        raise HostError(f"{setting.node} has no input {setting.input}: {nearest(setting.input, editable)}")
    kind, options = inputs[setting.input]
    if not is_widget(kind, options):
        raise HostError(f"{setting.node}.{setting.input} is fed by another node ({kind}); it takes no value.")
    return key, kind, options


def read_value(setting: Setting, kind: Any, options: dict) -> Any:
    """Return the setting's text as a value of the input's type.

    Raises:
        HostError: when it cannot be one.
    """
    text = setting.value
    if is_combo(kind):
        return {str(choice): choice for choice in combo_choices(kind, options)}.get(text, text)
    try:
        return {"INT": int, "FLOAT": float, "BOOLEAN": lambda word: TRUE_WORDS[word.lower()]}.get(kind, str)(
            text
        )
    except (ValueError, KeyError):
        wanted = {"INT": "a whole number", "FLOAT": "a number", "BOOLEAN": "true or false"}[kind]
        raise HostError(f"{setting}: {setting.input} takes {wanted}.") from None


def with_value(graph: Graph, key: str, name: str, value: Any) -> Graph:
    """Return a copy of `graph` with one input of one node set; a wire that fed it is gone."""
    entry = graph[key]
    return graph | {key: entry | {"inputs": entry["inputs"] | {name: value}}}
