"""Crops for painting: the part of a picture around its mask, at a size that suits the model.

A crop is planned once, so that the painted picture can be pasted back into the same place. Nothing of the
picture's own size is copied: a plan holds the boxes, and the mask inside each of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_fill_holes, find_objects, label

from .boxes import Box, enclosing_box, find_box
from .composite import distance_to
from .masks import resize_mask
from .resample import crop_resized

SQUARE, KEEP = "square", "keep the shape"
SHAPES = (SQUARE, KEEP)
MEGAPIXELS, EXACT_SIZE, ORIGINAL_SIZE = "megapixels", "width and height", "original size"
SIZES = (MEGAPIXELS, EXACT_SIZE, ORIGINAL_SIZE)
ONE, PER_MASK, PER_PATCH = "one for all", "one for each mask", "one for each patch"
CROPS = (ONE, PER_MASK, PER_PATCH)
EDGE, GREY = "edge", "grey"
FILLS = (EDGE, GREY)  # of what lies beyond the border and is to be painted
MEGAPIXEL = 1024 * 1024  # as the host counts
MOST_CROPS = 64  # of one mask: more patches are specks


@dataclass(frozen=True)
class MaskOptions:
    """How a mask is cleaned before it is cropped.

    Attributes:
        threshold: Values above it count as masked.
        invert: Keep what is masked and paint the rest.
        fill_holes: Fill parts that the mask encloses.
        specks: Smallest number of pixels of a connected patch; smaller ones are removed.
        grow: Pixels by which the mask grows; negative: by which it shrinks.
    """

    threshold: float = 0.5
    invert: bool = False
    fill_holes: bool = False
    specks: int = 0
    grow: int = 0


@dataclass(frozen=True)
class SizeOptions:
    """How large a crop is, and how large it is shown.

    Attributes:
        context: Sides of the crop in sides of the mask's box, at least 1.
        margin: Pixels around the mask's box that the crop holds at least.
        size: One of `SIZES`.
        megapixels: Area of the crop in units of 1024 x 1024 pixels.
        width: Of the crop, if the size is `EXACT_SIZE`.
        height: Of the crop, if the size is `EXACT_SIZE`.
        multiple: Both sides of the crop are multiples of it.
        shape: One of `SHAPES`.
        least: Smallest enlargement; below it the crop becomes larger than asked for.
        most: Largest enlargement; above it the crop holds more of the surroundings.
    """

    context: float = 1.5
    margin: int = 0
    size: str = MEGAPIXELS
    megapixels: float = 1.0
    width: int = 1024
    height: int = 1024
    multiple: int = 32
    shape: str = SQUARE
    least: float = 0.0
    most: float = 8.0


@dataclass(frozen=True)
class Margins:
    """Pixels that are painted beyond the picture's border."""

    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0

    def canvas(self, height: int, width: int) -> Box:
        """Return the enlarged picture in the picture's own coordinates."""
        return Box(-self.top, -self.left, height + self.bottom, width + self.right)

    def __bool__(self) -> bool:
        return any((self.top, self.left, self.bottom, self.right))


@dataclass(frozen=True)
class MaskPart:
    """A binary mask: `pixels` (h, w) of booleans inside `box`, nothing elsewhere."""

    box: Box
    pixels: torch.Tensor

    def within(self, box: Box) -> torch.Tensor:
        """Return the mask (h, w) of booleans inside another box."""
        result = self.pixels.new_zeros(box.height, box.width)
        shared = Box(
            max(box.top, self.box.top),
            max(box.left, self.box.left),
            min(box.bottom, self.box.bottom),
            min(box.right, self.box.right),
        )
        if shared.area:
            target, source = shared.shift(-box.top, -box.left), shared.shift(-self.box.top, -self.box.left)
            result[target.slices] = self.pixels[source.slices]
        return result


@dataclass(frozen=True)
class Place:
    """Where one crop lies: picture number, box in the picture's coordinates, and mask (None: nothing)."""

    index: int
    box: Box
    mask: MaskPart | None


@dataclass(frozen=True)
class PaintingCrop:
    """What paste back needs of a crop.

    Attributes:
        image: (B, H, W, C), the picture that was cropped; not a copy.
        margins: What is painted beyond its border.
        places: One of each crop. Boxes may reach over the border.
        height: Of a crop as it was given to the model.
        width: The same.
        count: Pictures of the result; `image` is repeated if it is one.
    """

    image: torch.Tensor
    margins: Margins
    places: tuple[Place, ...]
    height: int
    width: int
    count: int

    @property
    def canvas(self) -> Box:
        """The picture with its margins, in pixels of the picture."""
        return self.margins.canvas(*self.image.shape[1:3])

    def picture(self, index: int) -> torch.Tensor:
        """Return one picture (1, H, W, C)."""
        return self.image[index : index + 1] if len(self.image) > 1 else self.image[:1]


def plan_crops(
    image: torch.Tensor,
    mask: torch.Tensor | None,
    context_mask: torch.Tensor | None = None,
    margins: Margins = Margins(),
    mask_options: MaskOptions = MaskOptions(),
    size_options: SizeOptions = SizeOptions(),
    crops: str = ONE,
) -> PaintingCrop:
    """Choose boxes and sizes of crops.

    Args:
        image: (B, H, W, C); one for all masks, or one for each.
        mask: (B, H, W), 1 where to paint; None only if there are margins.
        context_mask: (B, H, W), 1 at what the crop has to hold besides; one, or one for each mask.
        margins: What is painted beyond the border.
        mask_options: How the mask is cleaned.
        size_options: How large a crop is.
        crops: One of `CROPS`. `PER_MASK` with one image and several masks pastes all of them into that
            image.

    Raises:
        ValueError: If there is nothing to paint.
    """
    height, width = image.shape[1:3]
    parts = [clean_mask(m, mask_options) for m in mask] if mask is not None else [None] * len(image)
    if margins:
        parts = [_with_margins(part, margins, height, width) for part in parts]
    if not any(parts):
        raise ValueError(
            "mask: nothing is left to paint (nothing above the threshold, or all of it was removed);"
            " paint over the part that should change."
        )
    contexts = [find_box(m) for m in context_mask] if context_mask is not None else [None]
    count = max(len(image), len(parts))
    together = crops != ONE and len(image) == 1
    targets, wanted = [], []
    for number in range(count):
        part = parts[number if len(parts) > 1 else 0]
        context = contexts[number if len(contexts) > 1 else 0]
        for patch in _patches(part) if crops == PER_PATCH and part else [part]:
            targets.append((0 if together else number, patch))
            wanted.append(_context(patch, context, size_options) if patch else None)
    known = [box for box in wanted if box is not None]
    if crops == ONE:
        known = [enclosing_box(known)]
    canvas = margins.canvas(height, width)
    target = _target_size(known, canvas, size_options)
    boxes = [_fitted(box, canvas, target, size_options) for box in known]
    places, following = [], iter(boxes)
    for (index, part), box in zip(targets, wanted, strict=True):
        if crops == ONE:
            places.append(Place(index, boxes[0], part))
        else:
            places.append(Place(index, boxes[0] if box is None else next(following), part))
    return PaintingCrop(image, margins, tuple(places), *target, 1 if together else count)


def crop_pictures(crop: PaintingCrop, grey_beyond: bool = False) -> torch.Tensor:
    """Return the crops (N, height, width, C) in [0, 1].

    Beyond the border the picture's last pixels are repeated; with `grey_beyond` what is to be painted there
    is grey.
    """
    height, width = crop.image.shape[1:3]
    pictures = []
    for place in crop.places:
        picture = crop_resized(crop.picture(place.index), place.box, crop.height, crop.width)
        if grey_beyond and crop.margins:
            inside = pixels_inside(place.box, Box(0, 0, height, width), crop.height, crop.width)
            canvas = pixels_inside(place.box, crop.canvas, crop.height, crop.width)
            picture[:, (canvas & ~inside).to(picture.device)] = 0.5
        pictures.append(picture)
    return torch.cat(pictures)


def crop_masks(crop: PaintingCrop, blur: float = 0.0) -> torch.Tensor:
    """Return the masks (N, height, width).

    Zeros and ones, or blurred outward over `blur` pixels of the crop.
    """
    masks = []
    for place in crop.places:
        if place.mask is None:
            masks.append(torch.zeros(crop.height, crop.width))
            continue
        window = place.mask.within(place.box)[None].float()
        mask = resize_mask(window, crop.height, crop.width)
        if blur:
            mask = torch.maximum(mask, _blurred(mask, blur))
        masks.append(mask[0].to(crop.image.device))
    return torch.stack([mask.to(crop.image.device) for mask in masks])


# -- masks --------------------------------------------------------------------------------


def clean_mask(mask: torch.Tensor, options: MaskOptions) -> MaskPart | None:
    """Return a mask (H, W) after the options, in this order: threshold, invert, holes, specks, grow.

    Returns None if nothing is left. Only the box around the mask is worked on.
    """
    height, width = mask.shape
    binary = (mask <= options.threshold) if options.invert else (mask > options.threshold)
    box = find_box(binary)
    if box is None:
        return None
    pixels = binary[box.slices]
    if options.fill_holes or options.specks > 1:
        pixels = _filled(pixels, options.fill_holes, options.specks)
    if options.grow > 0:
        grown = box.expand(options.grow).clamp(height, width)
        window = MaskPart(box, pixels).within(grown)
        pixels, box = _near(window, options.grow), grown
    elif options.grow < 0:
        reach = -options.grow
        wide = box.expand(1).clamp(height, width)  # a mask at the border does not shrink away from it
        pixels, box = ~_near(~MaskPart(box, pixels).within(wide), reach), wide
    tight = find_box(pixels)
    if tight is None:
        return None
    return MaskPart(tight.shift(box.top, box.left), pixels[tight.slices].clone())


def _near(pixels: torch.Tensor, reach: int) -> torch.Tensor:
    return distance_to(pixels[None].float(), reach)[0] <= reach


def _filled(pixels: torch.Tensor, holes: bool, specks: int) -> torch.Tensor:
    array = pixels.cpu().numpy()
    if holes:
        array = np.asarray(binary_fill_holes(array))
    if specks > 1:
        labelled = np.zeros(array.shape, np.int32)
        label(array, np.ones((3, 3)), output=labelled)
        keep = np.bincount(labelled.ravel()) >= specks
        keep[0] = False
        array = keep[labelled]
    return torch.from_numpy(array).to(pixels.device)


def _patches(part: MaskPart) -> list[MaskPart]:
    """Return connected patches, the largest first.

    Raises ValueError if there are more than `MOST_CROPS`.
    """
    labelled, count = label(part.pixels.cpu().numpy(), np.ones((3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
    if count > MOST_CROPS:
        raise ValueError(
            f"mask: it has {count} separate patches, but at most {MOST_CROPS} can be cropped one by one;"
            " raise specks, which removes small ones."
        )
    patches = []
    for number, (rows, columns) in enumerate(find_objects(labelled), 1):
        pixels = torch.from_numpy(labelled[rows, columns] == number).to(part.pixels.device)
        box = Box(rows.start, columns.start, rows.stop, columns.stop).shift(part.box.top, part.box.left)
        patches.append(MaskPart(box, pixels))
    return sorted(patches, key=lambda patch: -int(patch.pixels.sum()))


def _with_margins(part: MaskPart | None, margins: Margins, height: int, width: int) -> MaskPart:
    """Return the mask and everything beyond the border."""
    canvas = margins.canvas(height, width)
    pixels = part.within(canvas) if part else torch.zeros(canvas.height, canvas.width, dtype=torch.bool)
    inner = Box(0, 0, height, width).shift(margins.top, margins.left)
    kept = pixels[inner.slices].clone()
    pixels[:] = True
    pixels[inner.slices] = kept
    return MaskPart(canvas, pixels)


def _blurred(mask: torch.Tensor, width: float) -> torch.Tensor:
    """Return the mask (B, H, W) grown by half of `width` and blurred: it falls from 1 at its edge to 0."""
    sigma, grown = width / 4, (distance_to(mask, math.ceil(width / 2)) <= width / 2).to(mask)
    reach = max(1, math.ceil(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1).to(mask) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(grown[:, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[:, 0].clamp(0, 1)


# -- geometry -----------------------------------------------------------------------------


def _context(part: MaskPart, context: Box | None, options: SizeOptions) -> Box:
    """Return the part of the picture that a crop has to hold."""
    box, factor = part.box, max(options.context, 1.0)
    down, right = (round((factor - 1) * length / 2) for length in (box.height, box.width))
    wide = Box(box.top - down, box.left - right, box.bottom + down, box.right + right)
    boxes = [wide, box.expand(options.margin)]
    return enclosing_box(boxes if context is None else [*boxes, context])


def _target_size(boxes: Sequence[Box], canvas: Box, options: SizeOptions) -> tuple[int, int]:
    """(height, width) of all crops. What has to be held decides the shape; it is cut at the canvas first."""
    boxes = [_cut(box, canvas) for box in boxes]
    tall, wide = (max(lengths) for lengths in zip(*((b.height, b.width) for b in boxes), strict=True))
    if options.shape == SQUARE and options.size != EXACT_SIZE:
        tall = wide = max(tall, wide)
    multiple = options.multiple
    if options.size == EXACT_SIZE:
        target = float(options.height), float(options.width)
    elif options.size == ORIGINAL_SIZE:
        return _up(tall, multiple), _up(wide, multiple)
    else:
        scale = math.sqrt(options.megapixels * MEGAPIXEL / (tall * wide))
        target = tall * scale, wide * scale
    height, width = (max(1, round(length / multiple)) * multiple for length in target)
    scale = min(height / tall, width / wide)
    if scale < options.least:
        height, width = (_up(length * options.least / scale, multiple) for length in (height, width))
    # a picture that is too small for the largest enlargement gets a smaller crop
    limit = max(canvas.height, canvas.width) if options.shape == SQUARE else None
    rows, columns = (limit, limit) if limit else (canvas.height, canvas.width)
    excess = min(height / (rows * options.most), width / (columns * options.most))
    if excess > 1:
        height, width = (_up(length / excess, multiple) for length in (height, width))
    return height, width


def _fitted(box: Box, canvas: Box, size: tuple[int, int], options: SizeOptions) -> Box:
    """Return the box grown to the shape of the crop, moved inside the canvas as far as it fits."""
    box = _cut(box, canvas)
    scale = min(size[0] / box.height, size[1] / box.width, options.most)
    if options.size == ORIGINAL_SIZE:
        scale = 1.0
    tall, wide = (
        max(length, round(side / scale)) for side, length in zip(size, (box.height, box.width), strict=True)
    )
    top = _moved((box.top + box.bottom - tall) // 2, tall, canvas.top, canvas.bottom)
    left = _moved((box.left + box.right - wide) // 2, wide, canvas.left, canvas.right)
    return Box(top, left, top + tall, left + wide)


def _cut(box: Box, canvas: Box) -> Box:
    return Box(
        max(box.top, canvas.top),
        max(box.left, canvas.left),
        min(box.bottom, canvas.bottom),
        min(box.right, canvas.right),
    )


def _moved(start: int, length: int, first: int, end: int) -> int:
    """Return the start of an interval, moved into [first, end); about its middle if it is longer."""
    if length > end - first:
        return (first + end - length) // 2
    return min(max(start, first), end - length)


def _up(length: float, multiple: int) -> int:
    return max(1, math.ceil(length / multiple - 1e-9)) * multiple


def pixels_inside(box: Box, part: Box, height: int, width: int) -> torch.Tensor:
    """(height, width) of booleans: which pixels of a resized box have their centre inside `part`."""
    rows = box.top + (torch.arange(height) + 0.5) * box.height / height
    columns = box.left + (torch.arange(width) + 0.5) * box.width / width
    inside_rows = (rows >= part.top) & (rows < part.bottom)
    return inside_rows[:, None] & ((columns >= part.left) & (columns < part.right))[None]
