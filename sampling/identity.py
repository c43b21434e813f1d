"""Sampling with an adapter for one photo: its context, the channels a model reads, blending and guidance.

Background blending is what the known surroundings look like to the UNet at every step (IMPRINT, fig. 3).
After each step the latent outside the mask is replaced by the picture's own latent z. The figure draws the
clean one; in training the network read z noised to the step's level, and that is what the host does.
In the terms of the figure, z_t = sqrt(a) z_0 + sqrt(1 - a) noise, the network's input outside the mask is

    renoised    sqrt(a) z + sqrt(1 - a) noise      clean    z

The host samples x = z_t / sqrt(a) = z_0 + sigma noise, a = 1 / (1 + sigma^2), so clean is x = z / sqrt(a).
The host's noise is that of the start at every step; Fooocus, on which DreamMix's code builds, draws other
noise for every step.

Guidance by an object and by a picture, each with its own scale (Brooks et al. 2023, eq. 3):

    eps = eps(0, 0) + s (eps(object, picture) - eps(0, picture)) + s_I (eps(0, picture) - eps(0, 0))

The host's Dual CFG guider computes exactly this, from denoised latents, which are linear in eps: its first
condition is (object, picture), its second (0, picture), its negative (0, 0).
"""

import zlib
from typing import Any

import torch
from torch import Tensor

from ..conditioning.compatibility import IDENTITY
from ..host.models import network_config
from ..host.patches import CONCAT_KEYS, SCALE_KNOWN_LATENT, ModelPatcher, with_object_patch
from ..host.sampling import Guider_DualCFG, conditioning_set_values, dual_cfg_guider, is_pix2pix

# background's latent, 1 - mask: ObjectStitch and Paint-by-Example; the host's own order is mask, background
OBJECT_FIRST = ("masked_image", "mask_inverted")


def as_conditioning(context: Tensor, identity: bool = False) -> list:
    """Context rows (B, N, C) as the host's CONDITIONING; identity: they come from Identity Encoder."""
    return [[context, {"pooled_output": None} | ({IDENTITY: True} if identity else {})]]


def read_object_first(model: ModelPatcher) -> ModelPatcher:
    """Return a clone of an inpainting MODEL that reads (noisy latent, background's latent, 1 - mask).

    Raises ValueError for a model of other than 9 channels.
    """
    channels = network_config(model).get("in_channels")
    if channels != 9:
        raise ValueError(
            f"model: it reads {channels} channels; load the checkpoint of ObjectStitch or Paint-by-Example"
            " (9 channels)."
        )
    return with_object_patch(model, CONCAT_KEYS, OBJECT_FIRST)


CLEAN, RENOISED, FRESH = "clean", "renoised", "fresh noise"
BLENDINGS = (RENOISED, CLEAN, FRESH)


def clean_background(calculate_input, sigma: Tensor, latent: Tensor) -> Tensor:
    """Return the x (B, C, ...) that reaches the network as `latent` itself; `calculate_input` is linear in x.

    calculate_input(sigma, x) is the model's own scaling, x / sqrt(sigma^2 + 1) for UNets; sigma (B,).
    """
    one = latent.new_ones((len(sigma),) + (1,) * (latent.ndim - 1))
    return latent / calculate_input(sigma, one)


def noise_of_step(noise: Tensor, sigma: Tensor) -> Tensor:
    """Return standard normal noise like `noise` (B, C, ...), which depends on it and on sigma (B,) alone."""
    facts = torch.cat([noise.flatten()[:64].float().cpu(), sigma.flatten().float().cpu()])
    generator = torch.Generator().manual_seed(zlib.crc32(facts.numpy().tobytes()))
    return torch.randn(noise.shape, generator=generator).to(noise)


def blend_background(model: ModelPatcher, blending: str) -> ModelPatcher:
    """Return a clone of MODEL whose samplers blend the known latents in as `blending` names.

    The mask is the one of the sampled latent. RENOISED removes the patch of an earlier node.
    """
    base = model.model

    def clean(sigma: Tensor, latent_image: Tensor, **kwargs) -> Tensor:
        return clean_background(base.model_sampling.calculate_input, sigma, latent_image)

    def fresh(sigma: Tensor, noise: Tensor, latent_image: Tensor, **kwargs) -> Tensor:
        own = getattr(type(base), SCALE_KNOWN_LATENT)
        return own(base, sigma=sigma, noise=noise_of_step(noise, sigma), latent_image=latent_image, **kwargs)

    patch = {CLEAN: clean, FRESH: fresh}.get(blending)
    return with_object_patch(model, SCALE_KNOWN_LATENT, patch)


def check_pix2pix_model(model: ModelPatcher, width: int) -> None:
    """Check that a model reads a source picture beside the noisy latent, and a context of that width.

    Raises:
        ValueError: if it does not.
    """
    facts = network_config(model)
    if not is_pix2pix(model):
        channels: Any = facts.get("in_channels")
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
    """Return the CONDITIONING with the source picture's latent (B, C, h, w), read unscaled."""
    return conditioning_set_values(conditioning, {"concat_latent_image": latent})


def two_scale_guider(
    model: ModelPatcher, context: list, nothing: list, source: Tensor, object_scale: float, image_scale: float
) -> Guider_DualCFG:
    """Return the GUIDER of the formula above.

    `context` and `nothing` are CONDITIONINGs of object and no object.
    """
    positive, without_object = with_source(context, source), with_source(nothing, source)
    without_both = with_source(nothing, source * 0)
    return dual_cfg_guider(model, positive, without_object, without_both, object_scale, image_scale)
