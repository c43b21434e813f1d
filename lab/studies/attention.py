"""What masked attention does, in the tiny world (DreamCom, sections 4.2 and 4.3, and its supplement).

    python dev.py lab attention [--checkpoint FILE] [--scenes 200] [--out DIR]

(i)  The background holds a thing like the one the words ask for: how often does the box stay empty?
(ii) The room is strongly tinted: how far does the tint pull the subject's colour, and how hard is the box's
     edge, for each choice of self-attention layers?

Painted pictures stay in OUT/cells: an interrupted run goes on where it was. Writes a table (Markdown and
JSON) and a picture for each question: missing.* and colour.*.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...evaluation.tables import Table
from ...imaging.boxes import Box
from .. import world
from ..models.classifier import Judge, load_judge
from ..models.inpainter import Painter
from . import picture_grid as sheets
from .quality import PACK, checkpoint_file, write_table
from .result_cache import fingerprint

Masking = dict[str, Any]  # mask_attention's options; none: the model as it is

WORDS: dict[str, Masking] = {"words everywhere": {}, "words in the box only": {"self_layers": "none"}}
LAYERS: dict[str, Masking] = {
    "(a) none": {"self_layers": "none"},
    "(b) all": {"self_layers": "all"},
    "(c) the decoder's outer": {"self_layers": "decoder_outer"},
    "(d) all but (c), the paper's": {"self_layers": "paper"},
}
BATCH, STEPS, SHOWN = 20, 14, 8


def as_tensor(pictures) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).float() / 255


class Scenes:
    """Backgrounds (n, H, W, 3), holes (n, H, W), prompts, and the renderings that would be right."""

    def __init__(self, scenes: list[world.Scene]):
        truth = [world.render(scene) for scene in scenes]
        empty = [world.render(replace(scene, subject=None)) for scene in scenes]
        self.truth, self.background = as_tensor([p.image for p in truth]), as_tensor([p.image for p in empty])
        self.boxes = [p.box for p in truth if p.box]
        self.holes = torch.zeros(self.truth.shape[:3])
        for hole, (top, left, bottom, right) in zip(self.holes, self.boxes, strict=True):
            hole[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2] = 1
        subjects = [scene.subject for scene in scenes if scene.subject]
        self.prompts, self.kinds = [world.caption(s) for s in subjects], [s.kind for s in subjects]


@dataclass
class Bench:
    """Paints scenes a batch at a time and keeps each batch as eight-bit pictures in `folder`."""

    painter: Painter
    folder: Path
    checkpoint: str

    def paint(self, study: str, scenes: Scenes, way: str, masking: Masking) -> Tensor:
        """The scenes (n, H, W, 3) with the attention masked in that way."""
        print(f"{study}, {way}:", end="", flush=True)
        count = len(scenes.prompts)
        batches = [slice(first, min(first + BATCH, count)) for first in range(0, count, BATCH)]
        painted = [self.kept_batch(study, scenes, way, masking, part) for part in batches]
        print(flush=True)
        return torch.cat(painted).float() / 255

    def kept_batch(self, study: str, scenes: Scenes, way: str, masking: Masking, part: slice) -> Tensor:
        letters = "".join(letter if letter.isalnum() else "_" for letter in way)
        name = f"{self.checkpoint}-{study}-{letters}-{part.start}-{part.stop}.safetensors"
        path = self.folder / name
        if not path.exists():
            partial = path.with_suffix(".partial")
            save_file({"images": self.batch(scenes, masking, part)}, partial)
            partial.replace(path)
        print(f" {part.stop}", end="", flush=True)
        return load_file(path)["images"]

    def batch(self, scenes: Scenes, masking: Masking, part: slice) -> Tensor:
        from ...attention.host import mask_attention

        holes, prompts = scenes.holes[part], scenes.prompts[part]
        model = mask_attention(self.painter.model, [holes], **masking) if masking else None
        images = self.painter.paint(
            scenes.background[part], holes, prompts, seed=part.start, model=model, steps=STEPS
        )
        return (images * 255).round().byte().cpu().contiguous()


def twins(rng: np.random.Generator) -> world.Scene:
    """A scene whose background holds a thing of the subject's class, colour and pattern, clear of its box."""
    kind = str(rng.choice(world.CLASSES))  # drawn once: wide things would seldom be left otherwise
    while True:
        room = world.sample_room(rng)
        thing = world.sample_thing(rng, kind=kind)
        scene = world.sample_scene(rng, thing, room, others=0, scale=(0.45, 0.58))
        box = world.render(scene).box
        if not box:
            continue
        x = 0.24 if box[1] + box[3] > world.SIZE else 0.76
        other = thing.posed(x=x, y=(box[0] + box[2]) / (2 * world.SIZE), scale=0.48, accessory="none")
        lone = world.render(world.Scene(room, other)).box
        if lone and (lone[3] < box[1] - 3 or lone[1] > box[3] + 3):
            return replace(scene, others=(other,))


def tinted(rng: np.random.Generator) -> world.Scene:
    """A plain thing in a room steeped in another, saturated colour."""
    thing = world.sample_thing(
        rng, pattern="plain", accessory="none", colour=str(rng.choice(["white", "yellow", "pink", "cyan"]))
    )
    tint = np.array(world.COLOURS[str(rng.choice(["red", "green", "blue", "purple"]))])
    room = world.sample_room(rng)
    wall, table = (tuple(0.35 * np.array(colour) + 0.55 * tint) for colour in (room.wall, room.table))
    room = replace(room, wall=wall, table=table, wall_style="plain")
    return world.sample_scene(rng, thing, room, others=0, scale=(0.55, 0.75))


def presence(result: Tensor, scenes: Scenes) -> np.ndarray:
    """How much the box changed against the empty room, as a share of what the right thing would change it."""
    inside = scenes.holes[..., None]
    change = ((result - scenes.background).abs() * inside).sum((1, 2, 3))
    due = ((scenes.truth - scenes.background).abs() * inside).sum((1, 2, 3))
    return (change / due).numpy()


def core_colour(images: Tensor, boxes) -> np.ndarray:
    """CIELAB (n, 3) of the median colour in the middle two fifths of each box."""
    from skimage.color import rgb2lab

    colours = []
    for image, (top, left, bottom, right) in zip(images, boxes, strict=True):
        h, w = bottom - top, right - left
        core = image[top + 3 * h // 10 : bottom - 3 * h // 10, left + 3 * w // 10 : right - 3 * w // 10]
        colours.append(core.reshape(-1, 3).median(0).values.numpy())
    return rgb2lab(np.array(colours))


def seam(images: Tensor, holes: Tensor) -> np.ndarray:
    """Mean step in colour across the edge of the hole, in 1/255 of the range."""
    down = (images.diff(dim=1).abs().mean(-1) * holes.diff(dim=1).abs()).sum((1, 2))
    across = (images.diff(dim=2).abs().mean(-1) * holes.diff(dim=2).abs()).sum((1, 2))
    length = holes.diff(dim=1).abs().sum((1, 2)) + holes.diff(dim=2).abs().sum((1, 2))
    return (255 * (down + across) / length).numpy()


def missing_objects(bench: Bench, judge: Judge, count: int) -> tuple[Table, Image.Image]:
    """(i) how often the box stays empty, and how often it holds the right class, of `count` scenes."""
    scenes = Scenes([twins(np.random.default_rng([31, i])) for i in range(count)])
    results = {way: bench.paint("missing", scenes, way, masking) for way, masking in WORDS.items()}
    rows = {}
    for way, result in results.items():
        verdicts = judge.describe(result.movedim(-1, 1), scenes.holes)
        right = [float(v.kind == kind) for v, kind in zip(verdicts, scenes.kinds, strict=True)]
        missing = [float(share < 0.35) for share in presence(result, scenes)]
        rows[way] = {"missing": missing, "right class": right}
    table = Table("A thing like the one asked for stands in the background", rows)
    notes = [
        f"{count} scenes, {STEPS} steps. Missing: the box changed by less than 0.35 of what the right thing"
        " would change it.",
        change(table, "words in the box only", "words everywhere", "missing"),
        change(table, "words in the box only", "words everywhere", "right class"),
    ]
    return replace(table, notes=notes), picture(scenes, results)


def colour_leaks(bench: Bench, count: int) -> tuple[Table, Image.Image]:
    """(ii) the subject's colour and the box's edge in `count` tinted rooms."""
    from skimage.color import deltaE_ciede2000

    scenes = Scenes([tinted(np.random.default_rng([32, i])) for i in range(count)])
    results = {way: bench.paint("colour", scenes, way, masking) for way, masking in LAYERS.items()}
    wanted, rows = core_colour(scenes.truth, scenes.boxes), {}
    for way, result in results.items():
        error = deltaE_ciede2000(core_colour(result, scenes.boxes), wanted)
        step = seam(result, scenes.holes) - seam(scenes.truth, scenes.holes)
        rows[way] = {"colour error dE00": error.tolist(), "step at the edge": step.tolist()}
    table = Table("Strongly tinted rooms, by self-attention layers masked", rows)
    nobody, *others = LAYERS
    notes = [
        f"{count} scenes, {STEPS} steps. Step at the edge: mean colour step across the hole's border, less"
        " the true rendering's, in 1/255."
    ]
    notes += [change(table, way, nobody, measure) for way in others for measure in table.measures]
    return replace(table, notes=notes), picture(scenes, results)


def change(table: Table, way: str, base: str, measure: str) -> str:
    """What a way changes, scene by scene, in words."""
    change = table.difference(way, base, measure)
    return f"{measure}: {way} against {base} {change.text()} ({change.z_score:.1f} standard errors)."


def picture(scenes: Scenes, results: dict[str, Tensor], side: int = 128) -> Image.Image:
    """The first scenes: the box | every way | the truth."""
    cells = []
    for index in range(min(SHOWN, len(scenes.prompts))):
        panels = [sheets.shown(scenes.background[index], side, Box(*scenes.boxes[index]))]
        panels += [sheets.shown(images[index], side) for images in (*results.values(), scenes.truth)]
        cells.append(sheets.Cell(panels, [scenes.prompts[index].removeprefix("a photo of ")]))
    return sheets.grid(" | ".join(["the box", *results, "the truth"]), cells, 2)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, help="default: the shipped weights")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--out", type=Path, default=PACK / "out" / "attention")
    chosen = parser.parse_args()
    folder = chosen.out / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = checkpoint_file(chosen.checkpoint, chosen.out)
    bench = Bench(Painter(checkpoint), folder, fingerprint(checkpoint))
    judge, count = load_judge(), chosen.scenes
    for name, study in {
        "missing": lambda: missing_objects(bench, judge, count),
        "colour": lambda: colour_leaks(bench, count),
    }.items():
        table, image = study()
        write_table(table, chosen.out, name)
        image.save(chosen.out / f"{name}.png")
    print(f"pictures and tables: {chosen.out}")


if __name__ == "__main__":
    main()
