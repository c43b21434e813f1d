"""InlayChangeMask: where a generated picture shows something new, as a mask."""

import torch
from comfy_api.latest import io, ui

from ..imaging.changes import TOLERANCE, change_mask
from ..imaging.masks import match_batch
from ..imaging.padding import crop_back

LARGEST, ALL = "the largest", "all"
PREVIEW_SIDE = 1024  # pixels, at most


class InlayChangeMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayChangeMask",
            display_name="Change Mask (Inlay)",
            category="Inlay",
            description="A mask of what a generated picture shows and the original does not. With Paste Back,"
            " what was inserted without a mask lies on the original, whose other pixels stay untouched.",
            search_aliases=["difference mask", "diff", "compare images", "what changed", "auto mask"],
            inputs=[
                io.Image.Input("original", tooltip="The picture that it was made from."),
                io.Image.Input(
                    "generated",
                    tooltip="The decoded picture: of the original's size, or padded, which is cropped off.",
                ),
                io.Float.Input(
                    "tolerance",
                    default=TOLERANCE,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much a pixel may differ and still count as the same, 0 to 1. Higher where"
                    " the mask takes in too much, lower where it misses a part.",
                ),
                io.Combo.Input(
                    "patches",
                    options=[LARGEST, ALL],
                    default=LARGEST,
                    tooltip="the largest: the one largest patch that changed. all: every patch larger than"
                    " half a percent of the picture, such as a reflection apart from the object.",
                ),
            ],
            outputs=[io.Mask.Output(tooltip="1 where something is new, of the original's size.")],
        )

    @classmethod
    def execute(
        cls, original: torch.Tensor, generated: torch.Tensor, tolerance: float, patches: str
    ) -> io.NodeOutput:
        generated = crop_back(generated, *original.shape[1:3]).to(original)
        original, generated = match_batch(original=original[..., :3], generated=generated[..., :3])
        mask = change_mask(original, generated, tolerance, patches == LARGEST)
        step = -(-max(mask.shape[1:]) // PREVIEW_SIDE)
        shown = mask[:, ::step, ::step, None].expand(-1, -1, -1, 3)
        return io.NodeOutput(mask, ui=ui.PreviewImage(shown, cls=cls))
