"""The host's descriptions of its node types (`/object_info`), as far as a script needs them."""

from typing import Any

Definition = dict[str, Any]  # one node type's entry in /object_info
CHANGING = "COMFY_DYNAMICCOMBO_V3"  # a choice that brings inputs of its own
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def inputs_of(definition: Definition) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Name -> (type, options) of a node type's inputs, in the order the front end shows them."""
    inputs = {}
    for section in ("required", "optional"):
        for name in definition["input_order"].get(section, []):
            kind, *options = definition["input"][section][name]
            inputs[name] = kind, options[0] if options else {}
    return inputs


def is_combo(kind: Any) -> bool:
    """A choice from a list: the older form gives the list itself as the type."""
    return isinstance(kind, list) or kind == "COMBO"


def combo_choices(kind: Any, options: dict[str, Any]) -> list[Any]:
    """What a combo offers."""
    return kind if isinstance(kind, list) else options.get("options") or []


def is_widget(kind: Any, options: dict[str, Any]) -> bool:
    """Whether the front end shows a value to edit rather than only a socket."""
    return (is_combo(kind) or kind in WIDGETS) and not options.get("forceInput")


def default(kind: Any, options: dict[str, Any]) -> Any:
    """What the front end puts into a new node's widget."""
    if "default" in options:
        return options["default"]
    if is_combo(kind):
        return next(iter(combo_choices(kind, options)), None)
    return {"STRING": "", "BOOLEAN": False}.get(kind, 0)
