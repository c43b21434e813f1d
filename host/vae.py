"""Seams to the host's VAE: one picture at a time, the weights that encode, a latent's distribution."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from comfy.ldm.models.autoencoder import AutoencodingEngine, DiagonalGaussianRegularizer, EmptyRegularizer
from torch import Tensor

from .models import weights_of

FLUX2_CHANNELS = 128  # of the latents of FLUX.2 and Lens


class PictureVae:
    """A VAE of the host for pictures.

    VAEs with a time axis read a batch (B, H, W, C) as the frames of one film and return a single latent; here
    every picture gets its own latent (B, C, 1, h, w).
    """

    def __init__(self, vae):
        self.vae = vae
        self.film = getattr(vae, "latent_dim", 2) == 3 and not getattr(vae, "not_video", False)

    @property
    def grid(self) -> int:
        """Pixels per side of a latent cell; the host's small autoencoder of FLUX.2 reports half of them."""
        reported = self.vae.spacial_compression_encode()
        channels = getattr(self.vae, "latent_channels", 0)
        return max(reported, 16) if channels == FLUX2_CHANNELS else reported

    def encode(self, pictures: Tensor) -> Tensor:
        """(B, H, W, C) in [0, 1] -> (B, C, h, w) or (B, C, 1, h, w)."""
        if not self.film:
            return self.vae.encode(pictures)
        return torch.cat([self.vae.encode(picture[None]) for picture in pictures])

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) or (B, C, 1, h, w) -> (B, H, W, C)."""
        if latents.ndim < 5:
            return self.vae.decode(latents)
        pictures = torch.cat([self.vae.decode(latent[None]) for latent in latents])
        return pictures.flatten(0, 1) if pictures.ndim == 5 else pictures


DECODING = ("decoder", "post_quant")  # in the name of a part that only decodes


def encoder_weights(vae) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and weights of a VAE that decide a latent."""
    for key, weight in weights_of(vae.patcher):
        if not any(part in key for part in DECODING):
            yield key, weight


def encode_distribution(vae, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (B, C, h, w) of the latents of pictures (B, H, W, 3) in [0, 1].

    Autoencoders without a distribution (TAESD) have a deviation of 0. The mean is what `vae.encode` gives.
    """
    engine: Any = vae.first_stage_model
    if not isinstance(engine, AutoencodingEngine) or getattr(engine, "bn", None) is not None:
        mean = vae.encode(pictures)
        return mean, torch.zeros_like(mean)
    if not isinstance(engine.regularization, DiagonalGaussianRegularizer):
        mean = vae.encode(pictures)
        return mean, torch.zeros_like(mean)
    moments, unregularised = copy.copy(vae), copy.copy(engine)  # both share all weights
    unregularised._modules = engine._modules | {"regularization": EmptyRegularizer()}
    moments.first_stage_model, moments.latent_channels = unregularised, 2 * vae.latent_channels
    mean, log_variance = moments.encode(pictures).chunk(2, dim=1)
    return mean, (0.5 * log_variance.clamp(-30, 20)).exp()
