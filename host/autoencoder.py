"""Seams to the host's VAE: which of its weights encode, and the distribution of a picture's latent."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from comfy.ldm.models.autoencoder import AutoencodingEngine, DiagonalGaussianRegularizer, EmptyRegularizer
from torch import Tensor

from .models import weights_of

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
