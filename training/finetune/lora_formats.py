"""How a trained LoRA is named inside its file, and what the file says about itself."""

from collections.abc import Callable

import comfy.utils

from ...conditioning.family import family
from .recipes import Recipe
from .subject import Subject


def lora_names(model) -> Callable[[str], str]:
    """A module's path in the UNet -> the key kohya's tools use, which the host and diffusers read as well.

    SD 1.5 and 2 files name diffusers' blocks, SDXL files name the original ones.
    """
    if "SDXL" in family(model):
        return lambda path: "lora_unet_" + path.replace(".", "_")
    blocks = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    known = {theirs.removesuffix(".weight"): ours.removesuffix(".weight") for ours, theirs in blocks.items()}
    return lambda path: "lora_unet_" + known.get(path, path).replace(".", "_")


def lora_metadata(model, subject: Subject, recipe: Recipe) -> dict[str, str]:
    """What the LoRA's file says about itself: Inlay's own facts, and the keys that LoRA managers read."""
    adapter = recipe.adapter
    return {
        "inlay": subject.to_json(),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(adapter.rank),
        "ss_network_alpha": str(adapter.rank if adapter.alpha is None else adapter.alpha),
        "ss_base_model_version": {"SD15": "sd_v1", "SD20": "sd_v2"}.get(family(model), "sdxl_base_v1-0"),
        "ss_steps": str(subject.steps),
        "ss_learning_rate": str(recipe.optimiser.learning_rate),
        "modelspec.title": f"{subject.words} ({recipe.name})",
        "modelspec.trigger_phrase": subject.words,
    }
