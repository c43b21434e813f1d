"""Prompts of edit models: a scene with a hole, and photos of what goes into it.

An edit model reads pictures as reference latents: first the scene, then the subject's photos. The sampler
paints views of the scene, so the scene has to be cut to the view; the photos stay as they are. The
CONDITIONING carries what is needed for that. Other samplers ignore it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..host.encoders import encode_prompt, reads_pictures
from ..imaging.object_picture import ORIGINAL, object_box, subject_picture
from ..imaging.views import resize_image

EDIT = "inlay_edit"  # key of an `EditEntry` in the CONDITIONING
GREY_HOLE, WHITE_HOLE, AS_DRAWN = "grey", "white", "as drawn"
HOLES = (GREY_HOLE, WHITE_HOLE, AS_DRAWN)
MOST_PHOTOS = 10
MOST_PIXELS = 1024 * 1024  # of one reference
REFERENCE_MULTIPLE = 32  # the largest grid of the families
TEXT_ENCODER_PIXELS = 384 * 384  # what the text encoders of Qwen-Image-Edit and Boogu are shown

EASY_INSERT = "Easy-Insert"
EASY_INSERT_PROMPT = (
    "Replace the white mask of image1 with the content in image2. Preserving the background, lighting, and"
    " surrounding elements, maintain a seamless and natural result."
)
EASY_INSERT_SIDE = 1024
EASY_INSERT_CONTEXT = 1.2


class SubjectPhoto(NamedTuple):
    """A photo of a subject.

    picture: (1, h, w, 3), for text encoders that read pictures. latent: of the picture. box: the mask in
    which it acts, from 1, 0 for all. strength: how strongly.
    """

    picture: Tensor
    latent: Tensor
    box: int = 0
    strength: float = 1.0


@dataclass(frozen=True, eq=False)
class EditPrompt:
    """A prompt whose text and references can be made again for a part of the scene.

    hole: what the hole in the scene looks like, one of HOLES. shows_pictures: whether a text encoder that
    reads pictures is shown them. context: side of the close-up's crop in the mask's longer side, where a LoRA
    was trained on one, else 0.
    """

    clip: object
    prompt: str
    photos: Sequence[SubjectPhoto]
    hole: str = GREY_HOLE
    shows_pictures: bool = True
    context: float = 0.0

    @property
    def rereads(self) -> bool:
        """Whether the text has to be encoded again for every scene."""
        return self.shows_pictures and reads_pictures(self.clip)

    def text(self, scene: Tensor | None) -> list:
        """Return the CONDITIONING of the prompt with a scene (1, H, W, 3), whose hole is marked already."""
        pictures = [] if scene is None else [scene]
        pictures += [photo.picture for photo in self.photos]
        shown = [_for_text_encoder(picture) for picture in pictures] if self.rereads else []
        return encode_prompt(self.clip, self.prompt, shown)


class EditEntry(NamedTuple):
    """One entry of the CONDITIONING of an `EditPrompt`.

    index: which one, scheduled prompts have several. scene: the latent of the scene among its references,
    None where there is none yet.
    """

    edit: EditPrompt
    index: int
    scene: Tensor | None = None


def mark_hole(scene: Tensor, mask: Tensor, hole: str) -> Tensor:
    """Return the scene (B, H, W, 3) with its hole, mask (B, H, W) > 0.5, in grey or white, or as it is."""
    if hole == AS_DRAWN:
        return scene
    inside = (mask > 0.5).to(scene)[..., None]
    return scene * (1 - inside) + {GREY_HOLE: 0.5, WHITE_HOLE: 1.0}[hole] * inside


def prepare_photo(
    image: Tensor, mask: Tensor | None, background: str, side: int = 0, most_pixels: int = MOST_PIXELS
) -> Tensor:
    """Return a photo as a reference picture.

    With a mask the subject is cut out, on a plain square; without one the whole photo is taken, in its own
    proportions. Photos are shrunk to `most_pixels` and never enlarged, unless `side` fixes the square's side.

    Args:
        image: (1, H, W, C).
        mask: (1, H, W), 1 on the subject, or None.
        background: colour of the ground, a key of `object_picture.BACKGROUND_COLOURS`.
        side: of the square, 0 for the subject's own size.

    Raises:
        ValueError: For an empty mask or one of another size.
    """
    if mask is None and not side:
        height, width = image.shape[1:3]
        scale = min(1.0, math.sqrt(most_pixels / (height * width)))
        rows, columns = (
            max(1, round(length * scale / REFERENCE_MULTIPLE)) * REFERENCE_MULTIPLE
            for length in (height, width)
        )
        return resize_image(image[..., :3], rows, columns)
    if not side:
        assert mask is not None
        box = object_box(image, mask, "photo_masks")
        side = round(1.2 * max(box.height, box.width) / REFERENCE_MULTIPLE) * REFERENCE_MULTIPLE
        side = min(max(side, 8 * REFERENCE_MULTIPLE), math.isqrt(most_pixels))
    return subject_picture(
        image, mask, side, background if mask is not None else ORIGINAL, name="photo_masks"
    )


def _for_text_encoder(picture: Tensor) -> Tensor:
    """Return the picture at about the area that the text encoders are shown."""
    scale = math.sqrt(TEXT_ENCODER_PIXELS / (picture.shape[1] * picture.shape[2]))
    size = [max(28, round(length * scale)) for length in picture.shape[1:3]]
    return F.interpolate(picture.movedim(-1, 1), size, mode="area").movedim(1, -1)


def correlation(a: Tensor, b: Tensor) -> float:
    """How alike two latents (..., h, w) of one shape are: 1 for the same, about 0 for different pictures."""
    a, b = (t.double().flatten(-2) for t in (a, b))
    a, b = (t - t.mean(-1, keepdim=True) for t in (a, b))
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=torch.finfo(a.dtype).tiny))
