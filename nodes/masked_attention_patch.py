"""MaskedAttentionPatch: the prompt speaks only to the box, and the background's colours stay out of it."""

import logging
import re

import torch
from comfy_api.latest import io, ui

from ..attention.host import mask_attention
from ..attention.layers import LAYER_PRESETS, unet_layers
from ..attention.masked import OPERATORS
from ..attention.patch import APPLY_TO
from ..attention.preview import token_preview
from ..attention.regions import halved, region_labels
from ..imaging.inputs import as_masks
from .checks import check_wired

CUSTOM = "custom"
PER_IMAGE, PER_SUBJECT = "one mask per image", "one mask per subject"
ALL_TOKENS, RELEASED_TOKENS = "all", "released"
LATENT_PIXELS = 8


class MaskedAttentionPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskedAttentionPatch",
            display_name="Masked Attention (Inlay)",
            category="Inlay",
            description="Masks a model's attention by region: the prompt acts inside the mask only, and the"
            " subject and the background do not look at each other in the layers you choose (DreamCom)."
            " Chains with other attention patches, and costs about nothing.",
            search_aliases=[
                "attention mask",
                "regional prompt",
                "DreamCom",
                "attention couple",
                "color bleeding",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A UNet model: SD 1.5, SD 2, SDXL, inpainting or not."),
                io.Mask.Input(
                    "mask",
                    tooltip="1 where the subject goes, thresholded at 0.5; any size, stretched to the latent."
                    " One mask, or one for each image of the batch.",
                ),
                io.Float.Input(
                    "cross_attention",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How far the prompt is kept out of the background. 0: not at all. 1: entirely.",
                ),
                io.Combo.Input(
                    "self_attention",
                    options=[*LAYER_PRESETS, CUSTOM],
                    default="paper",
                    tooltip="Layers in which subject and background do not see each other. paper: all but the"
                    " decoder's outer ones, which blend the two. decoder_outer: only those. released: what"
                    " DreamCom's published code masks. custom: the list in `layers`.",
                ),
                io.Float.Input(
                    "self_strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How far those layers are masked. 0: not at all. 1: entirely.",
                ),
                io.Combo.Input(
                    "operator",
                    options=list(OPERATORS),
                    default="paper",
                    tooltip="paper: attention is masked after the softmax. renormalised: each region attends"
                    " to itself alone, with full weight; faster the larger the image.",
                ),
                io.String.Input(
                    "layers",
                    default="",
                    advanced=True,
                    tooltip='For self_attention = custom: a list such as "output 3-5, middle, input 4"'
                    " (a range of blocks, a block); input 4.1 is that block's second transformer, in SDXL.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where in the noise schedule the masking starts: 0 = the first step.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where in the noise schedule the masking ends: 1 = the last step.",
                ),
                io.Combo.Input(
                    "apply_to",
                    options=list(APPLY_TO),
                    default="both",
                    advanced=True,
                    tooltip="Which passes to mask. both: every pass that the guider makes. conditional,"
                    " unconditional: that of the positive or of the negative prompt, with an ordinary CFG"
                    " guider.",
                ),
                io.Combo.Input(
                    "mask_batch",
                    options=[PER_IMAGE, PER_SUBJECT],
                    default=PER_IMAGE,
                    advanced=True,
                    tooltip="What a batch of masks means: one for each image of the batch, or one for each of"
                    " several subjects in every image (where they overlap, the first wins).",
                ),
                io.String.Input(
                    "subject_tokens",
                    default="",
                    advanced=True,
                    tooltip='For several subjects: the prompt tokens each one sees, "1-4; 6-9" (0 is the'
                    " start token). Empty: every subject sees the whole prompt.",
                ),
                io.Combo.Input(
                    "text",
                    options=[ALL_TOKENS, RELEASED_TOKENS],
                    default=ALL_TOKENS,
                    advanced=True,
                    tooltip="released: hide the start token and tokens 39-76 from every query as well, like"
                    " DreamCom's published code.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="A copy of the model with masked attention."),
                io.Image.Output(
                    display_name="tokens",
                    tooltip="The tokens inside at each resolution, finest first. Orange: the mask is smaller"
                    " than a token there, and the nearest one is kept.",
                ),
                io.String.Output(display_name="report", tooltip="The same in words."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        mask: torch.Tensor,
        cross_attention: float = 1.0,
        self_attention: str = "paper",
        self_strength: float = 1.0,
        operator: str = "paper",
        layers: str = "",
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        apply_to: str = "both",
        mask_batch: str = PER_IMAGE,
        subject_tokens: str = "",
        text: str = ALL_TOKENS,
    ) -> io.NodeOutput:
        check_wired(model=model)
        if start_percent > end_percent:
            raise ValueError(
                f"start_percent ({start_percent}) lies after end_percent ({end_percent}): swap them."
            )
        mask = as_masks(mask)
        masks = list(mask) if mask_batch == PER_SUBJECT else [mask]
        patched = mask_attention(
            model,
            masks,
            cross_strength=cross_attention,
            self_layers=layers if self_attention == CUSTOM else self_attention,
            self_strength=self_strength,
            operator=operator,
            text=parse_tokens(subject_tokens, len(masks)),
            released=text == RELEASED_TOKENS,
            percent=(start_percent, end_percent),
            apply_to=apply_to,
        )
        depths = 1 + max(layer.depth for layer in unet_layers(model.get_model_object("diffusion_model")))
        labels = region_labels(masks)
        latent = (max(1, labels.shape[1] // LATENT_PIXELS), max(1, labels.shape[2] // LATENT_PIXELS))
        preview, lines = token_preview(labels, latent, halved(latent, depths))
        report = "\n".join(lines)
        logging.info("Masked attention:\n%s", report)
        shown = {**ui.PreviewImage(preview, cls=cls).as_dict(), **ui.PreviewText(report).as_dict()}
        return io.NodeOutput(patched, preview, report, ui=shown)


def parse_tokens(text: str, subjects: int) -> list[set[int]] | None:
    """ "1-4; 6, 8" -> [{1,2,3,4}, {6,8}], one set of prompt tokens per subject; None for empty text."""
    if not text.strip():
        return None
    parts = [part.strip() for part in text.split(";") if part.strip()]
    if len(parts) != subjects:
        raise ValueError(
            f"subject_tokens: it lists tokens for {len(parts)} subject(s), but there are {subjects} mask(s):"
            ' write one list for each, separated by ";".'
        )
    return [{t for entry in part.split(",") for t in _token_range(entry, text)} for part in parts]


def _token_range(entry: str, text: str) -> range:
    """ "6-9" -> 6, 7, 8, 9; "6" -> 6. Raises ValueError for anything else."""
    match = re.fullmatch(r"\s*([0-9]{1,5})(?:\s*-\s*([0-9]{1,5}))?\s*", entry)
    if not match:
        raise ValueError(f'subject_tokens: "{text}" is no list of tokens; write for example "1-4; 6-9".')
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise ValueError(f'subject_tokens: "{entry.strip()}" ends before it begins; write "{last}-{first}".')
    return range(first, last + 1)
