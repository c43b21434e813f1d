"""Nodes that make masks: a box, mask levels, what changed."""

from typing import Any

import torch
from comfy_api.latest import io, ui

from ..imaging.boxes import Box, bounding_box, enclosing_box, read_boxes
from ..imaging.changes import TOLERANCE, change_mask
from ..imaging.inputs import as_image, as_masks, check_finite, optional_masks
from ..imaging.mask_levels import LEVEL_NAMES, MASK_LEVELS, level_preview, mask_level
from ..imaging.masks import check_mask, check_not_empty, fill_boxes, match_batch
from ..imaging.views import crop_back

LIMIT = 16384
PREVIEW_SIDE = 1024  # pixels, at most


class InlayBoxMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayBoxMask",
            display_name="Box Mask (Inlay)",
            category="Inlay/photos and masks",
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
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="A painted mask of the image's size, such as Load Image's: where it is painted,"
                    " it is used instead of the box. An empty one changes nothing.",
                ),
                io.Custom(io.BoundingBox.io_type).Input(  # the type's own input has a default, which is a box
                    "bboxes",
                    optional=True,
                    extra_dict={"forceInput": True},
                    tooltip="Boxes from SAM3 Detect, another detector or Bounding Box, used instead of the"
                    " drawn one: the mask is 1 inside each of them. Of a batch, the first picture's.",
                ),
            ],
            outputs=[
                io.Mask.Output(tooltip="One mask of the image's size, 1 inside the box."),
                io.BoundingBox.Output(
                    display_name="bbox",
                    tooltip="The box around the mask, such as for Crop Image or SAM3 Detect.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        x: int,
        y: int,
        width: int,
        height: int,
        mask: torch.Tensor | None = None,
        bboxes: Any = None,
    ) -> io.NodeOutput:
        """Return the wired mask where it is painted, otherwise one mask (1, H, W) that is 1 in the boxes."""
        image = as_image(image)
        rows, columns = image.shape[1:3]
        picture = _saved_picture(cls, image)
        mask = optional_masks(mask)
        if mask is not None and (mask > 0.5).any():
            check_mask(image, mask)
            around = bounding_box(mask.amax(0)).as_dict
            return io.NodeOutput(mask, around, ui=picture | {"inlay_masked": [True]})
        given = [Box(y, x, y + height, x + width)] if bboxes is None else read_boxes(bboxes)
        boxes = [box for box in (box.clamp(rows, columns) for box in given) if box.area]
        if not boxes:
            raise ValueError(_outside(x, y, rows, columns) if bboxes is None else NO_BOX_INSIDE)
        around = enclosing_box(boxes).as_dict
        page = picture | {"inlay_masked": [False], "inlay_box": [around]}
        return io.NodeOutput(fill_boxes(boxes, rows, columns), around, ui=page)


NO_BOX_INSIDE = "bboxes: every box is outside the image; connect boxes that were found in this image."


def _outside(x: int, y: int, rows: int, columns: int) -> str:
    return f"x, y: the box at ({x}, {y}) is outside the {columns}x{rows} image; move it inside."


def _saved_picture(cls, image: torch.Tensor) -> dict:
    """Return the picture for the box on the node, where the page has no picture before a run.

    A file and its true size.
    """
    rows, columns = image.shape[1:3]
    step = -(-max(rows, columns) // PREVIEW_SIDE)
    [file] = ui.PreviewImage(image[:1, ::step, ::step, :3].float(), cls=cls).as_dict()["images"]
    return {"inlay_picture": [dict(file) | {"width": columns, "height": rows}]}


ALL_LEVELS = "all four"


class InlayMaskLevels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayMaskLevels",
            display_name="Mask Levels (Inlay)",
            category="Inlay/photos and masks",
            description="Makes a mask say less about the shape: outline, near the outline, rough shape, box"
            " (IMPRINT). A close mask guides pose and view; a box leaves them to the model.",
            search_aliases=["grow mask", "blur mask", "bounding box", "shape guidance", "imprint"],
            inputs=[
                io.Mask.Input("mask", tooltip="The drawn shape, thresholded at 0.5; one or a batch."),
                io.Combo.Input(
                    "level",
                    options=[*LEVEL_NAMES.values(), ALL_LEVELS],
                    default=LEVEL_NAMES[4],
                    tooltip="1 keeps the shape. 2 and 3 grow it by 6 % and 16 % of its longer side and smooth"
                    " it. 4 is its box. all four: a batch of them, one after another.",
                ),
                io.Image.Input("image", optional=True, tooltip="What lies under the mask, for the preview."),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="Zeros and ones, of the same size."),
                io.Image.Output(
                    display_name="levels",
                    tooltip="The four levels side by side, each of at most 1024 pixels.",
                ),
            ],
        )

    @classmethod
    def execute(cls, mask: torch.Tensor, level: str, image: torch.Tensor | None = None) -> io.NodeOutput:
        """Return the mask at one level or at all four, 0 or 1, and the levels side by side."""
        mask = as_masks(mask)
        check_not_empty(mask)
        if image is None:
            image = torch.full((1, 1, 1, 3), 0.5).expand(1, *mask.shape[-2:], 3)
        else:
            image = as_image(image)
            check_mask(image, mask)
        chosen = (
            MASK_LEVELS if level == ALL_LEVELS else [k for k, name in LEVEL_NAMES.items() if name == level]
        )
        result = torch.cat([mask_level(mask, k) for k in chosen])
        shown = level_preview(image[:1, ..., :3].float(), mask[:1].to(image.device).float())
        return io.NodeOutput(result, shown, ui=ui.PreviewImage(shown, cls=cls))


LARGEST, ALL = "the largest", "all"


class InlayChangeMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayChangeMask",
            display_name="Change Mask (Inlay)",
            category="Inlay/photos and masks",
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
        """Return a mask (B, H, W) of the original's size, 1 where the generated picture is new."""
        original, generated = as_image(original, "original"), as_image(generated, "generated")
        for name, picture in (("original", original), ("generated", generated)):
            check_finite(picture, name)
        generated = crop_back(generated, *original.shape[1:3]).to(original)
        original, generated = match_batch(original=original[..., :3], generated=generated[..., :3])
        mask = change_mask(original, generated, tolerance, patches == LARGEST)
        step = -(-max(mask.shape[1:]) // PREVIEW_SIDE)
        shown = mask[:, ::step, ::step, None].float().expand(-1, -1, -1, 3)
        return io.NodeOutput(mask, ui=ui.PreviewImage(shown, cls=cls))
