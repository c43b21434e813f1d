"""Background blending: what the known surroundings look like to the UNet at every step (IMPRINT, fig. 3).

After each step the latent outside the mask is replaced by the picture's own latent z. The figure draws the
clean one; what a network saw in training is z noised to the step's level, and that is what the host does.
In the terms of the figure, z_t = sqrt(a) z_0 + sqrt(1 - a) noise, the network's input outside the mask is

    renoised    sqrt(a) z + sqrt(1 - a) noise      clean    z

The host samples x = z_t / sqrt(a) = z_0 + sigma noise, a = 1 / (1 + sigma^2), so clean is x = z / sqrt(a).
The host's noise is that of the start at every step; Fooocus, on which DreamMix's code builds, draws other
noise for every step.
"""

import zlib

import torch
from torch import Tensor

from ..host.patches import SCALE_KNOWN_LATENT, ModelPatcher, with_object_patch

CLEAN, RENOISED, FRESH = "clean", "renoised", "fresh noise"
BLENDINGS = (RENOISED, CLEAN, FRESH)


def clean_background(calculate_input, sigma: Tensor, latent: Tensor) -> Tensor:
    """The x (B, C, ...) that reaches the network as `latent` itself, `calculate_input` being linear in x.

    calculate_input(sigma, x) is the model's own scaling, x / sqrt(sigma^2 + 1) for UNets; sigma (B,).
    """
    one = latent.new_ones((len(sigma),) + (1,) * (latent.ndim - 1))
    return latent / calculate_input(sigma, one)


def noise_of_step(noise: Tensor, sigma: Tensor) -> Tensor:
    """Standard normal noise like `noise` (B, C, ...), which depends on it and on sigma (B,) alone."""
    facts = torch.cat([noise.flatten()[:64].float().cpu(), sigma.flatten().float().cpu()])
    generator = torch.Generator().manual_seed(zlib.crc32(facts.numpy().tobytes()))
    return torch.randn(noise.shape, generator=generator).to(noise)


def blend_background(model: ModelPatcher, blending: str) -> ModelPatcher:
    """Return a clone of MODEL whose samplers blend the known latents in as `blending` says.

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
