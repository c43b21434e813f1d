"""What a graph wires into Train Subject, as a spec; `from_config` does the same for the command line."""

from pathlib import Path

import folder_paths

from .checks import check_trainable_model, crop_size
from .data import Concept, Reference, check_references, collect_references
from .finetune_subject import FinetuneSpec, Pipeline, WarmStart, caption_of
from .regular_data import group_by_prompt
from .store import read_lora
from .subject import Subject


def spec_from_node(
    pipeline: Pipeline,
    recipe,
    token,
    class_name,
    images,
    masks,
    regular_images,
    regular_masks,
    regular_prompt,
    seed: int,
    previous: Subject | None,
) -> tuple[FinetuneSpec, list[str]]:
    """Return the checked spec of what the node received, and the warnings to show.

    Raises:
        ValueError: in the user's words, when the inputs cannot be trained on.
    """
    caption = caption_of(recipe, token, class_name)
    check_trainable_model(pipeline.model, recipe)
    size = crop_size(pipeline.model, recipe)
    references, notes = _references(images, masks, size)
    regular = []
    if regular_images and recipe.beta:
        prompts = [prompt.strip() or f"a {class_name}" for prompt in regular_prompt]
        others, _ = _references(regular_images, regular_masks, size, "regular_")
        regular = group_by_prompt(others, prompts)
    start = previous and _with_weights(previous)
    concept = Concept(caption, references)
    return FinetuneSpec(token, class_name, recipe, concept, regular, size, seed, start), notes


def _references(images, masks, size: int, kind="") -> tuple[list[Reference], list[str]]:
    references = collect_references(images, masks, kind)
    return references, check_references(references, size, masks is not None, kind)


def _with_weights(subject: Subject) -> WarmStart:
    path = folder_paths.get_full_path("loras", subject.lora)
    if path is None:
        raise ValueError(
            f"previous: its weights, {subject.lora}, are not in models/loras any more; put them back or train"
            " it again."
        )
    return WarmStart(subject, read_lora(Path(path)))
