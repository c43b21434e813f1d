"""Make training samples from records: pairs of views, compositions, insertions.

Records of views hold frames `000.jpg`, `001.jpg` ... of one object, each with its mask `000.mask.png` or an
alpha channel (IMPRINT, sec. 3.3). Records of triplets hold an image without the object, the same image with
it, and the object, under our field names, those of the PIPE dataset, or those of Image-Conditioned Pix2Pix.
"""

import re
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ...common.files import SUFFIXES
from ...encoders.content_adapter import EncoderSpec
from ...imaging import picture_files
from ...imaging.boxes import Box, bounding_box
from ...imaging.mask_levels import MASK_LEVELS, mask_level
from ...imaging.object_picture import subject_picture
from ...imaging.perturb import Perturbation, perturb
from .shards import Record

SOURCE = ("source", "source_img", "original_image")
TARGET = ("target", "target_img", "target_image")
OBJECT_NAMES = ("object", "object_image")
CHANGE_THRESHOLD = 0.12  # mean difference of a 9 x 9 window, above which a pixel belongs to the object
Sample = dict[str, Tensor]


@dataclass(frozen=True)
class ViewPairs:
    """Samples of stage 1 (context-agnostic): from one view of an object to another view of it on black."""

    encoder_spec: EncoderSpec
    side: int  # of the target image, in pixels
    max_distance: int = 7  # maximum distance of the two frames; ours: the paper's text gives none

    def __call__(self, record: Record, generator: torch.Generator) -> Sample:
        """Return "object" (S, S, 3) for the encoder and "target" (side, side, 3), both in [0, 1]."""
        names = frame_names(record)
        source_frame, target_frame = draw_pair(len(names), self.max_distance, generator)
        spec = self.encoder_spec
        object_image = subject_picture(
            *read_frame(record, names[source_frame]), spec.size, spec.background, spec.margin
        )
        target = subject_picture(*read_frame(record, names[target_frame]), self.side, "black", spec.margin)
        return {"object": object_image[0], "target": target[0]}


@dataclass(frozen=True)
class Compositions:
    """Samples of stage 2: the perturbed object of one frame, and another (or the same) frame with a hole.

    The hole is one of the four mask levels, drawn for each sample.
    """

    encoder_spec: EncoderSpec
    side: int  # of the target image, in pixels
    max_distance: int = 7
    look: Perturbation = field(default_factory=Perturbation)
    context: float = 1.8  # minimum side of the scene, relative to the object's longer side

    def __call__(self, record: Record, generator: torch.Generator) -> Sample:
        """Return "object" (S, S, 3), "target" (side, side, 3) in [0, 1] and "hole" (side, side), 1 = hole."""
        names = frame_names(record)
        source_frame, target_frame = draw_pair(len(names), self.max_distance, generator)
        image, mask = perturb(
            *_crop_with_margin(*read_frame(record, names[source_frame])), generator, self.look
        )
        spec = self.encoder_spec
        object_image = subject_picture(image, mask, spec.size, spec.background, spec.margin)
        scene, hole = draw_scene(*read_frame(record, names[target_frame]), self.side, self.context, generator)
        level = MASK_LEVELS[int(torch.randint(len(MASK_LEVELS), (), generator=generator))]
        return {"object": object_image[0], "target": scene[0], "hole": mask_level(hole, level)[0]}


@dataclass(frozen=True)
class Insertions:
    """Samples of insertion without a mask: from an image without the object to the same image with it."""

    encoder_spec: EncoderSpec
    side: int  # of the target image, in pixels

    def __call__(self, record: Record, generator: torch.Generator) -> Sample:
        """Return "object" (S, S, 3), "target" and "source" (side, side, 3), all in [0, 1]."""
        source, target = (decode_picture(_field_bytes(record, names))[..., :3] for names in (SOURCE, TARGET))
        changed = changed_box(source, target)
        if any(_matching_field(record, name) for name in OBJECT_NAMES):
            picture = decode_picture(_field_bytes(record, OBJECT_NAMES))
        else:
            picture = target[(slice(None), *changed.slices)]
        object_image = self._object_image(picture)
        height, width = target.shape[1:3]
        window = draw_scene_window(changed, height, width, min(height, width), generator)
        source, target = (_resized(image, window, self.side) for image in (source, target))
        if torch.rand((), generator=generator) < 0.5:
            source, target = source.flip(2), target.flip(2)
        return {"object": object_image[0], "target": target[0], "source": source[0]}

    def _object_image(self, picture: Tensor) -> Tensor:
        """Return the object's image as in Insert Object Without Mask: cut out if it has an alpha channel."""
        spec = self.encoder_spec
        alpha = picture[..., 3] if picture.shape[-1] == 4 else None
        background = "original" if alpha is None else "black"
        return subject_picture(
            picture, alpha, spec.size, background, spec.margin, "--data: a triplet's object", spec.fit
        )


def frame_names(record: Record) -> list[str]:
    """Return the names of the fields that are images of views, in order.

    Raises:
        ValueError: if there are none.
    """
    names = [name for name in sorted(record) if re.fullmatch(r"\w+\.\w+", name) and _is_picture(name)]
    if not names:
        raise ValueError(f"--data: a record ({', '.join(sorted(record))}) holds no picture of a view.")
    return names


def _is_picture(field: str) -> bool:
    return f".{field.rpartition('.')[2]}" in SUFFIXES


def read_frame(record: Record, name: str) -> tuple[Tensor, Tensor]:
    """Return a view's image (1, H, W, 3) in [0, 1] and its mask (1, H, W).

    Raises:
        ValueError: if it has no mask.
    """
    image = decode_picture(record[name])
    mask = _matching_field(record, f"{name.partition('.')[0]}.mask")
    if mask is None and image.shape[-1] != 4:
        raise ValueError(f"--data: a record's picture {name} has neither a mask nor an alpha channel.")
    return image[..., :3], image[..., 3] if mask is None else picture_files.read_mask(record[mask], "--data")


def draw_pair(frames: int, max_distance: int, generator: torch.Generator) -> tuple[int, int]:
    """Draw two different frames at most `max_distance` apart; a single frame is returned twice."""
    if frames == 1:
        return 0, 0
    source_frame = int(torch.randint(frames, (), generator=generator))
    candidates = [
        k
        for k in range(max(0, source_frame - max_distance), min(frames, source_frame + max_distance + 1))
        if k != source_frame
    ]
    return source_frame, candidates[int(torch.randint(len(candidates), (), generator=generator))]


def _crop_with_margin(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Crop to the object with half its longer side around it, so that it can be rotated."""
    box = bounding_box(mask[0])
    window = box.expand(max(box.height, box.width) // 2).clamp(*mask.shape[1:])
    return image[(slice(None), *window.slices)], mask[(slice(None), *window.slices)]


def draw_scene(
    image: Tensor, mask: Tensor, side: int, context: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw a random square of the image that contains the object.

    Args:
        image: (1, H, W, 3) in [0, 1].
        mask: (1, H, W), 1 = object.
        side: of the result in pixels.
        context: minimum side of the square, relative to the object's longer side; the maximum is the image's
            shorter side.
        generator: on the CPU.

    Returns:
        The square's image (1, side, side, 3) and mask (1, side, side).
    """
    height, width = mask.shape[1:]
    box = bounding_box(mask[0])
    longer_side, shorter_side = max(box.height, box.width), min(height, width)
    least = min(shorter_side, max(longer_side, round(context * longer_side)))
    length = least + int(torch.randint(shorter_side - least + 1, (), generator=generator))
    window = draw_scene_window(box, height, width, length, generator)
    return _resized(image, window, side), _shrink(mask[(slice(None), *window.slices)], side)


def draw_scene_window(box: Box, height: int, width: int, length: int, generator: torch.Generator) -> Box:
    """Draw a square of side `length` in the image that contains the box, or lies in a longer box."""
    starts = []
    for low, high, limit in ((box.top, box.bottom, height), (box.left, box.right, width)):
        ends = sorted((min(max(high - length, 0), limit - length), max(min(low, limit - length), 0)))
        starts.append(ends[0] + int(torch.randint(ends[1] - ends[0] + 1, (), generator=generator)))
    top, left = starts
    return Box(top, left, top + length, left + length)


def changed_box(source: Tensor, target: Tensor) -> Box:
    """Return the box of the pixels where `target` (1, H, W, 3) differs from `source`: the object's box.

    Raises:
        ValueError: if their sizes differ or their pixels do not.
    """
    if source.shape != target.shape:
        raise ValueError("--data: a triplet's source and target are of two sizes; resize one to the other.")
    difference = (target - source).abs().mean(-1)
    changed = F.avg_pool2d(difference[:, None], 9, 1, 4)[0, 0] > CHANGE_THRESHOLD
    if not changed.any():
        raise ValueError(
            "--data: a triplet's source and target show no difference; remove it, or give another target."
        )
    return bounding_box(changed.float())


def decode_picture(data: bytes) -> Tensor:
    """Return an image (1, H, W, 3 or 4) in [0, 1] in its EXIF orientation; grey becomes RGB, alpha is kept.

    Raises:
        ValueError: if `data` is not an image.
    """
    return picture_files.read_picture(data, "--data")


def _matching_field(record: Record, name: str) -> str | None:
    return next((field for field in record if field == name or field.startswith(f"{name}.")), None)


def _field_bytes(record: Record, names: tuple[str, ...]) -> bytes:
    for name in names:
        field_name = _matching_field(record, name)
        if field_name is not None:
            return record[field_name]
    raise ValueError(f"--data: a record holds {', '.join(sorted(record))}, but none of {', '.join(names)}.")


def _resized(image: Tensor, window: Box, side: int) -> Tensor:
    """Return the window of an image (1, H, W, 3), resized to (1, side, side, 3)."""
    part = image[(slice(None), *window.slices)].movedim(-1, 1)
    return F.interpolate(part, (side, side), mode="bilinear", antialias=True).movedim(1, -1).clamp(0, 1)


def _shrink(mask: Tensor, side: int) -> Tensor:
    """Return a binary mask (1, side, side); max pooling keeps thin parts."""
    if side < mask.shape[-1]:
        return F.adaptive_max_pool2d((mask > 0.5).float()[:, None], side)[:, 0]
    return F.interpolate((mask > 0.5).float()[:, None], (side, side), mode="nearest")[:, 0]
