"""One photo instead of words: does IMPRINT keep what an object is? In the tiny world, with the truth at hand.

    python dev.py lab imprint --work DIR [--rows NAME ...] [--subjects 24] [--scenes 2] [--out DIR]

Held-out subjects are shown to the encoder once and painted into held-out scenes. Rows: the full caption; the
encoder after it has learned to predict captions alone (`words`); one stage alone, trained for as long
as both; both stages; both with one rate each instead of the sequential schedule; both with a CLIP-shaped
encoder; both with a linear projection for an adapter. What a row needs is trained in DIR first (see
train_imprint; --minutes ends the training for now, and rows that are not ready are left out); `two_stage`
without --work is what the repository ships. One JSON file a cell under OUT/cells: an interrupted run goes on
where it was. Writes imprint.md, imprint.json and imprint.jpg, and levels.jpg (the four mask levels).
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...evaluation.tables import Table
from ...imaging.mask_levels import LEVEL_NAMES, MASK_LEVELS, mask_level
from ...imaging.object_picture import subject_picture
from .. import scenes
from ..models import identity, low_rank, runs, train_imprint
from ..models.classifier import SceneClassifier, trained_classifier
from ..models.image_conditioner import PICTURES, ImageConditioner, Numbers, loaded, with_change
from ..models.object_cache import MARGIN, SEEN
from ..models.object_training import part_of
from ..models.train_imprint import VARIANTS, is_ready, new_adapter, new_encoder, state_file
from . import picture_grid as sheets
from .quality import HELD_OUT, SAMPLING, Inpainter, Task, edge_step, stacked
from .result_cache import cell, fingerprint, pictures_of
from .study import change, study_folders, study_parser, write_table
from .subjects import SIMILARITY, HeldOutSubject, held_out_subject, numbers_of

CAPTION, WORDS = "caption", "words"
STEP = "step at the edge"
ROWS = {
    CAPTION: "the full caption",
    WORDS: "the picture's words alone",
    "single_stage": "one stage, as long as both",
    "two_stage": "two stages",
    "joint": "two stages, joint schedule",
    "clip": "two stages, CLIP-shaped",
    "linear": "two stages, no adapter",
}
TRUTH = "the truth"
CHUNK = 8  # subjects in a cell


@dataclass(frozen=True)
class ImprintChoices:
    """Everything that decides a cell's numbers; kept with them."""

    scenes: int
    steps: int
    model: str
    row: str  # what was trained for it
    version: int = 1  # raise when the same choices give other numbers


def conditioner_of(
    row: str, work: Path | None, files_of: dict[str, Path]
) -> tuple[ImageConditioner, dict[str, Tensor]]:
    """A row's encoder and adapter, and what its UNet learned, from the trainings or the shipped files."""
    foundation = VARIANTS[row].foundation if row in VARIANTS else "dino"
    encoder, adapter = new_encoder(foundation).eval(), new_adapter(foundation).eval()
    if work is None:
        loaded(files_of["identity"], encoder, adapter)
        return ImageConditioner(encoder, adapter), load_file(files_of["lora"])
    if row == WORDS:
        train_imprint.load_parts(state_file(work, "words", foundation), encoder=encoder, adapter=adapter)
        return ImageConditioner(encoder, adapter), {}
    loaded(work / f"imprint_{row}.safetensors", encoder, adapter)
    state = runs.load(state_file(work, "compose", row))
    assert state
    return ImageConditioner(encoder, adapter), low_rank.change_of(part_of(state, "unet"))


def seen_pictures(subjects: Sequence[HeldOutSubject]) -> Tensor:
    """Each subject's first photo as the encoder sees it (B, SEEN, SEEN, 3)."""
    return torch.cat(
        [subject_picture(s.references[:1], s.reference_masks[:1], SEEN, "black", MARGIN) for s in subjects]
    )


class Row:
    """What paints a row, opened when its first cell is missing."""

    def __init__(self, painter: Inpainter, name: str, work: Path | None, files_of: dict[str, Path]):
        self.painter, self.model = painter, painter.model
        if name == CAPTION:
            self.conditioner = None
            return
        self.conditioner, change_of_unet = conditioner_of(name, work, files_of)
        self.model = with_change(painter.model, change_of_unet)

    def paint(self, subjects: Sequence[HeldOutSubject], holes: Tensor, seed: int, steps: int) -> Tensor:
        """Every subject in each of its scenes (N, H, W, 3), subject by subject."""
        count = len(holes) // len(subjects)
        if self.conditioner is None:
            rows = torch.cat([self.painter.encode(scenes.caption(subject.thing)) for subject in subjects])
            uncond = None
        else:
            rows, uncond = self.conditioner.rows(seen_pictures(subjects))
        backgrounds = torch.cat([stacked(subject.tasks, "background") for subject in subjects])
        return self.painter.paint(
            backgrounds,
            holes,
            rows.repeat_interleave(count, 0),
            None,
            seed,
            self.model,
            steps,
            uncond=uncond,
        ).cpu()


def numbers(classifier: SceneClassifier, tasks: list[Task], images: Tensor) -> dict[str, float]:
    """`numbers_of` a subject's pictures, and how hard the box's edge is against the true picture's."""
    step = torch.tensor(edge_step(images, tasks)) - torch.tensor(edge_step(stacked(tasks, "truth"), tasks))
    return numbers_of(classifier, images, tasks) | {STEP: float(step.mean())}


def cell_file(folder: Path, name: str, first: int, count: int) -> Path:
    """Where the numbers of that many subjects from `first` on are kept."""
    return folder / f"{name}-{first:03d}-{count}.json"


def run_row(painter, classifier, name, work, files_of, choices: ImprintChoices, count: int, folder: Path):
    """A row's numbers, subject by subject."""
    row, found = None, []
    for first in range(0, count, CHUNK):
        indices = range(first, min(first + CHUNK, count))

        def make(indices=indices, first=first):
            nonlocal row
            row = row or Row(painter, name, work, files_of)
            subjects = [held_out_subject(index, choices.scenes) for index in indices]
            holes = torch.cat([stacked(subject.tasks, "hole") for subject in subjects])
            pictures = row.paint(subjects, holes, first, choices.steps)
            parts = pictures.split(choices.scenes)
            return {PICTURES: pictures}, [
                numbers(classifier, s.tasks, part) for s, part in zip(subjects, parts, strict=True)
            ]

        found += cell(cell_file(folder, name, first, len(indices)), choices, make)
    return found


def imprint_table(results: dict[str, Numbers], classifier: str, how: str) -> Table:
    """Means over the subjects; a unit is a subject."""
    rows = {
        ROWS.get(name, name): {measure: [one[measure] for one in found] for measure in found[0]}
        for name, found in results.items()
    }
    table = Table("One photo of a held-out subject, in held-out pictures", rows)
    notes = [
        how,
        f"Similarity to the true box by {classifier}. Step at the edge: in 1/255, less the truth's.",
    ]
    pairs = (
        ("two_stage", "single_stage"), ("two_stage", WORDS), ("two_stage", "joint"), ("two_stage", "clip"),
        ("two_stage", "linear"), ("two_stage", CAPTION),
    )  # fmt: skip
    notes += [
        change(table, ROWS[one], ROWS[other], SIMILARITY)
        for one, other in pairs
        if one in results and other in results
    ]
    return replace(table, notes=notes)


def imprint_sheet(folder: Path, names: Sequence[str], count: int, each: int, side: int = 112):
    """For the subjects of the first cell: the photo as it is seen | the box | every row | the truth."""
    subjects = [held_out_subject(index, each) for index in range(count)]
    cells = []
    pictures = {name: pictures_of(cell_file(folder, name, 0, count))[PICTURES] for name in names}
    for number, (subject, seen) in enumerate(zip(subjects, seen_pictures(subjects), strict=True)):
        task = subject.tasks[0]
        panels = [sheets.shown(seen, side), sheets.shown(task.background, side, task.box)]
        panels += [sheets.shown(pictures[name][number * each], side) for name in names]
        panels.append(sheets.shown(task.truth, side))
        cells.append(sheets.Cell(panels, [scenes.caption(subject.thing).removeprefix("a photo of ")]))
    return sheets.grid("photo | box | " + " | ".join([*(ROWS[name] for name in names), TRUTH]), cells, 1)


def levels_sheet(row: Row, steps: int, count: int, side: int = 128):
    """For the first subjects: the photo, then the true outline at the four levels painted, and the truth."""
    cells = []
    for index in range(count):
        subject = held_out_subject(index, 1)
        [task] = subject.tasks
        panels = [sheets.shown(seen_pictures([subject])[0], side)]
        for level in MASK_LEVELS:
            hole = mask_level(task.outline[None], level)
            picture = row.paint([subject], hole, index, steps)[0]
            shape = torch.where(hole[0, ..., None] > 0.5, 0.5, task.background)
            panels += [sheets.shown(shape, side), sheets.shown(picture, side)]
        panels.append(sheets.shown(task.truth, side))
        cells.append(sheets.Cell(panels, [scenes.caption(subject.thing).removeprefix("a photo of ")]))
    return sheets.grid("photo | " + " | ".join(LEVEL_NAMES.values()) + " | truth", cells, 1)


def parsed() -> argparse.Namespace:
    parser = study_parser(__doc__, "imprint")
    add = parser.add_argument
    add("--rows", nargs="+", choices=list(ROWS), help="default: all, or with the shipped files two")
    add("--minutes", type=float, default=math.inf, help="of training now")
    add("--subjects", type=int, default=24)
    add("--scenes", type=int, default=2)
    add("--steps", type=int, default=SAMPLING["unet"][2])
    return parser.parse_args()


def ready(row: str, work: Path | None, minutes: float) -> bool:
    """Whether what a row needs is trained, now if need be."""
    if row == CAPTION or work is None:
        return row in (CAPTION, "two_stage")
    trainer = train_imprint.Trainer(work, "two_stage" if row == WORDS else row)
    if row == WORDS:
        trainer.stages = ["words"]
    return is_ready(trainer, minutes)


def source_of(row: str, work: Path | None, files_of: dict[str, Path]) -> str:
    """Names what was trained for a row."""
    if row == CAPTION:
        return ""
    if work is None:
        return fingerprint(files_of["identity"], files_of["lora"])
    return fingerprint(work / f"imprint_{'dino_words' if row == WORDS else row}.pt")


def main():
    a = parsed()
    out, models = study_folders(a, trained=False)  # on which the trainings stand, too
    folder = out / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    rows = a.rows or (list(ROWS) if a.work else [CAPTION, "two_stage"])
    rows = [row for row in rows if ready(row, a.work, a.minutes)]
    painter, classifier = Inpainter("unet", models), trained_classifier(a.work)
    files_of = {} if a.work else identity.install(models)
    choices = partial(ImprintChoices, a.scenes, a.steps, painter.fingerprint(classifier))
    results = {
        row: run_row(
            painter, classifier, row, a.work, files_of, choices(source_of(row, a.work, files_of)), a.subjects,
            folder,
        )
        for row in rows
    }  # fmt: skip
    how = f"{a.subjects} subjects x {a.scenes} scenes, seed {HELD_OUT}, one photo each; errors over subjects."
    how += " {} {}, {} steps, guidance {:g}.".format(*SAMPLING["unet"][:2], a.steps, SAMPLING["unet"][3])
    subjects = [held_out_subject(index, a.scenes) for index in range(a.subjects)]
    truth = [numbers(classifier, s.tasks, stacked(s.tasks, "truth")) for s in subjects]
    write_table(imprint_table(results | {TRUTH: truth}, classifier.name, how), out, "imprint")
    imprint_sheet(folder, rows, min(CHUNK, a.subjects), a.scenes).save(out / "imprint.jpg", quality=88)
    if "two_stage" in rows:
        row = Row(painter, "two_stage", a.work, files_of)
        levels_sheet(row, a.steps, 4).save(out / "levels.jpg", quality=88)
    print(f"pictures: {out / 'imprint.jpg'}, {out / 'levels.jpg'}")


if __name__ == "__main__":
    main()
