"""Pictures of what the network knows so far, through the host's sampler, without a trace in the training."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...attention.host import mask_attention
from .data import Examples

# Few steps that look finished, and draw no random numbers on their way.
STEPS, CFG, SAMPLER, SCHEDULER = 12, 5.0, "dpmpp_2m", "karras"
SAMPLE = "sample"  # the kind of tensor in a checkpoint


def as_model(model, unet: nn.Module, dtype: torch.dtype) -> ModelPatcher:
    """A MODEL around a network in training, beside the one it is the twin of; they share all the rest."""
    base = copy.copy(model.model)  # which shares its dictionary of modules, too
    sampling = model.get_model_object("model_sampling")
    base._modules = base._modules | {"diffusion_model": unet, "model_sampling": sampling}
    base.manual_cast_dtype = dtype
    return ModelPatcher(base, model.load_device, model.load_device)


class Resident(comfy.samplers.CFGGuider):
    """The host's guider for a network that is where it should be: nothing is loaded, moved or patched."""

    def outer_sample(self, noise, latent_image, sampler, sigmas, *args, **kwargs):
        device, self.inner_model = self.model_patcher.load_device, self.model_patcher.model
        self.model_patcher.pre_run()
        try:
            places = noise.to(device), latent_image.to(device), device, sampler, sigmas.to(device)
            return self.inner_sample(*places, *args, **kwargs)
        finally:
            self.model_patcher.cleanup()


class PreviewScene(NamedTuple):
    """A hole to fill, always the same one, so that only the weights make a difference."""

    row: Examples  # a single one
    words: list  # the host's conditioning of the caption, and of no words
    vae: Any
    seed: int
    masked: bool  # the words speak to the hole only


def make_preview_scene(clip, vae, examples: Examples, caption: str, seed: int, masked: bool) -> PreviewScene:
    """The first reference's hole, with the caption that the subject is learned by."""
    words = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (caption, "")]
    return PreviewScene(examples.take(torch.zeros(1, dtype=torch.long)), words, vae, seed, masked)


@torch.inference_mode()
def paint_preview(scene: PreviewScene, model: ModelPatcher) -> Tensor:
    """The hole filled by a MODEL as it is now: (H,W,3) in bytes."""
    row, base = scene.row, model.model
    if scene.masked:
        model = mask_attention(model, [row.mask[:, 0]], self_layers="none")
    hole = {"concat_latent_image": base.process_latent_out(row.masked), "concat_mask": row.mask}
    guider = Resident(model)
    guider.set_conds(*([[context, extra | hole] for context, extra in words] for words in scene.words))
    guider.set_cfg(CFG)
    latent = guider.sample(
        torch.randn(row.latent.shape, generator=torch.Generator().manual_seed(scene.seed)),
        base.process_latent_out(row.latent),
        comfy.samplers.sampler_object(SAMPLER),
        comfy.samplers.calculate_sigmas(base.model_sampling, SCHEDULER, STEPS),
        denoise_mask=row.mask,
        disable_pbar=True,
        seed=scene.seed,
    )
    picture = scene.vae.decode(latent)[0, ..., :3]
    return (picture.float().clamp(0, 1) * 255).round().byte().cpu().contiguous()


class Preview:
    """Paints every `every` steps and at the last one; call it after each step.

    `show(step, picture)` gets each picture (H,W,3) in bytes; `pictures` keeps them all by step.
    """

    def __init__(self, scene: PreviewScene, every: int, steps: int, show: Callable[[int, Tensor], None]):
        self.scene, self.every, self.steps, self.show = scene, every, steps, show
        self.pictures: dict[int, Tensor] = {}

    def __call__(self, model: ModelPatcher, step: int) -> None:
        if step % self.every == 0 or step == self.steps:
            self.pictures[step] = paint_preview(self.scene, model)
            self.show(step, self.pictures[step])

    def tensors(self) -> dict[str, Tensor]:
        """The pictures as a checkpoint holds them."""
        return {f"{SAMPLE}.{step}": picture for step, picture in self.pictures.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Those of an interrupted run, out of its checkpoint."""
        kinds = ((name.partition("."), tensor) for name, tensor in tensors.items())
        self.pictures = {int(step): tensor for (kind, _, step), tensor in kinds if kind == SAMPLE}
