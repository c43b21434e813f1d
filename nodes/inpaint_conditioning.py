"""InlayInpaintConditioning: the conditions of an inpainting model, for pictures of any size."""

import node_helpers
import torch
from comfy_api.latest import io

from ..conditioning.inpaint import inpaint_pictures
from ..imaging.masks import check_mask, check_not_empty, check_not_full


class InlayInpaintConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayInpaintConditioning",
            display_name="Inpaint Conditioning (Inlay)",
            category="Inlay",
            description="Tells an inpainting model which picture to fill in and where. Like the host's"
            " InpaintModelConditioning, but pictures of any size are padded to the model's grid, not cut;"
            " Paste Back crops the result to the original's size.",
            search_aliases=["inpaint model conditioning", "inpainting", "masked image", "9 channel"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="What to paint into the mask."),
                io.Conditioning.Input("negative", tooltip="What to keep out of it."),
                io.Vae.Input("vae", tooltip="The VAE of the inpainting checkpoint."),
                io.Image.Input(
                    "image",
                    tooltip="The picture the subject goes into, of any size; one, or one for each mask.",
                ),
                io.Mask.Input(
                    "mask",
                    tooltip="1 where the subject goes; thresholded at 0.5, of the image's size; one, or one"
                    " for each image.",
                ),
                io.Boolean.Input(
                    "noise_mask",
                    default=True,
                    advanced=True,
                    tooltip="Keep the picture outside the mask while sampling. Off: all of it is redrawn.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="positive", tooltip="The prompt with the picture and mask."
                ),
                io.Conditioning.Output(display_name="negative", tooltip="The other prompt with the same."),
                io.Latent.Output(
                    display_name="latent", tooltip="The padded picture, with the mask as its noise mask."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, positive, negative, vae, image: torch.Tensor, mask: torch.Tensor, noise_mask: bool = True
    ) -> io.NodeOutput:
        check_mask(image, mask)
        check_not_empty(mask)
        check_not_full(mask)
        image, masked_image, mask = inpaint_pictures(image, mask, vae.spacial_compression_encode())
        hole = mask[:, None]  # (B, 1, H, W) at the picture's size: the host scales it to the latent's

        condition = {"concat_latent_image": vae.encode(masked_image), "concat_mask": hole}
        latent = {"samples": vae.encode(image)} | ({"noise_mask": hole} if noise_mask else {})
        return io.NodeOutput(
            node_helpers.conditioning_set_values(positive, condition),
            node_helpers.conditioning_set_values(negative, condition),
            latent,
        )
