"""Seams to the host's MODEL: its network, weights, patches, noise levels, and LoRA names."""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import comfy.lora
import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock, attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import CONST, EPS, V_PREDICTION, ModelSamplingDiscrete
from torch import Tensor, nn

# How the host undoes a prediction, and what the network therefore predicts. Subclasses that do it in
# another way are none of these.
PREDICTIONS: dict[object, Literal["epsilon", "v", "velocity"]] = {
    EPS.calculate_denoised: "epsilon",
    V_PREDICTION.calculate_denoised: "v",
    CONST.calculate_denoised: "velocity",
}


def network_of(model) -> Any:
    """Return the network of a MODEL, without what wraps it."""
    return model.model.diffusion_model


def unet_of(model) -> Any | None:
    """Return the UNet of a MODEL, or None where its network is not the host's `UNetModel`."""
    network = network_of(model)
    return network if isinstance(network, UNetModel) else None


def input_channels(model) -> int:
    """Return how many channels the UNet of a MODEL reads: 4, or 9 where it inpaints."""
    return model.model.diffusion_model.in_channels


def network_config(model) -> dict[str, Any]:
    """Return what the host found out about a network from its weights, such as "in_channels"."""
    return model.model.model_config.unet_config


def unet_levels(model) -> int:
    """Return how many resolutions the UNet of a MODEL has."""
    return len(model.model.diffusion_model.channel_mult)


def concat_keys(model) -> tuple[str, ...]:
    """Return what the MODEL concatenates to its latent, in order, such as ("mask", "masked_image")."""
    return tuple(model.model.concat_keys)


def prediction_of(model) -> Literal["epsilon", "v", "velocity"] | None:
    """Return what the network of a MODEL predicts, as it is wired.

    None where it is neither noise nor v with a table of noise levels, nor the velocity of flow matching.
    """
    sampling = model.get_model_object("model_sampling")
    kind = type(sampling)
    prediction = PREDICTIONS.get(kind.calculate_denoised)
    if prediction == "velocity":
        mixes = kind.noise_scaling is CONST.noise_scaling and getattr(sampling, "noise_scale", 1.0) == 1.0
        return prediction if mixes else None
    return prediction if kind.timestep is ModelSamplingDiscrete.timestep else None


def noise_levels(model) -> Tensor:
    """Return the MODEL's noise levels (T,), from the smallest to the largest."""
    return model.get_model_object("model_sampling").sigmas


def largest_sigma(model) -> float:
    """Return the noise level at which a MODEL's schedule starts."""
    return model.get_model_object("model_sampling").sigma_max.item()


def inference_dtype(model) -> torch.dtype:
    """Return the type of the network's arithmetic."""
    return model.model.get_dtype_inference()


def block_modules(network: nn.Module) -> list[nn.Module]:
    """Return the residual and transformer blocks of a UNet; none of them lies inside another."""
    return [layer for layer in network.modules() if isinstance(layer, ResBlock | BasicTransformerBlock)]


def pytorch_attention(*args, **kwargs) -> Tensor:
    """Call the host's attention on PyTorch's kernel, which has gradients; SageAttention has none."""
    return attention_pytorch(*args, **kwargs)


# Weights


class Patch(NamedTuple):
    """One entry of a weight's patch list: what it is, in plain values, and the tensors it holds."""

    facts: tuple[str | int | float | bool | None, ...]
    tensors: tuple[Tensor, ...]


def weights_of(patcher: ModelPatcher) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and the unpatched weights of a model, wherever the host keeps them now.

    GGUF's layers give weights without memory, and one more, from which the host adds up their size.
    """
    held = dict(patcher.model.named_parameters())
    for key, weight in patcher.model.state_dict().items():
        if key in patcher.backup:
            yield key, patcher.backup[key].weight
        elif not weight.is_meta:
            yield key, weight
        elif key in held:
            yield key, outside_inference_mode(held[key])


def patches_of(patcher: ModelPatcher) -> Iterator[tuple[str, Patch]]:
    """Yield the patches on a model's weights in the order in which they are applied."""
    for key, patches in patcher.patches.items():
        for patch in _patches(patches):
            yield key, patch


def _patches(patches) -> Iterator[Patch]:
    for strength, patch, strength_model, offset, *_ in patches:
        facts = (float(strength), float(strength_model), str(offset))
        if isinstance(patch, list):
            # A merge: another model's weight and the function that converts it, then that weight's patches.
            yield Patch((*facts, "merged"), (patch[0][0],))
            for inner in _patches(patch[1:]):
                yield Patch((*facts, "merged", *inner.facts), inner.tensors)
            continue
        values = list(_flat(getattr(patch, "weights", patch)))
        plain = [value for value in values if isinstance(value, str | int | float | bool | None)]
        tensors = tuple(value for value in values if isinstance(value, Tensor))
        yield Patch((*facts, getattr(patch, "name", None), *plain), tensors)


def patch_names_as_released(patcher: ModelPatcher) -> Iterator[tuple[str, Tensor]]:
    """Yield the patches under the names that version 0.1.0 hashed, to find what it stored."""
    for key, patches in patcher.patches.items():
        yield from _as_released(key, patches)


def _as_released(place: str, patches) -> Iterator[tuple[str, Tensor]]:
    for number, (strength, patch, strength_model, offset, *_) in enumerate(patches):
        name = f"{place} {number} {strength} {strength_model} {offset}"
        if isinstance(patch, list):
            yield f"{name} merged", patch[0][0]
            yield from _as_released(name, patch[1:])
            continue
        values = list(_flat(getattr(patch, "weights", patch)))
        rest = [type(patch).__name__, *(value for value in values if not isinstance(value, Tensor))]
        for i, tensor in enumerate(value for value in values if isinstance(value, Tensor)):
            yield f"{name} {i} {rest}", tensor


def _flat(values):
    """Yield what nested lists and tuples hold, in order."""
    if not isinstance(values, list | tuple):
        yield values
        return
    for value in values:
        yield from _flat(value)


def trainable_copy(
    model,
    dtype: torch.dtype,
    device: torch.device | None = None,
    instead: Mapping[int, Tensor] = MappingProxyType({}),
) -> nn.Module:
    """Return the MODEL's network as modules of its own over the same memory, ready for gradients.

    The host makes its weights in inference mode, where autograd refuses them; a tensor made outside over the
    same storage is an ordinary one. Weights are copied only where `dtype` or `device` (default: the MODEL's)
    differs, for example under --novram. Nothing is written, and the MODEL is not changed.

    `instead`: by the ids of some weights, what the copy has instead of them.
    """
    source, device = model.model.diffusion_model, device or model.load_device
    shared: dict[int, Any] = {}
    for weight in source.parameters():
        ordinary = instead.get(id(weight))
        ordinary = outside_inference_mode(weight) if ordinary is None else ordinary
        shared[id(weight)] = nn.Parameter(ordinary.to(device, dtype), requires_grad=False)
    shared |= {id(buffer): outside_inference_mode(buffer).to(device) for buffer in source.buffers()}
    network = copy.deepcopy(source, shared)
    for layer in network.modules():
        if hasattr(layer, "comfy_cast_weights"):
            layer.comfy_cast_weights = False  # the weights have the right type already
    return network


def outside_inference_mode(tensor: Tensor) -> Tensor:
    """Return an ordinary tensor over the same memory."""
    ordinary = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return ordinary.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


def model_around(model, network: nn.Module, dtype: torch.dtype) -> ModelPatcher:
    """Return a MODEL around another network; it shares all else with `model`."""
    base = copy.copy(model.model)  # which shares its dictionary of modules, too
    sampling = model.get_model_object("model_sampling")
    base._modules = base._modules | {"diffusion_model": network, "model_sampling": sampling}
    base.manual_cast_dtype = dtype
    return ModelPatcher(base, model.load_device, model.load_device)


def load_fully(model, offload: bool = False) -> ModelPatcher:
    """Load a MODEL's weights to its device, patches applied, and return the MODEL that holds them.

    Where the host pages weights in and out by itself, that is a copy whose weights stay.

    `offload`: load them to the computer's memory instead; the MODEL that is returned has the device still.
    """
    model = model.clone(disable_dynamic=True) if offload or model.is_dynamic() else model
    device = model.load_device
    if offload:
        model.load_device = torch.device("cpu")
    # force_patch_weights: where weights stay in the computer's memory, patches wait for each layer's call
    comfy.model_management.load_models_gpu([model], force_patch_weights=True, force_full_load=True)
    model.load_device = device
    return model


# Conditions


def label_embedding(model, pooled: Tensor | None, size: int, device: torch.device) -> Tensor | None:
    """Return the label embedding (1, P) of a square picture where the network has one (SDXL), else None."""
    return model.model.encode_adm(pooled_output=pooled, width=size, height=size, device=device)


def label_at_size(model, label: Tensor, height: int, width: int) -> Tensor:
    """Return label embeddings (B, P) of SDXL with another height and width in pixels; others unchanged."""
    if "SDXL" not in type(model.model.model_config).__name__:
        return label
    sizes = label_embedding(model, label[:, :0], width, label.device)  # without a pooled vector
    assert sizes is not None
    pooled = label[:, : label.shape[1] - sizes.shape[1]]
    made = model.model.encode_adm(pooled_output=pooled, width=width, height=height, device=label.device)
    return made.to(label)


def latent_in(model, latent: Tensor) -> Tensor:
    """Return a VAE's latent as the network sees it."""
    return model.model.process_latent_in(latent)


def latent_out(model, latent: Tensor) -> Tensor:
    """Return a latent of the network as the VAE decodes it."""
    return model.model.process_latent_out(latent)


def latent_format_of(model) -> Any:
    """Return a MODEL's latent format: `latent_channels`, `latent_dimensions`, `spacial_downscale_ratio`."""
    return model.model.latent_format


# Files and LoRA names


class LoadedCheckpoint(NamedTuple):
    """MODEL, CLIP and VAE of a checkpoint; None for a part that it lacks."""

    model: Any
    clip: Any
    vae: Any


def load_checkpoint(path: str | Path, embeddings: list[str] | None = None) -> LoadedCheckpoint | None:
    """Return MODEL, CLIP and VAE of a file; None where the host finds no model in it.

    A part that the file lacks is None.
    """
    loaded = comfy.sd.load_checkpoint_guess_config(str(path), embedding_directory=embeddings)
    return None if loaded is None else LoadedCheckpoint(*loaded[:3])


def load_parts(network: str, encoders: list[str], kind: str, vae: str) -> LoadedCheckpoint:
    """Return MODEL, CLIP and VAE of separate files; `kind` is the host's type of the text encoders.

    Raises:
        KeyError: for a type that the host does not have.
    """
    clip_type = comfy.sd.CLIPType[(kind or "stable_diffusion").upper()]
    clip = comfy.sd.load_clip(encoders, folder_paths.get_folder_paths("embeddings"), clip_type=clip_type)
    weights, metadata = comfy.utils.load_torch_file(vae, return_metadata=True)
    model = comfy.sd.load_diffusion_model(network)
    return LoadedCheckpoint(model, clip, comfy.sd.VAE(sd=weights, metadata=metadata))


def lora_targets(model) -> dict[str, str]:
    """Return every name by which LoRA files call a weight of the UNet -> its module's path in the UNet."""
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    return {
        name: key.removeprefix("diffusion_model.").removesuffix(".weight")
        for name, key in keys.items()
        if isinstance(key, str)
    }


def lora_names_of(model) -> set[str]:
    """Return every name by which LoRA files call a weight of the network, or a part of one."""
    return set(comfy.lora.model_lora_keys_unet(model.model, {}))


def diffusers_paths(model) -> dict[str, str]:
    """Return a UNet's module paths in the host's names -> the same in diffusers' names."""
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    return {theirs.removesuffix(".weight"): ours.removesuffix(".weight") for ours, theirs in names.items()}


def diffusers_layers(model, table: str) -> dict[str, tuple[str, int, int | None]]:
    """Return diffusers' names of a transformer's layers -> path in the host, first row, number of rows.

    Args:
        table: the name of the host's function that maps diffusers' names to its own.
    """
    names = getattr(comfy.utils, table)(model.model.model_config.unet_config)
    found = {}
    for theirs, ours in names.items():
        path, rows = (ours, None) if isinstance(ours, str) else ours[:2]
        if theirs.endswith(".weight"):
            first, count = (0, None) if rows is None else rows[1:]
            found[theirs.removesuffix(".weight")] = (path.removesuffix(".weight"), first, count)
    return found


def apply_lora(model, lora: dict[str, Tensor], strength: float = 1.0) -> ModelPatcher:
    """Return a clone of MODEL with the LoRA on it, through the host's own loader."""
    patched: Any = comfy.sd.load_lora_for_models(model, None, lora, strength, 0.0)[0]
    return patched


# Whether a model can be trained


def can_load_fully(model) -> bool:
    """Return whether `load_fully` works: a MODEL that the host pages needs the loader that made it."""
    return not model.is_dynamic() or model.cached_patcher_init is not None
