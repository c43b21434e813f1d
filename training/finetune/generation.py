"""Images that a finetuning generates with the host's sampler: samples of a run, and regular data.

Samples show the network in training and change nothing in the training. Regular data (DreamMix, sec. 3.3) is
painted by the untrained model into a random box of a background.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...attention.model_patch import mask_attention
from ...conditioning.fooocus import InpaintPatch, block_patch
from ...families.table import Family, Settings
from ...host import families, sampling
from ...host.models import latent_out
from ...host.vae import PictureVae
from ...imaging.composite import paste_back
from ...imaging.latent_mask import inpaint_pictures, snapped_hole
from ...imaging.views import resize_image
from .data import LATENT_PIXEL, Examples
from .diffusion_transformers import hole_in_pixels, hole_values
from .regular_data import changed_mask, random_box

# Few steps that look finished; the sampler draws no random numbers.
STEPS, CFG, SAMPLER, SCHEDULER = 12, 5.0, "dpmpp_2m", "karras"
SAMPLE = "sample"  # the kind of tensor in a checkpoint
MOST_PROMPTS = 8
LARGEST_SEED = 2**64 - 1  # torch takes 64 bits, and the host's samplers may add one


def prompts_in(text: str) -> list[str]:
    """Return the lines of a text that are not empty. Raises ValueError for more than MOST_PROMPTS."""
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if len(prompts) > MOST_PROMPTS:
        raise ValueError(
            f"sample_prompts: there are {len(prompts)}; write {MOST_PROMPTS} at most, one on each line."
        )
    return prompts


class PreviewScene(NamedTuple):
    """A hole to fill: the same one in every sample, so that samples differ by the weights alone."""

    row: Examples  # a single one
    positive: list  # the host's conditioning of the caption
    negative: list  # and of an empty prompt
    vae: Any
    seed: int
    masked: bool  # words reach the hole only
    inpaint_patch: InpaintPatch | None = None
    family: Family | None = None  # of a transformer, None for a UNet
    condition: str = ""  # how the transformer learns where the hole is, as `Recipe.hole_condition`
    settings: Settings | None = None  # of the transformer's sampler
    references: Sequence[Tensor] = ()  # latents of the subject's pictures, for an edit model
    shown: tuple[int, int] | None = None  # height and width of the picture without its padding


def make_preview_scene(
    clip,
    vae,
    examples: Examples,
    caption: str,
    seed: int,
    masked: bool,
    inpaint_patch: InpaintPatch | None = None,
) -> PreviewScene:
    """Return the first reference's hole, with the caption of the training."""
    positive, negative = (sampling.condition(clip, text) for text in (caption, ""))
    row = examples.take(torch.zeros(1, dtype=torch.long))
    return PreviewScene(row, positive, negative, vae, seed, masked, inpaint_patch)


@torch.inference_mode()
def paint_preview(scene: PreviewScene, model) -> Tensor:
    """Return the hole filled by a MODEL as it is now: (H, W, 3) in bytes."""
    if scene.family is not None:
        return _as_bytes(_paint_transformer(scene, model), scene)
    row = scene.row
    if scene.masked:
        model = mask_attention(model, [row.mask[:, 0]], self_layers="none")
    if scene.inpaint_patch:
        mask, masked = (part.to(model.load_device) for part in (row.mask, row.masked))
        model = model.clone()
        model.set_model_input_block_patch(block_patch(scene.inpaint_patch, mask, masked))
    latent = sampling.sample_resident(
        model, scene.positive, scene.negative, row.latent, row.masked, row.mask,
        seed=scene.seed, steps=STEPS, cfg=CFG, sampler=SAMPLER, scheduler=SCHEDULER,
    )  # fmt: skip
    return _as_bytes(latent, scene)


def _paint_transformer(scene: PreviewScene, model) -> Tensor:
    row, settings, family = scene.row, scene.settings, scene.family
    assert family is not None
    assert settings is not None
    latent, masked, mask = row.latent, row.masked, row.mask
    if family.time_axis:
        latent, masked, mask = (part.unsqueeze(2) for part in (latent, masked, mask))
    masked_out = latent_out(model, masked)
    values = hole_values(scene.condition, family, masked_out, hole_in_pixels(row), scene.references)
    if settings.guidance is not None:
        values["guidance"] = settings.guidance
    return sampling.sample_resident(
        model, scene.positive, scene.negative, latent, masked, mask, seed=scene.seed,
        steps=min(settings.steps, STEPS), cfg=settings.cfg, sampler=settings.sampler,
        scheduler=settings.scheduler, values=values,
    )  # fmt: skip


def _as_bytes(latent: Tensor, scene: PreviewScene) -> Tensor:
    picture = PictureVae(scene.vae).decode(latent)[0, ..., :3]
    if scene.shown is not None:
        picture = picture[: scene.shown[0], : scene.shown[1]]
    return (picture.float().clamp(0, 1) * 255).round().byte().cpu().contiguous()


class Preview:
    """Makes a sample every `every` steps and at the last one; call it after each step.

    `show(step, picture)` gets each picture (H,W,3) in bytes, the scenes below each other; `pictures` keeps
    them all by step.
    """

    def __init__(
        self,
        scenes: Sequence[PreviewScene],
        every: int,
        steps: int,
        show: Callable[[int, Tensor], None],
    ):
        self.scenes, self.every, self.steps, self.show = scenes, every, steps, show
        self.pictures: dict[int, Tensor] = {}

    def __call__(self, model, step: int) -> None:
        """Paint and show the samples, at every `every`-th step and the last."""
        if step % self.every == 0 or step == self.steps:
            self.pictures[step] = torch.cat([paint_preview(scene, model) for scene in self.scenes])
            self.show(step, self.pictures[step])

    def tensors(self) -> dict[str, Tensor]:
        """Return the pictures as a checkpoint holds them."""
        return {f"{SAMPLE}.{step}": picture for step, picture in self.pictures.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over the pictures of an interrupted run from its checkpoint; anything else is left out."""
        kinds = ((name.partition("."), tensor) for name, tensor in tensors.items())
        self.pictures = {
            int(step): tensor
            for (kind, _, step), tensor in kinds
            if kind == SAMPLE and step.isdecimal() and tensor.dtype == torch.uint8
            if tensor.ndim == 3 and tensor.shape[-1] == 3
        }


@dataclass(frozen=True)
class SamplingSettings:
    """How a picture is sampled; the names are the host's. guidance: the embedded one, None for the host's."""

    steps: int = 30
    cfg: float = 7.5
    sampler: str = "euler"
    scheduler: str = "normal"
    guidance: float | None = None


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
    """Return the picture (1,H,W,3) with the prompt painted into the hole (1,H,W); all else keeps its bits.

    Inpainting models get the mask and the picture with a grey hole; for others the noise mask is enough.
    """
    row, pictures = families.family_of(model), PictureVae(vae)
    grid = row.picture_grid if row is not None and row.transformer else LATENT_PIXEL
    padded, masked, mask = inpaint_pictures(image, hole, grid)
    latent = pictures.encode(padded)
    hole_mask = snapped_hole(mask, latent)[:, None]
    values: dict[str, Any] = {"concat_latent_image": pictures.encode(masked), "concat_mask": hole_mask}
    if how.guidance is not None:
        values["guidance"] = how.guidance
    positive, negative = (sampling.condition(clip, text, **values) for text in (prompt, ""))
    painted = sampling.sample_latent(
        model, positive, negative, latent, hole_mask, seed=seed % LARGEST_SEED, steps=how.steps,
        cfg=how.cfg, sampler=how.sampler, scheduler=how.scheduler, callback=callback,
    )  # fmt: skip
    decoded = pictures.decode(painted)[:, : image.shape[1], : image.shape[2]]
    return paste_back(image, decoded.clamp(0, 1).to(image), hole)


def generate_backgrounds(
    model, clip, vae, prompt: str, size: int, count: int, seed: int, how: SamplingSettings, callback=None
) -> Iterator[Tensor]:
    """Yield `count` whole pictures (1,size,size,3) of the prompt: the hole is everything."""
    grey, everywhere = torch.full((1, size, size, 3), 0.5), torch.ones(1, size, size)
    for number in range(count):
        yield generate_images(model, clip, vae, grey, everywhere, prompt, seed + number, how, callback)


def fit_background(picture: Tensor, side: int) -> Tensor:
    """Return a picture (1, H, W, C) in [0, 1], shrunk to the area of `side` x `side` where it is larger."""
    height, width = picture.shape[1:3]
    scale = min(1.0, side / math.sqrt(height * width))
    return resize_image(picture, *(max(1, round(length * scale)) for length in (height, width)))


def generate_regular_images(
    model, clip, vae, background: Tensor, prompt: str, seed: int, how: SamplingSettings, callback=None
) -> RegularImages:
    """Return the prompt painted into a random box of a background (1,H,W,3), and its outline."""
    _, height, width, _ = background.shape
    hole = random_box(height, width, seed).to(background.device)
    image = generate_images(model, clip, vae, background, hole, prompt, seed, how, callback)
    return RegularImages(image, changed_mask(image[0], background[0], hole[0])[None])
