"""Two stages or one, and in which order? IMPRINT's training where only the first stage sees another side.

    python dev.py lab stages [--work DIR] [--seeds 3] [--subjects 53] [--pairs 300] [--minutes M] [--out DIR]

IMPRINT learns views of objects first and to compose second; the second stage mostly has no other view of an
object than the one in its picture. Here it gets PAIRS examples of `same_view` and nothing else, so the first
stage alone shows other sides. Each way is trained with each seed, for equally many steps: compose alone;
views and then compose with the paper's order of rates (the adapter's high first), with both high all the
time, or with the order reversed. All stand on one encoder that has learned captions (`words` of
train_imprint). Held-out subjects are shown in one photo, from a side at least 100 degrees away from the one
to be painted, or from that very side (the check: this should be easier), and painted into one scene each.
Examples are made and trainings run first, where DIR (OUT without --work) lacks them; they go on from where
they were, and --minutes ends the trainings for now. Pictures are kept in OUT/cells. Writes stages.md,
stages.json and stages.jpg.
"""

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...evaluation.tables import Mean, Table
from .. import scenes
from ..models import low_rank, runs
from ..models.classifier import SceneClassifier, trained_classifier
from ..models.image_conditioner import PICTURES, ImageConditioner, Numbers, loaded, with_change
from ..models.object_cache import fill, shown, to_tensors
from ..models.object_training import part_of
from ..models.train_imprint import Trainer, finish, new_adapter, new_encoder
from . import imprint, picture_grid
from .quality import HELD_OUT, SAMPLING, Inpainter, Task, stacked, task_of
from .result_cache import cell, fingerprint, pictures_of
from .study import study_folders, study_parser, write_table
from .subjects import SIMILARITY

WAYS = {
    "single_stage": "one stage, as long as both",
    "two_stage": "two stages, sequential",
    "joint": "two stages, joint",
    "reversed": "two stages, reversed",
}
EXAMPLES = {"objects": 40, "views": 4, "same_view": 1}  # shards of each kind that are made
LENGTHS = {"words": 3600, "views": 192, "compose": 360}  # steps of the stages
TRUTH, CAPTION = "the truth", "the full caption"
PHOTOS = {"new": "photo from another side", "same": "photo from the side to be painted"}
AWAY = np.radians(100)  # least angle between the side that is shown and the one that is painted
SHIPPED = "two_stage"


@dataclass(frozen=True)
class StageChoices:
    """Everything that decides a cell's numbers; kept with them."""

    photo: str
    sampling_steps: int
    model: str
    trained: str
    version: int = 1  # raise when the same choices give other numbers


@dataclass(frozen=True)
class Subject:
    """A task, and its thing alone as the encoder sees it (S, S, 3), by the names of PHOTOS."""

    task: Task
    seen: Mapping[str, Tensor]


def subject_of(index: int) -> Subject:
    """Subject number `index`; classes take turns, all else is drawn."""
    rng = np.random.default_rng([HELD_OUT, 15, index])
    thing = scenes.sample_thing(rng, kind=scenes.CLASSES[index % len(scenes.CLASSES)])
    scene = scenes.sample_scene(rng, thing)
    assert scene.subject
    task, yaw = task_of(scene, rng), scene.subject.yaw
    turn = rng.uniform(AWAY, 2 * np.pi - AWAY)
    return Subject(task, {"new": photo_of(rng, thing, yaw + turn), "same": photo_of(rng, thing, yaw)})


def photo_of(rng: np.random.Generator, thing: scenes.Thing, yaw: float) -> Tensor:
    """The thing turned by `yaw`, large in a room of its own, then on black as the encoder sees it."""
    scene = scenes.sample_scene(rng, thing, others=0, scale=(0.55, 0.72))
    assert scene.subject
    return shown(*to_tensors(scenes.render(replace(scene, subject=scene.subject.posed(yaw=yaw)))))


def paint(
    painter: Inpainter, trainer: Trainer, subjects: Sequence[Subject], photo: str, steps: int
) -> Tensor:
    """Every subject in its scene (N, H, W, 3), by what a trainer has learned."""
    encoder, adapter = new_encoder("dino").eval(), new_adapter("dino").eval()
    path = trainer.file("compose")
    loaded(path.with_suffix(".safetensors"), encoder, adapter)
    state = runs.load(path)
    assert state
    model = with_change(painter.model, low_rank.change_of(part_of(state, "unet")))
    rows, uncond = ImageConditioner(encoder, adapter).rows(torch.stack([s.seen[photo] for s in subjects]))
    tasks = [subject.task for subject in subjects]
    backgrounds, holes = stacked(tasks, "background"), stacked(tasks, "hole")
    return painter.paint(backgrounds, holes, rows, None, 0, model, steps, uncond=uncond).cpu()


def paint_captions(painter: Inpainter, subjects: Sequence[Subject], steps: int) -> Tensor:
    """Every subject in its scene (N, H, W, 3), by the shipped UNet from its full caption."""
    tasks = [subject.task for subject in subjects]
    words = [scenes.caption(task.thing) for task in tasks]
    return painter.paint(
        stacked(tasks, "background"), stacked(tasks, "hole"), words, None, 0, None, steps
    ).cpu()  # fmt: skip


def numbers(classifier: SceneClassifier, tasks: Sequence[Task], pictures: Tensor) -> Numbers:
    """Subject by subject what `lab imprint` measures."""
    return [
        imprint.numbers(classifier, [task], picture[None])
        for task, picture in zip(tasks, pictures, strict=True)
    ]


def stage_table(results: Mapping[str, Mapping[str, list[Numbers]]], rest: Mapping[str, Numbers]) -> Table:
    """A row for every way and photo, each subject's mean over the seeds; and the differences over the seeds.

    `results` holds, by photo and way, the numbers of every seed.
    """
    rows = {
        row_name(way, photo): {
            m: np.mean([values(found, m) for found in seeds], 0).tolist() for m in seeds[0][0]
        }
        for photo, ways in results.items()
        for way, seeds in ways.items()
    }
    rows |= {name: {m: values(found, m) for m in found[0]} for name, found in rest.items()}
    notes = []
    for way in WAYS:
        if all(way in results.get(photo, {}) for photo in ("same", "new")):
            label = f"check, {WAYS[way]}, the same side against another one"
            notes.append(seed_change(results["same"][way], results["new"][way], label))
    for photo, ways in results.items():
        for other in WAYS:
            if other != SHIPPED and SHIPPED in ways and other in ways:
                label = f"{PHOTOS[photo]}, {WAYS[SHIPPED]} against {WAYS[other]}"
                notes.append(seed_change(ways[SHIPPED], ways[other], label))
    return Table("One photo of a held-out subject, by stages and by their order", rows, notes)


def values(found: Numbers, measure: str) -> list[float]:
    return [one[measure] for one in found]


def row_name(way: str, photo: str) -> str:
    return f"{WAYS[way]}; {PHOTOS[photo]}"


def seed_change(way: Sequence[Numbers], base: Sequence[Numbers], label: str) -> str:
    """What a way changes in similarity: by seed, and their mean with its errors over seeds and subjects."""
    gains = np.array([values(found, SIMILARITY) for found in way])
    gains -= np.array([values(found, SIMILARITY) for found in base])
    seeds, subjects = Mean.of(gains.mean(1).tolist()), Mean.of(gains.mean(0).tolist())
    each = ", ".join(f"{gain:+.3f}" for gain in gains.mean(1))
    over_seeds = f" (by seed {each}), +- {seeds.error:.3f} over {len(gains)} seeds," if len(gains) > 1 else ""
    return (
        f"{SIMILARITY}, {label}: {seeds.mean:+.3f}{over_seeds} +- {subjects.error:.3f} over"
        f" {gains.shape[1]} subjects."
    )


def stage_sheet(subjects: Sequence[Subject], pictures: Mapping[str, Tensor], side: int = 112):
    """For each subject: the photo from another side | the box | every way, first seed | the truth."""
    cells = []
    for number, subject in enumerate(subjects):
        task = subject.task
        panels = [picture_grid.shown(subject.seen["new"], side)]
        panels.append(picture_grid.shown(task.background, side, task.box))
        panels += [picture_grid.shown(images[number], side) for images in pictures.values()]
        panels.append(picture_grid.shown(task.truth, side))
        cells.append(picture_grid.Cell(panels, [scenes.caption(task.thing).removeprefix("a photo of ")]))
    return picture_grid.grid(" | ".join(["photo", "box", *(WAYS[way] for way in pictures), TRUTH]), cells, 1)


def parsed() -> argparse.Namespace:
    parser = study_parser(__doc__, "stages")
    add = parser.add_argument
    add("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    add("--photos", nargs="+", choices=list(PHOTOS), default=list(PHOTOS))
    add("--seeds", type=int, default=3)
    add("--subjects", type=int, default=53)
    add("--pairs", type=int, default=300)
    add("--minutes", type=float, default=math.inf, help="of training now")
    for stage, steps in LENGTHS.items():
        add(f"--{stage}", type=int, default=steps, metavar="STEPS", help="default: %(default)s")
    add("--sampling-steps", type=int, default=10)
    return parser.parse_args()


def trainer_of(options: argparse.Namespace, way: str, seed: int) -> Trainer:
    steps = {stage: getattr(options, stage) for stage in LENGTHS}
    return Trainer(options.work, way, seed, steps, options.pairs, half=True)


def measure_way(
    options: argparse.Namespace, opened: Any, subjects: Sequence[Subject], way: str, seed: int, photo: str
) -> Numbers:
    """The numbers of a way with a seed; a cell that the same choices made before is read back."""
    painter, classifier, folder = opened
    trainer, tasks = trainer_of(options, way, seed), [subject.task for subject in subjects]
    choices = StageChoices(
        photo, options.sampling_steps, painter.fingerprint(classifier), fingerprint(trainer.file("compose"))
    )

    def make() -> tuple[dict[str, Tensor], Numbers]:
        pictures = paint(painter, trainer, subjects, photo, options.sampling_steps)
        return {PICTURES: pictures}, numbers(classifier, tasks, pictures)

    return cell(folder / f"{way}-{seed}-{photo}-{len(subjects)}.json", choices, make)


def how(options: argparse.Namespace, classifier: str) -> str:
    """The first note of the table."""
    sampler, scheduler, _, guidance = SAMPLING["unet"]
    each = f", each the mean of {options.seeds} trainings" if options.seeds > 1 else ""
    return (
        f"{options.subjects} subjects, one scene each, seed {HELD_OUT}; +- of rows over subjects{each}."
        f" {options.views} steps of views and {options.compose} of compose, these on {options.pairs} pairs of"
        f" one view. {sampler} {scheduler}, {options.sampling_steps} steps, guidance {guidance:g}. Similarity"
        f" to the true box by {classifier}. {imprint.STEP}: in 1/255, less the truth's."
    )


def main():
    a = parsed()
    out, models = study_folders(a, trained=False)
    a.work = a.work or out
    folder = out / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    for kind, shards in EXAMPLES.items():
        fill(a.work, kind, shards, seed=1)
    seeds, end = range(a.seeds), time.time() + 60 * a.minutes
    trainers = [trainer_of(a, way, seed) for seed in seeds for way in a.ways]
    if not all(finish(trainer, (end - time.time()) / 60) for trainer in trainers):
        raise SystemExit("Not all is trained yet; the same command goes on.")
    subjects = [subject_of(index) for index in range(a.subjects)]
    tasks = [subject.task for subject in subjects]
    painter, classifier = Inpainter("unet", models), trained_classifier(a.work)
    measured = partial(measure_way, a, (painter, classifier, folder), subjects)
    results = {
        photo: {way: [measured(way, seed, photo) for seed in seeds] for way in a.ways} for photo in a.photos
    }
    choices = StageChoices("", a.sampling_steps, painter.fingerprint(classifier), "")

    def make() -> tuple[dict[str, Tensor], Numbers]:
        pictures = paint_captions(painter, subjects, a.sampling_steps)
        return {PICTURES: pictures}, numbers(classifier, tasks, pictures)

    rest = {CAPTION: cell(folder / f"caption-{a.subjects}.json", choices, make)}
    rest |= {TRUTH: numbers(classifier, tasks, stacked(tasks, "truth"))}
    table = stage_table(results, rest)
    write_table(replace(table, notes=[how(a, classifier.name), *table.notes]), out, "stages")
    if "new" in a.photos:
        first = {way: pictures_of(folder / f"{way}-0-new-{a.subjects}.json")[PICTURES] for way in a.ways}
        stage_sheet(subjects[:8], first).save(out / "stages.jpg", quality=88)


if __name__ == "__main__":
    main()
