"""Does finetuning put *this* subject into the picture? DreamCom in the tiny world, with the truth at hand.

    python dev.py lab dreamcom [--checkpoint FILE] [--subjects 20] [--backgrounds 5] [--out DIR]

For every held-out subject four reference pictures are rendered and learned (the trainer's own machinery, in
process), then it is painted into held-out scenes whose truth is known. "a photo of sks mug" after
finetuning, with and without masked attention, stands against the same prompt before finetuning and against
all that words can say ("a photo of a red striped mug wearing a hat"; the trim no caption names). One JSON
file a subject under OUT/subjects: an interrupted run goes on where it was. Writes dreamcom.md, dreamcom.json
and dreamcom.png.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...evaluation import metrics
from ...evaluation.tables import Table
from .. import world
from ..models.classifier import Judge, load_judge
from ..models.inpainter import Painter, add_sampling
from . import picture_grid as sheets
from .quality import HELD_OUT, PACK, SIZE, Task, checkpoint_file, new_task, stacked, to_image, write_table
from .result_cache import cell, fingerprint, pictures_of

TOKEN = "sks"
PLAIN, PLAIN_MASKED = "same prompt, no finetuning", "same prompt, masked attention"
WORDS = "full caption, no finetuning"
TUNED, TUNED_MASKED = "finetuned", "finetuned, masked attention"
CEILING = "the truth"
Pictures = dict[str, Tensor]  # row -> (backgrounds, H, W, 3) in [0, 1]
Numbers = dict[str, dict[str, float]]  # row -> measure -> mean over the backgrounds

ROWS = (PLAIN, PLAIN_MASKED, WORDS, TUNED, TUNED_MASKED)
SHOWN = (PLAIN, WORDS, TUNED, TUNED_MASKED, CEILING)
LIKENESS = "subject similarity"


@dataclass(frozen=True)
class Subject:
    """A thing, its reference pictures (R, H, W, 3) with masks (R, H, W), and where it shall go."""

    thing: world.Thing
    references: Tensor
    reference_masks: Tensor
    tasks: list[Task]


@dataclass(frozen=True)
class Choices:
    """Everything that decides a subject's numbers; kept with them, so that a changed run starts anew."""

    recipe: str
    steps: int
    rank: int
    learning_rate: float
    batch_size: int
    references: int
    backgrounds: int
    sampler: str
    scheduler: str
    sampling_steps: int
    cfg: float
    checkpoint: str


def held_out_subject(index: int, references: int, backgrounds: int) -> Subject:
    """Subject number `index`; classes take turns, all else is drawn from the held-out seed."""
    rng = np.random.default_rng([HELD_OUT, 1, index])
    thing = world.sample_thing(rng, kind=world.CLASSES[index % len(world.CLASSES)])
    scenes = [world.sample_scene(rng, subject=thing, others=0, scale=(0.60, 0.80)) for _ in range(references)]
    pictures = [world.render(scene, SIZE) for scene in scenes]
    masks = torch.from_numpy(np.stack([p.mask > 0.5 for p in pictures])).float()
    tasks = [new_task(rng, thing) for _ in range(backgrounds)]
    return Subject(thing, torch.stack([to_image(p) for p in pictures]), masks, tasks)


def finetuned(
    painter: Any, subject: Any, recipe, seed: int, size: int = SIZE, regular: Sequence[Any] = ()
) -> Any:
    """The MODEL of a painter (model, clip, vae) with a subject (thing, references, their masks) learned.

    `regular`: the Concepts of regular data, if there are any.
    """
    from ...host.models import apply_lora
    from ...training.finetune.data import Concept, Reference
    from ...training.finetune.pipeline import (
        EncodedData,
        Pipeline,
        encode_captions,
        encode_concepts,
        train_lora,
    )

    references = [Reference(*pair) for pair in zip(subject.references, subject.reference_masks, strict=True)]
    caption = recipe.prompt.format(token=TOKEN, class_name=subject.thing.kind)
    pipeline = Pipeline(painter.model, painter.clip, painter.vae)
    with torch.inference_mode():
        material = [Concept(caption, references), *regular]
        texts = encode_captions(pipeline, [concept.caption for concept in material], size)
        examples = encode_concepts(pipeline, material, texts, recipe, size, seed)
        lora, _ = train_lora(pipeline, EncodedData(examples, list(texts.values())), recipe, seed)
        return apply_lora(painter.model, lora)


def paint_rows(painter, subject: Subject, tuned, recipe, seed: int, sampling: dict) -> Pictures:
    """Every row's pictures (backgrounds, H, W, 3), all from the same noise."""
    from ...attention.model_patch import mask_attention

    backgrounds, holes = stacked(subject.tasks, "background"), stacked(subject.tasks, "hole")
    short = [recipe.prompt.format(token=TOKEN, class_name=subject.thing.kind)] * len(holes)
    full = [world.caption(subject.thing)] * len(holes)
    ways = {
        PLAIN: (painter.model, short),
        PLAIN_MASKED: (mask_attention(painter.model, [holes]), short),
        WORDS: (painter.model, full),
        TUNED: (tuned, short),
        TUNED_MASKED: (mask_attention(tuned, [holes]), short),
    }
    return {
        row: painter.paint(backgrounds, holes, prompts, seed=seed, model=model, **sampling).cpu()
        for row, (model, prompts) in ways.items()
    }


def measured(judge: Judge, subject: Subject, images: Tensor) -> dict[str, float]:
    """Means over the backgrounds of one subject's pictures (B, H, W, 3)."""
    tasks = subject.tasks
    pictures, holes = images.movedim(-1, 1), stacked(tasks, "hole")
    truths, truth_masks = stacked(tasks, "truth").movedim(-1, 1), stacked(tasks, "truth_mask")
    with torch.no_grad():
        likeness = metrics.subject_similarity(
            judge, pictures, holes, subject.references.movedim(-1, 1), subject.reference_masks
        )
    verdicts = judge.describe(pictures, holes)
    right = {
        "class" if field == "kind" else field: float(
            np.mean([getattr(v, field) == getattr(subject.thing, field) for v in verdicts])
        )
        for field in ("kind", "colour", "pattern", "trim", "accessory")
    }
    # the truth's outline on both: where the subject's pixels should be
    colour = metrics.colour_error(pictures, truth_masks, truths, truth_masks)
    background = metrics.background_ssim(pictures, stacked(tasks, "background").movedim(-1, 1), holes)
    numbers = {"dE00": float(colour.mean()), "background SSIM": float(background.mean())}
    return {LIKENESS: float(likeness.mean()), **right, **numbers}


def run_subject(
    painter: Painter, judge: Judge, index: int, choices: Choices, recipe, folder: Path
) -> Numbers:
    """One subject's numbers, row by row; read back when the same choices made them before."""

    def make():
        subject = held_out_subject(index, choices.references, choices.backgrounds)
        tuned = finetuned(painter, subject, recipe, seed=index)
        sampling = {"steps": choices.sampling_steps, "cfg": choices.cfg}
        sampling |= {"sampler": choices.sampler, "scheduler": choices.scheduler}
        pictures = paint_rows(painter, subject, tuned, recipe, index, sampling)
        pictures[CEILING] = stacked(subject.tasks, "truth")
        return pictures, {row: measured(judge, subject, images) for row, images in pictures.items()}

    return cell(folder / f"{index:03d}.json", choices, make)


def dreamcom_table(results: list[Numbers], judge: Judge, choices: Choices) -> Table:
    """Every row's means over the subjects; a unit is a subject."""
    rows = {
        row: {measure: [result[row][measure] for result in results] for measure in results[0][row]}
        for row in (*ROWS, CEILING)
    }
    table = Table("A held-out subject in held-out pictures", rows)
    gain = table.difference(TUNED_MASKED, PLAIN, LIKENESS)
    words = table.difference(TUNED_MASKED, WORDS, LIKENESS)
    masks = table.difference(TUNED_MASKED, TUNED, LIKENESS)
    notes = [
        f"{len(results)} subjects x {choices.backgrounds} backgrounds, {choices.references} references each;"
        " errors over subjects; dE00 to the truth under its outline.",
        f"Similarity by {judge.name}. {choices.recipe}: {choices.steps} steps, rank {choices.rank}, rate"
        f" {choices.learning_rate:g}, batch {choices.batch_size}. {choices.sampler} {choices.scheduler},"
        f" {choices.sampling_steps} steps, guidance {choices.cfg:g}.",
        f"Finetuning gains {gain.text()} in similarity ({gain.z_score:.1f} standard errors), over"
        f" the full caption {words.text()} ({words.z_score:.1f}); masked attention adds"
        f" {masks.text()} ({masks.z_score:.1f}).",
    ]
    return replace(table, notes=notes)


def dreamcom_sheet(folder: Path, count: int, choices: Choices, side: int = 128):
    """For the first subjects and two backgrounds each: references | box | every row | truth."""
    cells = []
    for index in range(count):
        subject = held_out_subject(index, choices.references, choices.backgrounds)
        pictures = pictures_of(folder / f"{index:03d}.json")
        for number, task in list(enumerate(subject.tasks))[: 2 if index < 4 else 1]:
            panels = [sheets.shown(reference, side) for reference in subject.references[:2]]
            panels.append(sheets.shown(task.background, side, task.box))
            panels += [sheets.shown(pictures[row][number], side) for row in SHOWN]
            cells.append(sheets.Cell(panels, [world.caption(subject.thing).removeprefix("a photo of ")]))
    title = "two references | box | no finetuning | full caption | finetuned | + masked attention | truth"
    return sheets.grid(title, cells, 2)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, help="default: the shipped weights")
    add("--judge", type=Path, help="default: the shipped judge")
    add("--subjects", type=int, default=20)
    add("--backgrounds", type=int, default=5)
    add("--references", type=int, default=4)
    add("--recipe", default="DreamCom")
    add("--steps", type=int, default=150)
    add("--rank", type=int, default=16)
    add("--rate", type=float, default=1e-3)
    add("--batch", type=int, default=4)
    add_sampling(parser)
    add("--out", type=Path, default=PACK / "out" / "dreamcom")
    a = parser.parse_args()
    folder = a.out / "subjects"
    folder.mkdir(parents=True, exist_ok=True)
    judge = load_judge(a.judge) if a.judge else load_judge()
    checkpoint = checkpoint_file(a.checkpoint, a.out)
    painter = Painter(checkpoint)
    from ...training.finetune.recipes import RECIPES

    recipe = RECIPES[a.recipe].with_choices(
        steps=a.steps, rank=a.rank, learning_rate=a.rate, batch_size=a.batch, resolution=SIZE
    )
    choices = Choices(
        a.recipe, a.steps, a.rank, a.rate, a.batch, a.references, a.backgrounds,
        a.sampler, a.scheduler, a.sampling_steps, a.cfg, fingerprint(checkpoint),
    )  # fmt: skip
    results = [run_subject(painter, judge, i, choices, recipe, folder) for i in range(a.subjects)]
    write_table(dreamcom_table(results, judge, choices), a.out, "dreamcom")
    dreamcom_sheet(folder, min(8, a.subjects), choices).save(a.out / "dreamcom.png")
    print(f"pictures: {a.out / 'dreamcom.png'}")


if __name__ == "__main__":
    main()
