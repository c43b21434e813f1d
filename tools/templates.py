"""Draw the UI form of every API graph in workflows/api/, and the blueprints made of them: they cannot drift.

    python -m inlay.tools.templates            write workflows/*.json and subgraphs/*.json
    python -m inlay.tools.templates --check    fail where a file differs from what would be written

Needs a running host's node definitions (it starts one). A graph's note is the text file of the same name;
graphs that train also get the one on checkpoints.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from ..headless import Client, Server
from .blueprints import BLUEPRINTS, blueprint
from .drawing import to_ui

WORKFLOWS = Path(__file__).parent.parent / "workflows"
SUBGRAPHS = WORKFLOWS.parent / "subgraphs"
CHECKPOINTS = WORKFLOWS / "api" / "checkpoints.md"


def notes_of(path: Path, graph: dict) -> list[tuple[str, str]]:
    """(title, text) of what a reader of the graph at `path` should know."""
    notes = [("Read me", path.with_suffix(".md").read_text(encoding="utf-8"))]
    if any(node["class_type"] == "SubjectFinetune" for node in graph.values()):
        notes.append(("Which checkpoint", CHECKPOINTS.read_text(encoding="utf-8")))
    return notes


def drawn(definitions: dict) -> dict[Path, str]:
    """The UI files as they should be, from the host's definitions of its nodes by name."""
    files = {}
    for path in sorted((WORKFLOWS / "api").glob("*.json")):
        graph = json.loads(path.read_text(encoding="utf-8"))
        drawing = to_ui(graph, definitions, notes_of(path, graph))
        files[WORKFLOWS / path.name] = json.dumps(drawing, indent=1) + "\n"
    for plan in BLUEPRINTS:
        graph = json.loads((WORKFLOWS / "api" / f"{plan.workflow}.json").read_text(encoding="utf-8"))
        files[SUBGRAPHS / f"{plan.name}.json"] = (
            json.dumps(blueprint(plan, graph, definitions), indent=1) + "\n"
        )
    return files


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server:
        files = drawn(Client(server.url).object_info())
    stale = [p for p, text in files.items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    for path in stale:
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(files[path], encoding="utf-8")
        print(f"{'differs' if check else 'written'}: {path.relative_to(WORKFLOWS.parent)}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
