"""IdentityEncoderDINOv2: conditioning from one picture of an object."""

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..imaging.inputs import as_images_each, as_masks_each, check_finite
from ..imaging.object_picture import BACKGROUND_COLOURS, ORIGINAL, subject_picture
from ..sampling.identity import as_conditioning
from .checks import check_list_inputs, check_wired
from .loaders import AdapterType

AUTO_BACKGROUND = "as the adapter was trained"
BACKGROUNDS = (AUTO_BACKGROUND, *BACKGROUND_COLOURS, ORIGINAL)


class IdentityEncoderDINOv2(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityEncoderDINOv2",
            display_name="Insert Object, Compose (Inlay)",
            category="Inlay/insert an object",
            description="Turns one or more pictures of an object into conditioning that stands in for a"
            " prompt (IMPRINT, ObjectStitch, Paint-by-Example, AnyDoor). Nothing is trained. To add words,"
            " join it with a text prompt's by Conditioning (Concat).",
            search_aliases=[
                "identity encoder dinov2",
                "compose",
                "object compositing",
                "imprint",
                "object",
                "ip adapter",
                "subject",
                "reference image",
                "paint by example",
                "objectstitch",
                "anydoor",
            ],
            is_input_list=True,
            inputs=[
                io.ClipVision.Input(
                    "encoder",
                    tooltip="The encoder that the adapter was made for: from Load Image Encoder, the host's"
                    " Load CLIP Vision, or the adapter's own file.",
                ),
                AdapterType.Input("adapter", tooltip="From Load Identity Adapter."),
                io.Image.Input(
                    "images",
                    tooltip="The object: one picture, or several views of it as a batch or a list. A fourth"
                    " channel is taken as the mask.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="1 on the object, one for each picture, its size. Not wired: the alpha channel.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="From nothing (0) to the object (1) and beyond.",
                ),
                io.Int.Input(
                    "tokens",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Rows of conditioning for each view at most: the picture's patches are averaged"
                    " to a coarser grid. Fewer are faster and say less. 0: all.",
                ),
                io.Combo.Input(
                    "background",
                    options=list(BACKGROUNDS),
                    default=AUTO_BACKGROUND,
                    optional=True,
                    advanced=True,
                    tooltip="What surrounds the object as the encoder sees it. original: what is in the"
                    " picture; only then a mask may be missing.",
                ),
                io.Int.Input(
                    "size",
                    default=0,
                    min=0,
                    max=1036,
                    step=14,
                    optional=True,
                    advanced=True,
                    tooltip="Side of the square the encoder sees, in pixels; a multiple of 14, larger ones"
                    " show more detail as more tokens. 0: as the adapter was trained. CLIP takes no other.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The object."),
                io.Conditioning.Output(
                    display_name="negative", tooltip="No object, as the adapter learned it; as many rows."
                ),
                io.Image.Output(display_name="seen", tooltip="The object as the encoder sees it."),
            ],
        )

    @classmethod
    @check_list_inputs
    def execute(
        cls,
        encoder,
        adapter,
        images,
        masks=None,
        strength=(1.0,),
        tokens=(0,),
        background=(AUTO_BACKGROUND,),
        size=(0,),
    ) -> io.NodeOutput:
        """Return context (1, tokens, D) for the objects and for none, and the pictures; inputs are lists."""
        from ..encoders.image_context import check_encoder, encode_views  # loaded when needed

        vision, adapter = encoder[0], adapter[0]
        check_wired(adapter=adapter)
        if vision is not None:  # check_encoder names the encoder that the adapter needs
            check_wired(encoder=vision)
        check_encoder(vision, adapter)
        pictures = prepare_object_images(adapter, images, masks, background[0], size[0])
        seen = encode_views(vision, adapter, pictures, strength[0], tokens[0])
        batch = torch.cat(pictures)
        return io.NodeOutput(
            as_conditioning(seen.context, identity=True),
            as_conditioning(seen.uncond, identity=True),
            batch,
            ui=ui.PreviewImage(batch, cls=cls),
        )


def prepare_object_images(
    adapter, images, masks, background: str = AUTO_BACKGROUND, size: int = 0, name: str = "masks"
) -> list[Tensor]:
    """Every view (1, S, S, 3) as the adapter's encoder is shown it; images and masks as they are wired.

    `name` is the input that errors of a mask or an alpha channel name.
    """
    reads = adapter.encoder_spec
    if size and reads.encoder == "clip" and size != reads.size:
        raise ValueError(f"size: this adapter's encoder, CLIP, takes {reads.size} pixels only; set it to 0.")
    if size % 14:
        raise ValueError(f"size: {size} is no multiple of 14, the encoder's patch; take {size // 14 * 14}.")
    colour = reads.background if background == AUTO_BACKGROUND else background
    kind = "images" if name == "masks" else name
    views = [view[None] for batch in as_images_each(images, kind) for view in batch]
    for view in views:
        check_finite(view, kind)
    shapes = _masks(views, masks)
    named = [f"{name}: mask {i}" if len(views) > 1 else name for i in range(1, len(views) + 1)]
    return [
        subject_picture(view, mask, size or reads.size, colour, reads.margin, said, reads.fit)
        for view, mask, said in zip(views, shapes, named, strict=True)
    ]


def _masks(views: list[Tensor], masks) -> list[Tensor | None]:
    """One mask (1, H, W) for every view: the wired one, else its alpha channel, else None."""
    if masks is None:
        return [view[..., 3] if view.shape[-1] == 4 else None for view in views]
    wired = [mask[None] for batch in as_masks_each(masks) or [] for mask in batch]
    if len(wired) != len(views):
        raise ValueError(
            f"masks: there are {len(wired)} masks for {len(views)} images; give one mask for every image."
        )
    return list(wired)
