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
from .data import Concept, Examples
from .lora import exported_shapes
from .lora_formats import lora_metadata, lora_names
from .plots import draw_strip
from .preview import Preview, make_preview_scene
from .recipes import Recipe
from .regular_data import concatenate_examples
from .store import Store, content_key, fingerprint
from .subject import Subject
from .trainer import SINGLE_PROCESS, ProcessGroup
from .training_loop import TrainingState

SAVE_EVERY = 100  # steps between checkpoints; an interrupt or an error saves one too
BYTES_PER_TRAINED_NUMBER = 4 + 2 * (
    4 + 8
)  # bytes a trained number: the LoRA, and two checkpoints while one replaces the other


class Pipeline(NamedTuple):
    """MODEL, CLIP and VAE of one checkpoint, as the host's loader gives them."""

    model: object
    clip: object
    vae: object


class WarmStart(NamedTuple):
    """A subject to go on from, and its weights."""

    subject: Subject
    lora: dict[str, Tensor]


@dataclass(frozen=True)
class FinetuneSpec:
    """What is to be learned and how: with the models, all that decides the result."""

    token: str
    class_name: str
    recipe: Recipe
    concept: Concept  # the subject
    regular: Sequence[Concept]  # other pictures of the class, by their prompts
    size: int  # side of the crops, in pixels
    seed: int
    previous: WarmStart | None = None
    attributes: Attributes = field(default_factory=dict)  # what the subject looks like; changes no weight


@dataclass(frozen=True)
class RunOptions:
    """How to go about it; nothing here changes the result."""

    checkpointing: bool = False  # gradient checkpointing: less memory, more time
    save_every: int = SAVE_EVERY
    preview_every: int = 0  # steps between samples; 0: none
    on_step: Callable[[int, float], None] = lambda step, loss: None
    on_picture: Callable[[int, Tensor], None] = lambda step, picture: None  # (H,W,3) in bytes
    on_stage: Callable[[str], None] = lambda stage: None  # what happens before the first step
    group: ProcessGroup = SINGLE_PROCESS  # its first process does the saving and the samples


class FinetuneResult(NamedTuple):
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


def stored_name(pipeline: Pipeline, spec: FinetuneSpec) -> str:
    """The name this spec's result is stored under: class, recipe, and a hash of all that decides it."""
    base = host.model_fingerprint(*pipeline)
    if spec.previous:
        base += fingerprint(spec.previous.lora.items())
    concept = [spec.concept, *spec.regular]
    key = content_key(concept, spec.recipe, spec.size, spec.seed, base)
    return Store.name(spec.class_name, spec.recipe, key)


def finetune_subject(
    pipeline: Pipeline, spec: FinetuneSpec, store: Store, options: RunOptions = RunOptions()
) -> FinetuneResult:
    """The stored result of this spec, trained now if it was not before, from where it was interrupted.

    Raises ValueError in the user's words, before any work where that can be known.
    """
    if spec.previous:
        check_previous(pipeline.model, spec.recipe, *spec.previous)
    options.on_stage("looking for a stored result")
    name = stored_name(pipeline, spec)
    found = store.find(name)
    if found:
        subject, lora = found
        if spec.attributes and spec.attributes != subject.attributes:
            subject = replace(subject, attributes=dict(spec.attributes))
            if options.group.number == 0:
                store.describe(name, subject)
        return FinetuneResult(subject, lora, store.find_strip(name), was_stored=True)
    _check_room(pipeline.model, spec.recipe, store)
    learned = _train(pipeline, spec, store, name, options)
    if options.group.number == 0:
        metadata = lora_metadata(pipeline.model, learned.subject, spec.recipe)
        store.save(name, learned.subject, learned.lora, metadata, learned.strip)
    return learned


def _train(
    pipeline: Pipeline, spec: FinetuneSpec, store: Store, name: str, options: RunOptions
) -> FinetuneResult:
    count = sum(len(part.references) for part in (spec.concept, *spec.regular))
    options.on_stage(f"encoding {count} photos")
    recipe, examples, resume = spec.recipe, encode_concepts(pipeline, spec), store.find_state(name)
    first, preview = options.group.number == 0, None
    if first and options.preview_every:
        words, seed = spec.concept.caption, spec.seed
        scene = make_preview_scene(
            pipeline.clip, pipeline.vae, examples[0], words, seed, recipe.masked_cross_attention
        )
        preview = Preview(scene, options.preview_every, recipe.steps, options.on_picture)
        preview.load(resume.tensors if resume else {})

    def keep(state: TrainingState) -> None:
        samples = preview.tensors() if preview else {}
        store.save_state(name, replace(state, tensors=state.tensors | samples))

    lora, losses = host.train_lora(
        pipeline.model,
        examples,
        recipe,
        spec.seed,
        resume,
        options.on_step,
        keep if first else None,
        options.save_every,
        start=spec.previous.lora if spec.previous else None,
        checkpointing=options.checkpointing,
        watch=preview,
        group=options.group,
        on_stage=options.on_stage,
    )
    strip = draw_strip(preview.pictures) if preview and preview.pictures else None
    return FinetuneResult(_subject(pipeline, spec, name, losses), lora, strip)


def encode_concepts(pipeline: Pipeline, spec: FinetuneSpec) -> list[Examples]:
    """The subject's examples and, where there are regular pictures, theirs."""
    size, seed, recipe = spec.size, spec.seed, spec.recipe
    examples = [host.encode_examples(*pipeline, spec.concept, recipe, size, seed)]
    if spec.regular:
        fewer = replace(recipe, copies=recipe.regular_copies)
        examples.append(
            concatenate_examples(
                [host.encode_examples(*pipeline, part, fewer, size, seed) for part in spec.regular]
            )
        )
    return examples


def _check_room(model, recipe: Recipe, store: Store) -> None:
    shapes = exported_shapes(model.model.diffusion_model, recipe.adapter, lora_names(model)).values()
    store.check_room(BYTES_PER_TRAINED_NUMBER * sum(torch.Size(shape).numel() for shape in shapes))


def _subject(pipeline: Pipeline, spec: FinetuneSpec, name: str, losses: list[float]) -> Subject:
    recipe = spec.recipe
    return Subject(
        token=spec.token,
        class_name=spec.class_name,
        caption=spec.concept.caption,
        lora=f"inlay/{name}.safetensors",
        recipe=recipe.name,
        family=family(pipeline.model),
        steps=recipe.steps,
        seed=spec.seed,
        rank=recipe.adapter.rank,
        attributes={kind: list(words) for kind, words in spec.attributes.items()},
        losses=losses,
        previous=spec.previous.subject.lora if spec.previous else "",
    )
