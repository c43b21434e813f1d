"""The host's side of the sampler: one of its own runs per view, with conditions made for that view.

The runs are ordinary ones, so every sampler, scheduler, guider and patch of the host works inside, and the
history of a multistep sampler starts anew at the switch.
"""

import copy
from collections.abc import Sequence

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.model_base import IP2P, Flux
from comfy.model_patcher import ModelPatcher, create_model_options_clone
from torch import Tensor

from ..conditioning.family import family
from ..conditioning.fooocus import InpaintPatch, block_patch
from ..conditioning.inpaint import inpaint_pictures
from ..imaging.latent_mask import snap_hole, to_pixels
from ..imaging.masks import resize_mask
from ..imaging.padding import pad_to_multiple
from ..imaging.views import View
from .crop_conditioning import CropRegion, crop_conditions
from .stages import PaintedView

WINDOW, ROWS, VIEW = "inlay_window", "inlay_rows", "inlay_view"


def check_inpaint_model(model: ModelPatcher) -> None:
    """Raises ValueError for a model that takes no mask, or whose latents are no pictures (B, C, h, w)."""
    dimensions = model.model.latent_format.latent_dimensions
    if dimensions != 2:
        raise ValueError(
            f"model: the latents of {family(model)} models have {dimensions} dimensions and not the 2 of a"
            " picture, which this node does not know yet; load an SD 1.5, SD 2 or SDXL checkpoint."
        )
    if isinstance(model.model, IP2P):
        raise ValueError(
            "model: this is an InstructPix2Pix model (8 channels), which knows no mask; load an inpainting"
            " checkpoint (9 channels) or a text-to-image one (4 channels)."
        )
    if _takes_control(model):
        raise ValueError(
            "model: this is a Flux model for a control picture (canny, depth), which knows no mask; load"
            " Flux Fill or a text-to-image one."
        )


def _takes_control(model: ModelPatcher) -> bool:
    """Whether a Flux reads a second picture and no mask beside the noise."""
    latent = model.model.latent_format.latent_channels
    channels = model.model.model_config.unet_config.get("in_channels", latent)
    return isinstance(model.model, Flux) and latent < channels <= 2 * latent


def check_prompts(guider: comfy.samplers.CFGGuider) -> None:
    """Raises ValueError for a control picture that a LoRA taught a Flux to read: it is not cut for a view."""
    conds = [cond for part in guider.original_conds.values() for cond in part]
    controlled = any("concat_latent_image" in cond for cond in conds)
    model = guider.model_patcher
    if controlled and isinstance(model.model, Flux) and not _wants_conditions(model):
        raise ValueError(
            "positive: it holds a control picture (InstructPixToPixConditioning), which cannot be cut to the"
            " close-up; wire a plain prompt."
        )


def sigmas_of(model: ModelPatcher, sampler: str, scheduler: str, steps: int, denoise: float) -> Tensor:
    """The sigmas that the host's KSampler would run."""
    sigmas = comfy.samplers.KSampler(model, steps, model.load_device, sampler, scheduler, denoise).sigmas
    # kl_optimal divides 0 by 0 when there is one step, the one from sigma_max
    return sigmas.nan_to_num(nan=model.model.model_sampling.sigma_max.item())


def cfg_guider(model: ModelPatcher, positive, negative, cfg: float) -> comfy.samplers.CFGGuider:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def with_model(guider: comfy.samplers.CFGGuider, model: ModelPatcher) -> comfy.samplers.CFGGuider:
    """The same guider on a model with other weights."""
    other = copy.copy(guider)
    other.model_patcher = model
    return other


class SamplingProgress:
    """One progress bar with previews over all runs of a node."""

    def __init__(self, model: ModelPatcher, steps: int):
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        self.bar = comfy.utils.ProgressBar(steps)
        self.steps, self.done = steps, 0

    def run(self, steps: int, x0: list[Tensor]):
        """The callback of a run of so many steps, which leaves the latest predicted x0 in the list."""
        start, self.done = self.done, self.done + steps

        def callback(step, denoised, x, total):
            x0[:] = [denoised]
            preview = self.previewer and self.previewer.decode_latent_to_preview_image("JPEG", denoised)
            # dpm_adaptive takes as many steps as it likes
            self.bar.update_absolute(start + min(step + 1, steps), self.steps, preview)

        return callback


class ViewSampler:
    """Runs the host's sampler on views of a picture: a `PaintView` for the pictures `rows` of the batch.

    The n-th run draws the n-th noise of the seed, by the host's own `batch_index`; the first run of a whole
    batch draws what a stock sampler node draws.
    """

    def __init__(
        self,
        guider: comfy.samplers.CFGGuider,
        noise,
        sampler: comfy.samplers.Sampler,
        vae,
        progress: SamplingProgress,
        rows: Sequence[int],
        shape: Sequence[int],  # of the batch: pictures, height, width
        keep: bool = True,
        patch: InpaintPatch | None = None,
    ):
        self.guider, self.noise, self.sampler, self.vae = guider, noise, sampler, vae
        self.progress, self.rows = progress, rows
        self.batch, self.size = shape[0], (shape[1], shape[2])
        self.keep = keep  # blend the known latents in at every step, outside the mask
        self.patch = patch
        self.drawn = 0

    def __call__(
        self, view: View, known: Tensor, start: Tensor, hole: Tensor, sigmas: Tensor, last: bool
    ) -> PaintedView:
        grid = self.vae.spacial_compression_encode()
        if not torch.isfinite(known).all():
            raise ValueError(
                "image: it holds NaN or infinite values around the mask; load the picture again."
            )
        picture, masked, hole = inpaint_pictures(known, hole, grid)
        latent = self.vae.encode(picture)
        seen_hole = pixels = hole[:, None]  # Flux Fill reads every pixel of it, UNets its latent pixels
        snapped = snap_hole(hole, latent.shape[-2:], grid)
        hole = to_pixels(snapped, *hole.shape[1:])[:, None]
        if not isinstance(self.guider.model_patcher.model, Flux):
            seen_hole = hole
        condition = {}
        if self.patch is not None or _wants_conditions(self.guider.model_patcher):
            condition = {"concat_latent_image": self.vae.encode(masked), "concat_mask": seen_hole}
        if start is not known:
            painted = self.vae.encode(pad_to_multiple(start, grid))
            latent = blend_latents(latent, painted, snapped[:, None].to(latent))

        shown = picture.shape[1], picture.shape[2]
        place = CropRegion(view.window(*self.size, grid=grid), self.size, shown, self.rows, self.batch)
        guider = guider_for_region(self.guider, place, condition)
        guider.model_options["transformer_options"][VIEW] = (view, self.size)
        if self.patch is not None:
            self._show_head(guider, condition["concat_latent_image"], pixels[:, 0])
        samples, x0 = self._sample(guider, latent, hole if self.keep else None, sigmas)
        if x0 and not last:
            samples = guider.model_patcher.model.process_latent_out(x0[0]).to(samples)
        painted = self.vae.decode(samples)[:, : view.height, : view.width, :3]
        return PaintedView(
            painted.to(known), {"samples": samples} | ({"noise_mask": hole} if self.keep else {})
        )

    def _sample(self, guider, latent: Tensor, hole: Tensor | None, sigmas: Tensor):
        x0: list[Tensor] = []
        samples = guider.sample(
            self.noise.generate_noise({"samples": latent} | self._draw()),
            latent,
            self.sampler,
            sigmas,
            denoise_mask=hole,
            callback=self.progress.run(max(len(sigmas) - 1, 0), x0),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=(self.noise.seed + self.drawn) % (2**64 - 1),  # torch takes 64 bits, the host may add one
        )
        self.drawn += 1
        device, dtype = (
            comfy.model_management.intermediate_device(),
            comfy.model_management.intermediate_dtype(),
        )
        return samples.to(device=device, dtype=dtype), x0

    def _show_head(self, guider, masked: Tensor, hole: Tensor) -> None:
        assert self.patch is not None
        hole = resize_mask(hole, *masked.shape[-2:])[:, None]  # a maximum of 8 x 8, as Fooocus trained it
        masked = guider.model_patcher.model.process_latent_in(masked)
        patches = guider.model_options["transformer_options"].setdefault("patches", {})
        patches.setdefault("input_block_patch", []).append(block_patch(self.patch, hole, masked))

    def _draw(self) -> dict:
        if len(self.rows) == self.batch and not self.drawn:
            return {}
        return {"batch_index": [row + self.batch * self.drawn for row in self.rows]}


def blend_latents(known: Tensor, painted: Tensor, mask: Tensor) -> Tensor:
    """known * (1 - m) + painted * m: the surroundings keep the original's latents at the switch."""
    return torch.lerp(known, painted, mask)


def guider_for_region(guider: comfy.samplers.CFGGuider, place: CropRegion, condition: dict):
    """A guider of the same kind that sees the place: its conditions, its window and rows for patches.

    Everything else is shared with the guider, which stays as it was.
    """
    stage = copy.copy(guider)
    stage.model_options = create_model_options_clone(guider.model_options)
    options = stage.model_options.setdefault("transformer_options", {})
    options[WINDOW], options[ROWS] = place.window, (tuple(place.rows), place.batch)
    stage.original_conds = {
        kind: [cond | condition for cond in conds]
        for kind, conds in crop_conditions(guider.original_conds, place).items()
    }
    return stage


def _wants_conditions(model: ModelPatcher) -> bool:
    """A plain text-to-image UNet has no input for them, so they need not be encoded."""
    base = model.model
    channels = base.model_config.unet_config.get("in_channels")
    return bool(base.concat_keys) or channels != base.latent_format.latent_channels
