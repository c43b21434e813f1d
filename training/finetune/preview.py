"""Samples of a network in training, by the host's sampler. They change nothing in the training."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...attention.model_patch import mask_attention
from ...conditioning.fooocus import InpaintPatch, block_patch
from ...families.table import Family, Settings
from ...host import sampling
from ...host.vae import PictureVae
from .data import Examples
from .transformers import hole_in_pixels, hole_values

# Few steps that look finished; the sampler draws no random numbers.
STEPS, CFG, SAMPLER, SCHEDULER = 12, 5.0, "dpmpp_2m", "karras"
SAMPLE = "sample"  # the kind of tensor in a checkpoint


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
        return _as_bytes(_paint_transformer(scene, model), scene.vae)
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
    return _as_bytes(latent, scene.vae)


def _paint_transformer(scene: PreviewScene, model) -> Tensor:
    row, settings, family = scene.row, scene.settings, scene.family
    assert family is not None
    assert settings is not None
    latent, masked, mask = row.latent, row.masked, row.mask
    if family.time_axis:
        latent, masked, mask = (part.unsqueeze(2) for part in (latent, masked, mask))
    values = hole_values(scene.condition, family, model.model.process_latent_out(masked), hole_in_pixels(row))
    if settings.guidance is not None:
        values["guidance"] = settings.guidance
    return sampling.sample_resident(
        model, scene.positive, scene.negative, latent, masked, mask, seed=scene.seed,
        steps=min(settings.steps, STEPS), cfg=settings.cfg, sampler=settings.sampler,
        scheduler=settings.scheduler, values=values,
    )  # fmt: skip


def _as_bytes(latent: Tensor, vae) -> Tensor:
    picture = PictureVae(vae).decode(latent)[0, ..., :3]
    return (picture.float().clamp(0, 1) * 255).round().byte().cpu().contiguous()


class Preview:
    """Makes a sample every `every` steps and at the last one; call it after each step.

    `show(step, picture)` gets each picture (H,W,3) in bytes; `pictures` keeps them all by step.
    """

    def __init__(self, scene: PreviewScene, every: int, steps: int, show: Callable[[int, Tensor], None]):
        self.scene, self.every, self.steps, self.show = scene, every, steps, show
        self.pictures: dict[int, Tensor] = {}

    def __call__(self, model, step: int) -> None:
        if step % self.every == 0 or step == self.steps:
            self.pictures[step] = paint_preview(self.scene, model)
            self.show(step, self.pictures[step])

    def tensors(self) -> dict[str, Tensor]:
        """Return the pictures as a checkpoint holds them."""
        return {f"{SAMPLE}.{step}": picture for step, picture in self.pictures.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over the pictures of an interrupted run from its checkpoint."""
        kinds = ((name.partition("."), tensor) for name, tensor in tensors.items())
        self.pictures = {int(step): tensor for (kind, _, step), tensor in kinds if kind == SAMPLE}
