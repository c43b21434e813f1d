"""Guidance by an object and by a picture, each with its own scale (Brooks et al. 2023, eq. 3).

    eps = eps(0, 0) + s (eps(object, picture) - eps(0, picture)) + s_I (eps(0, picture) - eps(0, 0))

The host's Dual CFG guider computes exactly this, from denoised latents, which are linear in eps: its first
condition is (object, picture), its second (0, picture), its negative (0, 0).
"""

import node_helpers
from comfy.model_base import IP2P
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from torch import Tensor


def check_pix2pix_model(model: ModelPatcher, width: int) -> None:
    """Raises ValueError for a model that does not read a source picture beside the noisy latent, or whose
    context is of another width than what replaces its words."""
    facts = model.model.model_config.unet_config
    if not isinstance(model.model, IP2P):
        channels = facts.get("in_channels")
        kind = {4: "a text-to-image model", 9: "an inpainting model"}.get(channels, "another model")
        raise ValueError(
            f"model: this is {kind} ({channels} channels); load an InstructPix2Pix model (8 channels)."
        )
    if facts.get("context_dim") != width:
        raise ValueError(
            f"model: it reads context of width {facts.get('context_dim')}, but the embedding optimizer makes"
            f" {width}; load the model it was trained with."
        )


def with_source(conditioning: list, latent: Tensor) -> list:
    """The CONDITIONING beside the source picture's latent (B, C, h, w), which the model reads unscaled."""
    return node_helpers.conditioning_set_values(conditioning, {"concat_latent_image": latent})


def two_scale_guider(
    model: ModelPatcher, context: list, nothing: list, source: Tensor, object_scale: float, image_scale: float
) -> Guider_DualCFG:
    """The GUIDER of the formula above; `context` and `nothing` are CONDITIONINGs of object and no object."""
    guider = Guider_DualCFG(model)
    guider.set_conds(
        with_source(context, source), with_source(nothing, source), with_source(nothing, source * 0)
    )
    guider.set_cfg(object_scale, image_scale)
    return guider
