"""The objective of inpainting personalisation, on plain tensors.

A diffusion model in the host's terms is a table of noise levels sigma_t. A clean latent z_0 noised to level
sigma reaches the network as z_t = (z_0 + sigma * noise) / sqrt(1 + sigma^2), which is the usual
sqrt(a) z_0 + sqrt(1 - a) noise with a = 1 / (1 + sigma^2). A flow matching model ("velocity") has noise
levels in [0, 1] and reads z_t = (1 - sigma) z_0 + sigma * noise (Lipman et al. 2023; Liu et al. 2023).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v", "velocity"]
FEW_TOKENS, MANY_TOKENS = 256, 4096  # where FLUX.1's shift is exp(0.5) and exp(1.15)


@dataclass(frozen=True)
class NoiseSchedule:
    """A model's noise levels, sigmas (T,) from the smallest to the largest, and what its network predicts.

    With `draw(count, generator, tokens)`, levels are drawn by it and `sigmas` is not used.
    """

    sigmas: Tensor
    prediction: Prediction
    draw: Callable[[int, torch.Generator, int], Tensor] | None = None


def generator_at(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """Return a generator that depends on the seed, the step and the stream.

    Streams: 0 noise, 1 order, 2 data, 3 noise of regular pictures of another size, 4 order of the buckets.
    """
    # Odd multipliers spread neighbouring steps over the whole range (Steele et al. 2014, SplitMix64).
    mixed = seed + step * 0x9E3779B97F4A7C15 + stream * 0xBF58476D1CE4E5B9
    return torch.Generator().manual_seed(mixed & (2**63 - 1))


def _per_row(sigma: Tensor) -> Tensor:
    return sigma.view(-1, 1, 1, 1)


def noised(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return the network's noisy input z_t (B,C,h,w) from `clean` and `noise` (B,C,h,w) at `sigma` (B,)."""
    sigma = _per_row(sigma)
    return (clean + sigma * noise) / (1 + sigma**2).sqrt()


def target(clean: Tensor, noise: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """Return the value that the network has to predict.

    It is the noise, the velocity sqrt(a) noise - sqrt(1 - a) z_0 of "v" (Salimans & Ho 2022), or the velocity
    noise - z_0 of flow matching.
    """
    if prediction == "epsilon":
        return noise
    if prediction == "velocity":
        return noise - clean
    sigma = _per_row(sigma)
    return (noise - sigma * clean) / (1 + sigma**2).sqrt()


def draw_sigmas(
    count: int, generator: torch.Generator, tokens: int, shift: float, logit_normal: bool = True
) -> Tensor:
    """Draw noise levels (count,) in [0, 1] of a flow matching model, in float32.

    sigma = s u / (1 + (s - 1) u), where u is the sigmoid of a normal number (logit-normal), or uniform (Esser
    et al. 2024, section 3.1 and eq. 23). s is `shift`; 0: exp of a line in the number of image tokens, as
    FLUX.1 samples.
    """
    if logit_normal:
        u = torch.randn(count, generator=generator).sigmoid()
    else:
        u = torch.rand(count, generator=generator)
    if not shift:
        shift = math.exp(0.5 + (1.15 - 0.5) * (tokens - FEW_TOKENS) / (MANY_TOKENS - FEW_TOKENS))
    return shift * u / (1 + (shift - 1) * u)


def min_snr_weight(sigma: Tensor, gamma: float, prediction: Prediction) -> Tensor:
    """Return the weight (B,) of each row's error by its signal-to-noise ratio (Hang et al. 2023).

    min(SNR, gamma) / SNR for noise prediction, min(SNR, gamma) / (SNR + 1) for v, with SNR = 1 / sigma^2.
    Flow matching models are not weighted: 1.
    """
    if prediction == "velocity":
        return torch.ones_like(sigma)
    snr = sigma**-2.0
    return snr.clamp(max=gamma) / (snr + 1 if prediction == "v" else snr)


def region_weight(mask: Tensor, inside: float, outside: float, squared: bool = False) -> Tensor:
    """tau 1 inside the hole and tau 2 outside (DreamMix eq. 7); `mask` (B,1,h,w), 1 = the hole.

    `squared` is what DreamMix's code does: it weighs prediction and target before squaring their difference.
    """
    weight = inside * mask + outside * (1 - mask)
    return weight**2 if squared else weight


def reconstruction(predicted: Tensor, wanted: Tensor, valid: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of each row (B,) over its valid pixels (DreamCom eq. 1), weighted (DreamMix eq. 7).

    `predicted`, `wanted` (B,C,h,w); `valid` (B,1,h,w) is 0 on the padded ring, which is left out of the
    mean altogether; `weight` (B,1,h,w) scales the error and is not normalised.
    """
    error = (predicted - wanted).square().mean(dim=1, keepdim=True)
    if weight is not None:
        error = error * weight
    return (error * valid).sum(dim=(1, 2, 3)) / valid.sum(dim=(1, 2, 3)).clamp(min=1)


def total(rows: Tensor, regular: Tensor | None = None, beta: float = 0.0) -> Tensor:
    """L(subject) + beta * L(regular), each the mean over its rows (DreamMix eq. 8)."""
    loss = rows.mean()
    return loss if regular is None else loss + beta * regular.mean()
