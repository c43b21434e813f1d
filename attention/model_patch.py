"""Masked attention on a MODEL: the patch, and what is computed once per sampling step.

Everything that would cost a synchronisation or break a compiled graph (is this step in range, which tokens
are inside) is settled here, before the UNet runs; the replacements in the layers only look it up.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ..host.families import require_family, token_order
from ..host.patches import APPLY_MODEL, ModelPatcher, optimized_attention
from ..imaging.latent_mask import snap_labels
from ..imaging.views import ROWS, VIEW, WINDOW
from .layers import unet_layers
from .patch import CONDITIONAL, PLAN, Masking, choose_masking, row_masks, with_replacements
from .regions import WHOLE_IMAGE, RegionPlan, halved, region_labels, text_period
from .transformer import StepTokens, choose_joint_masking

WRAPPER_KEY = "inlay_masked_attention"
COMPILED = "torch.compile"  # the host's key for the wrapper that runs a compiled model


def mask_attention(
    model: ModelPatcher,
    masks: Sequence[Tensor],
    *,
    cross_strength: float = 1.0,
    self_layers: str = "auto",
    self_strength: float = 1.0,
    operator: str = "paper",
    text: Sequence[Collection[int] | None] | None = None,
    released: bool = False,
    percent: tuple[float, float] = (0.0, 1.0),
    apply_to: str = "both",
    photos: Sequence[tuple[int, float]] = (),
) -> ModelPatcher:
    """Return a clone of a MODEL that masks its attention while it samples.

    masks: one (N,H,W) per subject, N = 1 or the batch size. percent: start and end, in shares of the noise
    schedule. The other options as in `region_options`. A second call masks what the first one leaves: both
    regions must agree for a query to see a key. photos: of a transformer's reference latents that show a
    subject, the box (from 1, 0 for all) and strength of each.
    """
    if token_order(model.get_model_object("diffusion_model")) is not None:
        return _mask_transformer(
            model, masks, cross_strength, self_layers, self_strength, operator, text, released, percent,
            apply_to, photos,
        )  # fmt: skip
    unet = _unet(model)
    masking = choose_masking(unet, cross_strength, self_layers, self_strength, operator, _free_plan(model))
    with torch.inference_mode(False):
        labels = region_labels(masks)
    model = model.clone()
    if masking.cross_layers or masking.self_layers:
        options = model.model_options["transformer_options"]
        model.model_options["transformer_options"] = with_replacements(options, masking, optimized_attention)
        depths = 1 + max(layer.depth for layer in unet_layers(unet))
        step = StepRegions(masking, labels, text, released, percent, apply_to, depths)
        model.add_wrapper_with_key(APPLY_MODEL, WRAPPER_KEY, step)
    return model


def _mask_transformer(
    model: ModelPatcher, masks, cross_strength, self_layers, self_strength, operator, text, released, percent,
    apply_to, photos,
) -> ModelPatcher:  # fmt: skip
    """`mask_attention` for a transformer with joint attention."""
    if released:
        raise ValueError(
            "text: hiding tokens 39-76 belongs to the text encoder of SD models; choose all for this model."
        )
    network = model.get_model_object("diffusion_model")
    order = token_order(network)
    assert order is not None
    masking = choose_joint_masking(
        network, order, cross_strength, self_layers, self_strength, operator, photos
    )
    with torch.inference_mode(False):
        labels = region_labels(masks)
    boxes = int(labels.max())
    wrong = [box for box, _ in photos if not 0 <= box <= boxes]
    if wrong:
        raise ValueError(
            f"photos: box {wrong[0]} does not exist, there are {boxes} mask(s); count them from 1, or write 0"
            " for a photo that acts in all of them."
        )
    model = model.clone()
    if masking is not None:
        model.add_wrapper_with_key(
            APPLY_MODEL,
            WRAPPER_KEY,
            StepTokens(
                network,
                order,
                masking,
                labels,
                text,
                apply_to,
                lambda sampling, sigmas: in_range(percent, sampling, sigmas),
                lambda options: sampled_labels(labels, options),
                WINDOW,
            ),
        )
    return model


def _unet(model: ModelPatcher):
    unet = model.get_model_object("diffusion_model")
    if not hasattr(unet, "input_blocks"):
        require_family(model)
        raise ValueError(f"Masked attention cannot mask {type(model.model).__name__} models.")
    return unet


def in_range(percent: tuple[float, float], sampling, sigmas: Tensor) -> bool:
    """Whether a step lies in a range of the noise schedule, given in shares of it."""
    if percent == (0.0, 1.0):
        return True
    start, end = (sampling.percent_to_sigma(share) for share in percent)
    return start >= float(sigmas.max()) >= end


def sampled_labels(labels: Tensor, options: dict) -> tuple[Tensor, tuple[int, ...]]:
    """Return the masks of the pictures that are sampled, and which of the batch these are.

    Where there is a mask for every picture, a sampler that paints some of them has those masks.
    """
    rows, pictures = options.get(ROWS, ((), 0))
    if len(labels) != pictures or len(rows) == pictures:
        return labels, ()
    return labels[list(rows)], tuple(rows)


def _free_plan(model: ModelPatcher) -> str:
    """Return a place in transformer_options for the plan of one more patch on this model."""
    return f"{PLAN}.{len(model.get_wrappers(APPLY_MODEL, WRAPPER_KEY))}"


class StepRegions:
    """Wraps the host's `apply_model`: puts the plan of the step into transformer_options, or leaves it out.

    Outside the percent range no plan is there, and every layer runs what it would run without us.
    """

    def __init__(self, masking: Masking, labels, text, released, percent, apply_to, depths: int):
        self.masking = masking
        self.labels = labels
        self.text = text
        self.released = released
        self.percent = percent
        self.apply_to = apply_to
        self.depths = depths
        self.plans: dict[tuple, RegionPlan] = {}

    def __call__(
        self,
        executor,
        x,
        t,
        c_concat=None,
        c_crossattn=None,
        control=None,
        transformer_options=None,
        **kwargs,
    ):
        """Run the host's `apply_model` with this step's plan in a copy of transformer_options."""
        options = transformer_options or {}
        if in_range(self.percent, executor.class_obj.model_sampling, options.get("sigmas", t)):
            plan = self._plan(x, c_crossattn, options)
            options = {**options, self.masking.plan: plan}
            if COMPILED in options.get("wrappers", {}).get(APPLY_MODEL, {}):
                kwargs[self._graph_name(plan)] = True
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    def _plan(self, x: Tensor, context: Tensor | None, options: dict) -> RegionPlan:
        chunks = options.get("cond_or_uncond", [CONDITIONAL])
        window = tuple(options.get(WINDOW, WHOLE_IMAGE))
        labels, rows = sampled_labels(self.labels, options)
        length = context.shape[1] if context is not None else 0
        periods = self._periods(context, x.shape[0], len(chunks))
        view, size = options.get(VIEW, (None, None))
        if view is not None and size != tuple(labels.shape[1:]):
            view = None
        key = (x.shape, tuple(chunks), window, view, rows, x.device, length, tuple(periods))
        if key not in self.plans:
            if len(self.plans) >= 32:  # bound the cache: every crop position adds an entry
                self.plans.clear()
            with torch.inference_mode(False):
                if view is not None or window == WHOLE_IMAGE:  # the hole that the sampler paints
                    labels, window = snap_labels(labels, (x.shape[-2], x.shape[-1]), view), WHOLE_IMAGE
            self.plans[key] = self._new_plan(labels, x, length, chunks, window, periods)
        return self.plans[key]

    def _periods(self, context: Tensor | None, batch: int, chunks: int) -> list[int]:
        """Of every row's text; they matter where a subject sees some of its tokens."""
        if context is None or not any(tokens is not None for tokens in self.text or ()):
            return []
        return [text_period(part) for part in context.chunk(chunks) for _ in range(batch // chunks)]

    def _new_plan(self, labels, x, length: int, chunks, window, periods) -> RegionPlan:
        rows = row_masks(labels.shape[0], x.shape[0] // len(chunks), chunks, self.apply_to)
        with torch.inference_mode(False):
            texts = self.text or [None] * int(self.labels.max())  # of all regions, in this view or not
            plan = RegionPlan(labels, rows, texts, self.released, x.device, window, periods)
            for grid in halved(x.shape[-2:], self.depths):
                plan.at(tuple(x.shape[-2:]), grid)
            for period in dict.fromkeys(plan.periods):
                plan.text_keys(length, period)
        return plan

    def _graph_name(self, plan: RegionPlan) -> str:
        """Return a keyword that makes a compiled UNet keep one graph per masking and token count.

        The host compiles with the guards on transformer_options left out, so a graph traced without a mask,
        or for another number of tokens, would be taken for this one.
        """
        groups = [group for regions in plan.grids for group in regions.groups]
        counts = [(group.period, *map(len, group.tokens)) for group in groups]
        texts = [None if keys is None else len(keys) for text in plan.texts.values() for keys in text]
        return f"{WRAPPER_KEY}_{hash((self.masking, *counts, *texts, *plan.row_masks))}"
