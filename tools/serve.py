"""Open ComfyUI with Inlay, the tiny models and the templates' pictures, in the foreground.

python dev.py serve [--port 8188] [further arguments of ComfyUI]
"""

import argparse
import hashlib
import json
import shutil
import signal
import sys
from copy import deepcopy
from pathlib import Path

from ..headless import Client, Graph, HostError, Server
from ..lab.models import identity, shipped
from .demo import say, stop
from .demo_options import ASSETS, PACK
from .example_pictures import EXAMPLES
from .template_layout import template
from .template_plans import PLANS, TINY_ONLY
from .templates import note_of
from .tiny import served_graph, tiny_note

WORK = PACK / ".inlay" / "serve"


def serve(port: int, extra: list[str]) -> None:
    server = Server(WORK, port=port, extra=tuple(extra))
    print("\nInlay in ComfyUI\n")
    say("models", ", ".join(sorted({path.name for path in install_models(server.comfyui / "models")})))
    copy_pictures(WORK / "input")
    with server:
        folder = WORK / "user" / "default" / "workflows" / "tiny"
        changed = put_workflows(tiny_workflows(Client(server.url)), folder, WORK / "tiny_workflows.json")
        say("open", server.url)
        say("then", f"Workflows > tiny > {PLANS[0].title}, and press Run")
        if changed:
            say("kept", f"{len(changed)} of tiny that you changed; delete a file to get the new one")
        say("stop", "Ctrl-C")
        say("log", str(server.log))
        server.wait()


def install_models(models: Path) -> list[Path]:
    """Write the tiny models into ComfyUI's folder, those that are missing or older than their parts."""
    return [*shipped.install(models), *identity.install(models).values()]


def copy_pictures(folder: Path) -> None:
    """Copy the published templates' pictures, and those for the tiny models under names of their own.

    Under one name the published templates would open with a box outside their picture.
    """
    shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True)
    for source in ASSETS.iterdir():
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        target = folder / tiny_name(source.name)
        if not (source.is_dir() and target.exists()):
            copy(source, target)


def tiny_name(name: str) -> str:
    """Return the name under which an example picture for the tiny models is served."""
    return name.replace("inlay_", "tiny_", 1)


def with_tiny_pictures(graph: Graph) -> Graph:
    """Return the graph with the example pictures for the tiny models."""
    graph = deepcopy(graph)
    for node in graph.values():
        for name in ("image", "folder"):
            value = node["inputs"].get(name)
            if isinstance(value, str) and (ASSETS / value).exists():
                node["inputs"][name] = tiny_name(value)
    return graph


def tiny_workflows(client: Client) -> dict[str, str]:
    """The templates for the tiny models, as files of the page by their names."""
    definitions = client.object_info()
    files = {}
    for plan in (*PLANS, *TINY_ONLY):
        graph = with_tiny_pictures(served_graph(plan.graph))
        drawing = template(plan, graph, definitions, tiny_note(note_of(plan)), "tiny template")
        files[f"{plan.title}.json"] = json.dumps(drawing)
    return files


def put_workflows(files: dict[str, str], folder: Path, record: Path) -> list[str]:
    """Write workflows among the user's own; return the names of those that the user has changed, which stay.

    A file that is up to date is not written again: the page drops unsaved changes of a file that is newer.

    Args:
        record: a file with the digests of what was written last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else None
    changed = []
    for name, text in files.items():
        path = folder / name
        there = path.read_text(encoding="utf-8") if path.exists() else None
        if there == text:
            continue
        if there is not None and known is not None and digest(there) != known.get(name):
            changed.append(name)
        else:
            path.write_text(text, encoding="utf-8")
    written = {name: digest(text) for name, text in files.items() if name not in changed}
    record.write_text(json.dumps((known or {}) | written), encoding="utf-8")
    return changed


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def main() -> int:
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)  # shells start background jobs with SIGINT ignored
    parser = argparse.ArgumentParser(
        prog="python dev.py serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8188)
    options, extra = parser.parse_known_args()
    try:
        serve(options.port, extra)
    except KeyboardInterrupt:
        print("\nStopped.")
        return 0
    except HostError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
