"""Nodes that crop and paste pictures."""

import torch
from comfy_api.latest import io

from ..imaging.composite import paste_back
from ..imaging.inputs import as_image, as_masks
from ..imaging.masks import check_mask, check_not_empty, match_batch
from ..imaging.padding import crop_back


class InlayPasteBack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayPasteBack",
            display_name="Paste Back (Inlay)",
            category="Inlay",
            description="Puts the generated part inside the mask onto the original. Beyond the soft edge"
            " every pixel is the original's, bit for bit.",
            search_aliases=["composite", "stitch", "uncrop", "image composite masked", "blend", "feather"],
            inputs=[
                io.Image.Input("original", tooltip="The picture before inpainting."),
                io.Image.Input(
                    "generated",
                    tooltip="The picture after inpainting: of the original's size, or padded by Inpaint"
                    " Conditioning, which is cropped off. Nothing is resized.",
                ),
                io.Mask.Input("mask", tooltip="The mask that was inpainted, of the original's size."),
                io.Int.Input(
                    "feather",
                    default=8,
                    min=0,
                    max=256,
                    tooltip="Width of the soft edge in pixels, outward from the mask. 0: a hard edge.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The original with the subject in it, at the original's size.")],
        )

    @classmethod
    def execute(
        cls, original: torch.Tensor, generated: torch.Tensor, mask: torch.Tensor, feather: int
    ) -> io.NodeOutput:
        original, generated = as_image(original, "original"), as_image(generated, "generated")
        mask = as_masks(mask)
        check_mask(original, mask)
        check_not_empty(mask.amax(0, keepdim=True))  # some pictures of a batch may have nothing to show
        if original.shape[-1] != generated.shape[-1]:
            raise ValueError(
                "original: only it or only the generated picture has transparency; convert to RGB."
            )
        generated = crop_back(generated, *original.shape[1:3]).to(original)
        original, generated, mask = match_batch(original=original, generated=generated, mask=mask)
        return io.NodeOutput(paste_back(original, generated, mask.to(original.device), feather))


class InlayCropBack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayCropBack",
            display_name="Crop Back (Inlay)",
            category="Inlay",
            description="Cuts a generated picture to the size of the one it was made from, where that had to"
            " be padded for the model. Nothing is resized.",
            search_aliases=["crop", "unpad", "original size"],
            inputs=[
                io.Image.Input("generated", tooltip="The decoded picture."),
                io.Image.Input("original", tooltip="The picture that it was made from."),
            ],
            outputs=[io.Image.Output(tooltip="The generated picture at the original's size.")],
        )

    @classmethod
    def execute(cls, generated: torch.Tensor, original: torch.Tensor) -> io.NodeOutput:
        original, generated = as_image(original, "original"), as_image(generated, "generated")
        return io.NodeOutput(crop_back(generated, *original.shape[1:3]))
