"""Write down the nodes' interface and words, which the tests hold every later version to.

python dev.py tool interface    writes tests/host/interface.json and locales/*/nodeDefs.json

It starts a host and asks it. English words are the schema's own; what another language lacks is filled with
English and listed, and what it says of inputs that are gone is dropped.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from ..headless import Client, Server
from ..headless.node_definitions import Definition, Interface, breaks, inputs_of, interface_of

PACK = Path(__file__).resolve().parent.parent
FILE = PACK / "tests" / "host" / "interface.json"
LOCALES = PACK / "locales"
Words = dict[str, Any]  # as in the host's locales/<language>/nodeDefs.json


def our_definitions(client: Client, server: Server) -> dict[str, Definition]:
    """Those of the nodes that this pack registers with the host."""
    module = f"custom_nodes.{server.pack_folder().name}"
    return {key: node for key, node in client.object_info().items() if node["python_module"] == module}


def as_text(interface: Interface) -> str:
    """JSON with one line per input, so that a change is a line."""
    nodes = []
    for key, node in interface.items():
        parts = []
        for name, items in node.items():
            lines = ",\n".join(f"   {json.dumps(item)}" for item in items)
            parts.append(f'  "{name}": [\n{lines}\n  ]' if items else f'  "{name}": []')
        nodes.append(f' "{key}": {{\n' + ",\n".join(parts) + "\n }")
    return "{\n" + ",\n".join(nodes) + "\n}\n"


def english(definitions: dict[str, Definition]) -> Words:
    """Every name and tooltip as the schema has it."""
    return {key: _english(node) for key, node in sorted(definitions.items())}


def _english(node: Definition) -> Words:
    outputs = zip(node["output_name"], node["output_tooltips"], strict=True)
    return {
        "display_name": node["display_name"],
        "description": node["description"],
        "inputs": {
            name: {"name": options.get("display_name") or name, "tooltip": options["tooltip"]}
            for name, (_, options) in inputs_of(node).items()
        },
        "outputs": {str(i): {"name": name, "tooltip": tooltip} for i, (name, tooltip) in enumerate(outputs)},
    }


def completed(words: Words, model: Words, missing: list[str], where: str = "") -> Words:
    """`words` with the keys of `model` alone, in its order; what it lacks stays the model's and is listed."""
    found = {}
    for key, value in model.items():
        if isinstance(value, dict):
            found[key] = completed(words.get(key, {}), value, missing, f"{where}{key}.")
        else:
            found[key] = words.get(key, value)
            missing += [f"{where}{key}"] if key not in words else []
    return found


def write_words(definitions: dict[str, Definition]) -> None:
    model = english(definitions)
    for folder in sorted(LOCALES.iterdir()):
        file, missing = folder / "nodeDefs.json", []
        words = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        words = model if folder.name == "en" else completed(words, model, missing)
        file.write_text(json.dumps(words, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        for key in missing:
            print(f"{folder.name}: {key} is still in English")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server:
        definitions = our_definitions(Client(server.url), server)
    found = interface_of(definitions)
    if FILE.exists():
        for reason in breaks(json.loads(FILE.read_text(encoding="utf-8")), found, set()):
            print(f"breaks saved workflows: {reason}")
    FILE.write_text(as_text(found), encoding="utf-8")
    write_words(definitions)
    print(f"{len(found)} nodes in {FILE}")


if __name__ == "__main__":
    main()
