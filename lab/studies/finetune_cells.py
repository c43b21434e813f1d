"""The cells of the finetuning tables: one subject, learned in one way, painted, edited and measured."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...evaluation import metrics
from .. import world
from ..models.classifier import Judge
from ..models.inpainter import Painter
from .dreamcom import LIKENESS, TOKEN, Subject, measured
from .placed_cases import other_colour, portraits
from .quality import HELD_OUT, SIZE, new_task, stacked

NOTHING = "before finetuning"
IDENTITY, OTHERS = "identity", "other things"
EDIT_RIGHT, EDIT_LIKENESS, OTHERS_RIGHT = "edit followed", "edit similarity", "other things right"
PROMPT = "a photo of a {token} {class_name}"  # the tiny model has read no other beginning
REGULAR_EACH = 3  # pictures of every regular prompt
WORN = {"hat": "wearing a hat", "bow": "wearing a bow", "flag": "with a flag"}
Pictures = dict[str, Tensor]  # what they show -> (B, H, W, 3) in [0, 1]
Numbers = dict[str, dict[str, float]]  # point of the study -> measure -> mean


class Way(NamedTuple):
    """One way to learn a subject: the recipe, how many references, and whether beside regular data."""

    recipe: Any
    references: int
    regular: bool = False
    regular_token: str = ""
    masked: bool = False  # masked attention at inference
    snapshots: tuple[int, ...] = ()  # measure after these steps instead of at the end


class Edit(NamedTuple):
    """A prompt, and the thing as it should look then."""

    prompt: str
    field: str
    thing: world.Thing


@dataclass(frozen=True)
class Bench:
    """What every cell is made with."""

    painter: Painter
    judge: Judge
    sampling: Mapping[str, Any]

    def paint(self, tasks, prompts: list[str], seed: int, model=None) -> Tensor:
        """The prompts painted into the tasks' holes (B, H, W, 3); the seed decides the noise."""
        backgrounds, holes = stacked(tasks, "background"), stacked(tasks, "hole")
        return self.painter.paint(backgrounds, holes, prompts, seed=seed, model=model, **self.sampling).cpu()


def file_name(row: str) -> str:
    """A row's label as part of a file's name."""
    return "".join(letter if letter.isalnum() else "-" for letter in row)


def run_cell(bench: Bench, subject: Subject, way: Way, index: int) -> tuple[Pictures, Numbers]:
    """Learn the subject that way and measure it at every snapshot; the pictures are those of the last."""
    pictures, numbers = {}, {}
    for step, model in learned(bench, subject, way, index):
        pictures = painted(bench, subject, way, model, index)
        numbers[str(step)] = scored(bench.judge, subject, pictures, index)
    return pictures, numbers


def untrained(bench: Bench, subject: Subject, index: int) -> Numbers:
    """What the model does before it has learned anything: step 0."""
    way = Way(None, len(subject.references))
    return {
        "0": scored(bench.judge, subject, painted(bench, subject, way, bench.painter.model, index), index)
    }


def learned(bench: Bench, subject: Subject, way: Way, index: int):
    """(step, MODEL with the subject as it is known then), for every snapshot of one training."""
    from ...host.models import apply_lora
    from ...training.finetune.data import Concept, Reference
    from ...training.finetune.pipeline import (
        EncodedData,
        Pipeline,
        encode_captions,
        encode_concepts,
        train_lora,
    )

    painter, recipe = bench.painter, way.recipe
    pairs = zip(subject.references[: way.references], subject.reference_masks, strict=False)
    caption = recipe.prompt.format(token=TOKEN, class_name=subject.thing.kind)
    material = [Concept(caption, [Reference(*pair) for pair in pairs])]
    with torch.inference_mode():
        pipeline = Pipeline(painter.model, painter.clip, painter.vae)
        if way.regular:
            material += regular_material(bench, subject.thing, way.regular_token, index)
        texts = encode_captions(pipeline, [concept.caption for concept in material], SIZE)
        examples = encode_concepts(pipeline, material, texts, recipe, SIZE, index)
        for step, lora in snapshots(train_lora, pipeline, EncodedData(examples), way, index):
            yield step, apply_lora(painter.model, lora)


def snapshots(train: Callable, pipeline, data, way: Way, seed: int):
    """(step, LoRA) of one run. A checkpoint's LoRA is what going on from it for no step at all gives."""
    from ...training.finetune.trainer import Callbacks, RunOptions

    recipe, kept = way.recipe, {}
    steps = way.snapshots or (recipe.steps,)
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


def attributes_of(thing: world.Thing) -> dict[str, list[str]]:
    """The dictionary that somebody who looks at the thing would type; no word names its trim."""
    found = {"colour": [thing.colour]}
    if thing.pattern != "plain":
        found["pattern"] = [thing.pattern]
    if thing.accessory != "none":
        found["accessory"] = [WORN[thing.accessory]]
    return found


def regular_material(bench: Bench, thing: world.Thing, token: str, index: int):
    """Other things of the subject's kind, painted by the model itself, by prompt (DreamMix, sec. 3.3)."""
    from ...training.finetune.attribute_dictionary import SUBJECT, compose_prompts
    from ...training.finetune.data import Reference
    from ...training.finetune.regular_data import changed_mask, group_by_prompt, random_box

    template = f"a photo of a {SUBJECT}"
    prompts = compose_prompts(attributes_of(thing), thing.kind, token, 8, index, template)
    said = [prompt for prompt in prompts for _ in range(REGULAR_EACH)]
    rng = np.random.default_rng([HELD_OUT, 5, index])
    rooms = torch.stack([new_task(rng, thing).background for _ in said])
    holes = torch.cat([random_box(SIZE, SIZE, 100 * index + number) for number in range(len(said))])
    images = bench.painter.paint(rooms, holes, said, seed=index, **bench.sampling).cpu()
    outlines = [changed_mask(*triple) for triple in zip(images, rooms, holes, strict=True)]
    return group_by_prompt([Reference(*pair) for pair in zip(images, outlines, strict=True)], said)


def edits_of(thing: world.Thing, index: int) -> list[Edit]:
    """The subject in another colour, with another pattern, wearing something else; the token comes first."""
    rng = np.random.default_rng([HELD_OUT, 6, index])
    new = {
        "colour": other_colour(rng, thing),
        "pattern": str(rng.choice([p for p in world.PATTERNS if p not in ("plain", thing.pattern)])),
        "accessory": str(rng.choice([a for a in WORN if a != thing.accessory])),
    }
    edits = []
    for field, value in new.items():
        looks = [TOKEN] if field == "accessory" else [TOKEN, value]
        worn = value if field == "accessory" else "none"
        edits.append(Edit(world.phrase(looks, thing.kind, worn), field, thing.posed(**{field: value})))
    return edits


def other_things(thing: world.Thing, count: int, index: int) -> list[world.Thing]:
    """Things of the same kind that are not the subject: do their captions still give them?"""
    rng = np.random.default_rng([HELD_OUT, 7, index])
    return [
        world.sample_thing(rng, kind=thing.kind, colour=other_colour(rng, thing), accessory="none")
        for _ in range(count)
    ]


def painted(bench: Bench, subject: Subject, way: Way, model, index: int) -> Pictures:
    """The subject in every room, each of its edits, and other things of its kind: all in one batch."""
    rooms = len(subject.tasks)
    prompt = (way.recipe.prompt if way.recipe else PROMPT).format(token=TOKEN, class_name=subject.thing.kind)
    said = {IDENTITY: [prompt] * rooms}
    said |= {edit.field: [edit.prompt] * rooms for edit in edits_of(subject.thing, index)}
    said[OTHERS] = [world.caption(thing) for thing in other_things(subject.thing, rooms, index)]
    tasks = subject.tasks * len(said)
    if way.masked:
        from ...attention.model_patch import mask_attention

        model = mask_attention(model, [stacked(tasks, "hole")])
    images = bench.paint(tasks, [words for part in said.values() for words in part], index, model)
    return dict(zip(said, images.split(rooms), strict=True))


def scored(judge: Judge, subject: Subject, pictures: Pictures, index: int) -> dict[str, float]:
    """Every measure's mean over the rooms."""
    holes = stacked(subject.tasks, "hole")
    numbers = measured(judge, subject, pictures[IDENTITY])
    likeness = []
    for edit in edits_of(subject.thing, index):
        images = pictures[edit.field].movedim(-1, 1)
        wanted, masks = portraits(edit.thing, len(subject.references), index)
        verdicts = judge.describe(images, holes)
        numbers[f"{edit.field} edit"] = float(
            np.mean([getattr(verdict, edit.field) == getattr(edit.thing, edit.field) for verdict in verdicts])
        )
        with torch.no_grad():
            alike = metrics.subject_similarity(judge, images, holes, wanted.movedim(-1, 1), masks)
        likeness.append(float(alike.mean()))
    numbers[EDIT_RIGHT] = float(
        np.mean([numbers[f"{field} edit"] for field in ("colour", "pattern", "accessory")])
    )
    numbers[EDIT_LIKENESS] = float(np.mean(likeness))
    things = other_things(subject.thing, len(subject.tasks), index)
    verdicts = judge.describe(pictures[OTHERS].movedim(-1, 1), holes)
    right = [v.kind == t.kind and v.colour == t.colour for v, t in zip(verdicts, things, strict=True)]
    return numbers | {OTHERS_RIGHT: float(np.mean(right)), LIKENESS: numbers[LIKENESS]}
