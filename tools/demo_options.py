"""What the demo is asked to do: the user's choices, checked, and the bundled graph filled in with them."""

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..headless import Graph
from ..imaging import picture_files
from ..imaging.boxes import Box
from ..imaging.references import list_references
from .tiny import tiny_graph

PACK = Path(__file__).resolve().parent.parent
GRAPH = "insert_subject"
PHOTOS, PICTURE = "2", "3"  # its nodes that read the job's pictures
ASSETS = PACK / "tools" / "assets"
LARGEST = 1024  # pixels on the longer side of a background; SD 1.5 was made for 512


@dataclass(frozen=True)
class Job:
    """What the demo was asked to do, checked; `checkpoint` None is the tiny world's, `steps` None its own."""

    references: Path
    background: Image.Image
    box: Box
    class_name: str
    prompt: str
    checkpoint: Path | None
    steps: int | None
    seed: int


def parse_box(text: str, width: int, height: int) -> Box:
    """ "x,y,w,h" in pixels of a `width` x `height` picture, cut at its border.

    Raises:
        ValueError: when it is not four whole numbers, is empty, or lies outside.
    """
    try:
        x, y, w, h = (int(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"--box {text}: give four whole numbers, x,y,width,height, in pixels.") from None
    if w < 1 or h < 1:
        raise ValueError(f"--box {text}: width and height must be at least 1.")
    box = Box(y, x, y + h, x + w).clamp(height, width)
    if not box.area:
        raise ValueError(f"--box {text}: it lies outside the picture, which is {width} x {height} pixels.")
    if box.area == width * height:
        raise ValueError(f"--box {text}: it covers the whole picture; leave some of it around the subject.")
    return box


def fitted(size: tuple[int, int], box: Box, largest: int = LARGEST) -> tuple[tuple[int, int], Box]:
    """(width, height) and a box in it, scaled down so that the longer side is at most `largest`; never up."""
    scale = min(largest / max(size), 1.0)
    if scale == 1:
        return size, box
    width, height = (max(round(side * scale), 1) for side in size)
    small = box.scale(scale)
    top, left = min(small.top, height - 1), min(small.left, width - 1)  # at least a pixel, and inside
    return (width, height), Box(top, left, max(small.bottom, top + 1), max(small.right, left + 1))


def open_picture(path: Path) -> Image.Image:
    """The picture at `path` in RGB, turned as the camera was held."""
    return picture_files.to_8_bits(picture_files.open_picture_file(path, "--background"))


def check(options: argparse.Namespace) -> Job:
    """The job that the command line asks for.

    Raises:
        ValueError: with one sentence that names the option and the mend.
    """
    own_subject, own_picture = options.references is not None, options.background is not None
    graph = read_graph(options.checkpoint)
    references = options.references or ASSETS / graph[PHOTOS]["inputs"]["folder"]
    if not references.is_dir():
        raise ValueError(f"--references {references}: there is no such folder.")
    list_references(references)
    if own_subject and not options.class_name:
        raise ValueError("--references: say what the subject is too, such as --class-name dog.")
    if own_picture and not options.box:
        raise ValueError("--background: say where the subject goes too, as --box x,y,width,height.")
    if options.steps is not None and options.steps < 1:
        raise ValueError(f"--steps {options.steps}: at least one training step is needed.")
    if options.checkpoint and not options.checkpoint.is_file():
        raise ValueError(f"--checkpoint {options.checkpoint}: there is no such file.")

    bundled = {name: graph["4"]["inputs"][name] for name in ("x", "y", "width", "height")}
    background = open_picture(options.background or ASSETS / graph[PICTURE]["inputs"]["image"])
    box = parse_box(options.box or ",".join(map(str, bundled.values())), *background.size)
    size, box = fitted(background.size, box)
    background = background.resize(size, Image.Resampling.LANCZOS)
    class_name = options.class_name or graph["5"]["inputs"]["class_name"]
    prompt = options.prompt or f"a photo of {graph['5']['inputs']['token']} {class_name}"
    return Job(
        references, background, box, class_name, prompt, options.checkpoint, options.steps, options.seed
    )


def read_graph(checkpoint: Path | None = None) -> Graph:
    """The bundled graph, for the tiny Fill model or for an inpainting checkpoint."""
    return tiny_graph(GRAPH, fill=checkpoint is None)


def fill_in(graph: Graph, job: Job) -> Graph:
    """`graph` with the job's choices; a checkpoint of the user's own is trained at its own size and pace."""
    inputs = {node: dict(entry["inputs"]) for node, entry in graph.items()}
    box = job.box
    inputs["4"] |= {"x": box.left, "y": box.top, "width": box.width, "height": box.height}
    inputs["5"]["class_name"] = job.class_name
    inputs["7"]["text"] = job.prompt
    for sampler in ("10", "11"):
        inputs[sampler]["seed"] = job.seed
    if job.checkpoint:
        inputs["1"]["ckpt_name"] = job.checkpoint.name
        inputs["5"] |= dict.fromkeys(("steps", "rank", "learning_rate", "batch_size", "resolution"), 0)
        for sampler in ("10", "11"):
            inputs[sampler] |= {"cfg": 7.5, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
        for paste in ("14", "15"):
            inputs[paste]["feather"] = 8
    if job.steps is not None:
        inputs["5"]["steps"] = job.steps
    return {node: entry | {"inputs": inputs[node]} for node, entry in graph.items()}


def put_inputs(job: Job, folder: Path) -> None:
    """Copies the job's pictures to where the graph looks for them, in the host's input folder."""
    graph = read_graph(job.checkpoint)
    subject = folder / graph[PHOTOS]["inputs"]["folder"]
    shutil.rmtree(subject, ignore_errors=True)
    subject.mkdir(parents=True)
    for files in list_references(job.references):
        for file in filter(None, files):
            shutil.copyfile(file, subject / file.name)
    job.background.save(folder / graph[PICTURE]["inputs"]["image"])
