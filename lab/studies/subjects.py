"""A subject by training, by a reference photo, or by both, on the tiny models.

    python dev.py lab subjects [--work DIR] [--models FOLDER] [--subjects 20] [--scenes 5] [--pilot]

Every held-out subject has four photos. Each model is finetuned on them (a LoRA, by the trainer's own
machinery), and the subject is painted into held-out scenes whose truth is known: from words alone, with one
photo as a reference (edit model), with the LoRA (UNet: with masked attention and without), and with both.
Similarity is that of the painted box and the true one, by the classifier's features; the trim is a second
colour that no caption names. A unit of the table is a subject; one JSON file for each, so an interrupted run
goes on. --pilot takes 4 subjects. Writes subjects_KIND.md, .json and .jpg.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...evaluation.tables import Table
from ...imaging.object_picture import subject_crops
from .. import scenes
from ..models.classifier import MARGIN, SIZE, SceneClassifier, trained_classifier
from . import picture_grid
from .quality import HELD_OUT, Inpainter, Task, as_image, model_file, stacked, task_of
from .result_cache import pictures_of
from .study import (
    change,
    rows_of,
    study_folders,
    subject_cells,
    subject_file,
    training_parser,
    write_table,
)

PHOTOS, PILOT, SHOWN = 4, 4, 8
TOKEN, SIMILARITY = "sks", "subject similarity"
CAPTION, CLASS, LORA = "full caption, not trained", "class only, not trained", "LoRA"
MASKED = "LoRA, masked attention"
PHOTO, BOTH = "one photo, not trained", "LoRA and one photo"
TRAINED = (LORA, MASKED, BOTH)
WAYS = {
    "unet": (CAPTION, CLASS, LORA, MASKED),
    "fill": (CAPTION, CLASS, LORA),
    "edit": (CAPTION, CLASS, PHOTO, LORA, BOTH),
}


@dataclass(frozen=True)
class SubjectChoices:
    """Everything that decides a subject's numbers; kept with them."""

    kind: str
    steps: int
    rank: int
    learning_rate: float
    batch_size: int
    scenes: int
    sampling_steps: int
    model: str
    version: int = 2  # raise when the same choices give other numbers


@dataclass(frozen=True)
class HeldOutSubject:
    """A thing, its photos (R, H, W, 3) with masks (R, H, W), and where it shall go."""

    thing: scenes.Thing
    references: Tensor
    reference_masks: Tensor
    tasks: list[Task]


def reference_photos(
    rng: np.random.Generator, thing: scenes.Thing, count: int = PHOTOS
) -> tuple[Tensor, Tensor]:
    """Pictures (count, H, W, 3) of the thing alone, from any side, with its masks (count, H, W)."""
    alone = [scenes.sample_scene(rng, thing, others=0, scale=(0.62, 0.72)) for _ in range(count)]
    photos = [scenes.render(scene) for scene in alone]
    masks = torch.stack([torch.from_numpy(photo.mask > 0.5).float() for photo in photos])
    return torch.stack([as_image(photo.image) for photo in photos]), masks


def held_out_subject(index: int, count: int) -> HeldOutSubject:
    """Subject number `index` with `count` scenes; classes take turns, all else is drawn."""
    rng = np.random.default_rng([HELD_OUT, 12, index])
    thing = scenes.sample_thing(rng, kind=scenes.CLASSES[index % len(scenes.CLASSES)])
    references, masks = reference_photos(rng, thing)
    tasks = [task_of(scenes.sample_scene(rng, thing), rng) for _ in range(count)]
    return HeldOutSubject(thing, references, masks, tasks)


def study_recipe(model: Any, choices: Any, name: str = "DreamCom", **changes: Any) -> Any:
    """The recipe `name` for the MODEL with a study's choices: steps, rank, learning rate and batch size."""
    from ...training.finetune.diffusion_transformers import resolved_recipe
    from ...training.finetune.recipes import RECIPES

    recipe = RECIPES[name].with_choices(
        steps=choices.steps, rank=choices.rank, learning_rate=choices.learning_rate,
        batch_size=choices.batch_size, resolution=scenes.SIZE,
    )  # fmt: skip
    return resolved_recipe(replace(recipe, **changes), model)


def finetuned(
    painter: Any, subject: Any, recipe: Any, seed: int, size: int = scenes.SIZE, regular: Sequence[Any] = ()
) -> Any:
    """The MODEL of a painter (model, clip, vae) with a subject (thing, references, their masks) learned.

    `regular`: the Concepts of regular data, if there are any.
    """
    from ...host.models import apply_lora
    from ...training.finetune.pipeline import train_lora

    pipeline, data = encoded_subject(painter, subject, recipe, seed, size, regular)
    with torch.inference_mode():
        return apply_lora(painter.model, train_lora(pipeline, data, recipe, seed)[0])


def encoded_subject(
    painter: Any, subject: Any, recipe: Any, seed: int, size: int = scenes.SIZE, regular: Sequence[Any] = ()
) -> tuple[Any, Any]:
    """The Pipeline of a painter and the EncodedData of a subject, as `finetuned` trains them."""
    from ...training.finetune.data import Concept, Reference
    from ...training.finetune.pipeline import EncodedData, Pipeline, encode_captions, encode_concepts

    references = [Reference(*pair) for pair in zip(subject.references, subject.reference_masks, strict=True)]
    caption = recipe.prompt.format(token=TOKEN, class_name=subject.thing.kind)
    pipeline = Pipeline(painter.model, painter.clip, painter.vae)
    with torch.inference_mode():
        material = [Concept(caption, references), *regular]
        texts = encode_captions(pipeline, [concept.caption for concept in material], size)
        examples = encode_concepts(pipeline, material, texts, recipe, size, seed)
    return pipeline, EncodedData(examples, list(texts.values()))


def features(classifier: SceneClassifier, images: Tensor, masks: Tensor) -> Tensor:
    """Unit vectors (B, D) of what is under masks (B, H, W) of images (B, H, W, 3)."""
    with torch.no_grad():
        return classifier(subject_crops(images.movedim(-1, 1), masks, SIZE, MARGIN))


def numbers_of(classifier: SceneClassifier, images: Tensor, tasks: list[Task]) -> dict[str, float]:
    """The measures of a subject's pictures, means over its scenes."""
    holes = stacked(tasks, "hole")
    likeness = features(classifier, images, holes) * features(classifier, stacked(tasks, "truth"), holes)
    verdicts = classifier.describe(images.movedim(-1, 1), holes)
    pairs = [(verdict, task.thing) for verdict, task in zip(verdicts, tasks, strict=True)]
    right = [v.kind == thing.kind and v.colour == thing.colour for v, thing in pairs]
    trim = [v.trim == thing.trim for v, thing in pairs]
    return {
        SIMILARITY: float(likeness.sum(1).mean()),
        "class and colour": float(np.mean(right)),
        "trim": float(np.mean(trim)),
    }


def measure_subject(
    painter: Inpainter, classifier: SceneClassifier, index: int, choices: SubjectChoices
) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    """Pictures and numbers of one subject, by the way in which the model knows it."""
    from ...attention.model_patch import mask_attention

    subject = held_out_subject(index, choices.scenes)
    changes = {"hole_condition": "reference"} if choices.kind == "edit" else {}
    recipe = study_recipe(painter.model, choices, **changes)
    tuned = finetuned(painter, subject, recipe, index, scenes.SIZE)
    trained_prompt = recipe.prompt.format(token=TOKEN, class_name=subject.thing.kind)
    prompts = {CAPTION: scenes.caption(subject.thing), **dict.fromkeys(TRAINED, trained_prompt)}
    images, holes, photos = (stacked(subject.tasks, name) for name in ("background", "hole", "photo"))
    pictures: dict[str, Tensor] = {"truth": stacked(subject.tasks, "truth")}
    for way in WAYS[choices.kind]:
        words = [prompts.get(way, f"a photo of a {subject.thing.kind}")] * len(images)
        shown = photos if way in (PHOTO, BOTH) else None
        model = tuned if way in TRAINED else None
        if way == MASKED:
            model = mask_attention(tuned, [holes])
        pictures[way] = painter.paint(
            images, holes, words, shown, index, model, choices.sampling_steps
        ).cpu()  # fmt: skip
    return pictures, {way: numbers_of(classifier, pictures[way], subject.tasks) for way in pictures}


def subject_table(results: list[dict], choices: SubjectChoices, name: str) -> Table:
    """Means over subjects, and what the training and the photo change."""
    rows = rows_of(results)
    table = Table(f"Similarity to a held-out subject, {choices.kind}", rows)
    notes = [
        f"{len(results)} subjects x {choices.scenes} scenes, seed {HELD_OUT}; errors over subjects;"
        f" similarity by {name}. {choices.steps} training steps of {choices.batch_size}, rank"
        f" {choices.rank}, rate {choices.learning_rate:g}, {PHOTOS} photos.",
        change(table, LORA, CLASS, SIMILARITY),
        change(table, LORA, CAPTION, SIMILARITY),
    ]
    if choices.kind == "unet":
        notes.append(change(table, MASKED, LORA, SIMILARITY))
    if choices.kind == "edit":
        notes += [change(table, *pair, SIMILARITY) for pair in ((PHOTO, CLASS), (BOTH, PHOTO), (BOTH, LORA))]
    return replace(table, notes=notes)


def comparison_sheet(
    folder: Path, shown: Sequence[tuple[Tensor, Task, str]], ways: Sequence[str], side: int = 144
) -> Image.Image:
    """For each subject a photo | the box | every way | the truth, from the first pictures in `folder`.

    `shown` has a photo (H, W, 3), the task and the words of subject 0, 1, ...
    """
    cells = []
    for index, (photo, task, words) in enumerate(shown):
        pictures = pictures_of(subject_file(folder, index))
        panels = [picture_grid.shown(photo, side), picture_grid.shown(task.background, side, task.box)]
        panels += [picture_grid.shown(pictures[way][0], side) for way in (*ways, "truth")]
        cells.append(picture_grid.Cell(panels, [words.removeprefix("a photo of ")]))
    return picture_grid.grid(" | ".join(["a photo", "the box", *ways, "the truth"]), cells, 1)


def main():
    parser = training_parser(__doc__, "subjects", 5, PILOT)
    parser.add_argument("--kinds", nargs="*", choices=list(WAYS), help="default: what is trained")
    a = parser.parse_args()
    out, models = study_folders(a)
    classifier, count = trained_classifier(a.work), PILOT if a.pilot else a.subjects
    for kind in a.kinds or [kind for kind in WAYS if model_file(kind, models).exists()]:
        folder = out / kind
        painter = Inpainter(kind, models)
        file = painter.fingerprint(classifier)
        choices = SubjectChoices(kind, a.steps, 16, a.rate, 4, a.scenes, a.sampling_steps, file)
        measure = partial(measure_subject, painter, classifier, choices=choices)
        results = subject_cells(folder, count, choices, measure)
        write_table(subject_table(results, choices, classifier.name), out, f"subjects_{kind}")
        drawn = [held_out_subject(index, a.scenes) for index in range(min(SHOWN, count))]
        shown = [(s.references[0], s.tasks[0], scenes.caption(s.thing)) for s in drawn]
        sheet = comparison_sheet(folder, shown, WAYS[kind])
        sheet.save(out / f"subjects_{kind}.jpg", quality=88)


if __name__ == "__main__":
    main()
