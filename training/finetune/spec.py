"""What is to be trained: one spec with two front ends, the node's inputs and the command line's TOML file."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import folder_paths
from torch import Tensor

from ...common.log import logger
from ...common.lora_files import as_kohya, peft_config
from ...conditioning.compatibility import check_clip_fits, check_vae_fits
from ...host import models
from ...imaging.references import is_whole_frame, list_references, read_captions, read_reference
from .attribute_dictionary import Attributes
from .checks import check_trainable_model, crop_grid, crop_size
from .data import (
    Concept,
    Reference,
    check_references,
    collect_background,
    collect_references,
    crop_shapes,
    small_photo_notes,
)
from .diffusion_transformers import distilled_note, resolved_recipe, with_family_numbers
from .generation import prompts_in
from .lora_formats import with_own_names
from .pipeline import Pipeline
from .recipes import Recipe
from .regular_data import group_by_prompt, list_regular
from .store import read_lora
from .subject import Subject, check_words, is_subject
from .toml_config import Config
from .trainer import SampleOptions


class WarmStart(NamedTuple):
    """A subject to go on from, and its weights."""

    subject: Subject
    lora: dict[str, Tensor]


@dataclass(frozen=True)
class FinetuneSpec:
    """What is to be learned and how: with the pipeline, all that decides the result."""

    token: str
    class_name: str
    recipe: Recipe
    concept: Concept  # the subject
    regular: Sequence[Concept]  # other pictures of the class, by their prompts
    size: int  # side of the crops, in pixels
    seed: int
    previous: WarmStart | None = None
    attributes: Attributes = field(default_factory=dict)  # what the subject looks like; changes no weight
    captions: Sequence[str] = ()  # of each picture of the subject, where they have their own
    held_out: Concept | None = None  # a picture of the subject that is not trained on; changes no weight

    @property
    def class_captions(self) -> list[str]:
        """The caption of each picture with the class instead of the token, for output preservation."""
        if not self.recipe.preservation:
            return []
        captions = self.captions or [self.concept.caption] * len(self.concept.references)
        return [without_token(caption, self.token, self.class_name) for caption in captions]

    def texts(self) -> list[str]:
        """Return every caption of the training once; the empty one is the last, where it is needed."""
        captions = [self.concept.caption, *(part.caption for part in self.regular)]
        captions += [*self.captions, *self.class_captions, *[""] * (self.recipe.caption_dropout > 0)]
        return list(dict.fromkeys(captions))


def check_others(recipe: Recipe, concept: Concept) -> None:
    """Raise ValueError where there is no second picture to show beside the one that is painted."""
    if recipe.subject_references and len(concept.references) < 2:
        raise ValueError(
            "subject_references: there is one picture of the subject, and none is shown beside itself; add"
            " pictures, or set it to 0."
        )


FEWEST_TO_HOLD_OUT = 5  # pictures of which one can be spared


def without_held_out(
    concept: Concept, captions: list[str], wanted: bool
) -> tuple[Concept, list[str], Concept | None, list[str]]:
    """Return concept and captions without the last picture, that picture, and warnings to show.

    Nothing is taken away where it is not wanted, or where there are fewer than FEWEST_TO_HOLD_OUT pictures.
    """
    references = concept.references
    if not wanted:
        return concept, captions, None, []
    if len(references) < FEWEST_TO_HOLD_OUT:
        note = (
            f"held_out: it takes {FEWEST_TO_HOLD_OUT} pictures or more and there are {len(references)}; all"
            " of them are trained on."
        )
        logger.warning(f"Inlay: {note}")
        return concept, captions, None, [note]
    held_out = Concept(captions[-1] if captions else concept.caption, references[-1:])
    return Concept(concept.caption, references[:-1]), captions[:-1], held_out, []


def without_token(caption: str, token: str, class_name: str) -> str:
    """Return a caption in which the class stands for the token."""
    for words in (f"{token} {class_name}", token):
        caption = re.sub(_as_word(words), lambda found: class_name, caption)
    return caption


def _as_word(token: str) -> str:
    """Return a regular expression for a token that is no part of a longer word, as sks is of desks."""
    return rf"(?<![A-Za-z0-9]){re.escape(token)}(?![A-Za-z0-9])"


def own_captions(
    recipe: Recipe, token: str, class_name: str, captions: Sequence[str], count: int
) -> list[str]:
    """Return the caption of each of `count` pictures; the recipe's prompt precedes one without token.

    Raises:
        ValueError: for another number of captions.
    """
    captions = [caption.strip() for caption in captions]
    if not any(captions):
        return []
    if len(captions) not in (1, count):
        raise ValueError(
            f"captions: there are {len(captions)} for {count} pictures; give one for each picture, or one for"
            " all of them."
        )
    captions = captions * count if len(captions) == 1 else captions
    prompt = caption_of(recipe, token, class_name)
    named = re.compile(_as_word(token))
    return [
        caption if named.search(caption) else f"{prompt}, {caption}" if caption else prompt
        for caption in captions
    ]


def caption_of(recipe: Recipe, token: str, class_name: str) -> str:
    """Return the sentence that the subject is learned with. Raises ValueError when a word is missing."""
    if not class_name:
        raise ValueError(
            "class_name: it is empty; say in a word or two what the subject is, for example cat."
        )
    if not token:
        raise ValueError(
            "token: it is empty; give a rare word that will stand for the subject, for example sks."
        )
    check_words("class_name", class_name)
    check_words("token", token)
    return recipe.prompt.format(token=token, class_name=class_name)


def spec_from_node(
    pipeline: Pipeline,
    recipe: Recipe,
    token: str,
    class_name: str,
    images: Sequence[Tensor],
    masks: Sequence[Tensor] | None,
    regular_images: Sequence[Tensor] | None,
    regular_masks: Sequence[Tensor] | None,
    regular_prompt: Sequence[str],
    seed: int,
    previous: Subject | None,
    attributes: Attributes,
    captions: Sequence[str] = (),
    held_out: bool = False,
) -> tuple[FinetuneSpec, list[str]]:
    """Return the checked spec of what the node received, and the warnings to show.

    Raises:
        ValueError: in the user's words, when the inputs cannot be trained on.
    """
    token, class_name = token.strip(), class_name.strip()
    caption = caption_of(recipe, token, class_name)
    recipe = resolved_recipe(recipe, pipeline.model)
    check_trainable_model(pipeline.model, recipe, pipeline.inpaint_patch is not None)
    check_vae_fits(pipeline.model, pipeline.vae)
    size = crop_size(pipeline.model, recipe)
    references = collect_references(images, masks)
    notes = check_references(references, size, masks is not None)
    notes += small_photo_notes(references, crop_shapes(references, recipe, size, crop_grid(pipeline.model)))
    notes += _distilled_notes(pipeline.model)
    regular = []
    own = own_captions(recipe, token, class_name, captions, len(references))
    if regular_images and recipe.preservation:
        raise ValueError(
            "regular_images: output preservation takes their place; leave them out, or choose another recipe."
        )
    if regular_images and recipe.uses_regular:
        prompts = [prompt.strip() or f"a {class_name}" for prompt in regular_prompt]
        others = collect_references(regular_images, regular_masks, "regular_")
        notes += check_references(others, size, regular_masks is not None, "regular_")
        regular = group_by_prompt(others, prompts)
    elif regular_images or regular_masks:
        notes.append(_unused_note("regular_images" if regular_images else "regular_masks", recipe))
    start = None
    if previous:
        path = folder_paths.get_full_path("loras", previous.lora)
        if path is None:
            raise ValueError(
                f"previous: its weights, {previous.lora}, are not in models/loras any more; put them back or"
                " train it again."
            )
        start = read_previous(pipeline, previous, Path(path))
    check_clip_fits(pipeline.model, pipeline.clip)
    concept, own, apart, held_notes = without_held_out(Concept(caption, references), own, held_out)
    check_others(recipe, concept)
    spec = FinetuneSpec(
        token, class_name, recipe, concept, regular, size, seed, start, attributes, own, apart
    )
    return spec, notes + held_notes


def spec_from_toml(config: Config, recipe: Recipe) -> tuple[Pipeline, FinetuneSpec]:
    """Return the pipeline that a `Config` names, and its checked spec for `recipe`.

    Raises:
        ValueError: in the user's words, when what it names cannot be opened or trained on.
    """
    token, class_name = config.token.strip(), config.class_name.strip()
    caption = caption_of(recipe, token, class_name)
    pipeline = open_parts(config) if config.text_encoders else open_checkpoint(config.checkpoint)
    recipe = resolved_recipe(with_family_numbers(recipe, pipeline.model), pipeline.model)
    check_trainable_model(pipeline.model, recipe)
    _distilled_notes(pipeline.model)
    size = crop_size(pipeline.model, recipe)
    concept = Concept(caption, read_references(config.references, size))
    shapes = crop_shapes(concept.references, recipe, size, crop_grid(pipeline.model))
    small_photo_notes(concept.references, shapes)
    captions = read_captions(config.references)
    own = own_captions(recipe, token, class_name, captions, len(concept.references))
    if config.regular and recipe.preservation:
        raise ValueError("regular: output preservation takes its place; leave one of them out.")
    regular = read_regular(config.regular, size) if config.regular and recipe.uses_regular else []
    if config.regular and not recipe.uses_regular:
        _unused_note("regular", recipe)
    previous = open_previous(pipeline, config.previous) if config.previous else None
    concept, own, apart, _ = without_held_out(concept, own, config.held_out)
    check_others(recipe, concept)
    seed, looks = config.seed, config.attributes
    spec = FinetuneSpec(token, class_name, recipe, concept, regular, size, seed, previous, looks, own, apart)
    return pipeline, spec


def _unused_note(name: str, recipe: Recipe) -> str:
    """Return a warning that the input `name` changes nothing in this training; it is logged too."""
    note = f"{name}: the recipe {recipe.name} does not use them; choose DreamMix, or leave them out."
    if recipe.uses_regular:  # then these are masks alone
        note = f"{name}: they have no pictures; wire regular_images as well."
    logger.warning(f"Inlay: {note}")
    return note


def _distilled_notes(model) -> list[str]:
    """Return a warning where a MODEL is distilled to a few steps; it is logged too."""
    note = distilled_note(model)
    if not note:
        return []
    logger.warning(f"Inlay: {note}")
    return [note]


def open_checkpoint(name: str) -> Pipeline:
    """Return MODEL, CLIP and VAE of a file, or of a name in models/checkpoints."""
    path = name if Path(name).is_file() else folder_paths.get_full_path("checkpoints", name)
    if path is None:
        raise ValueError(f"checkpoint: there is no file {name}, and none of that name in models/checkpoints.")
    loaded = models.load_checkpoint(path, folder_paths.get_folder_paths("embeddings"))
    if loaded is None or None in loaded:
        raise ValueError(f"checkpoint: {name} lacks a UNet, a text encoder or a VAE; use a whole checkpoint.")
    return Pipeline(*loaded)


def open_parts(config: Config) -> Pipeline:
    """Return MODEL, CLIP and VAE of a model in several files, by their names or paths."""
    places = (
        ("checkpoint", "diffusion_models", (config.checkpoint,)),
        ("text_encoders", "text_encoders", config.text_encoders),
        ("vae", "vae", (config.vae,)),
    )
    found: dict[str, list[str]] = {}
    for key, folder, names in places:
        found[key] = []
        for name in names:
            path = name if Path(name).is_file() else folder_paths.get_full_path(folder, name)
            if path is None:
                raise ValueError(f"{key}: there is no file {name}, and none of that name in models/{folder}.")
            found[key].append(path)
    try:
        loaded = models.load_parts(
            found["checkpoint"][0], found["text_encoders"], config.text_encoder_type, found["vae"][0]
        )
    except KeyError:
        raise ValueError(
            f"text_encoder_type: the host has no {config.text_encoder_type!r}; take the type of Load CLIP for"
            " this model, such as flux, flux2, qwen_image, lumina2 or krea2."
        ) from None
    return Pipeline(*loaded)


def read_references(folder: Path, size: int) -> list[Reference]:
    """Return the pictures of a folder with their masks."""
    if not folder.is_dir():
        raise ValueError(f"references: there is no folder {folder}.")
    pairs = [read_reference(picture, mask) for picture, mask in list_references(folder)]
    references = [Reference(image[0], mask[0]) for image, mask in pairs]
    check_references(references, size, masked=False)
    return references


def read_samples(config: Config) -> SampleOptions:
    """Return what the samples of a training show. Raises ValueError for a picture without a hole."""
    prompts = prompts_in("\n".join(config.sample_prompts))
    if config.sample_image is None:
        return SampleOptions(prompts)
    if not config.sample_image.is_file():
        raise ValueError(f"sample_image: there is no file {config.sample_image}.")
    masks = {picture.name: mask for picture, mask in list_references(config.sample_image.parent)}
    image, mask = read_reference(config.sample_image, masks.get(config.sample_image.name), "sample_image")
    if is_whole_frame(mask):
        raise ValueError(
            f"sample_image: {config.sample_image.name} shows no place to fill; put"
            f" {config.sample_image.stem}_mask.png beside it, white where the subject goes."
        )
    return SampleOptions(prompts, collect_background(image, mask))


def read_regular(folder: Path, size: int) -> list[Concept]:
    """Return the regular pictures of a folder by their prompts."""
    files = list_regular(folder)
    pairs = [read_reference(file.image, file.mask) for file in files]
    references = [Reference(image[0], mask[0]) for image, mask in pairs]
    check_references(references, size, masked=True, kind="regular_")
    return group_by_prompt(references, [file.prompt for file in files])


def open_previous(pipeline: Pipeline, name: str) -> WarmStart:
    """Return the subject of a LoRA's file, or of its name in models/loras, with its weights."""
    found = name if Path(name).is_file() else folder_paths.get_full_path("loras", name)
    facts = Path(found).with_suffix(".json") if found else None
    text = facts.read_text(encoding="utf-8", errors="replace") if facts and facts.is_file() else ""
    if not is_subject(text):
        raise ValueError(f"previous: there is no subject {name} with its JSON file in models/loras.")
    return read_previous(pipeline, Subject.from_json(text), Path(str(found)))


def read_previous(pipeline: Pipeline, subject: Subject, path: Path) -> WarmStart:
    """Return a subject with its weights, in kohya's or diffusers' layout, named as a training names them."""
    lora = as_kohya(read_lora(path), peft_config(path))
    return WarmStart(subject, with_own_names(pipeline.model, lora))
