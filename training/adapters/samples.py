"""From a record's pictures to what a training step reads: pairs of views, compositions, insertions.

Records of views hold frames `000.jpg`, `001.jpg` ... of one object, each with its mask `000.mask.png` or an
alpha channel (IMPRINT, sec. 3.3). Records of triplets hold a picture without the object, the same with it,
and the object: under our names, those of the PIPE dataset, or those of the project that trained on it.
"""

import re
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

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
CHANGE_THRESHOLD = (
    0.12  # mean difference of a colour, in a 9-pixel window, from which a pixel belongs to the object
)
Sample = dict[str, Tensor]


@dataclass(frozen=True)
class ViewPairs:
    """Stage 1, context-agnostic: one view of an object on black is asked for, given another."""

    reading: EncoderSpec
    side: int  # of the picture that is asked for, in pixels
    window: int = 7  # most frames between the two views; the paper's number is not in the text we have

    def __call__(self, record: Record, generator: torch.Generator) -> Sample:
        names = frame_names(record)
        given, asked = draw_pair(len(names), self.window, generator)
        reads = self.reading
        shown = subject_picture(*read_frame(record, names[given]), reads.size, reads.background, reads.margin)
        wanted = subject_picture(*read_frame(record, names[asked]), self.side, "black", reads.margin)
        return {"object": shown[0], "target": wanted[0]}


@dataclass(frozen=True)
class Compositions:
    """Stage 2: the object of one frame, perturbed, is asked for in the hole of another (or of the same).

    The hole is one of the four mask levels, drawn anew each time.
    """

    reading: EncoderSpec
    side: int
    window: int = 7
    look: Perturbation = field(default_factory=Perturbation)
    context: float = 1.8  # least side of the picture around the object, in the object's longer side

    def __call__(self, record: Record, generator: torch.Generator) -> Sample:
        names = frame_names(record)
        given, asked = draw_pair(len(names), self.window, generator)
        image, mask = perturb(*_around(*read_frame(record, names[given])), generator, self.look)
        reads = self.reading
        shown = subject_picture(image, mask, reads.size, reads.background, reads.margin)
        scene, hole = draw_scene(*read_frame(record, names[asked]), self.side, self.context, generator)
        level = MASK_LEVELS[int(torch.randint(len(MASK_LEVELS), (), generator=generator))]
        return {"object": shown[0], "target": scene[0], "hole": mask_level(hole, level)[0]}


@dataclass(frozen=True)
class Insertions:
    """The picture with the object is asked for, given the picture without it, and the object's."""

    reading: EncoderSpec
    side: int

    def __call__(self, record: Record, generator: torch.Generator) -> Sample:
        source, target = (decode_picture(_field(record, names))[..., :3] for names in (SOURCE, TARGET))
        changed = changed_box(source, target)
        if any(_find(record, name) for name in OBJECT_NAMES):
            picture = decode_picture(_field(record, OBJECT_NAMES))
        else:
            picture = target[(slice(None), *changed.slices)]
        shown = self._shown(picture)
        height, width = target.shape[1:3]
        window = draw_scene_window(changed, height, width, min(height, width), generator)
        source, target = (_resized(image, window, self.side) for image in (source, target))
        if torch.rand((), generator=generator) < 0.5:
            source, target = source.flip(2), target.flip(2)
        return {"object": shown[0], "target": target[0], "source": source[0]}

    def _shown(self, picture: Tensor) -> Tensor:
        """The object as Image-Conditioned Pix2Pix shows it: cut out by its alpha channel, else as it is."""
        reads = self.reading
        alpha = picture[..., 3] if picture.shape[-1] == 4 else None
        background = "original" if alpha is None else "black"
        return subject_picture(
            picture, alpha, reads.size, background, reads.margin, "--data: a triplet's object", reads.fit
        )


def frame_names(record: Record) -> list[str]:
    """The fields that are pictures of a view, in order. Raises ValueError without any."""
    names = [name for name in sorted(record) if re.fullmatch(r"\w+\.\w+", name) and _is_picture(name)]
    if not names:
        raise ValueError(f"--data: a record ({', '.join(sorted(record))}) holds no picture of a view.")
    return names


def _is_picture(field: str) -> bool:
    return f".{field.rpartition('.')[2]}" in picture_files.SUFFIXES


def read_frame(record: Record, name: str) -> tuple[Tensor, Tensor]:
    """(image (1, H, W, 3), mask (1, H, W)) of a view. Raises ValueError when it has no mask."""
    image = decode_picture(record[name])
    mask = _find(record, f"{name.partition('.')[0]}.mask")
    if mask is None and image.shape[-1] != 4:
        raise ValueError(f"--data: a record's picture {name} has neither a mask nor an alpha channel.")
    return image[..., :3], image[..., 3] if mask is None else picture_files.read_mask(record[mask], "--data")


def draw_pair(frames: int, window: int, generator: torch.Generator) -> tuple[int, int]:
    """Two different frames at most `window` apart; the only frame twice where there is one."""
    if frames == 1:
        return 0, 0
    given = int(torch.randint(frames, (), generator=generator))
    near = [k for k in range(max(0, given - window), min(frames, given + window + 1)) if k != given]
    return given, near[int(torch.randint(len(near), (), generator=generator))]


def _around(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The object with room to turn in, without the rest of a large picture."""
    box = bounding_box(mask[0])
    window = box.expand(max(box.height, box.width) // 2).clamp(*mask.shape[1:])
    return image[(slice(None), *window.slices)], mask[(slice(None), *window.slices)]


def draw_scene(
    image: Tensor, mask: Tensor, side: int, context: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A random square of the picture that holds the object, at side x side pixels, with the object's mask.

    Its side is between `context` times the object's longer side and the picture's shorter one.
    """
    height, width = mask.shape[1:]
    box = bounding_box(mask[0])
    longer, shorter = max(box.height, box.width), min(height, width)
    least = min(shorter, max(longer, round(context * longer)))
    length = least + int(torch.randint(shorter - least + 1, (), generator=generator))
    window = draw_scene_window(box, height, width, length, generator)
    return _resized(image, window, side), _shrink(mask[(slice(None), *window.slices)], side)


def draw_scene_window(box: Box, height: int, width: int, length: int, generator: torch.Generator) -> Box:
    """A square of side `length` in the picture that holds the box, or lies in it where it is longer."""
    starts = []
    for low, high, limit in ((box.top, box.bottom, height), (box.left, box.right, width)):
        ends = sorted((min(max(high - length, 0), limit - length), max(min(low, limit - length), 0)))
        starts.append(ends[0] + int(torch.randint(ends[1] - ends[0] + 1, (), generator=generator)))
    top, left = starts
    return Box(top, left, top + length, left + length)


def changed_box(source: Tensor, target: Tensor) -> Box:
    """Where `target` (1, H, W, 3) differs from `source`: the object's box.

    Raises ValueError when they are of two sizes or do not differ.
    """
    if source.shape != target.shape:
        raise ValueError("--data: a triplet's source and target are of two sizes; resize one to the other.")
    difference = (target - source).abs().mean(-1)
    changed = F.avg_pool2d(difference[:, None], 9, 1, 4)[0, 0] > CHANGE_THRESHOLD
    if not changed.any():
        raise ValueError("--data: a triplet's source and target show no difference, so no object.")
    return bounding_box(changed.float())


def decode_picture(data: bytes) -> Tensor:
    """(1, H, W, 3 or 4) in [0, 1], as the camera was held; greys become colours, an alpha channel stays.

    Raises ValueError for what is no picture.
    """
    return picture_files.read_picture(data, "--data")


def _find(record: Record, name: str) -> str | None:
    return next((field for field in record if field == name or field.startswith(f"{name}.")), None)


def _field(record: Record, names: tuple[str, ...]) -> bytes:
    for name in names:
        found = _find(record, name)
        if found is not None:
            return record[found]
    raise ValueError(f"--data: a record holds {', '.join(sorted(record))}, but none of {', '.join(names)}.")


def _resized(image: Tensor, window: Box, side: int) -> Tensor:
    """The window of (1, H, W, 3) at side x side pixels."""
    part = image[(slice(None), *window.slices)].movedim(-1, 1)
    return F.interpolate(part, (side, side), mode="bilinear", antialias=True).movedim(1, -1).clamp(0, 1)


def _shrink(mask: Tensor, side: int) -> Tensor:
    """A binary mask at side x side pixels that keeps thin parts."""
    if side < mask.shape[-1]:
        return F.adaptive_max_pool2d((mask > 0.5).float()[:, None], side)[:, 0]
    return F.interpolate((mask > 0.5).float()[:, None], (side, side), mode="nearest")[:, 0]
