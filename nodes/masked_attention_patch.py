"""MaskedAttentionPatch: the prompt acts in the box alone, and the background's colours stay out of it."""

import re

import torch
from comfy_api.latest import io, ui

from ..attention.blocks import choose_blocks, describe_blocks, transformer_blocks
from ..attention.layers import LAYER_PRESETS, unet_layers
from ..attention.masked import OPERATORS
from ..attention.model_patch import mask_attention
from ..attention.patch import APPLY_TO
from ..attention.regions import halved, region_labels, token_preview
from ..attention.transformer import EVERY_BLOCK
from ..common.log import logger
from ..families.layout import grid_of
from ..host.families import patch_of, token_order
from ..host.models import latent_format_of
from ..imaging.inputs import as_masks
from .checks import check_wired

CUSTOM = "custom"
TRANSFORMER_PARTS = ("double", "single", "first half")  # of a transformer
PER_IMAGE, PER_SUBJECT = "one mask per image", "one mask per subject"
ALL_TOKENS, RELEASED_TOKENS = "all", "released"
LATENT_PIXELS = 8


class MaskedAttentionPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskedAttentionPatch",
            display_name="Masked Attention (Inlay)",
            category="Inlay/inpaint",
            description="Masks a model's attention by region: the prompt acts inside the mask only, and the"
            " subject and the background do not look at each other in the layers you choose (DreamCom)."
            " On edit models it also decides in which box each subject photo acts."
            " Chains with other attention patches, and costs about no time.",
            search_aliases=[
                "attention mask",
                "regional prompt",
                "DreamCom",
                "attention couple",
                "color bleeding",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="SD 1.5, SD 2, SDXL, or a transformer: FLUX, Qwen-Image, Z-Image, Krea 2.",
                ),
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
                    options=[*LAYER_PRESETS, CUSTOM, *TRANSFORMER_PARTS],
                    default="auto",
                    tooltip="Layers in which subject and background do not see each other. auto:"
                    " decoder_outer, the decoder's outer layers. paper: all but those, as DreamCom's paper"
                    " has it. released: what its published code masks. custom: the list in `layers`."
                    " Transformers: auto, paper and all mask every block; double, single and first half"
                    " mask a part of them.",
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
                    " (a range of blocks, a block); input 4.1 is that block's second transformer, in SDXL."
                    ' Transformers: "double, single 0-9" or "first 60%".',
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
                io.String.Input(
                    "photos",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="For edit models: in which box each subject photo acts, and how strongly, such as"
                    ' "1; 2: 0.8; 0": the first photo in the first mask, the second in the second mask at'
                    " strength 0.8, the third in all. Empty: as the edit prompt sets it.",
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
        self_attention: str = "auto",
        self_strength: float = 1.0,
        operator: str = "paper",
        layers: str = "",
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        apply_to: str = "both",
        mask_batch: str = PER_IMAGE,
        subject_tokens: str = "",
        text: str = ALL_TOKENS,
        photos: str = "",
    ) -> io.NodeOutput:
        """Return a clone of the model with masked attention, the token preview and a report."""
        check_wired(model=model)
        if start_percent > end_percent:
            raise ValueError(
                f"start_percent ({start_percent}) lies after end_percent ({end_percent}): swap them."
            )
        mask = as_masks(mask)
        masks = list(mask) if mask_batch == PER_SUBJECT else [mask]
        bindings = parse_photos(photos)
        if any(box > len(masks) for box, _ in bindings):
            raise ValueError(
                f'photos: "{photos}" names a box beyond the {len(masks)} of mask; write 0 for all boxes.'
            )
        chosen = layers if self_attention == CUSTOM else self_attention
        patched = mask_attention(
            model,
            masks,
            cross_strength=cross_attention,
            self_layers=chosen,
            self_strength=self_strength,
            operator=operator,
            text=parse_tokens(subject_tokens, len(masks)),
            released=text == RELEASED_TOKENS,
            percent=(start_percent, end_percent),
            apply_to=apply_to,
            photos=bindings,
        )
        labels = region_labels(masks)
        latent, grids, notes = token_grids(model, labels.shape[1:], chosen, bindings)
        preview, lines = token_preview(labels, latent, grids)
        lines += notes
        report = "\n".join(lines)
        logger.info("Masked attention:\n%s", report)
        shown = {**ui.PreviewImage(preview, cls=cls).as_dict(), **ui.PreviewText(report).as_dict()}
        return io.NodeOutput(patched, preview, report, ui=shown)


def token_grids(model, size, chosen: str, bindings) -> tuple[tuple[int, int], list, list[str]]:
    """Return the latent of a picture of that size, a MODEL's grids of tokens, and lines for the report."""
    network = model.get_model_object("diffusion_model")
    order = token_order(network)
    ratio = LATENT_PIXELS if order is None else latent_format_of(model).spacial_downscale_ratio
    latent = (max(1, size[0] // ratio), max(1, size[1] // ratio))
    if order is None:
        depths = 1 + max(layer.depth for layer in unet_layers(network))
        return latent, halved(latent, depths), []
    blocks = transformer_blocks(network, order)
    whole = chosen in EVERY_BLOCK
    named = {"first half": "first 50%"}.get(chosen, chosen)
    masked = blocks if whole else [blocks[position] for position in sorted(choose_blocks(blocks, named))]
    notes = [f"masked: {len(masked)} of {len(blocks)} blocks: {describe_blocks(masked)}"]
    if bindings:
        acts = (
            f"photo {number} acts in {f'box {box}' if box else 'every box'} at strength {strength:g}"
            for number, (box, strength) in enumerate(bindings, 1)
        )
        notes.append(", ".join(acts))
    return latent, [grid_of(latent, patch_of(network, order))], notes


MOST_BOXES, MOST_STRENGTH = 64, 100.0  # beyond them a number is a slip


def parse_photos(text: str, name: str = "photos") -> list[tuple[int, float]]:
    """Return the box (0 for all) and the strength of every photo: "1; 2: 0.8" is [(1, 1.0), (2, 0.8)]."""
    try:
        entries = [part.split(":") for part in text.split(";") if part.strip()]
        bindings = [(int(entry[0]), float(entry[1]) if len(entry) == 2 else 1.0) for entry in entries]
        valid = all(len(entry) <= 2 for entry in entries) and all(
            0 <= box <= MOST_BOXES and 0 <= strength <= MOST_STRENGTH for box, strength in bindings
        )
        valid = valid and (bool(entries) or not text.strip())
    except ValueError:
        valid, bindings = False, []
    if not valid:
        raise ValueError(
            f'{name}: "{text}" is no list of boxes; write one entry for each photo, such as "1; 2: 0.8".'
        )
    return bindings


def parse_tokens(text: str, subjects: int) -> list[set[int]] | None:
    """Return one set of prompt tokens per subject, None for empty text: "1-4; 6, 8" is [{1,2,3,4}, {6,8}]."""
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
    """Return the tokens of "6-9" or of "6". Raises ValueError for anything else."""
    match = re.fullmatch(r"\s*([0-9]{1,5})(?:\s*-\s*([0-9]{1,5}))?\s*", entry)
    if not match:
        raise ValueError(f'subject_tokens: "{text}" is no list of tokens; write for example "1-4; 6-9".')
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise ValueError(f'subject_tokens: "{entry.strip()}" ends before it begins; write "{last}-{first}".')
    return range(first, last + 1)
