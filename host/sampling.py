"""Seams to the host's sampling: a whole picture, and a network in training sampled as it stands."""

from collections.abc import Callable, Mapping
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from node_helpers import conditioning_set_values
from torch import Tensor

from ..families.table import FLUX2_SCHEDULE
from .samplers import flux2_sigmas


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
