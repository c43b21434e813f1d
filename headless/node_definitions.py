"""Node types as the host describes them (`/object_info`), and what saved workflows rely on.

A workflow keeps widget values by position, wires by input name and output position, and a node by its id.
"""

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


# combos of what the host has, or what lies in its folders, which is not ours to keep
HOSTS_OWN = ("sampler_name", "scheduler", "folder", "name")

Interface = dict[str, dict[str, list]]  # id -> {"widgets": [...], "sockets": [...], "outputs": [...]}


def interface_of(definitions: dict[str, Definition]) -> Interface:
    """The interface of every node in an excerpt of /object_info."""
    return {key: _node(definition) for key, definition in sorted(definitions.items())}


def _node(definition: Definition) -> dict[str, list]:
    widgets, sockets = [], []
    for name, (kind, options) in inputs_of(definition).items():
        if is_widget(kind, options):
            fixed = [] if name in HOSTS_OWN else _fixed(kind, options)
            widgets.append([name, "COMBO" if is_combo(kind) else kind, fixed])
        else:
            required = name in definition["input"].get("required", {})
            sockets.append([name, kind, "required" if required else "optional"])
    return {"widgets": widgets, "sockets": sockets, "outputs": list(definition["output"])}


def _fixed(kind: Any, options: dict[str, Any]) -> list:
    """A combo's choices, but for files and what the host itself offers."""
    if not is_combo(kind):
        return []
    return [
        choice for choice in combo_choices(kind, options) if "/" not in str(choice) and "." not in str(choice)
    ]


def breaks(old: Interface, new: Interface, replaced: set[str]) -> list[str]:
    """Why workflows saved with `old` would break with `new`, one sentence each; `replaced` ids are mended."""
    found = []
    for key, before in old.items():
        if key in replaced:
            continue
        if key not in new:
            found.append(f"{key} is gone; register a replacement.")
            continue
        found += [f"{key}: {reason}" for reason in _breaks(before, new[key])]
    return found


def _breaks(before: dict[str, list], after: dict[str, list]) -> list[str]:
    found = []
    names = [name for name, *_ in before["widgets"]]
    if [name for name, *_ in after["widgets"]][: len(names)] != names:
        found.append(f"its widgets were {', '.join(names)}, in that order; new ones go last.")
    now = {name: (kind, fixed) for name, kind, fixed in after["widgets"]}
    for name, kind, fixed in before["widgets"]:
        if name in now and now[name][0] != kind:
            found.append(f"the widget {name} was a {kind}.")
        if name in now and (lost := [choice for choice in fixed if choice not in now[name][1]]):
            found.append(f"{name} no longer offers {', '.join(map(str, lost))}.")
    sockets = {name: kind for name, kind, _ in after["sockets"]}
    for name, kind, _ in before["sockets"]:
        if sockets.get(name) != kind:
            found.append(f"the input {name} ({kind}) is gone.")
    known = {name for name, *_ in before["sockets"]}
    for name, _, need in after["sockets"]:
        if name not in known and need == "required":
            found.append(f"the new input {name} is required; make it optional.")
    count = len(before["outputs"])
    if after["outputs"][:count] != before["outputs"]:
        found.append(f"its outputs were {', '.join(before['outputs'])}, in that order; new ones go last.")
    return found
