"""InlayMaskLevels: how closely a mask says the shape, from the outline to the box."""

import torch
from comfy_api.latest import io, ui

from ..imaging.levels import LEVELS, NAMES, level_preview, mask_level
from ..imaging.masks import check_mask, check_not_empty

ALL = "all four"


class InlayMaskLevels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayMaskLevels",
            display_name="Mask Levels (Inlay)",
            category="Inlay",
            description="Makes a mask say less about the shape: outline, near the outline, rough shape, box"
            " (IMPRINT). A close mask guides pose and view; a box leaves them to the model.",
            search_aliases=["grow mask", "blur mask", "bounding box", "shape guidance", "imprint"],
            inputs=[
                io.Mask.Input("mask", tooltip="The drawn shape, thresholded at 0.5; one or a batch."),
                io.Combo.Input(
                    "level",
                    options=[*NAMES.values(), ALL],
                    default=NAMES[4],
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
        check_not_empty(mask)
        if image is None:
            image = torch.full((1, 1, 1, 3), 0.5).expand(1, *mask.shape[-2:], 3)
        else:
            check_mask(image, mask)
        chosen = LEVELS if level == ALL else [k for k, name in NAMES.items() if name == level]
        result = torch.cat([mask_level(mask, k) for k in chosen])
        shown = level_preview(image[:1, ..., :3], mask[:1].to(image))
        return io.NodeOutput(result, shown, ui=ui.PreviewImage(shown, cls=cls))
