"""Seams for sampling: guiders, schedules, previews, progress and the types of results."""

from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.model_base import IP2P, Flux
from comfy.model_patcher import ModelPatcher, create_model_options_clone
from comfy.samplers import CFGGuider, Sampler
from torch import Tensor

__all__ = [
    "IP2P",
    "CFGGuider",
    "Flux",
    "Sampler",
    "create_model_options_clone",
    "flux2_sigmas",
    "intermediate_type",
    "ksampler_sigmas",
    "latent_previewer",
    "progress_bar",
    "shows_progress",
]


def ksampler_sigmas(model: ModelPatcher, sampler: str, scheduler: str, steps: int, denoise: float) -> Tensor:
    """Return the sigmas (steps + 1,) that the host's KSampler node runs."""
    return comfy.samplers.KSampler(model, steps, model.load_device, sampler, scheduler, denoise).sigmas


def flux2_sigmas(steps: int, pixels: int) -> Tensor:
    """Return the sigmas (steps + 1,) of the host's Flux2Scheduler node for a picture of so many pixels."""
    from comfy_extras.nodes_flux import get_schedule  # a module of nodes, which the host imports late

    return torch.as_tensor(get_schedule(steps, pixels // 16**2))


def latent_previewer(model: ModelPatcher) -> Any:
    """Return the host's previewer of MODEL's latents, None where previews are off."""
    return latent_preview.get_previewer(model.load_device, model.model.latent_format)


def progress_bar(steps: int) -> Any:
    """Return a progress bar of the node that runs."""
    return comfy.utils.ProgressBar(steps)


def shows_progress() -> bool:
    """Whether the host prints progress bars in its terminal."""
    return comfy.utils.PROGRESS_BAR_ENABLED


def intermediate_type() -> tuple[torch.device, torch.dtype]:
    """Return the device and the type of latents between nodes."""
    return comfy.model_management.intermediate_device(), comfy.model_management.intermediate_dtype()
