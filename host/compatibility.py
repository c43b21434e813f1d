"""Seams that state which text encoders and VAEs a MODEL works with."""

from typing import Any

from .models import unet_of

# Keys of the host's configuration of a network that give the width of its text embeddings.
TEXT_WIDTHS = ("context_dim", "context_in_dim", "cap_feat_dim")


def text_width(model) -> int | None:
    """Return the width of the text embeddings that a MODEL reads, or None where it is not known."""
    config: dict[str, Any] = model.model.model_config.unet_config
    widths = (config.get(key) for key in TEXT_WIDTHS)
    return next((width for width in widths if isinstance(width, int)), None)


def reads_pooled_text(model) -> bool:
    """Return whether a MODEL is a UNet with a label embedding (SDXL), made of the pooled text vector."""
    return unet_of(model) is not None and model.model.diffusion_model.num_classes == "sequential"


def latent_channels_of(model) -> int | None:
    """Return how many channels the latents of a MODEL have, or None where it is not known."""
    return getattr(model.model.latent_format, "latent_channels", None)


def vae_channels(vae) -> int | None:
    """Return how many channels the latents of a VAE have, or None where it is not known."""
    channels = getattr(vae, "latent_channels", None)
    return channels if isinstance(channels, int) else None
