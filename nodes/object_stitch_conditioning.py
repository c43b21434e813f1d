"""InlayObjectStitchConditioning: inpainting conditions in the channel order of ObjectStitch."""

import torch
from comfy_api.latest import io

from ..conditioning.host import read_object_first
from .inpaint_conditioning import InlayInpaintConditioning


class InlayObjectStitchConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayObjectStitchConditioning",
            display_name="ObjectStitch Conditioning (Inlay)",
            category="Inlay",
            description="Tells an ObjectStitch or Paint-by-Example model which picture to fill in and where."
            " They read noise, background and inverted mask in this order, other inpainting models the mask"
            " first; the model that comes out does, in this node's conditions as in those of the"
            " Disentangled Inpaint Sampler.",
            search_aliases=["objectstitch", "paint by example", "inpaint model conditioning", "9 channel"],
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint of ObjectStitch or Paint-by-Example."),
                io.Conditioning.Input("positive", tooltip="The object, from Identity Encoder DINOv2."),
                io.Conditioning.Input("negative", tooltip="No object, from the same node."),
                io.Vae.Input("vae", tooltip="The VAE of the same checkpoint."),
                io.Image.Input("image", tooltip="The picture the object goes into, of any size."),
                io.Mask.Input("mask", tooltip="1 where the object goes; thresholded at 0.5, of its size."),
                io.Boolean.Input(
                    "noise_mask",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="Keep the picture outside the mask while sampling. Off: all of it is redrawn.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model that reads its own channel order."),
                io.Conditioning.Output(
                    display_name="positive", tooltip="The object with the picture and mask."
                ),
                io.Conditioning.Output(display_name="negative", tooltip="No object with the same."),
                io.Latent.Output(
                    display_name="latent", tooltip="The padded picture, with the mask as its noise mask."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, vae, image: torch.Tensor, mask: torch.Tensor, noise_mask: bool = True
    ) -> io.NodeOutput:
        patched = read_object_first(model)
        made = InlayInpaintConditioning.execute(positive, negative, vae, image, mask, noise_mask)
        return io.NodeOutput(patched, *(made.result or ()))
