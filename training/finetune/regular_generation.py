"""The host's own model paints the pictures that training needs: regular images, with the hole they fill."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...conditioning.inpaint import inpaint_pictures
from ...host import sampling
from ...imaging.composite import paste_back
from .data import LATENT_PIXEL
from .regular_data import changed_mask, random_box


@dataclass(frozen=True)
class SamplingSettings:
    """How a picture is sampled; the names are the host's."""

    steps: int = 30
    cfg: float = 7.5
    sampler: str = "euler"
    scheduler: str = "normal"


class RegularImages(NamedTuple):
    """A picture (1,H,W,3) in [0,1] and its subject's mask (1,H,W)."""

    image: Tensor
    mask: Tensor


def generate_images(
    model,
    clip,
    vae,
    image: Tensor,
    hole: Tensor,
    prompt: str,
    seed: int,
    how: SamplingSettings,
    callback=None,
) -> Tensor:
    """The picture (1,H,W,3) with what the prompt says in the hole (1,H,W); all else keeps its bits.

    Inpainting models get the mask and the picture with a grey hole; others are held to what is outside it.
    """
    padded, masked, mask = inpaint_pictures(image, hole, LATENT_PIXEL)
    hole_values = {"concat_latent_image": vae.encode(masked), "concat_mask": mask[:, None]}
    positive, negative = (sampling.condition(clip, text, **hole_values) for text in (prompt, ""))
    painted = sampling.sample_latent(
        model, positive, negative, vae.encode(padded), mask[:, None], seed=seed, steps=how.steps, cfg=how.cfg,
        sampler=how.sampler, scheduler=how.scheduler, callback=callback,
    )  # fmt: skip
    decoded = vae.decode(painted)[:, : image.shape[1], : image.shape[2]]
    return paste_back(image, decoded.clamp(0, 1).to(image), hole)


def generate_backgrounds(
    model, clip, vae, prompt: str, size: int, count: int, seed: int, how: SamplingSettings, callback=None
) -> Iterator[Tensor]:
    """`count` whole pictures (1,size,size,3) of the prompt: the hole is everything."""
    grey, everywhere = torch.full((1, size, size, 3), 0.5), torch.ones(1, size, size)
    for number in range(count):
        yield generate_images(model, clip, vae, grey, everywhere, prompt, seed + number, how, callback)


def generate_regular_images(
    model, clip, vae, background: Tensor, prompt: str, seed: int, how: SamplingSettings, callback=None
) -> RegularImages:
    """One regular image: the prompt painted into a random box of a background (1,H,W,3), and its outline."""
    _, height, width, _ = background.shape
    hole = random_box(height, width, seed)
    image = generate_images(model, clip, vae, background, hole, prompt, seed, how, callback)
    return RegularImages(image, changed_mask(image[0], background[0], hole[0])[None])
