"""One finetuning from a checked spec to what is stored: the node and the command line both call this."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import folder_paths
import torch
from PIL import Image
from torch import Tensor

from ...common.log import logger
from ...host.devices import DelayedTermination
from ...host.families import family_name, is_transformer, require_family, settings_of
from ...host.models import network_of
from ..optimizers import eight_bit_installed
from .checks import check_previous
from .data import Examples
from .generation import Preview, make_preview_scene
from .lora import exported_shapes
from .lora_formats import as_diffusers, check_diffusers_reads, lora_metadata, lora_names
from .memory import with_preset
from .pipeline import (
    EncodedData,
    EncodedText,
    Pipeline,
    encode_background,
    encode_captions,
    encode_concepts,
    encode_held_out,
    encode_references,
    pipeline_fingerprint,
    released_fingerprints,
    train_lora,
)
from .progress import draw_strip
from .recipes import MEMORY_PRESETS, Recipe
from .spec import FinetuneSpec, read_samples, spec_from_toml
from .store import Store, content_key, fingerprint, released_key
from .subject import Subject
from .toml_config import Config
from .trainer import (
    DEFAULT_OPTIONS,
    Callbacks,
    HeldOutLoss,
    ProcessGroup,
    RunOptions,
    TrainingState,
    split_batch,
)

# Bytes for each trained number: the LoRA, and two checkpoints while one replaces the other.
BYTES_PER_TRAINED_NUMBER = 4 + 2 * (4 + 8)


class FinetuneResult(NamedTuple):
    """A subject, its LoRA, samples over time where previews were on, and whether the store had it already."""

    subject: Subject
    lora: dict[str, Tensor]
    strip: Image.Image | None = None
    was_stored: bool = False


def stored_names(pipeline: Pipeline, spec: FinetuneSpec, texts: dict[str, EncodedText]) -> list[str]:
    """Return the names this spec's result may be stored under: today's, then those of version 0.1.0."""
    concepts = [spec.concept, *spec.regular]
    previous = fingerprint(spec.previous.lora.items()) if spec.previous else ""
    previous += json.dumps(list(spec.captions)) if spec.captions else ""
    base = pipeline_fingerprint(pipeline, texts) + previous
    key = content_key(concepts, spec.recipe, spec.size, spec.seed, base)
    names = [Store.name(spec.class_name, spec.recipe, key)]
    if pipeline.inpaint_patch is None and not spec.captions and not is_transformer(pipeline.model):
        for released in released_fingerprints(pipeline):
            key = released_key(concepts, spec.recipe, spec.size, spec.seed, released + previous)
            if key:
                names.append(Store.released_name(spec.class_name, spec.recipe, key))
    return names


def finetune_subject(
    pipeline: Pipeline, spec: FinetuneSpec, store: Store, options: RunOptions = DEFAULT_OPTIONS
) -> FinetuneResult:
    """Return the stored result of this spec; train it first, or the rest of it, where there is none.

    Raises:
        ValueError: in the user's words, before any work where that can be known.
    """
    if spec.previous:
        check_previous(pipeline.model, spec.recipe, *spec.previous)
    options.callbacks.on_stage("looking for a stored result")
    first, pipeline = options.group.number == 0, pipeline.with_deltas()
    texts = encode_captions(pipeline, spec.texts(), spec.size)
    names = stored_names(pipeline, spec, texts)
    if spec.held_out:  # after the names, which it does not decide
        texts |= encode_captions(pipeline, [spec.held_out.caption], spec.size)
    for name in names:
        found = store.find(name)
        if found:
            subject = _with_attributes(store if first else None, name, found[0], spec)
            return FinetuneResult(subject, found[1], store.find_strip(name), was_stored=True)
    if first:
        store.check_room(_bytes_to_store(pipeline, spec.recipe))
        store.prune_states(names[0])
    with DelayedTermination() as termination:
        result = _train(pipeline, spec, texts, store, names, options, termination)
        if first:
            metadata = lora_metadata(pipeline.model, result.subject, spec.recipe)
            store.save(names[0], result.subject, result.lora, metadata, result.strip)
            for name in names[1:]:
                store.drop_state(name)
    return result


def finetune_from_config(
    config: Config,
    group: ProcessGroup,
    on_step: Callable[[int, float], None],
    on_plan: Callable[[int], None] = lambda steps: None,
) -> tuple[Subject, Path]:
    """Return the subject that a config describes and where its LoRA is; train it where there is none.

    `on_plan(steps)` is called before the training with its number of steps.

    Raises:
        ValueError: in the user's words.
    """
    with torch.inference_mode():
        folder = config.out or Path(folder_paths.get_folder_paths("loras")[0]) / "inlay"
        store, preset = Store(folder), MEMORY_PRESETS[config.memory]
        eight_bit = eight_bit_installed() and not config.optimiser_named
        recipe = split_batch(with_preset(config.recipe, preset, eight_bit), group.size)
        pipeline, spec = spec_from_toml(config, recipe)
        for_diffusers = config.diffusers_file and is_transformer(pipeline.model)
        if for_diffusers:
            check_diffusers_reads(spec.recipe.adapter)
        on_plan(spec.recipe.steps)
        options = RunOptions(
            checkpointing=preset.checkpointing,
            card=preset.card,
            save_every=config.save_every,
            preview_every=config.preview_every,
            samples=read_samples(config),
            callbacks=Callbacks(on_step=on_step),
            group=group,
        )
        subject, lora, *_ = finetune_subject(pipeline, spec, store, options)
        name = Path(subject.lora).stem
        if for_diffusers and group.number == 0 and not store.has_for_diffusers(name):
            store.save_for_diffusers(name, as_diffusers(pipeline.model, lora))
        return subject, store.folder / Path(subject.lora).name


def _train(
    pipeline: Pipeline,
    spec: FinetuneSpec,
    texts: dict[str, EncodedText],
    store: Store,
    names: list[str],
    options: RunOptions,
    termination: DelayedTermination,
) -> FinetuneResult:
    recipe, group = spec.recipe, options.group
    concepts = [spec.concept, *spec.regular]
    count = sum(len(concept.references) for concept in concepts)
    options.callbacks.on_stage(f"encoding {count} photos")
    own, of_class = spec.captions, spec.class_captions
    examples = encode_concepts(pipeline, concepts, texts, recipe, spec.size, spec.seed, own, of_class)
    states = (store.find_state(name) for name in names)
    resume = next((state for state in states if state), None)
    references = encode_references(pipeline, spec.concept, spec.size) if recipe.subject_references else []
    preview = (
        _preview(pipeline, spec, examples[0].first, references, options) if options.preview_every else None
    )
    if preview and resume:
        preview.load(resume.tensors)

    held_out = _held_out(pipeline, spec, texts, options)
    if held_out and resume:
        held_out.load(resume.tensors)

    def keep(state: TrainingState) -> None:
        samples = preview.tensors() if preview else {}
        points = held_out.tensors() if held_out else {}
        store.save_state(names[0], replace(state, tensors=state.tensors | samples | points))

    def on_step(step: int, loss: float) -> None:
        options.callbacks.on_step(step, loss)
        termination.check()

    data = EncodedData(
        examples, list(texts.values()), list(texts).index("") if "" in texts else 0, references
    )
    callbacks = replace(options.callbacks, on_step=on_step, on_save=keep if group.number == 0 else None)
    lora, losses = train_lora(
        pipeline,
        data,
        recipe,
        spec.seed,
        replace(options, callbacks=callbacks),
        start=spec.previous.lora if spec.previous else None,
        resume=resume,
        held_out=held_out,
        after_step=preview,
    )
    strip = draw_strip(preview.pictures) if preview and preview.pictures else None
    points = [list(point) for point in held_out.points] if held_out else []
    subject = replace(_subject(pipeline, spec, names[0], losses), held_out=points)
    return FinetuneResult(subject, lora, strip)


def _held_out(
    pipeline: Pipeline, spec: FinetuneSpec, texts: dict[str, EncodedText], options: RunOptions
) -> HeldOutLoss | None:
    if spec.held_out is None or options.group.number:
        return None
    rows = encode_held_out(
        pipeline, spec.held_out, texts, spec.recipe, spec.size, len(spec.concept.references)
    )
    return HeldOutLoss(rows, spec.recipe.steps, options.callbacks.on_held_out)


def _preview(
    pipeline: Pipeline,
    spec: FinetuneSpec,
    examples: Examples,
    references: Sequence[Tensor],
    options: RunOptions,
) -> Preview | None:
    if options.group.number:
        return None
    shown, others = None, references[1:]  # the first picture is the one that is painted
    if options.samples.background is not None:
        others = references
        examples, shown = encode_background(pipeline, options.samples.background, spec.size)
    scenes = [
        make_preview_scene(
            pipeline.clip,
            pipeline.vae,
            examples,
            prompt,
            (spec.seed + number) % 2**64,
            spec.recipe.masked_cross_attention,
            pipeline.inpaint_patch,
        )._replace(shown=shown)
        for number, prompt in enumerate(options.samples.prompts or [spec.concept.caption])
    ]
    if is_transformer(pipeline.model):
        row, settings = require_family(pipeline.model), settings_of(pipeline.model)
        scenes = [
            scene._replace(
                family=row,
                settings=settings,
                condition=spec.recipe.hole_condition,
                references=others[: spec.recipe.subject_references],
            )
            for scene in scenes
        ]
    return Preview(scenes, options.preview_every, spec.recipe.steps, options.callbacks.on_preview)


def _with_attributes(store: Store | None, name: str, subject: Subject, spec: FinetuneSpec) -> Subject:
    """Return a stored subject with the spec's attributes; `store` keeps them, unless it is None."""
    if not spec.attributes or spec.attributes == subject.attributes:
        return subject
    subject = replace(subject, attributes={kind: list(words) for kind, words in spec.attributes.items()})
    if store:
        try:
            store.describe(name, subject)
        except ValueError as error:  # a read-only store still gives what it holds
            logger.warning(f"Inlay: the new attributes are not kept: {error}")
    return subject


def _bytes_to_store(pipeline: Pipeline, recipe: Recipe) -> int:
    network = network_of(pipeline.model)
    shapes = exported_shapes(network, recipe.adapter, lora_names(pipeline.model)).values()
    return BYTES_PER_TRAINED_NUMBER * sum(torch.Size(shape).numel() for shape in shapes)


def _subject(pipeline: Pipeline, spec: FinetuneSpec, name: str, losses: list[float]) -> Subject:
    recipe = spec.recipe
    return Subject(
        token=spec.token,
        class_name=spec.class_name,
        caption=spec.concept.caption,
        lora=f"inlay/{name}.safetensors",
        recipe=recipe.name,
        family=family_name(pipeline.model),
        steps=recipe.steps,
        seed=spec.seed,
        rank=recipe.adapter.rank,
        attributes={kind: list(words) for kind, words in spec.attributes.items()},
        losses=losses,
        previous=spec.previous.subject.lora if spec.previous else "",
    )
