"""One finetuning from what a user gives to what is stored: the node and the command line both call this."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ...conditioning.family import family
from . import host
from .attribute_dictionary import Attributes
from .checks import check_previous
from .data import Examples, Material
from .lora import exported_shapes
from .lora_formats import lora_metadata, lora_names
from .plots import draw_strip
from .preview import Preview, make_scene
from .recipes import Recipe
from .regular_data import together
from .store import Store, content_key, fingerprint
from .subject import Subject
from .trainer import ALONE, Group
from .training_loop import State

SAVE_EVERY = 100  # steps between checkpoints; an interrupt or an error saves one too
KEPT = 4 + 2 * (4 + 8)  # bytes a trained number: the LoRA, and two checkpoints while one replaces the other


class Wired(NamedTuple):
    """MODEL, CLIP and VAE of one checkpoint, as the host's loader gives them."""

    model: object
    clip: object
    vae: object


class Previous(NamedTuple):
    """A subject to go on from, and its weights."""

    subject: Subject
    lora: dict[str, Tensor]


@dataclass(frozen=True)
class Lesson:
    """What is to be learned and how: with the models, all that decides the result."""

    token: str
    class_name: str
    recipe: Recipe
    material: Material  # the subject
    regular: Sequence[Material]  # other pictures of the class, by their prompts
    size: int  # side of the crops, in pixels
    seed: int
    previous: Previous | None = None
    attributes: Attributes = field(default_factory=dict)  # what the subject looks like; changes no weight


@dataclass(frozen=True)
class Manner:
    """How to go about it; nothing here changes the result."""

    checkpointing: bool = False  # gradient checkpointing: less memory, more time
    save_every: int = SAVE_EVERY
    preview_every: int = 0  # steps between samples; 0: none
    on_step: Callable[[int, float], None] = lambda step, loss: None
    on_picture: Callable[[int, Tensor], None] = lambda step, picture: None  # (H,W,3) in bytes
    on_stage: Callable[[str], None] = lambda stage: None  # what happens before the first step
    group: Group = ALONE  # its first process does the saving and the samples


class Learned(NamedTuple):
    subject: Subject
    lora: dict[str, Tensor]
    strip: Image.Image | None = None  # samples over time, where previews were on
    was_stored: bool = False  # nothing was trained: the store had it


def caption_of(recipe: Recipe, token: str, class_name: str) -> str:
    """The sentence that the subject is learned with. Raises ValueError when a word is missing."""
    if not class_name:
        raise ValueError(
            "class_name: it is empty; say in a word or two what the subject is, for example cat."
        )
    if not token:
        raise ValueError(
            "token: it is empty; give a rare word that will stand for the subject, for example sks."
        )
    return recipe.prompt.format(token=token, class_name=class_name)


def name_of(wired: Wired, lesson: Lesson) -> str:
    """The name this lesson's result is stored under: class, recipe, and a hash of all that decides it."""
    base = host.identity(*wired)
    if lesson.previous:
        base += fingerprint(lesson.previous.lora.items())
    material = [lesson.material, *lesson.regular]
    key = content_key(material, lesson.recipe, lesson.size, lesson.seed, base)
    return Store.name(lesson.class_name, lesson.recipe, key)


def teach(wired: Wired, lesson: Lesson, store: Store, manner: Manner = Manner()) -> Learned:
    """The stored result of this lesson, trained now if it was not before, from where it was interrupted.

    Raises ValueError in the user's words, before any work where that can be known.
    """
    if lesson.previous:
        check_previous(wired.model, lesson.recipe, *lesson.previous)
    manner.on_stage("looking for a stored result")
    name = name_of(wired, lesson)
    found = store.find(name)
    if found:
        subject, lora = found
        if lesson.attributes and lesson.attributes != subject.attributes:
            subject = replace(subject, attributes=dict(lesson.attributes))
            if manner.group.number == 0:
                store.describe(name, subject)
        return Learned(subject, lora, store.find_strip(name), was_stored=True)
    _check_room(wired.model, lesson.recipe, store)
    learned = _train(wired, lesson, store, name, manner)
    if manner.group.number == 0:
        metadata = lora_metadata(wired.model, learned.subject, lesson.recipe)
        store.save(name, learned.subject, learned.lora, metadata, learned.strip)
    return learned


def _train(wired: Wired, lesson: Lesson, store: Store, name: str, manner: Manner) -> Learned:
    count = sum(len(part.references) for part in (lesson.material, *lesson.regular))
    manner.on_stage(f"encoding {count} photos")
    recipe, examples, resume = lesson.recipe, encode(wired, lesson), store.find_state(name)
    first, preview = manner.group.number == 0, None
    if first and manner.preview_every:
        words, seed = lesson.material.caption, lesson.seed
        scene = make_scene(wired.clip, wired.vae, examples[0], words, seed, recipe.masked_cross_attention)
        preview = Preview(scene, manner.preview_every, recipe.steps, manner.on_picture)
        preview.load(resume.tensors if resume else {})

    def keep(state: State) -> None:
        samples = preview.tensors() if preview else {}
        store.save_state(name, replace(state, tensors=state.tensors | samples))

    lora, losses = host.train(
        wired.model,
        examples,
        recipe,
        lesson.seed,
        resume,
        manner.on_step,
        keep if first else None,
        manner.save_every,
        start=lesson.previous.lora if lesson.previous else None,
        checkpointing=manner.checkpointing,
        watch=preview,
        group=manner.group,
        on_stage=manner.on_stage,
    )
    strip = draw_strip(preview.pictures) if preview and preview.pictures else None
    return Learned(_subject(wired, lesson, name, losses), lora, strip)


def encode(wired: Wired, lesson: Lesson) -> list[Examples]:
    """The subject's examples and, where there are regular pictures, theirs."""
    size, seed, recipe = lesson.size, lesson.seed, lesson.recipe
    examples = [host.encode_examples(*wired, lesson.material, recipe, size, seed)]
    if lesson.regular:
        fewer = replace(recipe, copies=recipe.regular_copies)
        examples.append(
            together([host.encode_examples(*wired, part, fewer, size, seed) for part in lesson.regular])
        )
    return examples


def _check_room(model, recipe: Recipe, store: Store) -> None:
    shapes = exported_shapes(model.model.diffusion_model, recipe.adapter, lora_names(model)).values()
    store.check_room(KEPT * sum(torch.Size(shape).numel() for shape in shapes))


def _subject(wired: Wired, lesson: Lesson, name: str, losses: list[float]) -> Subject:
    recipe = lesson.recipe
    return Subject(
        token=lesson.token,
        class_name=lesson.class_name,
        caption=lesson.material.caption,
        lora=f"inlay/{name}.safetensors",
        recipe=recipe.name,
        family=family(wired.model),
        steps=recipe.steps,
        seed=lesson.seed,
        rank=recipe.adapter.rank,
        attributes={kind: list(words) for kind, words in lesson.attributes.items()},
        losses=losses,
        previous=lesson.previous.subject.lora if lesson.previous else "",
    )
