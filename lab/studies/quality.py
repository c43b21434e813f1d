"""How good is the tiny model? 200 held-out prompts, painted into held-out scenes and judged.

    python dev.py lab quality [--checkpoint FILE] [--prompts 200] [--out DIR]

Each scene is rendered without its subject; the model paints the caption into the subject's box. The judge,
which learned from renderings alone, says whether class and colour are right in the box. The truth itself and
the truth through the autoencoder show how far that goes. Painting takes minutes on two cores. Writes
quality.json, quality.md and quality.png (24 pictures: background with the box | result | caption).
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...evaluation.tables import Table
from ...imaging.boxes import Box
from ...imaging.masks import fill_box
from .. import world
from ..models import checkpoint
from ..models.classifier import Judge, Verdict, load_judge
from ..models.inpainter import Painter, add_sampling
from . import picture_grid as sheets

PACK = Path(__file__).resolve().parents[2]
HELD_OUT = 424_242  # no training draws from this seed
BATCH = 25
SIZE = world.SIZE


@dataclass(frozen=True)
class Task:
    """A background (H, W, 3) in [0, 1], the box to fill, what belongs there, and how it truly looks."""

    background: Tensor
    box: Box
    thing: world.Thing
    truth: Tensor
    truth_mask: Tensor

    @property
    def hole(self) -> Tensor:
        return fill_box(self.box, *self.background.shape[:2])[0]


def to_image(picture: world.Picture) -> Tensor:
    """A rendering as (H, W, 3) in [0, 1]."""
    return torch.from_numpy(picture.image).float() / 255


def new_task(rng: np.random.Generator, thing: world.Thing, size: int = SIZE) -> Task:
    """The thing in a scene of its own, and the same scene without it."""
    scene = world.sample_scene(rng, subject=thing)
    truth, empty = world.render(scene, size), world.render(replace(scene, subject=None), size)
    assert truth.box
    assert scene.subject
    mask = torch.from_numpy(truth.mask > 0.5).float()
    return Task(to_image(empty), Box(*truth.box), scene.subject, to_image(truth), mask)


def held_out_tasks(count: int) -> list[Task]:
    """Every class in every colour as evenly as `count` allows; all else at random."""
    colours, tasks = list(world.COLOURS), []
    for index in range(count):
        rng = np.random.default_rng([HELD_OUT, index])
        kind = world.CLASSES[index % len(world.CLASSES)]
        colour = colours[index // len(world.CLASSES) % len(colours)]
        tasks.append(new_task(rng, world.sample_thing(rng, kind=kind, colour=colour)))
    return tasks


def stacked(tasks: list[Task], name: str) -> Tensor:
    return torch.stack([getattr(task, name) for task in tasks])


def judged(judge: Judge, images: Tensor, tasks: list[Task]) -> tuple[dict[str, list[float]], list[Verdict]]:
    """1 where the judge names what is in the box of `images` (B, H, W, 3) rightly, else 0; and its words."""
    verdicts = judge.describe(images.movedim(-1, 1), stacked(tasks, "hole"))
    right = {
        field: [
            float(getattr(v, field) == getattr(t.thing, field)) for v, t in zip(verdicts, tasks, strict=True)
        ]
        for field in ("kind", "colour", "pattern", "accessory")
    }
    both = [k * c for k, c in zip(right["kind"], right["colour"], strict=True)]
    return {
        "class": right["kind"], "colour": right["colour"], "class and colour": both,
        "pattern": right["pattern"], "accessory": right["accessory"],
    }, verdicts  # fmt: skip


def paint_all(painter: Painter, tasks: list[Task], **options) -> Tensor:
    """The captions painted into the boxes (B, H, W, 3), in batches."""
    painted = []
    for start in range(0, len(tasks), BATCH):
        part = tasks[start : start + BATCH]
        prompts = [world.caption(task.thing) for task in part]
        painted.append(
            painter.paint(stacked(part, "background"), stacked(part, "hole"), prompts, seed=start, **options)
        )
        print(f"painted {start + len(part)} of {len(tasks)}", flush=True)
    return torch.cat(painted).cpu()


def through(vae, images: Tensor) -> Tensor:
    """The images (B, H, W, 3) encoded and decoded."""
    return torch.cat([vae.decode(vae.encode(part)) for part in images.split(BATCH)]).cpu()


def quality_table(
    judge: Judge, painted: Tensor, recoded: Tensor, tasks: list[Task], how: str
) -> tuple[Table, list]:
    model, verdicts = judged(judge, painted, tasks)
    rows = {
        "painted by the tiny model": model,
        "the truth through the autoencoder": judged(judge, recoded, tasks)[0],
        "the truth": judged(judge, stacked(tasks, "truth"), tasks)[0],
    }
    notes = [f"Share judged right in the box, over {len(tasks)} held-out prompts and scenes.", how]
    notes.append(f"Judge: {judge.name}, trained on renderings alone.")
    return Table("Is what was asked for in the box?", rows, notes), verdicts


def quality_sheet(
    painted: Tensor, tasks: list[Task], verdicts: list[Verdict], count: int = 24, side: int = 160
):
    """Pictures drawn at random, not chosen: what failed is shown with the rest, in red."""
    cells = []
    for i in np.random.default_rng(HELD_OUT).permutation(len(tasks))[:count]:
        task, said = tasks[i], verdicts[i]
        good = said.kind == task.thing.kind and said.colour == task.thing.colour
        lines = [
            world.caption(task.thing).removeprefix("a photo of "),
            f"judge: {said.colour} {said.pattern} {said.kind}",
        ]
        panels = [sheets.shown(task.background, side, task.box), sheets.shown(painted[i], side)]
        cells.append(sheets.Cell(panels, lines, good))
    return sheets.grid("The tiny model on held-out scenes: background with the box | result", cells, 4)


def checkpoint_file(chosen: Path | None, out: Path) -> Path:
    """The chosen checkpoint; without one the shipped weights, assembled in `out`."""
    path = chosen or out / "inlay_tiny.safetensors"
    return path if chosen or checkpoint.is_current(path) else checkpoint.assemble(path)


def write_table(table: Table, out: Path, name: str) -> None:
    text = table.markdown()
    (out / f"{name}.md").write_text(text, encoding="utf-8")
    (out / f"{name}.json").write_text(table.to_json(), encoding="utf-8")
    print(text)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, help="default: the shipped weights")
    parser.add_argument("--judge", type=Path, help="default: the shipped judge")
    parser.add_argument("--prompts", type=int, default=200)
    add_sampling(parser, "--steps")
    parser.add_argument("--out", type=Path, default=PACK / "out" / "quality")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    judge = load_judge(a.judge) if a.judge else load_judge()
    painter = Painter(checkpoint_file(a.checkpoint, a.out))
    tasks = held_out_tasks(a.prompts)
    with torch.inference_mode():
        truth = stacked(tasks, "truth")
        recoded = through(painter.vae, truth)
        painted = paint_all(
            painter, tasks, steps=a.steps, cfg=a.cfg, sampler=a.sampler, scheduler=a.scheduler
        )
    how = f"{a.sampler} {a.scheduler}, {a.steps} steps, guidance {a.cfg:g}, {SIZE} px."
    table, verdicts = quality_table(judge, painted, recoded, tasks, how)
    write_table(table, a.out, "quality")
    quality_sheet(painted, tasks, verdicts).save(a.out / "quality.png")
    print(f"24 pictures: {a.out / 'quality.png'}")


if __name__ == "__main__":
    main()
