"""Names of a LoRA's layers: in our own files, and in other programs' files for transformers."""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ...common.lora_files import alpha_of
from ...families.table import label_of
from ...host import models
from ...host.families import config_name, family_name, family_of, is_transformer, require_family
from .lora import LOKR_PARTS
from .recipes import AdapterSpec, Recipe
from .subject import Subject

LORA_PARTS = (
    "lora_down.weight", "lora_up.weight", "alpha", "dora_scale", "diff", "diff_b", *LOKR_PARTS
)  # fmt: skip


def lora_names(model) -> Callable[[str], str]:
    """Return the function from a module's path in the UNet to the key that kohya's tools use.

    The host and diffusers read these as well. SD 1.5 and 2 files name diffusers' blocks, SDXL files name the
    original ones. Transformers' layers have the host's own names, which it reads for every family.
    """
    if is_transformer(model):
        return lambda path: f"diffusion_model.{path}"
    if "SDXL" in config_name(model):
        return lambda path: "lora_unet_" + path.replace(".", "_")
    known = models.diffusers_paths(model)
    return lambda path: "lora_unet_" + known.get(path, path).replace(".", "_")


def with_own_names(model, lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a LoRA of kohya's or diffusers' layout under the keys that a training of this MODEL writes.

    A missing alpha is the rank, so that the scale is 1, as in diffusers. Keys of other layers stay.
    """
    paths, name = models.lora_targets(model), lora_names(model)
    renamed: dict[str, Tensor] = {}
    for key, tensor in lora.items():
        layer, part = _split(key)
        renamed[f"{name(paths[layer])}.{part}" if layer in paths else key] = tensor
    for key, tensor in list(renamed.items()):
        layer, part = _split(key)
        if part == "lora_down.weight":
            renamed.setdefault(f"{layer}.alpha", torch.tensor(float(tensor.shape[0])))
    return renamed


def _split(key: str, parts: tuple[str, ...] = LORA_PARTS) -> tuple[str, str]:
    """Return a key's layer and its part, such as "lora_down.weight"."""
    part = next((part for part in parts if key.endswith(f".{part}")), "")
    return key.removesuffix(f".{part}"), part


def base_model_version(model) -> str:
    """Return how kohya's tools name the family of a MODEL; a transformer's is our own name."""
    row = family_of(model)
    if row is not None and row.transformer:
        return row.name
    return {"SD15": "sd_v1", "SD20": "sd_v2"}.get(config_name(model), "sdxl_base_v1-0")


def lora_metadata(model, subject: Subject, recipe: Recipe) -> dict[str, str]:
    """Return what the LoRA's file holds beside its weights: the subject, and keys that LoRA managers read."""
    adapter = recipe.adapter
    return {
        "inlay": subject.to_json(),
        "ss_network_module": "lycoris.kohya" if adapter.lokr else "networks.lora",
        "ss_network_dim": str(adapter.rank),
        "ss_network_alpha": str(adapter.rank if adapter.alpha is None else adapter.alpha),
        "ss_base_model_version": base_model_version(model),
        "ss_steps": str(subject.steps),
        "ss_learning_rate": str(recipe.optimiser.learning_rate),
        "modelspec.title": f"{subject.words} ({recipe.name})",
        "modelspec.trigger_phrase": subject.words,
    }


def check_diffusers_reads(adapter: AdapterSpec) -> None:
    """Raise ValueError for an adapter on a transformer that diffusers cannot read."""
    if adapter.dora or adapter.lokr:
        raise ValueError(
            "diffusers_file: diffusers reads plain LoRAs alone for this model; set dora and lokr to false, or"
            " leave diffusers_file out."
        )


def as_diffusers(model, lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a LoRA of ours on a transformer in diffusers' layout, under the names of its network.

    The parts of a weight that is fused in the host alone get the same A and their rows of B. B holds the
    scale alpha / rank, for diffusers keeps alpha outside the weights. The adapter is one that
    `check_diffusers_reads` takes.
    """
    names = require_family(model).lora
    paths = [key.removesuffix(".lora_down.weight") for key in lora if key.endswith(".lora_down.weight")]
    table: dict[str, tuple[str, int, int | None]] = {}
    if names.diffusers:
        table = {
            theirs: layer
            for theirs, layer in models.diffusers_layers(model, names.diffusers).items()
            if not (names.aliases and re.fullmatch(names.aliases, theirs))
        }
    else:
        table = {path.removeprefix("diffusion_model."): (path, 0, None) for path in paths}
    written = {}
    for theirs, (path, first, count) in table.items():
        layer = f"diffusion_model.{path.removeprefix('diffusion_model.')}"
        if layer not in paths:
            continue
        down, up = lora[f"{layer}.lora_down.weight"], lora[f"{layer}.lora_up.weight"]
        rows = up[first:] if count is None else up[first : first + count]
        scale = float(lora[f"{layer}.alpha"]) / len(down)
        written[f"transformer.{theirs}.lora_A.weight"] = down.clone()
        written[f"transformer.{theirs}.lora_B.weight"] = (rows * scale).contiguous()
    return written


# LoRAs of other programs on transformers

OTHER_PARTS = (
    *LORA_PARTS, "lora_A.weight", "lora_B.weight", "lora_A.default.weight", "lora_B.default.weight",
    "lora_A", "lora_B", "lora.down.weight", "lora.up.weight", "lora_magnitude_vector",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "w_norm", "b_norm",
)  # fmt: skip
PREFIXES = ("lora_unet_", "lora_transformer_", "diffusion_model.", "transformer.")
TEXT_ENCODERS = ("lora_te", "text_encoder", "text_encoders")


def with_host_names(model, lora: Mapping[str, Tensor], config: Mapping, name: str) -> dict[str, Tensor]:
    """Return a LoRA for a transformer with names that the host reads for this MODEL.

    musubi-tuner's Z-Image files name diffusers' split layers with underscores, which the host reads in no
    family. diffusers keeps alpha in the file's metadata, which the host never reads.

    Args:
        config: PEFT's settings in the file's metadata.
        name: of the file, for the message.

    Raises:
        ValueError: for layers that match nothing in the model.
    """
    known = models.lora_names_of(model)
    by_path = {_flat_path(each): each for each in sorted(known)}
    found, lost = {}, []
    for key, tensor in lora.items():
        layer, part = _split(key, OTHER_PARTS)
        if layer not in known and not layer.startswith(TEXT_ENCODERS):
            other = by_path.get(_flat_path(layer))
            if other is None:
                lost.append(layer)
            layer = other or layer
        found[f"{layer}.{part}" if part else key] = tensor
    if lost:
        layers = dict.fromkeys(lost)
        raise ValueError(
            f"lora_name: {len(layers)} layers of {name} match nothing in this model"
            f" ({label_of(family_name(model))}), such as {next(iter(layers))}; load the model it was trained"
            " on."
        )
    return _with_alphas(found, config)


def _flat_path(layer: str) -> str:
    for prefix in PREFIXES:
        layer = layer.removeprefix(prefix)
    return layer.replace(".", "_")


def _with_alphas(lora: dict[str, Tensor], config: Mapping) -> dict[str, Tensor]:
    """Return a LoRA with the alphas of PEFT's settings, where the file itself has none."""
    if config.get("transformer.lora_alpha") is None:
        return lora
    settings = {key.removeprefix("transformer."): value for key, value in config.items()}
    for key, tensor in list(lora.items()):
        layer, part = _split(key, OTHER_PARTS)
        if part in ("lora_A.weight", "lora_A.default.weight") and f"{layer}.alpha" not in lora:
            lora[f"{layer}.alpha"] = torch.tensor(alpha_of(layer, tensor.shape[0], settings))
    return lora
