"""Seams for image encoders and small networks: CLIP_VISION, devices, casting layers."""

from typing import Any

import comfy.clip_vision
import comfy.model_management
import comfy.ops
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

__all__ = [
    "ClipVisionModel",
    "casting_layers",
    "encoder_devices",
    "intermediate_device",
    "load_clip_vision",
    "load_on_device",
    "managed_module",
    "network_devices",
]


def casting_layers() -> Any:
    """Return the host's layer classes that cast their weights to the input's type: pass as `operations`."""
    return comfy.ops.manual_cast


def encoder_devices() -> tuple[torch.device, torch.device]:
    """Return (device to run on, device to keep on) of text and image encoders."""
    return comfy.model_management.text_encoder_device(), comfy.model_management.text_encoder_offload_device()


def network_devices() -> tuple[torch.device, torch.device]:
    """Return (device to run on, device to keep on) of diffusion networks."""
    return comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()


def intermediate_device() -> torch.device:
    """Return the device on which the host expects the results of a node."""
    return comfy.model_management.intermediate_device()


def managed_module(
    module: nn.Module, load_device: torch.device, offload_device: torch.device
) -> ModelPatcher:
    """Wrap a module so that the host moves it to its device when needed, and away when memory is short."""
    return ModelPatcher(module, load_device=load_device, offload_device=offload_device)


def load_on_device(patcher: ModelPatcher) -> None:
    """Move a managed module to its load device."""
    comfy.model_management.load_model_gpu(patcher)


def load_clip_vision(state: dict[str, Tensor]) -> Any:
    """Return the host's CLIP_VISION of a state dict, None if the host does not recognise the weights.

    A CLIP without its last projection gives the embedding before the projection: the host would leave
    `visual_projection` uninitialised.
    """
    if "pre_layrnorm.weight" in state:  # transformers 5 saves a CLIPVisionModel without the prefix
        state = {f"vision_model.{key}": value for key, value in state.items()}
    openai_layout = "visual.transformer.resblocks.0.attn.in_proj_weight" in state
    # Test before loading: the host removes weights from `state`.
    has_projection = "visual.proj" in state or "visual_projection.weight" in state
    prefix = "visual." if openai_layout else ""
    vision = comfy.clip_vision.load_clipvision_from_sd(state, prefix, convert_keys=openai_layout)
    if vision is not None and not has_projection and hasattr(vision.model, "visual_projection"):
        vision.model.visual_projection = nn.Identity()
    return vision
