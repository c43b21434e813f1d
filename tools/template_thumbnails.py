"""The templates' pictures: what goes into each published template and what comes out, on the tiny models.

    python dev.py tool template_thumbnails [NAME ...]    NAME is a workflow (default: all of them)

Runs every template as it is published on a host of its own and writes a JPEG beside each, which ComfyUI's
template browser shows in a square. The result fills the square, and what goes in stands at its top. Nothing
is chosen: the pictures are of the seeds that the workflows have. Templates that the tiny Fill model does not
paint show what goes in alone: the pictures of the tiny UNet are too soft to be enlarged.
"""

import argparse
import io
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from ..headless import Client, Graph, HostError, PromptResult, Server
from ..headless.terminal import Bars
from ..imaging.boxes import Box
from ..imaging.references import list_references
from ..lab.studies import sheet
from .demo_options import ASSETS, open_picture
from .example_pictures import EXAMPLES
from .serve import install_models
from .template_layout import without
from .template_plans import PLANS, Plan
from .templates import WORKFLOWS
from .tiny import PAINTED_BY_FILL, read_graph, served_graph

SIDE, BYTES = 480, 60_000
INSET, GAP, FRAME = 150, 6, 3  # pixels: the side of an input at most, between inputs, their frames
BAND, WORDS = 60, 30  # pixels: the height of the caption's band, of its letters
AROUND = ((0, 0), (1, 0), (2, 0), (2, 1), (2, 2))  # columns and rows of pictures around a main one
WIDE = 2.0  # width / height from which a result is several pictures side by side


@dataclass(frozen=True)
class Panel:
    """A picture and what must stay in it when it is cut to a square, in its own pixels."""

    picture: Image.Image
    focus: Box | None = None

    def square(self, side: int) -> Image.Image:
        """The largest square around the focus, scaled to `side`."""
        length = min(self.picture.size)
        focus = self.focus or Box(0, 0, self.picture.height, self.picture.width)
        left = (focus.left + focus.right - length) // 2
        top = (focus.top + focus.bottom - length) // 2
        left = min(max(left, 0), self.picture.width - length)
        top = min(max(top, 0), self.picture.height - length)
        cut = self.picture.crop((left, top, left + length, top + length))
        return cut.resize((side, side), Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class Inputs:
    """What goes into a template: photos of its subject, and pictures, the last of which is painted into."""

    photos: list[Panel]
    pictures: list[Panel]


def inputs_of(graph: Graph) -> Inputs:
    """The example pictures that a published graph opens with, the box or the drawn shape drawn on them."""
    photos, pictures = [], []
    for key, node in graph.items():
        if node["class_type"] == "InlayLoadReferences":
            files = list_references(EXAMPLES / node["inputs"]["folder"])
            photos += [Panel(open_picture(file)) for file, _ in files]
        elif node["class_type"] == "LoadImage":
            picture = open_picture(EXAMPLES / node["inputs"]["image"])
            pictures.append(with_shape(with_box(picture, key, graph), key, graph))
    pictures.sort(key=lambda panel: panel.focus is not None)
    return Inputs(photos, pictures)


def with_box(picture: Image.Image, key: str, graph: Graph) -> Panel:
    """The picture of the node `key`, with the box that a Box Mask draws on it."""
    for node in graph.values():
        box = node["inputs"]
        if node["class_type"] == "InlayBoxMask" and box["image"][0] == key:
            place = Box(box["y"], box["x"], box["y"] + box["height"], box["x"] + box["width"])
            return Panel(sheet.with_box(picture, place, SIDE), scaled(place, SIDE / max(picture.size)))
    return Panel(picture)


def with_shape(panel: Panel, key: str, graph: Graph) -> Panel:
    """The picture of the node `key`, with the outline of the mask that Mask Levels lays on it."""
    for node in graph.values():
        if node["class_type"] != "InlayMaskLevels" or node["inputs"]["image"][0] != key:
            continue
        mask = graph[node["inputs"]["mask"][0]]["inputs"]["image"]
        shape = open_picture(EXAMPLES / mask).convert("L").resize(panel.picture.size)
        outline = ImageChops.subtract(shape.filter(ImageFilter.MaxFilter(9)), shape)
        drawn = panel.picture.copy()
        drawn.paste(sheet.ACCENT, mask=outline)
        left, top, right, bottom = shape.getbbox() or (0, 0, *shape.size)
        return Panel(drawn, Box(top, left, bottom, right))
    return panel


def results_of(graph: Graph, result: PromptResult) -> list[Image.Image]:
    """The saved pictures in the order of the graph, without a training's loss curve, then those not saved."""
    return [
        Image.open(io.BytesIO(image)).convert("RGB")
        for kind in ("SaveImage", "PreviewImage")
        for key, node in graph.items()
        if node["class_type"] == kind
        and graph[node["inputs"]["images"][0]]["class_type"] != "SubjectFinetune"
        for image in result[key].images
    ]


def card(plan: Plan, result: PromptResult | None) -> Image.Image:
    """The square of a template.

    The first result fills it, with what goes in and further results at the top. Without a result the picture
    that is painted into fills it. Results of several pictures side by side become a table.
    """
    graph = without(read_graph(plan.graph), plan.dropped)
    given = inputs_of(graph)
    made = results_of(graph, result) if result is not None else []
    if made and made[0].width >= WIDE * made[0].height:
        return table(given, made)
    scene = given.pictures[-1]
    if made:
        photos = [photo.picture for photo in given.photos]
        collected = [Panel(sheet.mosaic(photos, INSET, FRAME))] if photos else []
        square = with_insets(
            placed_as(scene, made[0]), collected + given.pictures + list(map(Panel, made[1:]))
        )
    else:
        square = with_insets(scene, given.photos + given.pictures[:-1])
    return captioned(square, plan.caption) if plan.caption else square


def placed_as(scene: Panel, result: Image.Image) -> Panel:
    """The result with the focus of the scene that it was painted into."""
    if scene.focus is None:
        return Panel(result)
    return Panel(result, scaled(scene.focus, result.width / scene.picture.width))


def scaled(box: Box, scale: float) -> Box:
    """The box in the pixels of a picture that is `scale` times as large."""
    return Box(*(round(edge * scale) for edge in (box.top, box.left, box.bottom, box.right)))


def with_insets(main: Panel, insets: list[Panel]) -> Image.Image:
    """The main picture as a square, with smaller pictures in frames along its top, or five around it."""
    if len(insets) == len(AROUND):
        square = Image.new("RGB", (SIDE, SIDE))
        side = SIDE // 3
        put(main, square, (0, side), 2 * side)
        for panel, (column, row) in zip(insets, AROUND, strict=True):
            put(panel, square, (column * side, row * side), side)
        return square
    square = main.square(SIDE)
    side = min(INSET, (SIDE - GAP) // max(len(insets), 1) - GAP)
    for number, panel in enumerate(insets):
        put(panel, square, (GAP + number * (side + GAP), GAP), side)
    return square


def put(panel: Panel, square: Image.Image, place: tuple[int, int], side: int) -> None:
    """Paste a picture in a white frame at `place` (left, top)."""
    left, top = place
    ImageDraw.Draw(square).rectangle((left, top, left + side - 1, top + side - 1), "white")
    square.paste(panel.square(side - 2 * FRAME), (left + FRAME, top + FRAME))


def table(given: Inputs, made: list[Image.Image]) -> Image.Image:
    """Photos and the picture with its box in the first row, and under them rows of results."""
    columns = round(made[0].width / made[0].height)
    side = SIDE // columns
    square = Image.new("RGB", (SIDE, SIDE))
    first = [*given.photos[: columns - 1], given.pictures[-1]]
    for number, panel in enumerate(first):
        square.paste(panel.square(side), (number * side, 0))
    for row, strip in enumerate(made[: columns - 1], 1):
        square.paste(strip.resize((SIDE, side), Image.Resampling.LANCZOS), (0, row * side))
    return square


def captioned(square: Image.Image, words: str) -> Image.Image:
    """The square with words in a dark band at its bottom."""
    shade = Image.new("L", square.size)
    ImageDraw.Draw(shade).rectangle((0, SIDE - BAND, SIDE, SIDE), 190)
    square.paste("black", mask=shade)
    place = (SIDE // 2, SIDE - BAND // 2)
    ImageDraw.Draw(square).text(place, words, "white", ImageFont.load_default(WORDS), "mm")
    return square


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
    plans = {plan.graph: plan for plan in PLANS}
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(plans))
    names = parser.parse_args().names
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        install_models(models)
        painted = [name for name in names if name in PAINTED_BY_FILL]
        for name in set(names) - set(painted):
            save(card(plans[name], None), WORKFLOWS / f"{plans[name].title}.jpg")
        if not painted:
            return 0
        kinds = {kind.name: kind for kind in models.iterdir()} | {"loras": models / "loras"}
        shutil.copytree(ASSETS, Path(folder) / "work" / "input")
        with Server(Path(folder) / "work", models=kinds) as server:
            client = Client(server.url)
            for name in painted:
                print(f"\n-- {name}", flush=True)
                graph = without(served_graph(name), plans[name].dropped)
                result = client.run(graph, Bars(graph))
                save(card(plans[name], result), WORKFLOWS / f"{plans[name].title}.jpg")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (HostError, OSError, ValueError) as error:
        sys.exit(f"\n{error}")
