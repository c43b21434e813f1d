"""Run the host's sampler on one view of the picture after another, with conditions made for that view.

The runs are ordinary ones, so every sampler, scheduler, guider and patch of the host works inside, and the
history of a multistep sampler starts anew at the switch.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..conditioning.edit_prompt import EDIT
from ..conditioning.fooocus import InpaintPatch, block_patch
from ..families.table import BLEND, FLUX2_SCHEDULE, Settings
from ..host.families import config_name, family_of, is_transformer, settings_of
from ..host.models import largest_sigma, latent_format_of, latent_in, latent_out, network_config
from ..host.patches import ModelPatcher, crop_picture_patches
from ..host.sampling import (
    IP2P,
    CFGGuider,
    Flux,
    Sampler,
    conditions_of,
    copy_guider,
    flux2_sigmas,
    intermediate_type,
    ksampler_sigmas,
    latent_previewer,
    noise_schedule_of,
    progress_bar,
    shows_progress,
)
from ..host.vae import PictureVae
from ..imaging.latent_mask import inpaint_pictures, snap_hole, to_pixels, with_soft_values
from ..imaging.views import ROWS, VIEW, WINDOW, View, pad_to_multiple, resize_image
from .crop_conditioning import CropRegion, crop_conditions, crop_part, only_rows
from .references import REFERENCE_LATENTS, ViewReferences
from .stages import PaintedView


def check_inpaint_model(model: ModelPatcher) -> None:
    """Raise ValueError for a model that takes no mask, or whose latents are no pictures (B, C, h, w)."""
    dimensions = latent_format_of(model).latent_dimensions
    if dimensions != 2 and family_of(model) is None:
        raise ValueError(
            f"model: the latents of {config_name(model)} models have {dimensions} dimensions and not the 2 of"
            " a picture, which this node does not know yet; load a model for pictures, such as SDXL, FLUX,"
            " Qwen-Image or Z-Image."
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
    latent = latent_format_of(model).latent_channels
    channels = network_config(model).get("in_channels", latent)
    return isinstance(model.model, Flux) and latent < channels <= 2 * latent


def check_prompts(guider: CFGGuider) -> None:
    """Raise ValueError for a control picture that Flux reads by a LoRA: it is not cut for a view."""
    conds = [cond for part in conditions_of(guider).values() for cond in part]
    controlled = any("concat_latent_image" in cond for cond in conds)
    model = guider.model_patcher
    if controlled and isinstance(model.model, Flux) and not _wants_conditions(model):
        raise ValueError(
            "positive: it holds a control picture (InstructPixToPixConditioning), which cannot be cut to the"
            " close-up; wire a plain prompt."
        )


def sigmas_of(
    model: ModelPatcher, sampler: str, scheduler: str, steps: int, denoise: float, pixels: int = 1024 * 1024
) -> Tensor:
    """Return the sigmas that the host's KSampler would run; FLUX2_SCHEDULE for pictures of so many pixels."""
    if scheduler == FLUX2_SCHEDULE:
        total = steps if denoise > 0.9999 else int(steps / max(denoise, 1e-4))
        return flux2_sigmas(total, pixels)[-(steps + 1) :] if denoise > 0 else torch.empty(0)
    sigmas = ksampler_sigmas(model, sampler, scheduler, steps, denoise)
    # kl_optimal divides 0 by 0 when there is one step, the one from sigma_max
    return sigmas.nan_to_num(nan=largest_sigma(model))


def choose_settings(
    model: ModelPatcher, sampler: str, scheduler: str, steps: int, cfg: float, auto: str
) -> Settings:
    """Return the sampler's settings, those of the model's family where a choice is `auto` or 0.

    The embedded guidance is the family's only where cfg is 0; else the CONDITIONING decides.

    Raises:
        ValueError: For a choice left to a family that has no row.
    """
    chosen = settings_of(model)
    wanted = [name for name, open_ in (("steps", steps == 0), ("cfg", cfg == 0),
              ("sampler_name", sampler == auto), ("scheduler", scheduler == auto)) if open_]  # fmt: skip
    if chosen is None:
        if wanted:
            raise ValueError(
                f"{wanted[0]}: Inlay has no automatic settings for {config_name(model)} models; choose"
                f" {', '.join(wanted)} yourself."
            )
        return Settings(sampler, scheduler, steps, cfg)
    return Settings(
        chosen.sampler if sampler == auto else sampler,
        chosen.scheduler if scheduler == auto else scheduler,
        steps or chosen.steps,
        cfg or chosen.cfg,
        None if cfg else chosen.guidance,
    )


def with_guidance(conditioning: list, guidance: float | None) -> list:
    """Return the CONDITIONING with an embedded guidance where it has none."""
    if guidance is None:
        return conditioning
    return [[text, {"guidance": guidance} | values] for text, values in conditioning]


def trained_context(guider: CFGGuider) -> float:
    """Side of the crop that a prompt's LoRA was trained on, in the mask's longer side; 0 for none."""
    entries = (cond.get(EDIT) for conds in conditions_of(guider).values() for cond in conds)
    return max((entry.edit.context for entry in entries if entry is not None), default=0.0)


def largest_window(guider: CFGGuider, side: int) -> float:
    """Area up to which a model paints a view beside its references unchanged; infinite without references.

    In squares of `side`, at least one.
    """
    row = family_of(guider.model_patcher)
    conds = [cond for part in conditions_of(guider).values() for cond in part]
    if row is None or not any(cond.get(REFERENCE_LATENTS) or cond.get(EDIT) for cond in conds):
        return math.inf
    return max(1.0, row.most_reference_pixels / side**2)


def view_multiple(model: ModelPatcher) -> int:
    """View sizes of a MODEL are multiples of so many pixels."""
    row = family_of(model)
    return 8 if row is None or not row.picture_grid else row.picture_grid


def cfg_guider(model: ModelPatcher, positive, negative, cfg: float) -> CFGGuider:
    """Return the host's CFG guider of two CONDITIONINGs."""
    guider = CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def with_model(guider: CFGGuider, model: ModelPatcher) -> CFGGuider:
    """Return the same guider on a model with other weights."""
    other = copy.copy(guider)
    other.model_patcher = model
    return other


class SamplingProgress:
    """One progress bar with previews over all runs of a node."""

    def __init__(self, model: ModelPatcher, steps: int):
        self.previewer = latent_previewer(model)
        self.bar = progress_bar(steps)
        self.steps, self.done = steps, 0

    def run(self, steps: int, x0: list[Tensor]):
        """Return the callback of a run of so many steps, which leaves the latest predicted x0 in the list."""
        start, self.done = self.done, self.done + steps

        def callback(step, denoised, x, total):
            x0[:] = [denoised]
            preview = self.previewer and self.previewer.decode_latent_to_preview_image("JPEG", denoised)
            # dpm_adaptive chooses the number of its steps
            self.bar.update_absolute(start + min(step + 1, steps), self.steps, preview)

        return callback


class ViewSampler:
    """Runs the host's sampler on views of a picture: a `PaintView` for the pictures `rows` of the batch.

    The n-th run draws the n-th noise of the seed, by the host's own `batch_index`; the first run of a whole
    batch draws what a stock sampler node draws.
    """

    def __init__(
        self,
        guider: CFGGuider,
        noise,
        sampler: Sampler,
        vae,
        progress: SamplingProgress,
        rows: Sequence[int],
        shape: Sequence[int],  # of the batch: pictures, height, width
        keep: bool = True,
        patch: InpaintPatch | None = None,
        references: ViewReferences | None = None,
        schedule: Tensor | None = None,  # the sigmas of both stages together
    ):
        self.guider, self.noise, self.sampler, self.vae = guider, noise, sampler, PictureVae(vae)
        self.references, self.schedule = references, schedule
        self.progress, self.rows = progress, rows
        self.batch, self.size = shape[0], (shape[1], shape[2])
        self.keep = keep  # blend the known latents in at every step, outside the mask
        self.patch = patch
        self.drawn = 0

    def __call__(
        self, view: View, known: Tensor, start: Tensor, hole: Tensor, sigmas: Tensor, last: bool
    ) -> PaintedView:
        """Sample one view of the picture, as `PaintView` describes; pad it to the grid and crop it back.

        Raises:
            ValueError: For NaN or infinite pixels in the view.
        """
        grid = math.lcm(self.vae.grid, view_multiple(self.guider.model_patcher))
        if not torch.isfinite(known).all():
            raise ValueError(
                "image: it holds NaN or infinite values around the mask; load the picture again."
            )
        soft = pad_to_multiple(hole, grid)
        picture, masked, hole = inpaint_pictures(known, hole, grid)
        latent = self.vae.encode(picture)
        pixels, snapped = hole, snap_hole(hole, (latent.shape[-2], latent.shape[-1]), self.vae.grid)
        hole = to_pixels(snapped, *pixels.shape[1:])[:, None]
        # UNets read the latent's pixels of the mask, Flux Fill every pixel of the picture
        seen_hole = pixels[:, None] if is_transformer(self.guider.model_patcher) else hole
        snapped = snapped[:, None]
        if latent.ndim == 5:  # the host takes 4 dimensions for a film
            hole, seen_hole, snapped = hole[:, None], seen_hole[:, None], snapped[:, None]
        condition = {}
        if self.patch is not None or _wants_conditions(self.guider.model_patcher):
            condition = {"concat_latent_image": self.vae.encode(masked), "concat_mask": seen_hole}
        if start is not known:
            painted = self.vae.encode(pad_to_multiple(start, grid))
            latent = blend_latents(latent, painted, snapped.to(latent))

        shown = picture.shape[1], picture.shape[2]
        place = CropRegion(view.window(*self.size, grid=grid), self.size, shown, self.rows, self.batch)
        guider = guider_for_region(self.guider, place, condition)
        guider.model_options["transformer_options"][VIEW] = (view, self.size)
        if is_transformer(guider.model_patcher):
            reach_soft_masks(guider.model_options, self.schedule)
        if self.references is not None:
            conditions = {
                kind: self.references.for_view(conds, picture, pixels)
                for kind, conds in conditions_of(guider).items()
            }
            guider = copy_guider(guider, conditions)
        if self.patch is not None:
            self._add_fooocus_head(guider, condition["concat_latent_image"], snapped)
        painted_mask = self._denoise_mask(guider, soft, snapped, hole) if self.keep else None
        samples, x0 = self._sample(guider, latent, painted_mask, sigmas)
        if x0 and not last:
            samples = latent_out(guider.model_patcher, x0[0]).to(samples)
        painted = self.vae.decode(samples)[:, : view.height, : view.width, :3]
        return PaintedView(painted.to(known), {"samples": samples} | self._noise_mask(hole))

    def _denoise_mask(self, guider, soft: Tensor, snapped: Tensor, hole: Tensor) -> Tensor:
        """Return the hole (B, 1, ..., H, W), with the mask's soft values where a transformer turns them on.

        soft: (B, H, W). snapped: the hole on the latent's grid (B, 1, ..., h, w).
        """
        turned_on = "denoise_mask_function" in guider.model_options
        if not turned_on or not is_transformer(guider.model_patcher):
            return hole
        cells = snapped.flatten(1, -3)[:, 0]
        values = with_soft_values(cells, soft.expand(len(cells), -1, -1))
        return to_pixels(values, *soft.shape[1:]).view_as(hole)

    def _noise_mask(self, hole: Tensor) -> dict:
        return {"noise_mask": hole} if self.keep else {}

    def _sample(self, guider, latent: Tensor, hole: Tensor | None, sigmas: Tensor):
        x0: list[Tensor] = []
        samples = guider.sample(
            self.noise.generate_noise({"samples": latent} | self._noise_index()),
            latent,
            self.sampler,
            sigmas,
            denoise_mask=hole,
            callback=self.progress.run(max(len(sigmas) - 1, 0), x0),
            disable_pbar=not shows_progress(),
            seed=(self.noise.seed + self.drawn) % (2**64 - 1),  # torch takes 64 bits, the host may add one
        )
        self.drawn += 1
        device, dtype = intermediate_type()
        return samples.to(device=device, dtype=dtype), x0

    def _add_fooocus_head(self, guider, masked: Tensor, hole: Tensor) -> None:
        """Add the head's feature of the snapped hole (B, 1, h, w), which training and the noise mask use too.

        Fooocus takes the maximum of 8 x 8 pixels for head and noise mask.
        """
        assert self.patch is not None
        masked = latent_in(guider.model_patcher, masked)
        patches = guider.model_options["transformer_options"].setdefault("patches", {})
        patches.setdefault("input_block_patch", []).append(block_patch(self.patch, hole, masked))

    def _noise_index(self) -> dict:
        """Return the batch indices of the noise: other noise for each run and each picture of a batch."""
        if len(self.rows) == self.batch and not self.drawn:
            return {}
        return {"batch_index": [row + self.batch * self.drawn for row in self.rows]}


def blend_latents(known: Tensor, painted: Tensor, mask: Tensor) -> Tensor:
    """known * (1 - m) + painted * m: the surroundings keep the original's latents at the switch."""
    return torch.lerp(known, painted, mask)


def guider_for_region(guider: CFGGuider, place: CropRegion, condition: dict):
    """Return a guider of the same kind that sees the place: its conditions, its window and rows for patches.

    Everything else is shared with the guider, which stays as it was.
    """
    conditions = {
        kind: [cond | condition for cond in conds]
        for kind, conds in crop_conditions(conditions_of(guider), place).items()
    }
    stage = copy_guider(guider, conditions)
    options = stage.model_options.setdefault("transformer_options", {})
    options[WINDOW], options[ROWS] = place.window, (tuple(place.rows), place.batch)
    _crop_patches(guider, options, place)
    return stage


def reach_soft_masks(model_options: dict, schedule: Tensor | None = None) -> None:
    """Let soft masks reach every step, where a function turns them on by the noise level.

    schedule: the sigmas of all runs together, of which each one samples a part; None: of one run alone.

    Differential Diffusion changes a value m from the step on at which m is over the noise level, as a share
    of the schedule. A steep schedule ends early (FLUX.2 klein with 4 steps at .767), and lower values would
    never change. Values over 0 are mapped to [the last level, 1].
    """
    function = model_options.get("denoise_mask_function")
    if function is None:
        return

    def reached(sigma: Tensor, denoise_mask: Tensor, extra_options: dict, **kwargs) -> Tensor:
        sigmas = extra_options["sigmas"] if schedule is None else schedule.to(extra_options["sigmas"])
        extra_options = extra_options | {"sigmas": sigmas}
        last = last_level(noise_schedule_of(extra_options), sigmas)
        soft = 1 - (1 - last) * (1 - denoise_mask)  # exactly 1 where the mask is 1
        return function(sigma, torch.where(denoise_mask > 0, soft, denoise_mask), extra_options, **kwargs)

    model_options["denoise_mask_function"] = reached


def last_level(sampling, sigmas: Tensor) -> float:
    """Return the noise level of the last step as a share of the schedule, as Differential Diffusion does."""
    end = max(float(sigmas[-1]), float(sampling.sigma_min))
    first, last, end_time = (
        float(sampling.timestep(torch.as_tensor(float(sigma)))) for sigma in (sigmas[0], sigmas[-2], end)
    )
    return min(max((last - end_time) / (first - end_time), 0.0), 1.0) if first > end_time else 0.0


def _crop_patches(guider: CFGGuider, options: dict, place: CropRegion) -> None:
    """Cut the pictures of control models to the view; of a batch take those of the sampled pictures."""

    def crop_mask(mask: Tensor) -> Tensor:
        return crop_part(only_rows(mask, place.rows), place.window)

    def crop(image: Tensor) -> Tensor:
        return resize_image(crop_mask(image.movedim(-1, 1)).movedim(1, -1), *place.shown)

    crop_picture_patches(options, guider.model_patcher, crop, crop_mask)


def _wants_conditions(model: ModelPatcher) -> bool:
    """Return a plain text-to-image model has no input for them, so they need not be encoded."""
    base, row = model.model, family_of(model)
    if row is not None and row.condition == BLEND and not row.channels:
        return False  # some of these count patches as channels
    channels = base.model_config.unet_config.get("in_channels")
    return bool(base.concat_keys) or channels != base.latent_format.latent_channels
