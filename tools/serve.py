"""Open ComfyUI with Inlay, the tiny models and the templates' pictures, in the foreground.

python dev.py serve [--port 8188] [further arguments of ComfyUI]
"""

import argparse
import json
import shutil
import signal
import sys
from copy import deepcopy
from pathlib import Path

from ..headless import Client, Graph, HostError, Server
from ..lab.models import identity
from .demo import say, stop, tiny_checkpoint
from .demo_options import ASSETS, PACK
from .example_pictures import EXAMPLES
from .template_layout import template
from .template_plans import PLANS, TINY_ONLY
from .templates import note_of
from .tiny import tiny_graph

WORK = PACK / ".inlay" / "serve"


def serve(port: int, extra: list[str]) -> None:
    server = Server(WORK, port=port, extra=tuple(extra))
    print("\nInlay in ComfyUI\n")
    checkpoint, others = tiny_checkpoint(server.comfyui), identity.install(server.comfyui / "models")
    say("models", ", ".join(sorted({path.name for path in (checkpoint, *others.values())})))
    copy_pictures(WORK / "input")
    with server:
        write_tiny_workflows(Client(server.url), WORK / "user" / "default" / "workflows" / "tiny")
        say("open", server.url)
        say("then", f"Workflows > tiny > {PLANS[0].title}, and press Run")
        say("stop", "Ctrl-C")
        say("log", str(server.log))
        server.wait()


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


def write_tiny_workflows(client: Client, folder: Path) -> None:
    """The templates for the tiny models, among the user's own workflows."""
    definitions = client.object_info()
    folder.mkdir(parents=True, exist_ok=True)
    for plan in (*PLANS, *TINY_ONLY):
        graph = with_tiny_pictures(tiny_graph(plan.graph))
        drawing = template(plan, graph, definitions, note_of(plan), "tiny template")
        (folder / f"{plan.title}.json").write_text(json.dumps(drawing), encoding="utf-8")


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
