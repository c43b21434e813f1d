"""One photo instead of words: does IMPRINT keep what an object is? In the tiny world, with the truth at hand.

    python dev.py lab imprint --work DIR [--rows NAME ...] [--subjects 24] [--backgrounds 2] [--out DIR]

Held-out subjects are shown to the encoder once and painted into held-out scenes. Rows: the full caption; the
encoder after it has learned to say captions and nothing more (`words`); one stage alone, trained for as long
as both; both stages; both with one rate each instead of the sequential schedule; both with a CLIP-shaped
encoder; both with a linear projection for an adapter. What a row needs is trained in DIR first (see
train_imprint; --minutes ends the training for now, and rows that are not ready are left out); `two_stage`
without --work is what the repository ships. One JSON file a cell under OUT/cells: an interrupted run goes on
where it was. Writes imprint.md, imprint.json and imprint.png, and levels.png (the four mask levels).
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...evaluation.tables import Table
from ...imaging.mask_levels import LEVEL_NAMES, MASK_LEVELS, mask_level
from ...imaging.object_picture import subject_picture
from .. import world
from ..models import files, identity, low_rank, train_imprint
from ..models.classifier import Judge, load_judge
from ..models.image_conditioner import PICTURES, Numbers, Seer, loaded, with_change
from ..models.inpainter import Painter, add_sampling
from ..models.object_cache import MARGIN, SEEN
from ..models.object_training import part_of
from ..models.train_imprint import VARIANTS, is_ready, new_adapter, new_encoder, state_file
from . import picture_grid as sheets
from .attention import seam
from .dreamcom import CEILING, LIKENESS, Subject, held_out_subject, measured
from .quality import PACK, checkpoint_file, stacked, write_table
from .result_cache import cell, fingerprint, pictures_of

CAPTION, WORDS = "caption", "words"
ROWS = {
    CAPTION: "the full caption",
    WORDS: "the picture's words alone",
    "single_stage": "one stage, as long as both",
    "two_stage": "two stages",
    "joint": "two stages, joint schedule",
    "clip": "two stages, CLIP-shaped",
    "linear": "two stages, no adapter",
}
REFERENCES = 4  # the first is shown to the encoder, all to the judge
CHUNK = 8  # subjects in a cell


@dataclass(frozen=True)
class Choices:
    """Everything that decides a cell's numbers; kept with them, so that a changed run starts anew."""

    backgrounds: int
    sampler: str
    scheduler: str
    steps: int
    cfg: float
    checkpoint: str
    row: str  # what was trained for it


def seer_of(row: str, work: Path | None, files_of: dict[str, Path]) -> tuple[Seer, dict[str, Tensor]]:
    """A row's encoder and adapter, and what its UNet learned, from the trainings or the shipped files."""
    foundation = VARIANTS[row].foundation if row in VARIANTS else "dino"
    encoder, adapter = new_encoder(foundation).eval(), new_adapter(foundation).eval()
    if work is None:
        loaded(files_of["identity"], encoder, adapter)
        return Seer(encoder, adapter), load_file(files_of["lora"])
    if row == WORDS:
        train_imprint.load_parts(state_file(work, "words", foundation), encoder=encoder, adapter=adapter)
        return Seer(encoder, adapter), {}
    loaded(work / f"imprint_{row}.safetensors", encoder, adapter)
    state = files.load(state_file(work, "compose", row))
    assert state
    return Seer(encoder, adapter), low_rank.change_of(part_of(state, "unet"))


def subjects_of(indices: Sequence[int], backgrounds: int) -> list[Subject]:
    return [held_out_subject(index, REFERENCES, backgrounds) for index in indices]


def seen_pictures(subjects: Sequence[Subject]) -> Tensor:
    """Each subject's first reference as the encoder sees it (B, SEEN, SEEN, 3)."""
    return torch.cat(
        [subject_picture(s.references[:1], s.reference_masks[:1], SEEN, "black", MARGIN) for s in subjects]
    )


class Row:
    """What paints a row, opened when its first cell is missing."""

    def __init__(self, painter: Painter, name: str, work: Path | None, files_of: dict[str, Path]):
        self.painter, self.model = painter, painter.model
        if name == CAPTION:
            self.seer = None
            return
        self.seer, change = seer_of(name, work, files_of)
        self.model = with_change(painter.model, change)

    def paint(self, subjects: Sequence[Subject], holes: Tensor, seed: int, choices: Choices) -> Tensor:
        """Every subject on each of its backgrounds (N, H, W, 3), subject by subject."""
        count = choices.backgrounds
        if self.seer is None:
            rows = self.painter.encode([world.caption(subject.thing) for subject in subjects])
            nothing = self.painter.encode([""])
        else:
            rows, nothing = self.seer.rows(seen_pictures(subjects))
        backgrounds = torch.cat([stacked(subject.tasks, "background") for subject in subjects])
        return self.painter.paint_rows(
            backgrounds, holes, rows.repeat_interleave(count, 0), nothing, seed, self.model,
            choices.steps, choices.cfg, choices.sampler, choices.scheduler,
        ).cpu()  # fmt: skip


def numbers(judge: Judge, subject: Subject, images: Tensor) -> dict[str, float]:
    """`dreamcom.measured`, and how hard the hole's edge is against the true picture's."""
    holes, truth = stacked(subject.tasks, "hole"), stacked(subject.tasks, "truth")
    step = float((seam(images, holes) - seam(truth, holes)).mean())
    return measured(judge, subject, images) | {"seam": step}


def cell_file(folder: Path, name: str, first: int, count: int) -> Path:
    """Where the numbers of that many subjects from `first` on are kept."""
    return folder / f"{name}-{first:03d}-{count}.json"


def run_row(painter, judge, name, work, files_of, choices: Choices, count: int, folder: Path):
    """A row's numbers, subject by subject."""
    row, found = None, []
    for first in range(0, count, CHUNK):
        indices = range(first, min(first + CHUNK, count))

        def make(indices=indices, first=first):
            nonlocal row
            row = row or Row(painter, name, work, files_of)
            subjects = subjects_of(indices, choices.backgrounds)
            holes = torch.cat([stacked(subject.tasks, "hole") for subject in subjects])
            pictures = row.paint(subjects, holes, first, choices)
            parts = pictures.split(choices.backgrounds)
            return {PICTURES: pictures}, [
                numbers(judge, s, part) for s, part in zip(subjects, parts, strict=True)
            ]

        found += cell(cell_file(folder, name, first, len(indices)), choices, make)
    return found


def imprint_table(results: dict[str, Numbers], judge: Judge, how: str) -> Table:
    """Means over the subjects; a unit is a subject."""
    rows = {
        ROWS.get(name, name): {measure: [one[measure] for one in found] for measure in found[0]}
        for name, found in results.items()
    }
    table = Table("One photo of a held-out subject, in held-out pictures", rows)
    pairs = (
        ("two_stage", "single_stage"), ("two_stage", WORDS), ("two_stage", "joint"), ("two_stage", "clip"),
        ("two_stage", "linear"), ("two_stage", CAPTION),
    )  # fmt: skip
    notes = [how, f"Similarity by {judge.name}. dE00 to the truth under its outline; seam: colour step across"
             " the hole's edge less the true one's, in 1/255."]  # fmt: skip
    for one, other in pairs:
        if one in results and other in results:
            gain = table.difference(ROWS[one], ROWS[other], LIKENESS)
            sure = f"({gain.z_score:.1f} standard errors)"
            notes.append(f"{ROWS[one]} over {ROWS[other]}: {LIKENESS} {gain.text()} {sure}.")
    return Table(table.title, rows, notes)


def imprint_sheet(folder: Path, names: Sequence[str], count: int, backgrounds: int, side: int = 112):
    """For the subjects of the first cell: the photo as it is seen | the box | every row | the truth."""
    subjects = subjects_of(range(count), backgrounds)
    cells = []
    pictures = {name: pictures_of(cell_file(folder, name, 0, count))[PICTURES] for name in names}
    for number, (subject, seen) in enumerate(zip(subjects, seen_pictures(subjects), strict=True)):
        task = subject.tasks[0]
        panels = [sheets.shown(seen, side), sheets.shown(task.background, side, task.box)]
        panels += [sheets.shown(pictures[name][number * backgrounds], side) for name in names]
        panels.append(sheets.shown(task.truth, side))
        cells.append(sheets.Cell(panels, [world.caption(subject.thing).removeprefix("a photo of ")]))
    return sheets.grid("photo | box | " + " | ".join([*names, CEILING]), cells, 1)


def levels_sheet(row: Row, choices: Choices, count: int, side: int = 128):
    """For the first subjects: the photo, then the true outline at the four levels painted, and the truth."""
    cells = []
    for index in range(count):
        subject = held_out_subject(index, REFERENCES, 1)
        mask = subject.tasks[0].truth_mask[None]
        panels = [sheets.shown(seen_pictures([subject])[0], side)]
        for level in MASK_LEVELS:
            hole = mask_level(mask, level)
            picture = row.paint([subject], hole, index, choices)[0]
            outline = torch.where(hole[0, ..., None] > 0.5, 0.5, subject.tasks[0].background)
            panels += [sheets.shown(outline, side), sheets.shown(picture, side)]
        panels.append(sheets.shown(subject.tasks[0].truth, side))
        cells.append(sheets.Cell(panels, [world.caption(subject.thing).removeprefix("a photo of ")]))
    return sheets.grid("photo | " + " | ".join(LEVEL_NAMES.values()) + " | truth", cells, 1)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--work", type=Path, help="where the trainings are; default: only what is shipped")
    add("--rows", nargs="+", choices=list(ROWS), help="default: all, or with the shipped files two")
    add("--minutes", type=float, default=math.inf, help="of training now")
    add("--checkpoint", type=Path, help="default: the shipped weights")
    add("--subjects", type=int, default=24)
    add("--backgrounds", type=int, default=2)
    add_sampling(parser, "--steps")
    add("--out", type=Path, default=PACK / "out" / "imprint")
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
        return fingerprint(files_of["identity"])
    return fingerprint(work / f"imprint_{'dino_words.pt' if row == WORDS else f'{row}.safetensors'}")


def main():
    a = parsed()
    folder = a.out / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    rows = a.rows or (list(ROWS) if a.work else [CAPTION, "two_stage"])
    rows = [row for row in rows if ready(row, a.work, a.minutes)]
    judge, checkpoint = load_judge(), checkpoint_file(a.checkpoint, a.out)
    painter, files_of = Painter(checkpoint), {} if a.work else identity.install(a.out / "models")

    def choices(row: str) -> Choices:
        return Choices(
            a.backgrounds, a.sampler, a.scheduler, a.steps, a.cfg, fingerprint(checkpoint),
            source_of(row, a.work, files_of),
        )  # fmt: skip

    results = {
        row: run_row(painter, judge, row, a.work, files_of, choices(row), a.subjects, folder) for row in rows
    }
    how = f"{a.subjects} subjects x {a.backgrounds} backgrounds, one photo each; errors over subjects."
    how += f" {a.sampler} {a.scheduler}, {a.steps} steps, guidance {a.cfg:g}."
    truth = [
        numbers(judge, s, stacked(s.tasks, "truth")) for s in subjects_of(range(a.subjects), a.backgrounds)
    ]
    write_table(imprint_table(results | {CEILING: truth}, judge, how), a.out, "imprint")
    imprint_sheet(folder, rows, min(CHUNK, a.subjects), a.backgrounds).save(a.out / "imprint.png")
    if "two_stage" in rows:
        one = choices("two_stage")
        row = Row(painter, "two_stage", a.work, files_of)
        levels_sheet(row, Choices(**{**vars(one), "backgrounds": 1}), 4).save(a.out / "levels.png")
    print(f"pictures: {a.out / 'imprint.png'}, {a.out / 'levels.png'}")


if __name__ == "__main__":
    main()
