"""Seams for guiders and conditioning values."""

from comfy.model_base import IP2P
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from node_helpers import conditioning_set_values

from .patches import ModelPatcher

__all__ = ["Guider_DualCFG", "conditioning_set_values", "dual_cfg_guider", "is_pix2pix"]


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
