"""Read the host's node definitions (`/object_info`) and compare the interface that saved workflows use.

A workflow stores widget values by position, links by input name and output position, and a node by its id.
"""

from typing import Any

Definition = dict[str, Any]  # one node type's entry in /object_info
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"  # each choice adds its own inputs
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def inputs_of(definition: Definition) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return name -> (type, options) of a node type's inputs, in the order of the front end."""
    inputs = {}
    for section in ("required", "optional"):
        for name in definition["input_order"].get(section, []):
            kind, *options = definition["input"][section][name]
            inputs[name] = kind, options[0] if options else {}
    return inputs


def is_combo(kind: Any) -> bool:
    """Return whether an input is a choice from a list; the older form has the list itself as type."""
    return isinstance(kind, list) or kind == "COMBO"


def combo_choices(kind: Any, options: dict[str, Any]) -> list[Any]:
    """Return the choices of a combo."""
    return kind if isinstance(kind, list) else options.get("options") or []


def is_widget(kind: Any, options: dict[str, Any]) -> bool:
    """Return whether the front end shows an editable value, not only a socket."""
    return (is_combo(kind) or kind in WIDGETS) and not options.get("forceInput")


def default(kind: Any, options: dict[str, Any]) -> Any:
    """Return the value of a new node's widget in the front end."""
    if "default" in options:
        return options["default"]
    if is_combo(kind):
        return next(iter(combo_choices(kind, options)), None)
    return {"STRING": "", "BOOLEAN": False}.get(kind, 0)


# combos whose choices are the host's or its files; the pack cannot guarantee them
HOST_COMBOS = ("sampler_name", "scheduler", "folder", "name")

Interface = dict[str, dict[str, list]]  # id -> {"widgets": [...], "sockets": [...], "outputs": [...]}


def interface_of(definitions: dict[str, Definition]) -> Interface:
    """Return the interface of every node in an excerpt of /object_info."""
    return {key: _node(definition) for key, definition in sorted(definitions.items())}


def _node(definition: Definition) -> dict[str, list]:
    widgets, sockets = [], []
    for name, (kind, options) in inputs_of(definition).items():
        if is_widget(kind, options):
            fixed = [] if name in HOST_COMBOS else _fixed(kind, options)
            widgets.append([name, "COMBO" if is_combo(kind) else kind, fixed])
        else:
            required = name in definition["input"].get("required", {})
            sockets.append([name, kind, "required" if required else "optional"])
    return {"widgets": widgets, "sockets": sockets, "outputs": list(definition["output"])}


def _fixed(kind: Any, options: dict[str, Any]) -> list:
    """Return a combo's choices without file names."""
    if not is_combo(kind):
        return []
    return [
        choice for choice in combo_choices(kind, options) if "/" not in str(choice) and "." not in str(choice)
    ]


def breaks(old: Interface, new: Interface, replaced: set[str]) -> list[str]:
    """Return why workflows saved with `old` would break with `new`, one sentence each.

    Args:
        old: the interface of a released version.
        new: the interface of this version.
        replaced: ids with a registered replacement; they are not checked.
    """
    problems = []
    for key, before in old.items():
        if key in replaced:
            continue
        if key not in new:
            problems.append(f"{key} is gone; register a replacement.")
            continue
        problems += [f"{key}: {reason}" for reason in _breaks(before, new[key])]
    return problems


def _breaks(before: dict[str, list], after: dict[str, list]) -> list[str]:
    problems = []
    names = [name for name, *_ in before["widgets"]]
    if [name for name, *_ in after["widgets"]][: len(names)] != names:
        problems.append(f"its widgets were {', '.join(names)}, in that order; new ones go last.")
    after_widgets = {name: (kind, fixed) for name, kind, fixed in after["widgets"]}
    for name, kind, fixed in before["widgets"]:
        if name in after_widgets and after_widgets[name][0] != kind:
            problems.append(f"the widget {name} was a {kind}.")
        if name in after_widgets and (
            lost := [choice for choice in fixed if choice not in after_widgets[name][1]]
        ):
            problems.append(f"{name} no longer offers {', '.join(map(str, lost))}.")
    sockets = {name: kind for name, kind, _ in after["sockets"]}
    for name, kind, _ in before["sockets"]:
        if sockets.get(name) != kind:
            problems.append(f"the input {name} ({kind}) is gone.")
    before_sockets = {name for name, *_ in before["sockets"]}
    for name, _, need in after["sockets"]:
        if name not in before_sockets and need == "required":
            problems.append(f"the new input {name} is required; make it optional.")
    count = len(before["outputs"])
    if after["outputs"][:count] != before["outputs"]:
        problems.append(f"its outputs were {', '.join(before['outputs'])}, in that order; new ones go last.")
    return problems
