"""What a `Config` names, opened: the models by the host's own loader, the pictures from their folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
import torch

from ...imaging.references import list_references, read_reference
from ..optimizers import eight_bit_installed
from .checks import check_trainable_model, crop_size
from .data import Concept, Reference, check_references
from .distributed import split_batch
from .finetune_subject import FinetuneSpec, Pipeline, RunOptions, WarmStart, caption_of, finetune_subject
from .memory import with_preset
from .presets import MEMORY_PRESETS
from .regular_data import group_by_prompt
from .regular_files import list_regular
from .store import Store, read_lora
from .subject import Subject, is_subject
from .toml_config import Config
from .trainer import ProcessGroup


@torch.inference_mode()
def finetune_from_config(
    config: Config, group: ProcessGroup, on_step: Callable[[int, float], None]
) -> tuple[Subject, Path]:
    """The subject that the config describes and where its LoRA is, trained now unless it was before.

    Raises ValueError in the user's words.
    """
    folder = config.out or Path(folder_paths.get_folder_paths("loras")[0]) / "inlay"
    store, preset = Store(folder), MEMORY_PRESETS[config.memory]
    eight_bit = eight_bit_installed() and not config.optimiser_named
    recipe = split_batch(with_preset(config.recipe, preset, eight_bit), group.size)
    words = config.token.strip(), config.class_name.strip()
    caption = caption_of(recipe, *words)
    pipeline = open_checkpoint(config.checkpoint)
    check_trainable_model(pipeline.model, recipe)
    size = crop_size(pipeline.model, recipe)
    spec = FinetuneSpec(
        *words,
        recipe,
        Concept(caption, read_references(config.references, size)),
        read_regular(config.regular, size) if config.regular and recipe.beta else [],
        size,
        config.seed,
        open_previous(config.previous) if config.previous else None,
        config.attributes,
    )
    options = RunOptions(
        checkpointing=preset.checkpointing,
        save_every=config.save_every,
        preview_every=config.preview_every,
        on_step=on_step,
        group=group,
    )
    subject = finetune_subject(pipeline, spec, store, options).subject
    return subject, store.folder / Path(subject.lora).name


def open_checkpoint(name: str) -> Pipeline:
    """MODEL, CLIP and VAE of a file, or of a name in models/checkpoints."""
    path = name if Path(name).is_file() else folder_paths.get_full_path("checkpoints", name)
    if path is None:
        raise ValueError(f"checkpoint: there is no file {name}, and none of that name in models/checkpoints.")
    loaded: Any = comfy.sd.load_checkpoint_guess_config(
        path, embedding_directory=folder_paths.get_folder_paths("embeddings")
    )
    if loaded is None or None in loaded[:3]:
        raise ValueError(f"checkpoint: {name} lacks a UNet, a text encoder or a VAE; use a whole checkpoint.")
    return Pipeline(*loaded[:3])


def read_references(folder: Path, size: int) -> list[Reference]:
    if not folder.is_dir():
        raise ValueError(f"references: there is no folder {folder}.")
    pairs = [read_reference(picture, mask) for picture, mask in list_references(folder)]
    references = [Reference(image[0], mask[0]) for image, mask in pairs]
    check_references(references, size, masked=False)
    return references


def read_regular(folder: Path, size: int) -> list[Concept]:
    files = list_regular(folder)
    pairs = [read_reference(file.image, file.mask) for file in files]
    references = [Reference(image[0], mask[0]) for image, mask in pairs]
    check_references(references, size, masked=True, kind="regular_")
    return group_by_prompt(references, [file.prompt for file in files])


def open_previous(name: str) -> WarmStart:
    found = name if Path(name).is_file() else folder_paths.get_full_path("loras", name)
    facts = Path(found).with_suffix(".json") if found else None
    text = facts.read_text(encoding="utf-8", errors="replace") if facts and facts.is_file() else ""
    if not is_subject(text):
        raise ValueError(f"previous: there is no subject {name} with its JSON file in models/loras.")
    return WarmStart(Subject.from_json(text), read_lora(Path(str(found))))
