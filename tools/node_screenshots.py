"""The pictures of the help pages: every node as ComfyUI's front end draws it.

    python dev.py tool node_screenshots [NODE ...]    NODE is a node id (default: all of them)

Opens the front end of a host of its own in a browser (INLAY_BROWSER, or Chromium on the path), puts one node
after another on an empty canvas, and writes web/docs/NODE.png.
"""

import argparse
import io
import json
import sys
import tempfile
from pathlib import Path

from PIL import Image

from ..headless import HostError, Server
from . import browser
from .demo_options import PACK

PAGES = PACK / "web" / "docs"
PLACE, RIM, TITLE = (300, 220), 10, 50  # where the node is put, and what is shown around and above it
COLOURS = 32

# The node alone on the canvas, wide enough for its title; returns its width and height.
DRAW = """([type, place]) => {
  app.graph.clear()
  // The page keeps values by node number: a number that was used before would bring the old node's values.
  app.graph.last_node_id = window.inlayNodes = (window.inlayNodes ?? 0) + 10
  const node = LiteGraph.createNode(type)
  app.graph.add(node)
  node.pos = [0, 0]
  const [width, height] = node.computeSize()
  node.setSize([Math.max(width, 320), height])
  app.canvas.ds.scale = 1
  app.canvas.ds.offset = place
  app.canvas.setDirty(true, true)
  return [...node.size]
}"""
CORNER = "() => { const { left, top } = app.canvasEl.getBoundingClientRect(); return [left, top] }"


def portrait(page, node: str) -> Image.Image:
    """The node as it stands on the canvas, with a little of that around it."""
    width, height = page.evaluate(DRAW, [node, PLACE])
    left, top = page.evaluate(CORNER)
    page.wait_for_timeout(1500)  # what is not drawn on the canvas is laid over it a little later
    x, y = left + PLACE[0] - RIM, top + PLACE[1] - TITLE
    clip = {"x": x, "y": y, "width": width + 2 * RIM, "height": height + TITLE + RIM}
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")


def draw(nodes: list[str], folder: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        settings = Path(work) / "user" / "default" / "comfy.settings.json"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps({"Comfy.TutorialCompleted": True}), encoding="utf-8")  # no first visit
        photograph(nodes, Path(work), folder)


def photograph(nodes: list[str], work: Path, folder: Path) -> None:
    with Server(work) as host, browser.chromium() as chromium:
        page = chromium.new_page(viewport={"width": 1200, "height": 1600})
        page.set_default_timeout(600_000)
        page.goto(host.url)
        page.wait_for_function(browser.OPENED)
        for node in nodes:
            picture = portrait(page, node).quantize(COLOURS)
            picture.save(folder / f"{node}.png", optimize=True)
            print(f"{node}.png: {picture.width} x {picture.height}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = sorted(path.stem for path in PAGES.glob("*.md"))
    parser.add_argument("nodes", nargs="*", metavar="NODE", default=known)
    draw(parser.parse_args().nodes, PAGES)


if __name__ == "__main__":
    try:
        main()
    except (HostError, browser.NoBrowser) as error:
        sys.exit(f"\n{error}")
