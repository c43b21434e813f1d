"""Guidance by an object and by a picture, each with its own scale (Brooks et al. 2023, eq. 3).

    eps = eps(0, 0) + s (eps(object, picture) - eps(0, picture)) + s_I (eps(0, picture) - eps(0, 0))

The host's Dual CFG guider computes exactly this, from denoised latents, which are linear in eps: its first
condition is (object, picture), its second (0, picture), its negative (0, 0).
"""

from torch import Tensor

from ..host.guiders import Guider_DualCFG, conditioning_set_values, dual_cfg_guider, is_pix2pix
from ..host.patches import ModelPatcher


def check_pix2pix_model(model: ModelPatcher, width: int) -> None:
    """Raises ValueError for a model that does not read a source picture beside the noisy latent, or whose
    context is of another width than what replaces its words."""
    facts = model.model.model_config.unet_config
    if not is_pix2pix(model):
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
    return conditioning_set_values(conditioning, {"concat_latent_image": latent})


def two_scale_guider(
    model: ModelPatcher, context: list, nothing: list, source: Tensor, object_scale: float, image_scale: float
) -> Guider_DualCFG:
    """The GUIDER of the formula above; `context` and `nothing` are CONDITIONINGs of object and no object."""
    positive, without_object = with_source(context, source), with_source(nothing, source)
    without_both = with_source(nothing, source * 0)
    return dual_cfg_guider(model, positive, without_object, without_both, object_scale, image_scale)
