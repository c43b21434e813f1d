"""DisentangledInpaintSampler and its advanced twin: close-up first, then the whole picture (DreamMix 3.2)."""

import math

import comfy.samplers
import torch
from comfy_api.latest import io, ui
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

from ..common.log import logger
from ..conditioning.compatibility import check_guider_fits, check_prompts_fit, check_vae_fits
from ..conditioning.fooocus import InpaintPatch, patch_weights
from ..host.families import family_of, working_side
from ..host.vae import PictureVae
from ..imaging.boxes import Box
from ..imaging.inputs import as_image, as_masks
from ..imaging.masks import check_mask
from ..imaging.views import pad_to_multiple
from ..sampling import view_sampler
from ..sampling.batch import EACH, SEVERAL_MASKS, BatchPlan, count_steps, inpaint_batch, plan_batch
from ..sampling.references import ViewReferences
from ..sampling.schedule import split_schedule
from ..sampling.stages import InpaintOptions
from .checks import check_inpaint_patch, check_wired

AUTO = "auto"
CONTEXT, WINDOW_AREA = 1.5, 2.0
EVERY_STEP, AT_THE_END = "every step", "at the end"
InpaintPatchType = io.Custom("INPAINT_PATCH")


def close_up_inputs() -> list[io.Input]:
    """Return the inputs that both samplers share."""
    return [
        io.Float.Input(
            "close_up_share",
            default=0.7,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Share of the steps spent on the close-up (DreamMix's lambda); the rest blends it with"
            " its surroundings. 0: no close-up, plain inpainting of the surroundings. 1: the close-up alone.",
        ),
        io.Int.Input(
            "soft_edge",
            default=32,
            min=0,
            max=512,
            tooltip="Width of the blend in pixels of the picture, outward from the mask. Every pixel further"
            " away stays as it is, bit for bit.",
        ),
        io.Combo.Input(
            "several_masks",
            options=list(SEVERAL_MASKS),
            default=EACH,
            tooltip="What a batch of masks means. one image each: the n-th mask for the n-th image, one image"
            " for all or one mask for all. one after another, together: every mask goes into every image,"
            " with a close-up of its own; together harmonises all of them at once.",
        ),
        io.Int.Input(
            "close_up_size",
            default=0,
            min=0,
            max=4096,
            step=8,
            advanced=True,
            tooltip="Side of the close-up in pixels, as the model sees it. 0: what the model was trained on"
            " (SD 1.5 512, SD 2 512 or 768, others 1024).",
        ),
        io.Float.Input(
            "context",
            default=CONTEXT,
            min=1.0,
            max=16.0,
            step=0.05,
            advanced=True,
            tooltip="Side of the close-up's crop, in the longer side of the mask. DreamMix's code: 1.15.",
        ),
        io.Float.Input(
            "least_share",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            advanced=True,
            tooltip="The crop is at least this share of the picture's longer side. DreamMix's code: 0.5.",
        ),
        io.Int.Input(
            "grow",
            default=8,
            min=0,
            max=256,
            advanced=True,
            tooltip="The close-up may paint this much around the mask, in pixels of the close-up.",
        ),
        io.Float.Input(
            "window_area",
            default=WINDOW_AREA,
            min=0.0,
            max=64.0,
            step=0.25,
            advanced=True,
            tooltip="Most pixels of the window that is harmonised, in close-ups; larger ones are shrunk."
            " 0: the whole picture, whatever it costs.",
        ),
        io.Combo.Input(
            "blend",
            options=[EVERY_STEP, AT_THE_END],
            default=EVERY_STEP,
            advanced=True,
            tooltip="When the known picture around the mask is blended in. at the end leaves it to an"
            " inpainting model while it samples.",
        ),
        InpaintPatchType.Input(
            "inpaint_patch",
            optional=True,
            tooltip="Fooocus' inpaint patch for a plain SDXL model, from Load Fooocus Inpaint.",
        ),
    ]


def picture_inputs() -> list[io.Input]:
    """Return the inputs for VAE, picture and mask."""
    return [
        io.Vae.Input("vae", tooltip="The VAE of the checkpoint."),
        io.Image.Input("image", tooltip="The picture the subject goes into, of any size."),
        io.Mask.Input(
            "mask",
            tooltip="1 where the subject goes; thresholded at 0.5, of the image's size. An empty mask leaves"
            " the image as it is.",
        ),
    ]


def sampler_outputs() -> list[io.Output]:
    """Return the outputs of a node that paints in two stages."""
    return [
        io.Image.Output(display_name="image", tooltip="The finished picture, at the input's full size."),
        io.Image.Output(display_name="close_up", tooltip="The close-up before it is harmonised."),
        io.Latent.Output(display_name="latent", tooltip="The latent of the last window that was sampled."),
    ]


class DisentangledInpaintSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DisentangledInpaintSampler",
            display_name="Inpaint Subject (Inlay)",
            category="Inlay/inpaint",
            description="Inpaints small places in large pictures: first close up at the model's full size,"
            " then blended with their surroundings (DreamMix). Nothing outside the mask's soft edge changes.",
            search_aliases=[
                "disentangled inpaint sampler",
                "inpaint",
                "crop and stitch",
                "detailer",
                "DreamMix",
                "zoom",
                "small object",
                "ksampler",
            ],
            inputs=[
                io.Model.Input("model", tooltip="An inpainting model, or a text-to-image one."),
                io.Conditioning.Input("positive", tooltip="What to paint into the mask."),
                io.Conditioning.Input("negative", tooltip="What to keep out of it."),
                *picture_inputs(),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The noise's seed; the same seed gives the same picture.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=10000,
                    tooltip="Steps of both stages together. 0: what the model's family takes (SD models 30,"
                    " FLUX.2 klein 4 or 20, Z-Image Turbo 8).",
                ),
                io.Float.Input(
                    "cfg",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How closely the prompt is followed. 0: what the model's family takes (SD models"
                    " 4, distilled models 1), with its embedded guidance where the prompt sets none.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=[*comfy.samplers.KSampler.SAMPLERS, AUTO],
                    default=AUTO,
                    tooltip="Any of the host's samplers. auto: what the model's family takes (SD models"
                    " dpmpp_2m_sde, FLUX euler).",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=[*comfy.samplers.KSampler.SCHEDULERS, AUTO],
                    default=AUTO,
                    tooltip="Any of the host's schedulers. auto: what the model's family takes (SD models"
                    " karras, FLUX.2 its own).",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much of what is inside the mask is redone. 1: all of it.",
                ),
                *close_up_inputs(),
            ],
            outputs=sampler_outputs(),
        )

    @classmethod
    def execute(
        cls, model, positive, negative, vae, image: torch.Tensor, mask: torch.Tensor, seed: int, steps: int,
        cfg: float, sampler_name: str, scheduler: str, denoise: float = 1.0, **choices,
    ) -> io.NodeOutput:  # fmt: skip
        """Build a CFG guider, sampler and sigmas from the inputs, and return what `sample` returns."""
        check_wired(model=model, positive=positive, negative=negative, vae=vae)
        check_prompts_fit(model, positive=positive, negative=negative)
        chosen = view_sampler.choose_settings(model, sampler_name, scheduler, steps, cfg, AUTO)
        side = choices.get("close_up_size") or working_side(model)
        sigmas = view_sampler.sigmas_of(
            model, chosen.sampler, chosen.scheduler, chosen.steps, denoise, side * side
        )
        positive, negative = (view_sampler.with_guidance(c, chosen.guidance) for c in (positive, negative))
        guider = view_sampler.cfg_guider(model, positive, negative, chosen.cfg)
        sampler = comfy.samplers.sampler_object(chosen.sampler)
        return sample(guider, Noise_RandomNoise(seed), sampler, sigmas, vae, image, mask, **choices)


def sample(
    guider, noise, sampler, sigmas: torch.Tensor, vae, image: torch.Tensor, mask: torch.Tensor,
    close_up_share: float = 0.7, soft_edge: int = 32, several_masks: str = EACH, close_up_size: int = 0,
    context: float = CONTEXT, least_share: float = 0.0, grow: int = 8, window_area: float = WINDOW_AREA,
    blend: str = EVERY_STEP, inpaint_patch=None,
) -> io.NodeOutput:  # fmt: skip
    """Return what both samplers do once they have a guider and sigmas; `choices` as in `close_up_inputs`."""
    model = guider.model_patcher
    view_sampler.check_inpaint_model(model)
    view_sampler.check_prompts(guider)
    check_vae_fits(model, vae)
    image, mask = as_image(image), as_masks(mask)
    check_sigmas(sigmas)
    check_inpaint_patch(inpaint_patch)
    check_mask(image, mask)
    split_schedule(sigmas, close_up_share)  # raises ValueError for a share outside 0 to 1
    if context == CONTEXT:  # a LoRA's own, where the input was left alone
        context = view_sampler.trained_context(guider) or context
    side = close_up_size or working_side(model)
    options = InpaintOptions(
        side,
        close_up_share,
        context,
        least_share,
        grow,
        soft_edge,
        _window_area(guider, window_area, side),
        view_sampler.view_multiple(model),
    )
    image, jobs = plan_batch(image, mask.to(image.device), several_masks)
    if not jobs:
        return _nothing_to_paint(PictureVae(vae), image, options)
    patch = None if inpaint_patch is None else InpaintPatch(*inpaint_patch)
    if patch is not None:
        guider = view_sampler.with_model(guider, patch_weights(model, patch))
    progress = view_sampler.SamplingProgress(model, count_steps(jobs, sigmas, close_up_share))
    references = ViewReferences(PictureVae(vae), family_of(model), image)
    painted = inpaint_batch(
        image,
        jobs,
        sigmas,
        options,
        lambda rows: view_sampler.ViewSampler(
            guider,
            noise,
            sampler,
            vae,
            progress,
            rows,
            image.shape[:3],
            blend == EVERY_STEP,
            patch,
            references,
            sigmas,
        ),
    )
    text = _empty_mask_warning(image, mask, jobs, several_masks)
    return io.NodeOutput(painted.image, painted.close_up, painted.latent, ui=_warn(text))


def _window_area(guider, window_area: float, side: int) -> float:
    """Return the input; where it was left alone, at most what an edit model neither shifts nor enlarges."""
    if window_area != WINDOW_AREA:
        return window_area
    return min(window_area, view_sampler.largest_window(guider, side))


def check_sigmas(sigmas) -> None:
    """Raise ValueError for what is no schedule."""
    if not isinstance(sigmas, torch.Tensor) or sigmas.ndim != 1 or not sigmas.isfinite().all():
        raise ValueError("sigmas: this is no schedule (a row of finite numbers); wire a scheduler.")


def _nothing_to_paint(vae: PictureVae, image: torch.Tensor, options: InpaintOptions) -> io.NodeOutput:
    """Return the image as it is; its middle stands in for close-up and latent."""
    height, width = image.shape[1:3]
    rows, columns = Box(0, 0, height, width).square(options.side, height, width).slices
    middle = image[:, rows, columns, :3]
    latent = {"samples": vae.encode(pad_to_multiple(middle, math.lcm(vae.grid, options.multiple)))}
    text = _no_mask_warning(len(image), len(image))
    return io.NodeOutput(image, middle, latent, ui=_warn(text))


def _empty_mask_warning(
    image: torch.Tensor, mask: torch.Tensor, jobs: list[BatchPlan], several: str
) -> str | None:
    """Return the warning about masks that are empty, where others are not."""
    if several == EACH or len(mask) == 1:
        return _no_mask_warning(len(image) - sum(len(job.rows) for job in jobs), len(image))
    empty = len(mask) - sum(map(len, jobs[0].turns))
    return (
        f"mask: {empty} of {len(mask)} are empty (nothing above 0.5), and nothing is painted for them;"
        " paint where each subject goes."
        if empty
        else None
    )


def _no_mask_warning(empty: int, pictures: int) -> str | None:
    if not empty:
        return None
    return (
        f"mask: it is empty (nothing above 0.5) for {empty} of {pictures} images, which stay as they are;"
        " paint where the subject goes."
    )


def _warn(text: str | None) -> dict:
    if text is None:
        return {}
    logger.warning(text)
    return ui.PreviewText(text).as_dict()


class DisentangledInpaintSamplerAdvanced(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DisentangledInpaintSamplerAdvanced",
            display_name="Inpaint Subject, Advanced (Inlay)",
            category="Inlay/inpaint",
            description="Inpaint Subject for guiders, samplers and schedules of your own. The"
            " guider's conditions are made anew for every window, so wire plain prompts.",
            search_aliases=["inpaint custom sampler", "DreamMix", "crop and stitch", "dual cfg", "guider"],
            inputs=[
                io.Noise.Input("noise", tooltip="The noise of both stages."),
                io.Guider.Input("guider", tooltip="Model, prompts and guidance."),
                io.Sampler.Input("sampler", tooltip="The sampler of both stages."),
                io.Sigmas.Input("sigmas", tooltip="The schedule of both stages together."),
                *picture_inputs(),
                *close_up_inputs(),
            ],
            outputs=sampler_outputs(),
        )

    @classmethod
    def execute(
        cls,
        noise,
        guider,
        sampler,
        sigmas: torch.Tensor,
        vae,
        image: torch.Tensor,
        mask: torch.Tensor,
        **choices,
    ) -> io.NodeOutput:
        """Return what `sample` returns for the wired guider, noise, sampler and sigmas."""
        check_wired(noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, vae=vae)
        check_guider_fits(guider)
        return sample(guider, noise, sampler, sigmas, vae, image, mask, **choices)
