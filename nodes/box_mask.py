"""InlayBoxMask: a mask from a box in pixels."""

import torch
from comfy_api.latest import io, ui

from ..imaging.boxes import Box, outline
from ..imaging.masks import fill_box

LIMIT = 16384
PREVIEW_SIDE = 1024


class InlayBoxMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayBoxMask",
            display_name="Box Mask (Inlay)",
            category="Inlay",
            description="A mask of the image's size that is 1 inside a box, where the subject goes.",
            search_aliases=["rectangle mask", "bounding box", "bbox to mask", "region", "placement"],
            inputs=[
                io.Image.Input("image", tooltip="The picture the subject goes into; gives the mask's size."),
                io.Int.Input(
                    "x", default=0, min=-LIMIT, max=LIMIT, tooltip="Left edge of the box in pixels."
                ),
                io.Int.Input("y", default=0, min=-LIMIT, max=LIMIT, tooltip="Top edge of the box in pixels."),
                io.Int.Input(
                    "width",
                    default=256,
                    min=1,
                    max=LIMIT,
                    tooltip="Width of the box, in pixels; what reaches over the border is cut off.",
                ),
                io.Int.Input(
                    "height",
                    default=256,
                    min=1,
                    max=LIMIT,
                    tooltip="Height of the box, in pixels; what reaches over the border is cut off.",
                ),
            ],
            outputs=[io.Mask.Output(tooltip="One mask of the image's size, 1 inside the box.")],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, x: int, y: int, width: int, height: int) -> io.NodeOutput:
        rows, columns = image.shape[1:3]
        box = Box(y, x, y + height, x + width).clamp(rows, columns)
        if not box.area:
            raise ValueError(
                f"x, y: the box at ({x}, {y}) is outside the {columns}x{rows} image; move it inside."
            )
        step = -(-max(rows, columns) // PREVIEW_SIDE)
        preview = outline(image[:1, ::step, ::step], box.scale(1 / step), thickness=2)
        return io.NodeOutput(fill_box(box, rows, columns), ui=ui.PreviewImage(preview, cls=cls))
