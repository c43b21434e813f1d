"""The README's picture of the first template, as ComfyUI's page shows it.

    python dev.py tool template_screenshot    writes docs/template.png

Opens the published template in the front end of a host of its own. Empty files stand in for the models that
it names, so that the page reports none missing; nothing is run.
"""

import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from ..headless import HostError, Server
from . import browser
from .demo_options import PACK

TEMPLATE = "Inlay 01 - Insert my subject from a few photos"
WIDTH, HEIGHT, DENSITY, COLOURS = 1560, 1100, 1.5, 256
SETTINGS = {
    "Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": True, "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False, "Comfy.Graph.CanvasMenu": False,
}  # fmt: skip
# Shows the groups of nodes beside the page's side bar and below its buttons; returns their rectangle down to
# the lowest node.
FIT = """([rim, side, top]) => {
  const boxes = app.graph._groups.map(({ pos, size }) => [...pos, pos[0] + size[0], pos[1] + size[1]])
  const [left, upper] = [0, 1].map(k => Math.min(...boxes.map(box => box[k])))
  const right = Math.max(...boxes.map(box => box[2]))
  const lower = Math.max(...app.graph._nodes.map(({ pos, size }) => pos[1] + size[1])) + 2 * rim
  const page = app.canvasEl.getBoundingClientRect()
  const scale = (page.width - side - rim) / (right - left)
  app.canvas.ds.scale = scale
  app.canvas.ds.offset = [side / scale - left, top / scale - upper]
  app.canvas.setDirty(true, true)
  const height = (lower - upper) * scale + 2 * rim
  return [page.left + side - rim, page.top + top - rim, page.width - side + rim, height]
}"""
RIM, SIDE, TOP = 10, 90, 130  # pixels around the groups; left of them and above, the page has its own


def put_stand_ins(graph: dict[str, Any], models: Path) -> dict[str, Path]:
    """Write an empty file for every model that the template names; return the folders by kind."""
    nodes = [*graph["nodes"], *(n for part in graph["definitions"]["subgraphs"] for n in part["nodes"])]
    folders = {}
    for node in nodes:
        for model in node.get("properties", {}).get("models", []):
            folder = folders[model["directory"]] = models / model["directory"]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / model["name"]).touch()
    return folders


def screenshot(graph: dict[str, Any], work: Path) -> Image.Image:
    """The template's groups on the page."""
    settings = work / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps(SETTINGS), encoding="utf-8")
    models = put_stand_ins(graph, work / "models")
    with Server(work, models=models) as host, browser.chromium() as chromium:
        page = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=DENSITY)
        page.set_default_timeout(600_000)
        page.goto(host.url)
        page.wait_for_function(browser.OPENED)
        page.evaluate("graph => app.loadGraphData(graph)", graph)
        page.wait_for_timeout(3000)  # the page fits its own view first
        left, top, width, height = page.evaluate(FIT, [RIM, SIDE, TOP])
        page.wait_for_timeout(3000)  # what is not drawn on the canvas is laid over it a little later
        clip = {"x": left, "y": top, "width": width, "height": min(height, HEIGHT - top)}
        return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")


def main() -> None:
    graph = json.loads((PACK / "workflows" / f"{TEMPLATE}.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as work:
        picture = screenshot(graph, Path(work)).quantize(COLOURS)
    path = PACK / "docs" / "template.png"
    picture.save(path, optimize=True)
    print(f"{path.name}: {picture.width} x {picture.height}, {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    try:
        main()
    except (HostError, browser.NoBrowser) as error:
        sys.exit(f"\n{error}")
