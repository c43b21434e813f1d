"""Background blending: what the known surroundings look like to the UNet at every step (IMPRINT, fig. 3).

After each step the latent outside the mask is replaced by the picture's own latent z. The figure draws the
clean one; what a network saw in training is z noised to the step's level, and that is what the host does.
In the terms of the figure, z_t = sqrt(a) z_0 + sqrt(1 - a) noise, the network's input outside the mask is

    renoised    sqrt(a) z + sqrt(1 - a) noise      clean    z

The host samples x = z_t / sqrt(a) = z_0 + sigma noise, a = 1 / (1 + sigma^2), so clean is x = z / sqrt(a).
"""

from torch import Tensor

from ..host.patches import SCALE_KNOWN_LATENT, ModelPatcher, with_object_patch

CLEAN, RENOISED = "clean", "renoised"
BLENDINGS = (RENOISED, CLEAN)


def clean_background(calculate_input, sigma: Tensor, latent: Tensor) -> Tensor:
    """The x (B, C, ...) that reaches the network as `latent` itself, `calculate_input` being linear in x.

    calculate_input(sigma, x) is the model's own scaling, x / sqrt(sigma^2 + 1) for UNets; sigma (B,).
    """
    one = latent.new_ones((len(sigma),) + (1,) * (latent.ndim - 1))
    return latent / calculate_input(sigma, one)


def blend_background(model: ModelPatcher, blending: str) -> ModelPatcher:
    """Return a clone of MODEL whose samplers blend the known latents in as `blending` says.

    The mask is the one of the sampled latent. RENOISED removes the patch of an earlier node.
    """
    base = model.model

    def clean(sigma: Tensor, latent_image: Tensor, **kwargs) -> Tensor:
        return clean_background(base.model_sampling.calculate_input, sigma, latent_image)

    return with_object_patch(model, SCALE_KNOWN_LATENT, clean if blending == CLEAN else None)
