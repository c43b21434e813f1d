"""The templates' pictures: what goes into each bundled workflow and what comes out, on the tiny models.

    python dev.py tool template_thumbnails [NAME ...]    NAME is a workflow (default: all of them)

Runs every workflow as it is bundled on a host of its own and writes a JPEG beside each, which ComfyUI's
template browser shows. Nothing is chosen: the pictures are of the seeds that the workflows have. Workflows
whose models have no trained tiny variant show what goes in alone.
"""

import argparse
import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

from ..headless import Client, Graph, HostError, PromptResult, Server
from ..headless.terminal import Bars
from ..imaging.boxes import Box
from ..imaging.references import list_references
from ..lab.models import identity
from ..lab.models.checkpoint import assemble
from ..lab.studies import sheet
from .demo import TINY, open_picture
from .demo_options import ASSETS
from .template_plans import PLANS
from .templates import WORKFLOWS
from .tiny import tiny_graph

SIDE, BYTES = 480, 60_000


def card(graph: Graph, result: PromptResult | None) -> Image.Image:
    """References, pictures (with their box) and results, if there are any, in the order of the graph."""
    panels = []
    for key, node in graph.items():
        if node["class_type"] == "InlayLoadReferences":
            files = list_references(ASSETS / node["inputs"]["folder"])
            panels.append(sheet.mosaic([open_picture(file) for file, _ in files], SIDE))
        elif node["class_type"] == "LoadImage":
            panels.append(boxed(open_picture(ASSETS / node["inputs"]["image"]), key, graph))
        elif result is not None and node["class_type"] == "SaveImage" and not is_curve(node, graph):
            made = [Image.open(io.BytesIO(image)).convert("RGB") for image in result[key].images]
            panels.append(sheet.mosaic(made, SIDE))
    return sheet.mosaic(panels, SIDE)


def has_trained_models(graph: Graph) -> bool:
    """Whether a tiny checkpoint paints in the graph, instead of an untrained model or a stand-in."""
    return any(node["class_type"] == "CheckpointLoaderSimple" for node in graph.values())


def boxed(picture: Image.Image, key: str, graph: Graph) -> Image.Image:
    """The picture of the node `key`, with the box that a Box Mask draws on it."""
    for node in graph.values():
        box = node["inputs"]
        if node["class_type"] == "InlayBoxMask" and box["image"][0] == key:
            corners = (box["y"], box["x"], box["y"] + box["height"], box["x"] + box["width"])
            return sheet.with_box(picture, Box(*corners), SIDE)
    return picture


def is_curve(node: dict, graph: Graph) -> bool:
    """Whether a node saves a training's loss curve, which is no picture of anything."""
    return graph[node["inputs"]["images"][0]]["class_type"] == "SubjectFinetune"


def save(picture: Image.Image, path: Path) -> None:
    """As the best JPEG of at most BYTES; raises ValueError when none is that small."""
    for quality in range(90, 40, -5):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= BYTES:
            path.write_bytes(file.getvalue())
            return
    raise ValueError(f"{path.name} will not fit into {BYTES} bytes.")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    titles = {plan.graph: plan.title for plan in PLANS}
    known = sorted(titles)
    parser.add_argument("names", nargs="*", metavar="NAME", default=known)
    names = parser.parse_args().names
    graphs = {name: tiny_graph(name) for name in names}
    used = {node["class_type"] for graph in graphs.values() for node in graph.values()}
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        assemble(models / "checkpoints" / TINY)
        if "InlayLoadAdapter" in used:
            identity.install(models)
        kinds = {kind: models / kind for kind in ("checkpoints", "loras", "inlay")}
        shutil.copytree(ASSETS, Path(folder) / "work" / "input")
        with Server(Path(folder) / "work", models=kinds) as server:
            client = Client(server.url)
            for name, graph in graphs.items():
                print(f"\n-- {name}", flush=True)
                result = client.run(graph, Bars(graph)) if has_trained_models(graph) else None
                save(card(graph, result), WORKFLOWS / f"{titles[name]}.jpg")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (HostError, OSError, ValueError) as error:
        sys.exit(f"\n{error}")
