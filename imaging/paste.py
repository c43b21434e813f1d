"""Paste back: align a painted picture with the original, match its colours, keep what is outside the mask."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt

from .boxes import Box, find_box
from .changes import TOLERANCE, change_mask
from .colour_match import Correction, delta_e, fit_correction, normalised, rgb_to_lab
from .composite import distance_to, soft_edge
from .crop import Margins, MaskPart, PaintingCrop, Place, pixels_inside
from .masks import resize_mask, touching
from .membrane import membrane
from .registration import Alignment, register
from .resample import resample, warp_affine
from .views import fit_within, resize_image

NONE = "none"
MASK, CHANGED = "the mask", "what changed"
AREAS = (MASK, CHANGED)
SOFT_EDGE, GRADIENT = "soft edge", "gradient domain"
BLENDS = (SOFT_EDGE, GRADIENT)

WORK_AREA = 512 * 512  # pixels on which pictures are aligned
COLOUR_SIDE = 256  # pixels of the longer side on which colours are measured
COARSE_SIDE = 32  # pixels of the longer side on which a colour difference is separated from noise
GUARD = 1 / 100  # of the longer side: what a model changes around the mask
RING = 1 / 8  # of the longer side: distance from the mask at which a pixel counts 1 / e for the colour
SAME_COLOUR = 0.5  # dE00 at the rim below which colours are left as they are
LEAST_GAIN = (
    0.2  # share of the difference that a correction removes at least, or colours are left as they are
)
FADE = 0.15  # of the mask's longer side: over which the correction ends inside a mask that does not follow
LUMINANCE = (0.299, 0.587, 0.114)
SHOWN_SIDE, SHOWN_MOST, SQUARES = 512, 8, 8  # of the check picture: pixels, crops, squares along a side
PASTED_PIXELS_AT_ONCE = 2**16  # pixels that are pasted at once
COLOURED_PIXELS_AT_ONCE = 2**15  # pixels whose colours are corrected at once
ASPECT = 0.01  # relative difference of two shapes that counts as one


@dataclass(frozen=True)
class PasteOptions:
    """How a painted picture is pasted.

    Attributes:
        feather: Width of the soft edge outward from the mask, in pixels of the original.
        align: `NONE` or one of `registration.MODELS`.
        colour: `NONE` or one of `colour_match.METHODS`.
        follow: Correct the colours of the painted subject like the surroundings'; else only near the rim.
        area: One of `AREAS`.
        blend: One of `BLENDS`.
        tolerance: Of `CHANGED`, see `changes.change_mask`.
    """

    feather: int = 8
    align: str = NONE
    colour: str = NONE
    follow: bool = True
    area: str = MASK
    blend: str = SOFT_EDGE
    tolerance: float = TOLERANCE


@dataclass(frozen=True)
class PlaceReport:
    """What was found at one place.

    Attributes:
        alignment: In pixels of the original, about the crop's own corner; None if it was not asked for.
        centre: (row, column) of the pasted part in the crop, at which the shift is stated.
        before: dE00 at the rim before the colours were matched; NaN if nothing could be compared.
        after: The same after.
        note: Why the place was left as it was, if it was.
        check: (h, w, 3) of bytes, checkerboards of original and painted picture before and after; None if
            none was drawn.
    """

    alignment: Alignment | None
    centre: tuple[float, float]
    before: float
    after: float
    note: str = ""
    check: torch.Tensor | None = field(default=None, repr=False)

    def text(self) -> str:
        """One line for the user."""
        if self.note:
            return self.note
        parts = []
        if self.alignment is not None and self.alignment.applies:
            down, right = self.alignment.shift_at(*self.centre)
            parts.append(
                f"aligned: it was {abs(right):.2f} px too far {'right' if right > 0 else 'left'},"
                f" {abs(down):.2f} px too far {'down' if down > 0 else 'up'} and scaled to"
                f" {self.alignment.scale:.2%} (up to {self.alignment.rim_motion:.2f} px at the rim)"
            )
        elif self.alignment is not None:
            parts.append(f"left in place: {self.alignment.reason}")
        if np.isfinite(self.before):
            parts.append(
                f"colour difference at the rim {self.before:.2f} dE00 before, {self.after:.2f} after"
            )
        return "; ".join(parts) or "pasted as it is"


@dataclass(frozen=True)
class Pasted:
    """The finished pictures (B, H, W, C) and a report of each place."""

    image: torch.Tensor
    reports: tuple[PlaceReport, ...]

    def text(self) -> str:
        """Return the report, one line of each crop."""
        if len(self.reports) == 1:
            return self.reports[0].text()
        return "\n".join(f"{number}: {report.text()}" for number, report in enumerate(self.reports, 1))

    def check_picture(self) -> torch.Tensor:
        """(N, h, w, 3): the checkerboards, of the first places only; one black pixel if there are none."""
        shown = [report.check for report in self.reports if report.check is not None]
        return torch.stack(shown).float() / 255 if shown else torch.zeros(1, 1, 1, 3)


def whole_pictures(original: torch.Tensor, mask: torch.Tensor | None) -> PaintingCrop:
    """Return a crop that is the whole picture; original (B, H, W, C), mask (B, H, W) or None."""
    height, width = original.shape[1:3]
    box, places = Box(0, 0, height, width), []
    for index in range(len(original)):
        tight = find_box(mask[index if len(mask) > 1 else 0]) if mask is not None else None
        part = None
        if tight is not None and mask is not None:
            part = MaskPart(tight, mask[index if len(mask) > 1 else 0][tight.slices] > 0.5)
        places.append(Place(index, box, part))
    return PaintingCrop(original, Margins(), tuple(places), height, width, len(original))


def with_masks(crop: PaintingCrop, mask: torch.Tensor) -> PaintingCrop:
    """Return the crop with other masks (B, H, W) of the picture's size; one, or one for each picture."""
    places = []
    for place in crop.places:
        own = mask[place.index if len(mask) > 1 else 0]
        tight = find_box(own)
        part = None if tight is None else MaskPart(tight, own[tight.slices] > 0.5)
        places.append(replace(place, mask=part))
    return replace(crop, places=tuple(places))


def match_painted(crop: PaintingCrop, painted: torch.Tensor) -> PaintingCrop:
    """Return the crop with one place for each painted picture.

    Several variants of one crop give several results.

    Raises ValueError if their numbers do not fit.
    """
    if len(painted) == len(crop.places):
        return crop
    if len(crop.places) == 1 and len(crop.image) == 1:
        places = tuple(replace(crop.places[0], index=number) for number in range(len(painted)))
        return replace(crop, places=places, count=len(painted))
    raise ValueError(
        f"generated: there are {len(painted)} pictures but {len(crop.places)} crops;"
        " connect one picture for each crop, in the same order."
    )


def paste_paintings(crop: PaintingCrop, painted: torch.Tensor, options: PasteOptions) -> Pasted:
    """Paste painted crops into their pictures.

    Args:
        crop: Where they belong.
        painted: (N, h, w, C) in [0, 1], one for each place, of any size.
        options: How.

    Returns:
        Pictures of the size of the crop's canvas. Beyond the soft edge they have the bits of the original;
        what lies beyond the original's border and is not painted repeats its last pixels.
    """
    painted = painted.to(crop.image)
    found = [
        _measure(crop, place, picture[None], options, number < SHOWN_MOST)
        for number, (place, picture) in enumerate(zip(crop.places, painted, strict=True))
    ]
    result = _canvas(crop)  # not earlier: a large copy and the comparison's memory would add up
    for place, picture, piece in zip(crop.places, painted, found, strict=True):
        if piece.part is not None:
            _blend(result, crop, place, piece.part, picture[None], piece, options)
    return Pasted(result, tuple(piece.report for piece in found))


def _canvas(crop: PaintingCrop) -> torch.Tensor:
    image, margins = crop.image, crop.margins
    if margins:
        sides = (margins.left, margins.right, margins.top, margins.bottom)
        image = F.pad(image.movedim(-1, 1), sides, mode="replicate").movedim(1, -1).contiguous()
    if len(image) == crop.count:
        return image if margins else image.clone()
    return image.expand(crop.count, -1, -1, -1).clone()


@dataclass(frozen=True)
class Comparison:
    """One place at the size at which it is compared."""

    original: torch.Tensor  # (h, w, 3)
    painted: torch.Tensor  # (h, w, 3), aligned
    known: torch.Tensor  # (h, w) of booleans
    masked: torch.Tensor  # (h, w) of booleans
    as_it_came: np.ndarray  # (3, 3), positions in the box at its own size -> in the painted picture
    to_painted: np.ndarray  # the same with the alignment
    alignment: Alignment | None


@dataclass(frozen=True)
class Measured:
    """How one place is pasted: what (None: nothing), from where in the painted picture, in which colours."""

    report: PlaceReport
    part: MaskPart | None = None
    to_painted: np.ndarray = field(default_factory=lambda: np.eye(3))
    correction: Correction | None = None


def _measure(
    crop: PaintingCrop, place: Place, painted: torch.Tensor, options: PasteOptions, draw: bool
) -> Measured:
    """Compare one painted picture (1, h, w, C) with the original."""
    nothing = PlaceReport(None, (0.0, 0.0), float("nan"), float("nan"), "nothing to paste: the mask is empty")
    if options.area == MASK and place.mask is None:
        return Measured(nothing)
    work = compare(crop, place, painted, options)
    correction, before, after = measure_colours(work, options)
    part = place.mask
    if options.area == CHANGED:
        corrected = recoloured(work.painted, correction)
        part = _changed_part(work.original, corrected, place.box, options.tolerance)
        if part is None:
            note = "nothing to paste: the painted picture shows nothing new"
            return Measured(replace(nothing, alignment=work.alignment, note=note))
        if place.mask is None:  # measure the colours again, now that the painted part is known
            work = _without(work, part, crop, place)
            correction, before, after = measure_colours(work, options)
    assert part is not None
    middle = part.box.shift(-place.box.top, -place.box.left)
    centre = ((middle.top + middle.bottom) / 2, (middle.left + middle.right) / 2)
    alignment, matrices, masked = work.alignment, (work.as_it_came, work.to_painted), work.masked
    del work  # its pictures, before others are made
    check = _check_picture(crop, place, painted, matrices, masked, correction) if draw else None
    return Measured(PlaceReport(alignment, centre, before, after, check=check), part, matrices[1], correction)


def compare(crop: PaintingCrop, place: Place, painted: torch.Tensor, options: PasteOptions) -> Comparison:
    """Lay the painted picture on the original at a size that is quick to compare."""
    box = place.box
    area = min(WORK_AREA, painted.shape[1] * painted.shape[2])
    factor = min(1.0, (area / box.area) ** 0.5)
    height, width = (max(1, round(length * factor)) for length in (box.height, box.width))
    masked = torch.zeros(height, width, dtype=torch.bool)
    if place.mask is not None:
        masked = _resized_part(place.mask, box, height, width)
    known = _known(crop, place, masked)
    frames = _frames((height, width), painted.shape[1:3])
    to_painted, alignment = frames[0], None
    if options.align != NONE:
        reference = _luminance(_original(crop, place, height, width))
        for frame in frames:
            moved = _luminance(sample_painted(painted[..., :3], frame, height, width)[0])
            found = register(reference, moved, known.numpy(), options.align)
            if alignment is None or _better(found, alignment):
                to_painted, alignment = frame, found
        del reference, moved  # colours are sampled again: less memory, and luminances are quick
    came = to_painted
    if alignment is not None and alignment.applies:
        to_painted = to_painted @ np.vstack([alignment.matrix, [0, 0, 1]])
        known = known & _shown(to_painted, height, width, painted.shape[1:3])
    rows, columns = height / box.height, width / box.width
    if alignment is not None:
        alignment = alignment.resized(1 / rows, 1 / columns)
    scale = np.diag([rows, columns, 1])
    seen = sample_painted(painted[..., :3], to_painted, height, width)[0]
    original = _original(crop, place, height, width)
    return Comparison(original, seen, known, masked, came @ scale, to_painted @ scale, alignment)


def _original(crop: PaintingCrop, place: Place, height: int, width: int) -> torch.Tensor:
    """(height, width, 3): the original inside the place's box, at another size."""
    box = place.box
    rows = (box.height / height, float(box.top), height)
    columns = (box.width / width, float(box.left), width)
    return resample(crop.picture(place.index)[..., :3], rows, columns).clamp_(0, 1)[0]


def _without(work: Comparison, part: MaskPart, crop: PaintingCrop, place: Place) -> Comparison:
    """Return the same work with the painted part as its mask."""
    masked = _resized_part(part, place.box, *work.known.shape)
    return replace(work, known=_known(crop, replace(place, mask=part), masked), masked=masked)


def _better(first: Alignment, second: Alignment) -> bool:
    return np.nan_to_num(first.correlation) > np.nan_to_num(second.correlation)


def _frames(size: Sequence[int], painted: Sequence[int]) -> list[np.ndarray]:
    """(3, 3) matrices from positions in a crop of `size` to positions in a picture of size `painted`.

    The picture is the crop stretched to its size; where the shapes differ it may also be the middle of the
    crop.
    """
    down, right = (p / s for p, s in zip(painted, size, strict=True))
    stretched = np.diag([down, right, 1.0])
    if abs(down / right - 1) <= ASPECT:
        return [stretched]
    cut = np.diag([max(down, right)] * 2 + [1.0])
    cut[:2, 2] = [(p - cut[0, 0] * s) / 2 for p, s in zip(painted, size, strict=True)]
    return [stretched, cut]


def sample_painted(painted: torch.Tensor, to_painted: np.ndarray, height: int, width: int) -> torch.Tensor:
    """(1, height, width, C): the painted picture at the positions of a grid, see `_frames`."""
    if abs(to_painted[0, 1]) + abs(to_painted[1, 0]) < 1e-12:
        rows = (float(to_painted[0, 0]), float(to_painted[0, 2]), height)
        columns = (float(to_painted[1, 1]), float(to_painted[1, 2]), width)
        return resample(painted, rows, columns).clamp_(0, 1)
    return resize_image(_straightened(painted, to_painted, height, width)[0], height, width)


def _straightened(
    painted: torch.Tensor, to_painted: np.ndarray, height: int, width: int
) -> tuple[torch.Tensor, np.ndarray]:
    """Return the picture without turn and slant, at its own size, and the matrix to its positions.

    What is enlarged or shrunk afterwards is so along rows and columns.
    """
    if abs(to_painted[0, 1]) + abs(to_painted[1, 0]) < 1e-12:
        return painted, to_painted
    scale = np.diag([painted.shape[1] / height, painted.shape[2] / width, 1.0])
    straight = warp_affine(painted, torch.from_numpy((to_painted @ np.linalg.inv(scale))[:2]))
    return straight.clamp(0, 1), scale


def _shown(to_painted: np.ndarray, height: int, width: int, size: Sequence[int]) -> torch.Tensor:
    """(height, width) of booleans: positions that lie inside the painted picture of that size."""
    rows, columns = np.arange(height)[:, None] + 0.5, np.arange(width)[None] + 0.5
    inside = np.ones((height, width), bool)
    for axis, length in enumerate(size):
        position = to_painted[axis, 0] * rows + to_painted[axis, 1] * columns + to_painted[axis, 2]
        inside &= (position >= 1) & (position <= length - 1)
    return torch.from_numpy(inside)


def _luminance(image: torch.Tensor) -> np.ndarray:
    return (image.float().cpu() @ torch.tensor(LUMINANCE)).numpy()


def _resized_part(part: MaskPart, box: Box, height: int, width: int) -> torch.Tensor:
    """(height, width) of booleans on the CPU: which pixels of the resized box touch the mask."""
    return touching(touching(part.within(box), 0, height), 1, width).cpu()


def _known(crop: PaintingCrop, place: Place, masked: torch.Tensor) -> torch.Tensor:
    """(h, w) of booleans on the CPU: pixels that the model should have left as they were."""
    height, width = masked.shape
    known = pixels_inside(place.box, Box(0, 0, *crop.image.shape[1:3]), height, width)
    if not masked.any():
        return known
    guard = max(2.0, GUARD * max(height, width))
    return known & (distance_to(masked[None].float(), math.ceil(guard))[0] > guard)


# -- colour -------------------------------------------------------------------------------


def measure_colours(work: Comparison, options: PasteOptions) -> tuple[Correction | None, float, float]:
    """Return the colour correction, and the colour difference at the rim before and after."""
    height, width = fit_within(COLOUR_SIDE, *work.known.shape)
    rows, columns = (
        (length / size, 0.0, size) for length, size in zip(work.known.shape, (height, width), strict=True)
    )
    original, painted = (
        resample(image[None], rows, columns)[0].clamp_(0, 1).cpu() for image in (work.original, work.painted)
    )
    known = resize_mask((~work.known).float()[None], height, width)[0] < 0.5
    weight = known.double()
    if work.masked.any():
        masked = resize_mask(work.masked.float()[None], height, width)[0] > 0.5
        distance = torch.from_numpy(np.asarray(distance_transform_edt(~masked.numpy())))
        weight = weight * torch.exp(-distance / (RING * max(height, width)))
    before = _rim_difference(original, painted, weight)
    if options.colour == NONE or not before > SAME_COLOUR:
        return None, before, before
    correction = fit_correction(options.colour, original, painted, weight)
    if correction is None:
        return None, before, before
    after = _rim_difference(original, recoloured(painted, correction), weight)
    return (correction, before, after) if after < (1 - LEAST_GAIN) * before else (None, before, before)


def recoloured(picture: torch.Tensor, correction: Correction | None) -> torch.Tensor:
    """Return a whole crop (h, w, 3) in other colours."""
    if correction is None:
        return picture
    (height, width), result = picture.shape[:2], torch.empty_like(picture)
    rows, columns = normalised(height), normalised(width)
    strip = max(1, COLOURED_PIXELS_AT_ONCE // width)
    for top in range(0, height, strip):
        part = slice(top, top + strip)
        result[part] = correction.apply(picture[part], rows[part], columns)
    return result


def _rim_difference(original: torch.Tensor, painted: torch.Tensor, weight: torch.Tensor) -> float:
    """Weighted mean dE00 of local means, in which noise cancels; NaN if nothing counts."""
    step = max(1, round(max(weight.shape) / COARSE_SIDE))
    share = F.avg_pool2d(weight[None, None], step, ceil_mode=True)[0, 0]
    if not share.any():
        return float("nan")
    labs = []
    for image in (original, painted):
        total = F.avg_pool2d((image.double() * weight[..., None]).movedim(-1, 0)[None], step, ceil_mode=True)
        labs.append(rgb_to_lab((total[0] / share.clamp(min=1e-9)).movedim(0, -1).clamp(0, 1)))
    return float((delta_e(*labs) * share).sum() / share.sum())


# -- blending -----------------------------------------------------------------------------


def _changed_part(
    original: torch.Tensor, painted: torch.Tensor, box: Box, tolerance: float
) -> MaskPart | None:
    """Return what the painted picture shows and the original does not, in the box at its own size."""
    pair = original[None], painted[None]
    for largest in (False, True):
        try:
            mask = change_mask(*pair, tolerance, largest)
        except ValueError:
            continue
        pixels = resize_mask(mask, box.height, box.width)[0] > 0.5
        tight = find_box(pixels)
        if tight is not None:
            return MaskPart(tight.shift(box.top, box.left), pixels[tight.slices].clone())
    return None


def _blend(
    result: torch.Tensor,
    crop: PaintingCrop,
    place: Place,
    part: MaskPart,
    painted: torch.Tensor,
    found: Measured,
    options: PasteOptions,
) -> None:
    """Write the painted part into `result` where its soft edge is above 0."""
    box, margin = place.box, options.feather + (2 if options.blend == GRADIENT else 0)
    window = _shared(_shared(part.box.expand(margin), box), crop.canvas)
    if not window.area:
        return
    mask = part.within(window)
    to_painted = _from(found.to_painted, window.top - box.top, window.left - box.left)
    painted, to_painted = _straightened(painted, to_painted, window.height, window.width)
    follows = None if options.follow or found.correction is None else _share_that_follows(mask)
    height = window.height
    if options.blend != GRADIENT:  # which needs the whole window at once
        height = max(1, PASTED_PIXELS_AT_ONCE // window.width)
    for top in range(window.top, window.bottom, height):
        strip = Box(top, window.left, min(top + height, window.bottom), window.right)
        inner = slice(strip.top - window.top, strip.bottom - window.top)
        new = sample_painted(painted, _from(to_painted, inner.start, 0), strip.height, strip.width)[0]
        if found.correction is not None:
            share = None if follows is None else follows[inner].to(new)
            new = _recoloured_part(new, found.correction, box, strip, share)
        around = slice(max(0, inner.start - options.feather), inner.stop + options.feather)
        alpha = soft_edge(mask[None, around].float(), options.feather)[0].to(result.device)
        alpha = alpha[inner.start - around.start :][: strip.height]
        rows, columns = strip.shift(crop.margins.top, crop.margins.left).slices
        _mix(result[place.index, rows, columns], new, alpha, options.blend == GRADIENT)


def _from(to_painted: np.ndarray, down: float, right: float) -> np.ndarray:
    """Return the matrix for positions that are counted from (down, right)."""
    offset = np.eye(3)
    offset[:2, 2] = down, right
    return to_painted @ offset


def _share_that_follows(mask: torch.Tensor) -> torch.Tensor:
    """(h, w) of a mask (h, w): how far colours are corrected that do not follow, 1 at the rim, 0 inside."""
    inside = torch.from_numpy(np.asarray(distance_transform_edt(mask.cpu().numpy()))).float()
    return (1 - inside / max(1.0, FADE * max(mask.shape))).clamp(0, 1)


def _mix(old: torch.Tensor, new: torch.Tensor, alpha: torch.Tensor, gradients: bool) -> None:
    """Write old * (1 - alpha) + new * alpha into `old` (h, w, C) where alpha (h, w) is above 0."""
    if new.shape[-1] < old.shape[-1]:  # a model paints no transparency
        new = torch.cat([new, torch.ones_like(new[..., :1])], -1)
    new = new[..., : old.shape[-1]]
    if gradients:
        new = _in_gradient_domain(old, new, alpha > 0)
    real = torch.promote_types(old.dtype, torch.float32)
    mixed = torch.lerp(old.to(real), new.to(real), alpha[..., None].to(real)).to(old.dtype)
    old.copy_(torch.where(alpha[..., None] > 0, mixed, old))


def _recoloured_part(
    picture: torch.Tensor,
    correction: Correction,
    box: Box,
    window: Box,
    share: torch.Tensor | None,
) -> torch.Tensor:
    """Return the window (h, w, C) of a box in other colours; share (h, w): how far, None for all the way."""
    rows, columns = (
        (torch.arange(count, dtype=torch.float64) + 0.5 + start) * (2 / length) - 1
        for count, start, length in (
            (window.height, window.top - box.top, box.height),
            (window.width, window.left - box.left, box.width),
        )
    )
    colours = correction.apply(picture[..., :3], rows, columns)
    if share is not None:
        colours = torch.lerp(picture[..., :3], colours, share[..., None])
    return torch.cat([colours, picture[..., 3:]], -1)


def _in_gradient_domain(old: torch.Tensor, new: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Return `new` (h, w, C) minus the membrane of its difference to `old`, known where not `inside`."""
    if inside.all():
        return new
    difference = (new - old).movedim(-1, 0).float()
    return (new - membrane(difference, inside).movedim(0, -1).to(new)).clamp(0, 1)


def _shared(first: Box, second: Box) -> Box:
    return Box(
        max(first.top, second.top),
        max(first.left, second.left),
        min(first.bottom, second.bottom),
        min(first.right, second.right),
    )


# -- check picture ------------------------------------------------------------------------


def _check_picture(
    crop: PaintingCrop,
    place: Place,
    painted: torch.Tensor,
    matrices: tuple[np.ndarray, np.ndarray],
    masked: torch.Tensor,
    correction: Correction | None,
) -> torch.Tensor:
    """(h, 2 w, 3) of bytes: checkerboards of original and painted picture, as it came and as it was pasted.

    The rim of the mask is drawn in red. Edges and colours go on from square to square where the two agree.
    `matrices` are those of a `Comparison`, `masked` too.
    """
    height, width = fit_within(SHOWN_SIDE, *masked.shape)
    scale = np.diag([place.box.height / height, place.box.width / width, 1.0])
    original = _original(crop, place, height, width).cpu().float()
    side = max(2, max(height, width) // SQUARES)
    down, right = torch.arange(height) // side, torch.arange(width) // side
    own = (down[:, None] + right[None]) % 2 == 0
    shown = resize_mask(masked.float()[None], height, width)[None]
    rim = (F.max_pool2d(shown, 3, 1, 1) - shown)[0, 0] > 0
    squares = (own & (shown[0, 0] < 0.5))[..., None]
    boards = torch.empty(height, 2 * width, 3, dtype=torch.uint8)
    rows, columns = normalised(height), normalised(width)
    for matrix, colours, left in zip(matrices, (None, correction), (0, width), strict=True):
        picture = sample_painted(painted[..., :3], matrix @ scale, height, width)[0].cpu().float()
        for top in range(0, height, side):
            part = slice(top, top + side)
            new = picture[part] if colours is None else colours.apply(picture[part], rows[part], columns)
            new = torch.where(squares[part], original[part], new)
            boards[part, left : left + width] = (255 * new).round().byte()
        boards[:, left : left + width][rim] = torch.tensor([255, 26, 26], dtype=torch.uint8)
    return boards
