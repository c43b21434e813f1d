"""ImageConditionedPix2Pix: an object into a picture, shown by another picture, with no mask anywhere."""

import torch
from comfy_api.latest import io, ui

from ..conditioning.compatibility import check_vae_fits
from ..imaging.inputs import as_image, check_finite
from ..imaging.views import pad_to_multiple
from ..sampling.identity import as_conditioning, check_pix2pix_model, two_scale_guider, with_source
from .checks import check_wired
from .identity_encoder_dinov2 import prepare_object_images
from .loaders import AdapterType


class ImageConditionedPix2Pix(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImageConditionedPix2Pix",
            display_name="Insert Object Without Mask (Inlay)",
            category="Inlay/insert an object",
            description="Puts the object of one picture into another, where it fits; there is no mask and no"
            " prompt (Visually Guided Insertion). Wire guider and latent into SamplerCustomAdvanced, and"
            " the decoded picture into Crop Back.",
            search_aliases=[
                "image-conditioned pix2pix",
                "instruct pix2pix",
                "ip2p",
                "mask free",
                "visually guided",
            ],
            inputs=[
                io.Model.Input("model", tooltip="An InstructPix2Pix model (8 channels) trained for objects."),
                io.Vae.Input("vae", tooltip="The VAE of the same model."),
                io.ClipVision.Input(
                    "clip_vision",
                    tooltip="The encoder that the embedding optimizer was made for: CLIP ViT-L/14.",
                ),
                AdapterType.Input(
                    "embedding_optimizer", tooltip="From Load Identity Adapter; emb_opt.pt or one of Inlay's."
                ),
                io.Image.Input(
                    "image", tooltip="The picture the object goes into, of any size; one or a batch."
                ),
                io.Image.Input(
                    "object_image",
                    tooltip="The object; a batch is several views of it. An alpha channel takes it out of its"
                    " picture.",
                ),
                io.Float.Input(
                    "object_guidance",
                    default=7.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="How closely the object is followed. 1: not stressed at all.",
                ),
                io.Float.Input(
                    "image_guidance",
                    default=1.5,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How closely the picture is kept.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="From no object (0) to the object (1) and beyond, before guidance.",
                ),
                io.Boolean.Input(
                    "raw_pixels",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Show CLIP pixels from 0 to 255, normalised as if they were from 0 to 1: what"
                    " the published optimizer was trained with. Off: pixels from 0 to 1, as in its"
                    " inference.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="positive", tooltip="Object and picture, for samplers with one scale."
                ),
                io.Conditioning.Output(display_name="negative", tooltip="The picture without the object."),
                io.Latent.Output(display_name="latent", tooltip="An empty one of the padded picture's size."),
                io.Guider.Output(display_name="guider", tooltip="Model, conditions and both scales."),
            ],
        )

    @classmethod
    def execute(
        cls, model, vae, clip_vision, embedding_optimizer, image: torch.Tensor, object_image: torch.Tensor,
        object_guidance: float = 7.0, image_guidance: float = 1.5, strength: float = 1.0,
        raw_pixels: bool = False,
    ) -> io.NodeOutput:  # fmt: skip
        """Return positive, negative, an empty latent of the padded size, and a guider with both scales."""
        from ..encoders.image_context import check_encoder, encode_views  # loaded when needed

        check_wired(model=model, vae=vae, clip_vision=clip_vision, embedding_optimizer=embedding_optimizer)
        check_pix2pix_model(model, embedding_optimizer.config.context)
        check_vae_fits(model, vae)
        check_encoder(clip_vision, embedding_optimizer)
        image, object_image = as_image(image), as_image(object_image, "object_image")
        for name, pictures in (("image", image), ("object_image", object_image)):
            check_finite(pictures, name)
        alpha = object_image.shape[-1] == 4
        pictures = prepare_object_images(
            embedding_optimizer, [object_image], None, "black" if alpha else "original", name="object_image"
        )
        seen = encode_views(clip_vision, embedding_optimizer, pictures, strength, raw=raw_pixels)
        source = vae.encode(pad_to_multiple(image[..., :3], vae.spacial_compression_encode()))
        context, uncond = as_conditioning(seen.context), as_conditioning(seen.uncond)
        return io.NodeOutput(
            with_source(context, source),
            with_source(uncond, source),
            {"samples": torch.zeros_like(source)},
            two_scale_guider(model, context, uncond, source, object_guidance, image_guidance),
            ui=ui.PreviewImage(torch.cat(pictures), cls=cls),
        )
