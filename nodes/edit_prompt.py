"""InlayEditPrompt: a prompt for edit models, with photos of the subject and the scene it goes into."""

from collections.abc import Sequence

import torch
from comfy_api.latest import io

from ..attention.transformer import REFERENCES, SCENE_REFERENCE, SUBJECT_REFERENCE
from ..conditioning.edit_prompt import (
    EASY_INSERT,
    EASY_INSERT_CONTEXT,
    EASY_INSERT_PROMPT,
    EASY_INSERT_SIDE,
    EDIT,
    GREY_HOLE,
    HOLES,
    MOST_PHOTOS,
    WHITE_HOLE,
    EditEntry,
    EditPrompt,
    SubjectPhoto,
    mark_hole,
    prepare_photo,
)
from ..host.encoders import constant, negative_reads_pictures, reference_method
from ..host.vae import PictureVae
from ..imaging.inputs import as_image, check_finite, optional_masks
from ..imaging.masks import check_mask, check_not_empty
from ..imaging.object_picture import BACKGROUND_COLOURS
from ..imaging.views import pad_to_multiple
from ..sampling.references import reference_kinds
from .checks import check_list_inputs, check_wired
from .masked_attention_patch import parse_photos

NO_PRESET = "none"


class InlayEditPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayEditPrompt",
            display_name="Edit Prompt with Subject Photos (Inlay)",
            category="Inlay/prompt",
            description="A prompt for edit models (FLUX.2 klein, Kontext, Qwen-Image-Edit, Krea 2, LongCat):"
            " the scene and one to ten photos of your subject become reference pictures. Works in any"
            " sampler; Inpaint Subject cuts the scene to each view.",
            is_input_list=True,  # photos of whatever sizes belong to one prompt
            search_aliases=[
                "reference latent",
                "kontext",
                "qwen image edit",
                "flux 2 klein",
                "easy insert",
                "edit model",
                "subject reference",
            ],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the edit model."),
                io.Vae.Input("vae", tooltip="The VAE of the edit model."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to do, such as: put the toy of image 2 into the grey area of image 1. The"
                    " scene is image 1, the photos follow. Empty with a preset: the preset's own prompt.",
                ),
                io.Image.Input(
                    "photos",
                    tooltip="One to ten photos of what goes into the scene, as a batch or a list.",
                ),
                io.Mask.Input(
                    "photo_masks",
                    optional=True,
                    tooltip="1 on the subject: it is cut out and shown on a plain ground. One for each photo,"
                    " or none: the whole photos are shown.",
                ),
                io.Image.Input(
                    "scene",
                    optional=True,
                    tooltip="The picture the subject goes into. Inpaint Subject takes its own"
                    " image; other samplers need it here.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="1 where the subject goes in the scene, of the scene's size.",
                ),
                io.Combo.Input(
                    "hole",
                    options=list(HOLES),
                    default=GREY_HOLE,
                    tooltip="How the model is shown the place. grey, white: the mask is painted over in the"
                    " scene. as drawn: the scene stays as it is.",
                ),
                io.Combo.Input(
                    "ground",
                    options=list(BACKGROUND_COLOURS),
                    default="white",
                    tooltip="Colour behind a subject that is cut out by its mask.",
                ),
                io.String.Input(
                    "boxes",
                    default="",
                    tooltip="For several subjects: in which mask each photo acts, and how strongly, such as"
                    ' "1; 1; 2: 0.8". 0 or empty: in all. Masked Attention keeps them apart.',
                ),
                io.String.Input(
                    "negative", default="", tooltip="What to keep out, for models with cfg over 1."
                ),
                io.Combo.Input(
                    "preset",
                    options=[NO_PRESET, EASY_INSERT],
                    default=NO_PRESET,
                    tooltip="Easy-Insert: as its LoRA for FLUX.2 klein base 4B was trained. A white hole, one"
                    " photo on white at 1024 pixels, its prompt, and a close-up of 1.2 times the mask. Take"
                    " 15 steps and cfg 4.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with its references."),
                io.Conditioning.Output(display_name="negative", tooltip="The other prompt with the same."),
            ],
        )

    @classmethod
    @check_list_inputs
    def execute(
        cls, clip, vae, prompt, photos, photo_masks=None, scene=(None,), mask=(None,), hole=(GREY_HOLE,),
        ground=("white",), boxes=("",), negative=("",), preset=(NO_PRESET,),
    ) -> io.NodeOutput:  # fmt: skip
        """Return positive and negative conditioning with the references; every input is a list."""
        clip, vae, scene, mask, boxes, negative = (
            value[0] for value in (clip, vae, scene, mask, boxes, negative)
        )
        check_wired(clip=clip, vae=vae)
        subjects = photos_of(photos, photo_masks)
        mask, scene = optional_masks(mask), None if scene is None else as_image(scene, "scene")
        if scene is not None:
            check_finite(scene, "scene")
        easy = preset[0] == EASY_INSERT
        check_count(len(subjects), easy)
        bindings = parse_photos(boxes, "boxes")
        if len(bindings) > len(subjects):
            raise ValueError(
                f"boxes: it lists {len(bindings)} boxes for {len(subjects)} photos; give one for each."
            )
        if mask is not None and scene is not None:
            check_mask(scene, mask)
            check_not_empty(mask)
        prompt, hole, ground = prompt[0], hole[0], ground[0]
        if easy:
            prompt, hole, ground = prompt.strip() or EASY_INSERT_PROMPT, WHITE_HOLE, "white"
        pictures = PictureVae(vae)
        prepared = [
            prepare_photo(photo, own, ground, EASY_INSERT_SIDE if easy else 0) for photo, own in subjects
        ]
        bound = [*bindings, *[(0, 1.0)] * (len(subjects) - len(bindings))]
        shown_photos = [
            SubjectPhoto(picture, pictures.encode(picture), *binding)
            for picture, binding in zip(prepared, bound, strict=True)
        ]
        shown = scene_of(scene, mask, hole, pictures.grid)
        latent = None if shown is None else pictures.encode(shown)
        context = EASY_INSERT_CONTEXT if easy else 0.0
        edits = (
            EditPrompt(clip, prompt, shown_photos, hole, True, context),
            EditPrompt(clip, negative, shown_photos, hole, negative_reads_pictures(clip), context),
        )
        return io.NodeOutput(
            *(conditioning_of(edit, shown, latent, reference_method(clip)) for edit in edits)
        )


def photos_of(photos, masks) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Photos (1, H, W, C) of batches of any size, each with its mask (1, H, W), or None where none is given.

    Raises ValueError for photos that are no pictures, and masks that do not fit them.
    """
    pictures = [photo[None] for batch in photos for photo in as_image(batch, "photos")]
    for picture in pictures:
        check_finite(picture, "photos")
    given = [optional_masks(batch, "photo_masks") for batch in masks or ()]
    shapes = [mask[None] for batch in given if batch is not None for mask in batch]
    if shapes and len(shapes) != len(pictures):
        raise ValueError(
            f"photo_masks: there are {len(shapes)} masks for {len(pictures)} photos; give one for each photo."
        )
    return list(zip(pictures, shapes or [None] * len(pictures), strict=True))


def check_count(count: int, easy: bool) -> None:
    """Raise ValueError for too many photos."""
    if count > (1 if easy else MOST_PHOTOS):
        limit = "the Easy-Insert preset takes one" if easy else f"{MOST_PHOTOS} are the most"
        raise ValueError(f"photos: there are {count}, but {limit}; choose the best.")


def scene_of(
    scene: torch.Tensor | None, mask: torch.Tensor | None, hole: str, grid: int
) -> torch.Tensor | None:
    """Return the scene as the model sees it: its hole marked, padded to the VAE's grid."""
    if scene is None:
        return None
    scene = scene[:1, ..., :3]
    marked = scene if mask is None else mark_hole(scene, mask.to(scene).amax(0, keepdim=True), hole)
    return pad_to_multiple(marked, grid)


def conditioning_of(
    edit: EditPrompt, scene: torch.Tensor | None, latent: torch.Tensor | None, method: str
) -> list:
    """Return the CONDITIONING of an edit prompt, which the sampler can make again for a view."""
    latents: Sequence[torch.Tensor] = [photo.latent for photo in edit.photos]
    kinds = [SUBJECT_REFERENCE] * len(latents)
    if latent is not None:
        latents, kinds = [latent, *latents], [SCENE_REFERENCE, *kinds]
    values = {
        "reference_latents": list(latents),
        "model_conds": {REFERENCES: constant(reference_kinds(kinds, edit))},
    } | ({"reference_latents_method": method} if method else {})
    return [
        [text, extras | values | {EDIT: EditEntry(edit, index, latent)}]
        for index, (text, extras) in enumerate(edit.text(scene))
    ]
