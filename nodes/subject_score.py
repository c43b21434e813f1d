"""InlaySubjectScore: is it the subject? The likeness of pictures to references, in an encoder's eyes."""

import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui

from ..imaging.inputs import as_images_each, as_masks_each, check_finite
from ..imaging.masks import check_mask
from .checks import check_list_inputs, check_wired

PICTURES = {"masks": "images", "reference_masks": "references"}  # whose masks these are
REGION_CHOICES = ["subject", "whole picture"]


class InlaySubjectScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlaySubjectScore",
            display_name="Subject Score (Inlay)",
            category="Inlay/finish",
            description="How like its references a painted subject is: the mean cosine of their embeddings"
            " (CLIP-I with a CLIP, DINO with a DINOv2). For choosing seeds and comparing settings.",
            search_aliases=["clip-i", "dino score", "similarity", "identity", "evaluate", "metric"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.ClipVision.Input(
                    "clip_vision",
                    tooltip="The encoder to compare with; DINOv2 tells one thing from its like better than"
                    " CLIP does.",
                ),
                io.Image.Input("images", tooltip="The pictures to judge: a batch, or a list of any sizes."),
                io.Image.Input("references", tooltip="The subject's own pictures, as for Train Subject."),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="1 where the subject was painted: one mask for all pictures, or one for each."
                    " Not wired: the alpha channel, else the whole picture.",
                ),
                io.Mask.Input(
                    "reference_masks",
                    optional=True,
                    tooltip="1 on the subject, one per reference. Not wired: the alpha channel, else the"
                    " whole picture.",
                ),
                io.Combo.Input(
                    "region",
                    options=REGION_CHOICES,
                    default=REGION_CHOICES[0],
                    tooltip="What the encoder sees: the subject alone on grey, or whole pictures with their"
                    " background, as in DreamBooth's tables.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Float.Output(display_name="score", tooltip="The mean over all pictures, from -1 to 1."),
                io.Float.Output(
                    display_name="scores", is_output_list=True, tooltip="Each picture's own, in their order."
                ),
                io.String.Output(display_name="text", tooltip="Mean, standard error, number and encoder."),
            ],
        )

    @classmethod
    @check_list_inputs
    def execute(
        cls, clip_vision, images, references, masks=None, reference_masks=None, region=("subject",)
    ) -> io.NodeOutput:
        """Return the mean cosine similarity in [-1, 1], each picture's own, and a sentence."""
        from ..evaluation.tables import Mean  # loaded when needed: a host starts sooner without
        from ..training.finetune.data import collect_references

        check_wired(clip_vision=clip_vision[0])
        vision, whole = clip_vision[0], region[0] != REGION_CHOICES[0]
        known = embed(
            vision,
            collect_references(references, reference_masks, names=("references", "reference_masks")),
            whole,
            "reference_masks",
        )
        images, masks = as_images_each(images), as_masks_each(masks)
        pictures = collect_references(images, masks and repeat_masks(masks, images))
        seen = embed(vision, pictures, whole, "masks")
        scores = (seen @ known.T).mean(1).tolist()
        mean = Mean.of(scores)
        text = f"{mean.text()} (n = {mean.n}), {encoder_label(vision)}, {region[0]}"
        return io.NodeOutput(mean.mean, scores, text, ui=ui.PreviewText(text))


def embed(vision, pictures, whole: bool, name: str) -> torch.Tensor:
    """Unit-norm embeddings (N, D) of what references show inside their masks; `name` is for errors."""
    from ..imaging.object_picture import subject_crops

    crops = []
    for number, (image, mask) in enumerate(pictures, 1):
        image = image.float()  # some devices cannot resize in half precision
        check_finite(image, f"{PICTURES[name]}: picture {number}")
        shown = image.new_ones(image.shape[:2]) if whole else mask.to(image)
        check_mask(image[None], shown[None], f"{name}: mask {number}")
        if not (shown > 0.5).any():
            raise ValueError(
                f"{name}: mask {number} is empty; paint over the subject, or judge whole pictures."
            )
        shown = shown.to(image.device)
        crops.append(subject_crops(image.movedim(-1, 0)[None], shown[None], vision.image_size))
    seen = vision.encode_image(torch.cat(crops).movedim(1, -1), crop=False)
    return F.normalize(seen["image_embeds"].float(), dim=-1)


def encoder_label(vision) -> str:
    """Return the name of an image encoder, by its kind and size."""
    from ..encoders.image_context import ENCODER_KINDS, encoder_name

    kind = ENCODER_KINDS.get(vision.model_type, str(vision.model_type))
    return encoder_name(kind, vision.config["hidden_size"], vision.config.get("num_register_tokens", 0))


def repeat_masks(masks: list[torch.Tensor], images: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the masks, a single one repeated for every picture."""
    flat = [mask for batch in masks for mask in batch[:, None]]
    return flat * sum(map(len, images)) if len(flat) == 1 else flat
