"""Nodes that crop and paste pictures."""

from contextlib import suppress
from dataclasses import replace

import torch
from comfy_api.latest import io, ui

from ..imaging import colour_match, registration
from ..imaging.boxes import enclosing_box, outline
from ..imaging.composite import paste_back
from ..imaging.crop import (
    CROPS,
    EDGE,
    FILLS,
    GREY,
    MEGAPIXELS,
    ONE,
    SHAPES,
    SIZES,
    SQUARE,
    Margins,
    MaskOptions,
    PaintingCrop,
    SizeOptions,
    crop_masks,
    crop_pictures,
    plan_crops,
)
from ..imaging.inputs import as_image, check_finite, optional_masks
from ..imaging.masks import check_mask, check_not_empty, match_batch
from ..imaging.paste import (
    AREAS,
    BLENDS,
    CHANGED,
    MASK,
    NONE,
    SOFT_EDGE,
    Pasted,
    PasteOptions,
    match_painted,
    paste_paintings,
    whole_pictures,
    with_masks,
)
from ..imaging.views import crop_back

CropType = io.Custom("INLAY_CROP")
AUTO_MATCH = "auto"
MAX_CROP_PX, CHECK_PREVIEW_PX = 16384, 1024  # pixels: of a size, of a preview


class InlayCropForPainting(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayCropForPainting",
            display_name="Crop for Painting (Inlay)",
            category="Inlay/inpaint",
            description="Cuts out the part of a picture around its mask, at a size that the model likes."
            " Paint the crop with any sampler, edit model or API node; Paste Back puts it into the picture"
            " again and keeps every pixel outside the mask.",
            search_aliases=[
                "inpaint crop",
                "crop and stitch",
                "crop by mask",
                "outpaint",
                "extend",
                "crop region",
                "detailer",
                "context area",
            ],
            inputs=[
                io.Image.Input("image", tooltip="The picture to change; several are frames or a batch."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="1 where to paint, of the image's size; one, or one for each image. Only for"
                    " outpainting it may be left out.",
                ),
                io.Mask.Input(
                    "context_mask",
                    optional=True,
                    tooltip="What the crop has to show besides, such as a face that the light should match."
                    " It is not painted.",
                ),
                io.Float.Input(
                    "context",
                    default=1.5,
                    min=1.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How much of the surroundings the crop shows: its sides in sides of the mask's"
                    " box. More helps the model and the alignment, less leaves more pixels for the subject.",
                ),
                io.Combo.Input(
                    "size",
                    options=list(SIZES),
                    default=MEGAPIXELS,
                    tooltip="megapixels: an area, which suits most models. width and height: exactly these."
                    " original size: nothing is resized.",
                ),
                io.Float.Input(
                    "megapixels",
                    default=1.0,
                    min=0.01,
                    max=64.0,
                    step=0.01,
                    tooltip="Area of the crop, for size megapixels; 1 is 1024 x 1024 pixels. 0.25 for SD"
                    " 1.5.",
                ),
                io.Int.Input(
                    "width",
                    default=1024,
                    min=8,
                    max=MAX_CROP_PX,
                    tooltip="For size width and height, in pixels.",
                ),
                io.Int.Input(
                    "height",
                    default=1024,
                    min=8,
                    max=MAX_CROP_PX,
                    tooltip="For size width and height, in pixels.",
                ),
                io.Combo.Input(
                    "shape",
                    options=list(SHAPES),
                    default=SQUARE,
                    tooltip="square: with size 1024 this is the shape that edit models were trained on. keep"
                    " the shape: the shape of the mask's box with its surroundings.",
                ),
                io.Int.Input(
                    "grow",
                    default=0,
                    min=-1024,
                    max=1024,
                    tooltip="Pixels of the picture by which the mask grows; negative: by which it shrinks.",
                ),
                io.Boolean.Input(
                    "fill_holes", default=True, tooltip="Paint parts that the mask encloses, too."
                ),
                io.Int.Input(
                    "multiple",
                    default=32,
                    min=1,
                    max=512,
                    advanced=True,
                    tooltip="The crop's width and height are multiples of it. 32 suits every model family.",
                ),
                io.Int.Input(
                    "context_pixels",
                    default=0,
                    min=0,
                    max=MAX_CROP_PX,
                    advanced=True,
                    tooltip="Pixels around the mask's box that the crop shows at least.",
                ),
                io.Float.Input(
                    "smallest_scale",
                    default=0.0,
                    min=0.0,
                    max=8.0,
                    step=0.05,
                    advanced=True,
                    tooltip="The crop is not shrunk below this scale; it becomes larger than asked for"
                    " instead. 0: no limit.",
                ),
                io.Float.Input(
                    "largest_scale",
                    default=8.0,
                    min=0.1,
                    max=64.0,
                    step=0.1,
                    advanced=True,
                    tooltip="The crop is not enlarged beyond this scale; it shows more of the surroundings"
                    " instead.",
                ),
                io.Int.Input(
                    "blur",
                    default=0,
                    min=0,
                    max=512,
                    advanced=True,
                    tooltip="Pixels of the crop over which its mask falls to 0, outward. For samplers that"
                    " take soft masks; Paste Back has a soft edge of its own.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.5,
                    min=0.0,
                    max=0.999,
                    step=0.01,
                    advanced=True,
                    tooltip="Mask values above it count as painted. Lower it for soft masks, raise it where a"
                    " mask is not quite 0 elsewhere.",
                ),
                io.Boolean.Input(
                    "invert", default=False, advanced=True, tooltip="Paint what the mask leaves out."
                ),
                io.Int.Input(
                    "specks",
                    default=0,
                    min=0,
                    max=1_000_000,
                    advanced=True,
                    tooltip="Patches of the mask with fewer pixels than this are removed.",
                ),
                *(
                    io.Int.Input(
                        f"outpaint_{side}",
                        default=0,
                        min=0,
                        max=MAX_CROP_PX,
                        advanced=True,
                        tooltip=f"Pixels to paint beyond the {side} border of the picture.",
                    )
                    for side in ("left", "top", "right", "bottom")
                ),
                io.Combo.Input(
                    "outpaint_fill",
                    options=list(FILLS),
                    default=EDGE,
                    advanced=True,
                    tooltip="What the model sees beyond the border. edge: the last pixels, repeated. grey:"
                    " the grey of an empty hole.",
                ),
                io.Combo.Input(
                    "crops",
                    options=list(CROPS),
                    default=ONE,
                    advanced=True,
                    tooltip="one for all: the same part of every image, so that frames stay steady. one for"
                    " each mask: with one image and several masks all of them end up in that image. one for"
                    " each patch: separate patches of a mask are painted separately.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image", tooltip="The crop, for the model; several are a batch."
                ),
                io.Mask.Output(display_name="mask", tooltip="The mask on the crop, 1 where to paint."),
                CropType.Output(display_name="crop", tooltip="Where the crop belongs, for Paste Back."),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        mask: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        context: float = 1.5,
        size: str = MEGAPIXELS,
        megapixels: float = 1.0,
        width: int = 1024,
        height: int = 1024,
        shape: str = SQUARE,
        grow: int = 0,
        fill_holes: bool = True,
        multiple: int = 32,
        context_pixels: int = 0,
        smallest_scale: float = 0.0,
        largest_scale: float = 8.0,
        blur: int = 0,
        threshold: float = 0.5,
        invert: bool = False,
        specks: int = 0,
        outpaint_left: int = 0,
        outpaint_top: int = 0,
        outpaint_right: int = 0,
        outpaint_bottom: int = 0,
        outpaint_fill: str = EDGE,
        crops: str = ONE,
    ) -> io.NodeOutput:
        """Return the crops (N, h, w, 3), their masks (N, h, w) and the crop's place for Paste Back."""
        image, mask, context_mask = _checked_inputs(image, mask, context_mask)
        margins = Margins(outpaint_top, outpaint_left, outpaint_bottom, outpaint_right)
        if mask is None and not margins:
            raise ValueError("mask: none is connected; connect one, or paint beyond a border with outpaint.")
        if smallest_scale > largest_scale:
            raise ValueError("smallest_scale: it is above largest_scale; lower one or raise the other.")
        crop = plan_crops(
            image,
            None if mask is None else mask.to(image.device),
            None if context_mask is None else context_mask.to(image.device),
            margins,
            MaskOptions(threshold, invert, fill_holes, specks, grow),
            SizeOptions(
                context,
                context_pixels,
                size,
                megapixels,
                width,
                height,
                multiple,
                shape,
                smallest_scale,
                largest_scale,
            ),
            crops,
        )
        picture = crop_pictures(crop, grey_beyond=outpaint_fill == GREY)
        return io.NodeOutput(
            picture, crop_masks(crop, blur), crop, ui=ui.PreviewImage(_overview(crop), cls=cls)
        )


def _checked_inputs(image, mask, context_mask):
    """Return the picture and its masks in the engine's form. Raises ValueError for sizes that do not fit."""
    image, mask = as_image(image), optional_masks(mask)
    check_finite(image)
    context_mask = optional_masks(context_mask, "context_mask")
    for name, value in (("mask", mask), ("context_mask", context_mask)):
        if value is not None:
            check_mask(image, value, name)
            match_batch(image=image, **{name: value})
    return image, mask, context_mask


def _overview(crop: PaintingCrop) -> torch.Tensor:
    """(1, h, w, 3): the first picture, shrunk, with a frame around what is cropped from it."""
    step = -(-max(crop.image.shape[1:3]) // CHECK_PREVIEW_PX)
    shown = crop.image[:1, ::step, ::step, :3]
    first = enclosing_box([place.box for place in crop.places if place.index == 0] or [crop.places[0].box])
    return outline(shown, first.scale(1 / step), thickness=2)


class InlayPasteBack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayPasteBack",
            display_name="Paste Back (Inlay)",
            category="Inlay/finish",
            description="Puts the generated part inside the mask onto the original. Beyond the soft edge"
            " every pixel is the original's, bit for bit. What a model shifted, zoomed or tinted can be laid"
            " on the original again and given its colours.",
            search_aliases=[
                "composite",
                "stitch",
                "inpaint stitch",
                "uncrop",
                "image composite masked",
                "blend",
                "feather",
                "align",
                "registration",
                "colour match",
                "color match",
                "seamless clone",
                "drift",
            ],
            inputs=[
                io.Image.Input(
                    "original",
                    optional=True,
                    tooltip="The picture before inpainting. With a crop it may be left out, or be the picture"
                    " that an earlier Paste Back has finished.",
                ),
                io.Image.Input(
                    "generated",
                    tooltip="The picture after inpainting: the painted crop, of any size; without a crop of"
                    " the original's size, or padded by Inpaint Conditioning, which is cropped off. With"
                    " align or colour it may have any size.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="The mask that was inpainted, of the original's size. With a crop it may be left"
                    " out, and with what changed.",
                ),
                io.Int.Input(
                    "feather",
                    default=8,
                    min=0,
                    max=256,
                    tooltip="Width of the soft edge in pixels, outward from the mask. 0: a hard edge.",
                ),
                CropType.Input(
                    "crop",
                    optional=True,
                    tooltip="From Crop for Painting: where the generated picture belongs.",
                ),
                io.Combo.Input(
                    "align",
                    options=[AUTO_MATCH, NONE, *registration.MODELS],
                    default=AUTO_MATCH,
                    optional=True,
                    tooltip="Lay the generated picture on the original by what surrounds the mask. auto:"
                    " shift and scale with a crop, none without. affine: also turns and slants. A result that"
                    " is implausible is not applied; the report states why.",
                ),
                io.Combo.Input(
                    "colour",
                    options=[AUTO_MATCH, NONE, *colour_match.METHODS],
                    default=AUTO_MATCH,
                    optional=True,
                    tooltip="Give the generated picture the original's colours, measured around the mask."
                    " mean and deviation: brightness, contrast and tint. smooth field: also vignettes,"
                    " gradients and tone curves. auto: smooth field with a crop, none without.",
                ),
                io.Boolean.Input(
                    "colour_subject",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="Correct the colours of the painted subject like its surroundings. Off: only near"
                    " the rim, if the subject's colours are right as they are.",
                ),
                io.Combo.Input(
                    "area",
                    options=list(AREAS),
                    default=MASK,
                    optional=True,
                    tooltip="the mask: what is inside it is pasted. what changed: what the generated picture"
                    " shows and the original does not, such as a shadow outside the mask; the rest stays.",
                ),
                io.Combo.Input(
                    "blend",
                    options=list(BLENDS),
                    default=SOFT_EDGE,
                    optional=True,
                    advanced=True,
                    tooltip="soft edge: fades over the feather. gradient domain: also spreads the difference"
                    " at the rim over the inside, for seams that are left in skies and walls.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The original with the subject in it, at the original's size."),
                io.String.Output(
                    display_name="report",
                    tooltip="What was found: shift, scale, colour difference at the rim, or why nothing was"
                    " moved.",
                ),
                io.Image.Output(
                    display_name="check",
                    tooltip="Squares of the original and the generated picture in turn, left as it came,"
                    " right as it was pasted: edges that go on from square to square are aligned.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        original: torch.Tensor | None = None,
        generated: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        feather: int = 8,
        crop: PaintingCrop | None = None,
        align: str = AUTO_MATCH,
        colour: str = AUTO_MATCH,
        colour_subject: bool = True,
        area: str = MASK,
        blend: str = SOFT_EDGE,
    ) -> io.NodeOutput:
        """Return the original with the picture in it (B, H, W, C), a report and a check picture."""
        if crop is not None and not isinstance(crop, PaintingCrop):
            raise ValueError(f"crop: it is a {type(crop).__name__}; wire Crop for Painting.")
        generated = as_image(generated, "generated")
        original = None if original is None else as_image(original, "original")
        mask = optional_masks(mask)
        options = PasteOptions(
            feather,
            align if align != AUTO_MATCH else registration.SHIFT_AND_SCALE if crop else NONE,
            colour if colour != AUTO_MATCH else colour_match.FIELD if crop else NONE,
            colour_subject,
            area,
            blend,
        )
        if crop is not None:
            pasted = _into_crop(crop, original, generated, mask, options)
        elif original is None:
            raise ValueError(
                "original: nothing is connected; connect the picture before inpainting, or a crop."
            )
        elif options == PasteOptions(feather, follow=colour_subject):
            return io.NodeOutput(_as_it_is(original, generated, mask, feather), "pasted as it is", generated)
        else:
            pasted = _into_picture(original, generated, mask, options)
        report, check = pasted.text(), pasted.check_picture()
        shown = {**ui.PreviewImage(check, cls=cls).as_dict(), **ui.PreviewText(report).as_dict()}
        return io.NodeOutput(pasted.image, report, check, ui=shown)


def _as_it_is(
    original: torch.Tensor, generated: torch.Tensor, mask: torch.Tensor | None, feather: int
) -> torch.Tensor:
    """Paste inside the mask; nothing is compared."""
    if mask is None:
        raise ValueError("mask: none is connected; connect one, or a crop, or choose what changed for area.")
    check_mask(original, mask)
    check_not_empty(mask.amax(0, keepdim=True))  # some pictures of a batch may have nothing to show
    if original.shape[-1] != generated.shape[-1]:
        raise ValueError("original: only it or only the generated picture has transparency; convert to RGB.")
    generated = crop_back(generated, *original.shape[1:3]).to(original)
    original, generated, mask = match_batch(original=original, generated=generated, mask=mask)
    return paste_back(original, generated, mask.to(original.device), feather)


def _into_picture(
    original: torch.Tensor, generated: torch.Tensor, mask: torch.Tensor | None, options: PasteOptions
) -> Pasted:
    """Paste a picture of any size that shows the whole original."""
    if mask is None and options.area != CHANGED:
        raise ValueError("mask: none is connected; connect one, or a crop, or choose what changed for area.")
    if mask is not None:
        check_mask(original, mask)
        check_not_empty(mask.amax(0, keepdim=True))
    named = {"original": original, "generated": generated} | ({} if mask is None else {"mask": mask})
    original, generated, *masks = match_batch(**named)
    with suppress(ValueError):  # neither the original's size nor padded: it is resized
        generated = crop_back(generated, *original.shape[1:3])
    crop = whole_pictures(original, masks[0].to(original.device) if masks else None)
    return paste_paintings(crop, generated, options)


def _into_crop(
    crop: PaintingCrop,
    original: torch.Tensor | None,
    generated: torch.Tensor,
    mask: torch.Tensor | None,
    options: PasteOptions,
) -> Pasted:
    """Paste painted crops; another picture or mask than the crop's own replaces those."""
    if original is not None:
        if original.shape[1:3] != crop.image.shape[1:3]:
            rows, columns = crop.image.shape[1:3]
            raise ValueError(
                f"original: it is {original.shape[2]}x{original.shape[1]} pixels but the crop was cut from"
                f" {columns}x{rows}; connect the picture that Crop for Painting had, or nothing."
            )
        match_batch(original=original, crop=crop.image)
        crop = replace(crop, image=original)
    if mask is not None:
        check_mask(crop.image, mask)
        crop = with_masks(crop, mask.to(crop.image.device))
    return paste_paintings(match_painted(crop, generated), generated, options)


class InlayCropBack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayCropBack",
            display_name="Crop Back (Inlay)",
            category="Inlay/finish",
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
        """Return the generated picture cut to the original's height and width."""
        original, generated = as_image(original, "original"), as_image(generated, "generated")
        return io.NodeOutput(crop_back(generated, *original.shape[1:3]))
