"""Seams for sampling: whole pictures, a network in training, guiders, schedules, previews and progress."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.model_base import IP2P, Flux
from comfy.model_patcher import ModelPatcher, create_model_options_clone
from comfy.samplers import CFGGuider, Sampler
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from node_helpers import conditioning_set_values
from torch import Tensor

from ..families.table import FLUX2_SCHEDULE

__all__ = [
    "IP2P",
    "CFGGuider",
    "Flux",
    "Guider_DualCFG",
    "ResidentGuider",
    "Sampler",
    "condition",
    "conditioning_set_values",
    "conditions_of",
    "copy_guider",
    "dual_cfg_guider",
    "flux2_sigmas",
    "intermediate_type",
    "is_pix2pix",
    "ksampler_sigmas",
    "latent_previewer",
    "progress_bar",
    "sample_latent",
    "sample_resident",
    "shows_progress",
]


def sample_latent(
    model, positive, negative, latent: Tensor, noise_mask: Tensor, *, seed: int, steps: int, cfg: float,
    sampler: str, scheduler: str, callback: Callable | None = None,
) -> Tensor:  # fmt: skip
    """Return the latent that the host's KSampler gives."""
    noise = comfy.sample.prepare_noise(latent, seed)
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler, scheduler, positive, negative, latent,
        noise_mask=noise_mask, callback=callback, disable_pbar=True, seed=seed,
    )  # fmt: skip


def condition(clip, text: str, **values) -> list:
    """Return the host's CONDITIONING of a text with further values, such as concat_mask."""
    return conditioning_set_values(clip.encode_from_tokens_scheduled(clip.tokenize(text)), values)


class ResidentGuider(comfy.samplers.CFGGuider):
    """The host's guider for a network that is on its device: nothing is loaded, moved or patched."""

    def outer_sample(self, noise, latent_image, sampler, sigmas, *args, **kwargs):
        """Sample on the device of the network; arguments and result are those of the host's `CFGGuider`."""
        device, self.inner_model = self.model_patcher.load_device, self.model_patcher.model
        self.model_patcher.pre_run()
        try:
            moved = noise.to(device), latent_image.to(device), device, sampler, sigmas.to(device)
            return self.inner_sample(*moved, *args, **kwargs)
        finally:
            self.model_patcher.cleanup()


def _sigmas(model: ModelPatcher, scheduler: str, steps: int, latent: Tensor) -> Tensor:
    if scheduler == FLUX2_SCHEDULE:
        return flux2_sigmas(steps, latent.shape[-2] * latent.shape[-1] * 16**2)  # 16 pixels to a latent pixel
    return comfy.samplers.calculate_sigmas(model.model.model_sampling, scheduler, steps)


def sample_resident(
    model: ModelPatcher, positive, negative, latent: Tensor, masked: Tensor, mask: Tensor, *, seed: int,
    steps: int, cfg: float, sampler: str, scheduler: str, values: Mapping[str, Any] | None = None,
) -> Tensor:  # fmt: skip
    """Return the latent of a filled hole, by a network that is on its device already.

    Args:
        positive, negative: CONDITIONING.
        latent, masked: the picture's latent (1, C, h, w) and that of the picture with a grey hole, as the
            network sees them.
        mask: the hole (1, 1, h, w).
        values: entries of the conditions; None: those of a UNet with mask channels.
    """
    base = model.model
    hole = values
    if hole is None:
        hole = {"concat_latent_image": base.process_latent_out(masked), "concat_mask": mask}
    guider = ResidentGuider(model)
    guider.set_conds(*([[context, extra | hole] for context, extra in cond] for cond in (positive, negative)))
    guider.set_cfg(cfg)
    return guider.sample(
        torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed)),
        base.process_latent_out(latent),
        comfy.samplers.sampler_object(sampler),
        _sigmas(model, scheduler, steps, latent),
        denoise_mask=mask,
        disable_pbar=True,
        seed=seed,
    )


def ksampler_sigmas(model: ModelPatcher, sampler: str, scheduler: str, steps: int, denoise: float) -> Tensor:
    """Return the sigmas (steps + 1,) that the host's KSampler node runs."""
    return comfy.samplers.KSampler(model, steps, model.load_device, sampler, scheduler, denoise).sigmas


def flux2_sigmas(steps: int, pixels: int) -> Tensor:
    """Return the sigmas (steps + 1,) of the host's Flux2Scheduler node for a picture of so many pixels."""
    from comfy_extras.nodes_flux import get_schedule  # a module of nodes, which the host imports late

    return torch.as_tensor(get_schedule(steps, pixels // 16**2))


def conditions_of(guider: CFGGuider) -> dict[str, list[dict[str, Any]]]:
    """Return a guider's conditions by the names of its prompts, such as "positive"."""
    return guider.original_conds


def noise_schedule_of(extra_options: dict[str, Any]) -> Any:
    """Return the `model_sampling` of the MODEL that a `denoise_mask_function` is called for."""
    return extra_options["model"].inner_model.model_sampling


def copy_guider(guider: CFGGuider, conditions: dict[str, list[dict[str, Any]]]) -> CFGGuider:
    """Return a guider of the same kind with other conditions and its own options; the rest is shared."""
    copied = copy.copy(guider)
    copied.model_options = create_model_options_clone(guider.model_options)
    copied.original_conds = conditions
    return copied


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


def is_pix2pix(model: ModelPatcher) -> bool:
    """Whether MODEL is an InstructPix2Pix model: it reads a source picture's latent and no mask."""
    return isinstance(model.model, IP2P)


def dual_cfg_guider(
    model: ModelPatcher, first: list, second: list, negative: list, first_scale: float, second_scale: float
) -> Guider_DualCFG:
    """Return the host's Dual CFG guider of three CONDITIONINGs.

    Its prediction, on denoised latents, is
    negative + second_scale (second - negative) + first_scale (first - second).
    """
    guider = Guider_DualCFG(model)
    guider.set_conds(first, second, negative)
    guider.set_cfg(first_scale, second_scale)
    return guider
