"""Small boxes in large pictures, and edits of a learned subject: DreamMix in the tiny world.

    python dev.py lab dreammix [--checkpoint FILE] [--subjects 20] [--rooms 2] [--out DIR]

Held-out subjects are learned from four renderings, then painted into rooms rendered at 192 px: into boxes of
8 %, 15 % and 30 % of the picture's side (15, 29 and 58 px; the model was trained on things of 40 to 77 px).
"whole picture" is plain inpainting of all 192 px; "window" the surroundings of the box alone, as a careful
user crops them; "close-up" adds local content generation (DIF). The same for "a blue sks mug", where the
subject's own colour is also taken out of the prompt (TAS). Then the close-up's share lambda from 0 to 1.
One JSON file a cell under OUT/cells: an interrupted run goes on where it was. Writes dreammix.md, .json and
.png, and lambda.md, .json, .png and lambda_curves.png.
"""

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from ...evaluation.tables import Mean, Table
from ...imaging.boxes import Box
from .. import world
from ..models.classifier import Judge, load_judge
from ..models.inpainter import Painter, add_sampling
from . import picture_grid as sheets
from .dreamcom import finetuned, held_out_subject
from .dreammix_cells import (
    CELLS,
    CLOSE,
    EDIT_CLOSE,
    EDIT_TAS,
    EDIT_WHOLE,
    LAMBDA,
    LIKENESS,
    ORDER,
    REMOVED,
    RIGHT,
    RIM,
    SEAM,
    SHARES,
    SIDES,
    TRUTH,
    WHOLE,
    WINDOW,
    Cell,
    Choices,
    Learned,
    Numbers,
    Wanted,
)
from .placed_cases import held_out_case, other_colour, portraits
from .quality import HELD_OUT, PACK, SIZE, checkpoint_file, write_table
from .result_cache import cell, fingerprint, pictures_of


def cell_file(folder: Path, index: int, name: str) -> Path:
    return folder / f"{index:03d}-{name.replace(' %', '')}.json"


def run_subject(
    painter: Painter, judge: Judge, index: int, choices: Choices, recipe, folder: Path
) -> dict[str, Numbers]:
    """One subject's numbers by cell; cells that the same choices made before are read back."""
    learned = functools.cache(lambda: learn(painter, index, choices, recipe))

    def make(side: float, run: Cell):
        subject = learned()
        things = subject.plain.thing, subject.edited.thing.colour
        return run(subject, judge, held_out_case(index, *things, side, choices.rooms, choices.canvas))

    return {
        name: cell(cell_file(folder, index, name), choices, functools.partial(make, *how))
        for name, how in CELLS.items()
    }


def learn(painter: Painter, index: int, choices: Choices, recipe) -> Learned:
    """Held-out subject number `index`, learned from its references."""
    subject = held_out_subject(index, choices.references, 0)
    model = finetuned(painter, subject, recipe, seed=index)
    edited = subject.thing.posed(colour=new_colour(index, subject.thing))
    return Learned(
        Wanted(subject.thing, subject.references, subject.reference_masks),
        Wanted(edited, *portraits(edited, choices.references, index)),
        painter, model, recipe.prompt, index, choices,
    )  # fmt: skip


def new_colour(index: int, thing: world.Thing) -> str:
    return other_colour(np.random.default_rng([HELD_OUT, 4, index]), thing)


def tabulated(results: Sequence[Numbers], title: str, notes: Sequence[str]) -> Table:
    """Every row's means over the subjects; a unit is a subject."""
    rows = {
        row: {measure: [result[row][measure] for result in results] for measure in results[0][row]}
        for row in results[0]
    }
    return Table(title, rows, notes)


def box_table(results: Sequence[Mapping[str, Numbers]], judge: Judge, choices: Choices) -> list[Table]:
    """One table for each size of the box; the first one's notes say how sure the gains are."""
    how = [
        f"{len(results)} subjects x {choices.rooms} rooms at {choices.canvas} px; errors over subjects. Edits"
        " are compared with pictures of the edited thing. seam: colour step across the box's edge less the"
        " true one's, in 1/255; rim: CIEDE2000 of the box's outer twentieth to the true one.",
        f"Similarity by {judge.name}. {choices.recipe}: {choices.steps} steps, rank {choices.rank}, rate"
        f" {choices.learning_rate:g}, batch {choices.batch_size}. {choices.sampler} {choices.scheduler},"
        f" {choices.sampling_steps} steps, guidance {choices.cfg:g}.",
    ]
    tables = []
    for name in SIDES:
        table = tabulated([result[name] for result in results], f"Box of {name} of the picture's side", [])
        tables.append(replace(table, notes=[*gains(table), *(how if name == list(SIDES)[-1] else [])]))
    return tables


def gains(table: Table) -> list[str]:
    """What each part adds, with how sure that is."""
    pairs = (
        ("The close-up over the whole picture", CLOSE, WHOLE, LIKENESS),
        ("The close-up over the window", CLOSE, WINDOW, LIKENESS),
        ("In edits, the close-up over the whole picture", EDIT_CLOSE, EDIT_WHOLE, RIGHT),
        ("In edits, TAS over none", EDIT_TAS, EDIT_CLOSE, RIGHT),
    )
    lines = []
    for what, row, base, measure in pairs:
        gain = table.difference(row, base, measure)
        lines.append(f"{what}: {measure} {gain.text()} ({gain.z_score:.1f} standard errors).")
    removed = Mean.of(table.rows[EDIT_TAS][REMOVED])
    lines.append(
        f"TAS took {removed.text()} of a word row's length: the tiny text encoder does not mix its words, so"
        " the subject's row holds nothing of its colour; that is in the LoRA alone."
    )
    return lines


def crops(images: Tensor, box: Box) -> Tensor:
    """The boxes of pictures (B, S, S, 3) with as much again around them."""
    size = images.shape[1:3]
    rows, columns = box.square(min(2 * box.height, *size), *size).slices
    return images[:, rows, columns]


def cell_cases(folder: Path, index: int, name: str, choices: Choices):
    """A cell's case, and its pictures (B, S, S, 3) as floats."""
    thing = held_out_subject(index, choices.references, 0).thing
    case = held_out_case(
        index, thing, new_colour(index, thing), CELLS[name][0], choices.rooms, choices.canvas
    )
    return case, pictures_of(cell_file(folder, index, name))


def box_sheet(folder: Path, count: int, choices: Choices, side: int = 120):
    """For the first subjects and every box: the room with the box | every row's crop."""
    cells = []
    for index in range(count):
        subject = held_out_subject(index, choices.references, 0)
        for name in SIDES:
            case, pictures = cell_cases(folder, index, name, choices)
            panels = [sheets.shown(subject.references[0], side), sheets.shown(case.rooms[0], side, case.box)]
            panels += [sheets.shown(crops(pictures[row], case.box)[0], side) for row in ORDER]
            words = world.caption(subject.thing).removeprefix("a photo of ")
            edit = new_colour(index, subject.thing)
            cells.append(sheets.Cell(panels, [f"{words}, {name}; then to {edit}"]))
    title = "reference | box | whole picture | window | close-up | truth"
    return sheets.grid(f"{title} || edit: whole | close-up | + TAS | truth", cells, 1)


def lambda_sheet(folder: Path, count: int, choices: Choices, side: int = 96):
    """For the first subjects: the crop at every share, and the truth."""
    cells = []
    for index in range(count):
        case, pictures = cell_cases(folder, index, LAMBDA, choices)
        panels = [sheets.shown(crops(images, case.box)[0], side) for images in pictures.values()]
        cells.append(sheets.Cell(panels, [""]))
    return sheets.grid("Share of the steps spent on the close-up: " + " | ".join(pictures), cells, 1)


def lambda_curves(table: Table, path: Path) -> None:
    """Identity, seam and rim over lambda, with standard errors, and where the truth lies."""
    from matplotlib.figure import Figure

    cells, measures = table.cells(), (LIKENESS, SEAM, RIM)
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(measures)), measures, strict=True):
        means = [cells[f"{share:.1f}"][measure] for share in SHARES]
        axes.errorbar(SHARES, [m.mean for m in means], [m.error for m in means], capsize=2, marker="o", ms=3)
        axes.axhline(cells[TRUTH][measure].mean, color="0.6", lw=0.8, ls="--")
        axes.set(xlabel="share of the steps spent on the close-up", title=measure)
    figure.savefig(path, dpi=120)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, help="default: the shipped weights")
    add("--judge", type=Path, help="default: the shipped judge")
    add("--subjects", type=int, default=20)
    add("--rooms", type=int, default=2)
    add("--references", type=int, default=4)
    add("--canvas", type=int, default=192, help="side of the pictures, in pixels")
    add("--recipe", default="DreamMix")
    add("--steps", type=int, default=150)
    add("--rank", type=int, default=16)
    add("--rate", type=float, default=1e-3)
    add("--batch", type=int, default=4)
    add_sampling(parser)
    add("--out", type=Path, default=PACK / "out" / "dreammix")
    return parser.parse_args()


def main():
    a = parsed()
    folder = a.out / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    judge = load_judge(a.judge) if a.judge else load_judge()
    checkpoint = checkpoint_file(a.checkpoint, a.out)
    painter = Painter(checkpoint)
    import comfy.utils

    from ...training.finetune.recipes import RECIPES

    comfy.utils.PROGRESS_BAR_ENABLED = False  # there are hundreds of runs

    recipe = RECIPES[a.recipe].with_choices(
        steps=a.steps, rank=a.rank, learning_rate=a.rate, batch_size=a.batch, resolution=SIZE
    )
    recipe = replace(recipe, accumulation=1)  # the batch does what accumulation does where memory is short
    choices = Choices(
        a.recipe, a.steps, a.rank, a.rate, a.batch, a.references, a.rooms, a.canvas,
        a.sampler, a.scheduler, a.sampling_steps, a.cfg, fingerprint(checkpoint),
    )  # fmt: skip
    results = [run_subject(painter, judge, i, choices, recipe, folder) for i in range(a.subjects)]
    tables = box_table(results, judge, choices)
    shares = tabulated(
        [result[LAMBDA] for result in results],
        f"Share of the steps spent on the close-up, box of {min(SIDES.values()):.0%} of the side",
        tables[-1].notes[-2:],
    )
    (a.out / "dreammix.json").write_text(
        json.dumps([json.loads(table.to_json()) for table in tables], indent=1), encoding="utf-8"
    )
    text = "\n".join(table.markdown() for table in tables)
    (a.out / "dreammix.md").write_text(text, encoding="utf-8")
    print(text)
    write_table(shares, a.out, "lambda")
    box_sheet(folder, min(4, a.subjects), choices).save(a.out / "dreammix.png")
    lambda_sheet(folder, min(8, a.subjects), choices).save(a.out / "lambda.png")
    lambda_curves(shares, a.out / "lambda_curves.png")
    print(f"pictures: {a.out / 'dreammix.png'}, {a.out / 'lambda.png'}, {a.out / 'lambda_curves.png'}")


if __name__ == "__main__":
    main()
