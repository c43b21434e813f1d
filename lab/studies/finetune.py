"""What finetuning needs and what it costs: photos, the adapter and steps, on a tiny model with known truth.

    python dev.py lab finetune [--kind unet] [--work DIR] [--models FOLDER] [--only photos] [--subjects 20]

photos   how like the subject is what is painted, after learning it from 1 to 5 photos?
adapter  a LoRA of rank 4 and 16, and with the UNet all of its weights
steps    the same measures after 25 to 400 steps: what overfitting takes first

Every held-out subject is learned with DreamCom's recipe in each way and painted into scenes whose truth is
known: as it is, and edited ("a blue dotted sks mug"). "other things right": do captions of other things of
its kind still give them? A unit of a table is a subject; one JSON file for each, so an interrupted run goes
on. Writes finetune_PART_KIND.md and .json, and finetune_KIND.png (curves) and finetune_KIND.jpg (pictures).
"""

import argparse
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...evaluation.tables import Mean, Table
from .. import scenes
from ..models.classifier import SceneClassifier, trained_classifier
from . import picture_grid
from .edits import FOLLOWED, EditedSubject, edit_numbers, edit_prompt, edited_subject
from .quality import HELD_OUT, Inpainter, Task, stacked, task_of
from .result_cache import pictures_of
from .study import change, study_folders, subject_cells, subject_file, training_parser, write_table
from .subjects import SIMILARITY, TOKEN, encoded_subject, numbers_of, study_recipe

PHOTOS, PILOT, SHOWN = 5, 4, 4
PROMPT = "a photo of a {token} {class_name}"  # the tiny models have read no other beginning
UNTRAINED, ALL_WEIGHTS, OTHERS = "not trained", "all weights", "other things right"
FULL_SLOWER = 10  # the LoRA's rate over that of all weights
EDIT_SIMILARITY, TRIM, CLASS_COLOUR = "edit similarity", "trim", "class and colour"
CURVES = {SIMILARITY: "C0", FOLLOWED: "C1", OTHERS: "C2"}
MEASURES = (SIMILARITY, CLASS_COLOUR, TRIM, FOLLOWED, EDIT_SIMILARITY, OTHERS)


class Way(NamedTuple):
    """One way to learn a subject; `snapshots`: the steps after which it is measured."""

    photos: int = 4
    rank: int = 16
    full: bool = False  # all weights, no LoRA
    snapshots: tuple[int, ...] = ()


@dataclass(frozen=True)
class FinetuneChoices:
    """Everything that decides a subject's numbers; kept with them."""

    way: str
    steps: int
    rank: int
    learning_rate: float
    batch_size: int
    scenes: int
    sampling_steps: int
    model: str
    version: int = 1  # raise when the same choices give other numbers


def ways_of(part: str, kind: str, snapshots: Sequence[int]) -> dict[str, Way]:
    """The rows of a part of the study."""
    if part == "photos":
        return {f"{count} photos" if count > 1 else "1 photo": Way(count) for count in range(1, PHOTOS + 1)}
    if part == "adapter":
        whole = {ALL_WEIGHTS: Way(full=True)} if kind == "unet" else {}
        return {"LoRA, rank 4": Way(rank=4), "LoRA, rank 16": Way(), **whole}
    return {"LoRA": Way(snapshots=tuple(snapshots))}


def other_tasks(subject: EditedSubject, count: int, index: int) -> list[Task]:
    """Scenes of other things of the subject's kind, each of another colour."""
    rng = np.random.default_rng([HELD_OUT, 15, index])
    free = [name for name in scenes.COLOURS if name != subject.thing.colour]
    things = [
        scenes.sample_thing(rng, kind=subject.thing.kind, colour=str(rng.choice(free)), accessory="none")
        for _ in range(count)
    ]
    return [task_of(scenes.sample_scene(rng, thing), rng) for thing in things]


def paint_all(
    painter: Inpainter, subject: EditedSubject, others: list[Task], model: Any, index: int, steps: int
) -> dict[str, Tensor]:
    """Pictures of the subject as it is, of its edits and of other things, (n, H, W, 3) each."""
    asked = {
        "as it is": (
            subject.as_is,
            [PROMPT.format(token=TOKEN, class_name=subject.thing.kind)] * len(others),
        ),
        "edited": (subject.edits, [edit_prompt(task) for task in subject.edits]),
        "others": (others, [scenes.caption(task.thing) for task in others]),
    }
    return {
        name: painter.paint(
            stacked(tasks, "background"), stacked(tasks, "hole"), prompts, None, index, model, steps
        ).cpu()
        for name, (tasks, prompts) in asked.items()
    }


def scored(
    classifier: SceneClassifier, subject: EditedSubject, others: list[Task], pictures: Mapping[str, Tensor]
) -> dict[str, float]:
    """Every measure's mean over the scenes."""
    numbers = numbers_of(classifier, pictures["as it is"], subject.as_is)
    edits = edit_numbers(classifier, pictures["edited"], subject.edits)
    right = numbers_of(classifier, pictures["others"], others)[CLASS_COLOUR]
    more = {FOLLOWED: edits[FOLLOWED], EDIT_SIMILARITY: edits[SIMILARITY], OTHERS: right}
    return {measure: (numbers | more)[measure] for measure in MEASURES}


def recipe_of(painter: Inpainter, way: Way, choices: FinetuneChoices) -> Any:
    """DreamCom's recipe with a way's rank; all weights are trained FULL_SLOWER."""
    if way.full:
        slow = replace(choices, learning_rate=choices.learning_rate / FULL_SLOWER)
        return study_recipe(painter.model, slow, "DreamCom (full UNet)", prompt=PROMPT)
    return study_recipe(painter.model, replace(choices, rank=way.rank), prompt=PROMPT)


def snapshots_of(
    train: Callable, pipeline: Any, data: Any, recipe: Any, steps: Sequence[int], seed: int
) -> Iterator[tuple[int, Any]]:
    """(step, LoRA) of one run. A checkpoint's LoRA is what going on from it for no step at all gives."""
    from ...training.finetune.trainer import Callbacks, RunOptions

    kept: dict[int, Any] = {}
    options = RunOptions(
        save_every=int(np.gcd.reduce(steps)),
        callbacks=Callbacks(on_save=lambda state: kept.update({state.step: state})),
    )
    last, _ = train(pipeline, data, replace(recipe, steps=max(steps)), seed, options)
    for step in steps:
        if step == max(steps):
            yield step, last
        else:
            yield step, train(pipeline, data, replace(recipe, steps=step), seed, resume=kept[step])[0]


def measure_subject(
    painter: Inpainter, classifier: SceneClassifier, way: Way | None, index: int, choices: FinetuneChoices
) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    """Pictures after the last step, and numbers after every snapshot, by step; None: nothing is trained."""
    from ...host.models import apply_lora
    from ...training.finetune.pipeline import train_lora

    whole = edited_subject(index, choices.scenes, PHOTOS)
    others = other_tasks(whole, choices.scenes, index)
    pictures, numbers = {}, {}

    def measure(step: int, model: Any) -> None:
        nonlocal pictures
        pictures = paint_all(painter, whole, others, model, index, choices.sampling_steps)
        numbers[str(step)] = scored(classifier, whole, others, pictures)

    if way is None:
        measure(0, None)
        return pictures, numbers
    subject = replace(
        whole,
        references=whole.references[: way.photos],
        reference_masks=whole.reference_masks[: way.photos],
    )
    recipe = recipe_of(painter, way, choices)
    pipeline, data = encoded_subject(painter, subject, recipe, index)
    with torch.inference_mode():
        steps = way.snapshots or (recipe.steps,)
        for step, lora in snapshots_of(train_lora, pipeline, data, recipe, steps, index):
            measure(step, apply_lora(painter.model, lora))
    return pictures, numbers


def table_of(part: str, results: Mapping[str, list[dict[str, dict[str, float]]]], notes: list[str]) -> Table:
    """Means over subjects: a row for each way, of one with snapshots a row for each of them."""
    rows = {}
    for row, found in results.items():
        for step in found[0]:
            name = f"{row}, {step} steps" if len(found[0]) > 1 else row
            rows[name] = {m: [one[step][m] for one in found] for m in MEASURES}
    table = Table(f"Finetuning: {part}", rows)
    pairs = {
        "photos": [("5 photos", "1 photo", SIMILARITY)],
        "adapter": [
            ("LoRA, rank 16", "LoRA, rank 4", SIMILARITY),
            (ALL_WEIGHTS, "LoRA, rank 16", SIMILARITY),
        ],
    }
    known = [pair for pair in pairs.get(part, []) if {*pair[:2]} <= {*rows}]
    return replace(table, notes=[*(change(table, *pair) for pair in known), *notes])


def draw_curves(tables: Mapping[str, Table], path: Path) -> None:
    """A panel for each part: similarity, edits followed and other things, with standard errors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(tables), 4), layout="constrained")
    for axes, (part, table) in zip(
        figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True
    ):
        cells = table.cells()
        for measure, colour in CURVES.items():
            means: list[Mean] = [row[measure] for row in cells.values()]
            line = "none" if part == "adapter" else "-"
            axes.errorbar(
                range(len(means)), [m.mean for m in means], [m.error for m in means], color=colour, ls=line,
                marker="o", ms=4, capsize=2, label=measure,
            )  # fmt: skip
        axes.set_xticks(range(len(cells)), list(cells), rotation=25, ha="right", fontsize=8)
        axes.set(title=part, ylim=(0, 1.02))
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def picture_sheet(folders: Mapping[str, Path], count: int, scenes_each: int, side: int = 112) -> Image.Image:
    """For the first subjects and every row: a photo | the subject as learned | an edit | the edit's truth."""
    cells = []
    for index in range(count):
        subject = edited_subject(index, scenes_each, PHOTOS)
        asked = edit_prompt(subject.edits[0], "")
        for row, folder in folders.items():
            stored = pictures_of(subject_file(folder, index))
            images = (
                subject.references[0],
                stored["as it is"][0],
                stored["edited"][0],
                subject.edits[0].truth,
            )
            words = [f"{row}; then {asked.removeprefix('a photo of ')}"]
            cells.append(picture_grid.Cell([picture_grid.shown(image, side) for image in images], words))
    return picture_grid.grid("a photo | learned | edited | the edit's truth", cells, 3)


def folder_name(way: Way | None) -> str:
    """Where a way's numbers are kept: the same way in two parts is trained once."""
    if way is None:
        return "not_trained"
    steps = "_" + "_".join(map(str, way.snapshots)) if way.snapshots else ""
    return f"{'all' if way.full else f'rank{way.rank}'}_{way.photos}{steps}"


def length_note(part: str, steps: int, rate: float, rows: Collection[str]) -> str:
    """How long and how fast a part trains."""
    if part == "steps":
        return f"Steps of 4, rate {rate:g}; one run, measured on its way."
    slow = f" (all weights: {rate / FULL_SLOWER:g})" if ALL_WEIGHTS in rows else ""
    return f"{steps} steps of 4, rate {rate:g}{slow}."


PARTS = ("photos", "adapter", "steps")


def parsed() -> argparse.Namespace:
    parser = training_parser(__doc__, "finetune", 3, PILOT)
    parser.add_argument("--kind", default="unet", choices=["unet", "fill"])
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--snapshots", type=int, nargs="+", default=(25, 50, 100, 200, 400))
    return parser.parse_args()


def main():
    a = parsed()
    out, models = study_folders(a)
    classifier, count = trained_classifier(a.work), PILOT if a.pilot else a.subjects
    painter = Inpainter(a.kind, models)
    file = painter.fingerprint(classifier)
    notes = [
        f"{count} subjects x {a.scenes} scenes, seed {HELD_OUT}; errors over subjects; similarity by"
        f" {classifier.name}."
    ]
    tables, folders = {}, {}
    for part in a.only:
        results = {}
        for row, way in {UNTRAINED: None, **ways_of(part, a.kind, sorted(a.snapshots))}.items():
            folders[row] = out / a.kind / folder_name(way)
            choices = FinetuneChoices(
                str(way), a.steps, 16, a.rate, 4, a.scenes, a.sampling_steps, file
            )  # fmt: skip
            measure = partial(measure_subject, painter, classifier, way, choices=choices)
            results[row] = subject_cells(folders[row], count, choices, measure)
        tables[part] = table_of(part, results, [*notes, length_note(part, a.steps, a.rate, results)])
        write_table(tables[part], out, f"finetune_{part}_{a.kind}")
    draw_curves(tables, out / f"finetune_{a.kind}.png")
    sheet = picture_sheet(folders, min(SHOWN, count), a.scenes)
    sheet.save(out / f"finetune_{a.kind}.jpg", quality=88)


if __name__ == "__main__":
    main()
