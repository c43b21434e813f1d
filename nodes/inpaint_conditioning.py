"""Nodes for the conditions of inpainting models."""

import node_helpers
import torch
from comfy_api.latest import io

from ..conditioning.compatibility import check_vae_fits
from ..conditioning.edit_prompt import GREY_HOLE, HOLES, mark_hole
from ..families.table import BLEND, FILL, NO_REFERENCES
from ..host.families import require_family
from ..host.vae import PictureVae
from ..imaging.inputs import as_image, as_masks, check_finite
from ..imaging.latent_mask import UNET_CHANNELS, inpaint_pictures, snapped_hole
from ..imaging.masks import check_mask, check_not_empty, check_not_full
from ..sampling.identity import BLENDINGS, RENOISED, blend_background, read_object_first
from ..sampling.view_sampler import with_guidance
from .checks import check_wired

LARGE_PICTURE = 2_000_000  # pixels; models do not paint more well in one piece


class InlayInpaintConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayInpaintConditioning",
            display_name="Inpaint Conditioning (Inlay)",
            category="Inlay/inpaint",
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
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Gives the model what its family reads: FLUX Fill its guidance of 30, an edit"
                    " model the scene as its first reference picture, others a latent to blend. Not wired:"
                    " masked picture and mask, as for SD inpainting models.",
                ),
                io.Combo.Input(
                    "hole",
                    options=list(HOLES),
                    default=GREY_HOLE,
                    optional=True,
                    advanced=True,
                    tooltip="How an edit model is shown the place: the mask painted over in grey or white, or"
                    " the picture as drawn.",
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
        cls, positive, negative, vae, image: torch.Tensor, mask: torch.Tensor, noise_mask: bool = True,
        model=None, hole: str = GREY_HOLE,
    ) -> io.NodeOutput:  # fmt: skip
        """Return both prompts with picture and mask, and the padded picture's latent."""
        check_wired(positive=positive, negative=negative, vae=vae)
        image, mask = as_image(image), as_masks(mask)
        check_finite(image)
        check_mask(image, mask)
        check_not_empty(mask)
        check_not_full(mask)
        notes = large_picture_note(image)
        family, pictures = None if model is None else require_family(model), PictureVae(vae)
        if model is not None:
            check_vae_fits(model, vae)
        image, masked_image, mask = inpaint_pictures(image, mask, pictures.grid)
        known = pictures.encode(image)
        snapped = snapped_hole(mask, known)
        # at the picture's size: the host scales it; a mask of 4 dimensions would be the frames of a film
        noise = snapped[:, None] if known.ndim == 4 else snapped[:, None, None]
        # UNets read the latent's pixels of the mask, Flux Fill every pixel of the picture
        seen = snapped if known.shape[1] == UNET_CHANNELS else mask
        prompts = [positive, negative]
        if family is None or family.condition != BLEND:
            values = {"concat_latent_image": pictures.encode(masked_image), "concat_mask": seen[:, None]}
            prompts = [node_helpers.conditioning_set_values(prompt, values) for prompt in prompts]
        if family is not None and family.condition == FILL:
            prompts = [with_guidance(prompt, family.settings.guidance) for prompt in prompts]
        if family is not None and family.references != NO_REFERENCES:
            scene = pictures.encode(mark_hole(image, mask, hole))
            prompts = [with_scene_first(prompt, scene, family.reference_method) for prompt in prompts]
        latent = {"samples": known} | ({"noise_mask": noise} if noise_mask else {})
        return io.NodeOutput(*prompts, latent, ui={"inlay_notes": notes})


def large_picture_note(image: torch.Tensor) -> list[str]:
    """Return the warning about a picture (B, H, W, 3) that is much larger than what models are trained on."""
    height, width = image.shape[1:3]
    if height * width <= LARGE_PICTURE:
        return []
    return [
        f"image: {width}x{height} pixels are more than such a model paints well in one piece: it takes long"
        " and may repeat the subject; use the template Inlay 02 (Inpaint Subject), or a smaller picture."
    ]


def with_scene_first(conditioning: list, scene: torch.Tensor, method: str) -> list:
    """Return the CONDITIONING with the scene's latent before its other reference latents."""
    return [
        [
            text,
            values
            | {"reference_latents": [scene, *values.get("reference_latents", ())]}
            | ({"reference_latents_method": method} if method else {}),
        ]
        for text, values in conditioning
    ]


class InlayObjectStitchConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayObjectStitchConditioning",
            display_name="ObjectStitch Conditioning (Inlay)",
            category="Inlay/insert an object",
            description="Tells an ObjectStitch or Paint-by-Example model which picture to fill in and where."
            " They read noise, background and inverted mask in this order, other inpainting models the mask"
            " first; the model that comes out does, in this node's conditions as in those of the"
            " Inpaint Subject.",
            search_aliases=["objectstitch", "paint by example", "inpaint model conditioning", "9 channel"],
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint of ObjectStitch or Paint-by-Example."),
                io.Conditioning.Input("positive", tooltip="The object, from Insert Object, Compose."),
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
        """Return the model with its channels reordered, both prompts and the latent."""
        check_wired(model=model)
        check_vae_fits(model, vae)
        patched = read_object_first(model)
        made = InlayInpaintConditioning.execute(positive, negative, vae, image, mask, noise_mask)
        return io.NodeOutput(patched, *(made.result or ()))


class InlayBackgroundBlending(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayBackgroundBlending",
            display_name="Background Blending (Inlay)",
            category="Inlay/inpaint",
            description="Chooses what the picture outside the mask looks like to the model at every step,"
            " for any sampler whose latent has a noise mask (IMPRINT, fig. 3).",
            search_aliases=["blend background", "imprint", "noise mask", "inpaint blending"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will sample; it is not changed."),
                io.Combo.Input(
                    "blending",
                    options=list(BLENDINGS),
                    default=RENOISED,
                    tooltip="renoised: the background's latent, noised to the step's level, as models saw it"
                    " in training and as ComfyUI samples anyway; the default. clean: without noise at every"
                    " step, as IMPRINT draws it; for models trained like that, others may blend worse. fresh"
                    " noise: renoised with other noise at each step, as Fooocus and DreamMix's code do.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="A copy of the model that sees the chosen background."
                )
            ],
        )

    @classmethod
    def execute(cls, model, blending: str = RENOISED) -> io.NodeOutput:
        """Return a clone of the model with the chosen background outside the mask during sampling."""
        check_wired(model=model)
        return io.NodeOutput(blend_background(model, blending))
