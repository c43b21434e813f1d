"""Write the published templates and subgraphs from the graphs in workflows/api: they cannot drift.

    python dev.py tool templates            write workflows/*.json and subgraphs/*.json
    python dev.py tool templates --check    fail where a file differs from what would be written

Needs a running host's node definitions (it starts one). A template's note is the text file of its graph's
name; `template_plans` says what stands where.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from ..headless import Client, Server
from .subgraphs import SUBGRAPHS, draw_subgraph
from .template_layout import foreign_nodes, template
from .template_plans import PLANS, Plan
from .tiny import GRAPHS, read_graph

WORKFLOWS = GRAPHS.parent
SUBGRAPH_FOLDER = WORKFLOWS.parent / "subgraphs"


def note_of(plan: Plan) -> str:
    """What a reader of the template should know."""
    return (GRAPHS / f"{plan.graph}.md").read_text(encoding="utf-8")


def drawn(definitions: dict) -> dict[Path, str]:
    """The UI files as they should be, from the host's definitions of its nodes by name."""
    files = {}
    for plan in PLANS:
        drawing = template(plan, read_graph(plan.graph), definitions, note_of(plan))
        files[WORKFLOWS / f"{plan.title}.json"] = json.dumps(drawing, indent=1) + "\n"
    for part in SUBGRAPHS:
        drawing = draw_subgraph(part, read_graph(part.workflow), foreign_nodes() | definitions)
        files[SUBGRAPH_FOLDER / f"{part.name}.json"] = json.dumps(drawing, indent=1) + "\n"
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
