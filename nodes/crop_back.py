"""InlayCropBack: a generated picture without the rows and columns that were padded on."""

import torch
from comfy_api.latest import io

from ..imaging.padding import crop_back


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
        return io.NodeOutput(crop_back(generated, *original.shape[1:3]))
