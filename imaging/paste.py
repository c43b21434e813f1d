"""Paste back: align a painted picture with the original, match its colours, keep what is outside the mask."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F

from .boxes import Box, find_box
from .changes import TOLERANCE, change_mask
from .colour_match import Correction, delta_e, fit_correction, normalised, rgb_to_lab
from .composite import soft_edge
from .crop import Margins, MaskPart, PaintingCrop, Place, pixels_inside
from .masks import resize_mask
from .membrane import membrane
from .registration import Alignment, register
from .resample import crop_resized, resample, warp_affine
from .views import fit_within, resize_image

NONE = "none"
MASK, CHANGED = "the mask", "what changed"
AREAS = (MASK, CHANGED)
SOFT_EDGE, GRADIENT = "soft edge", "gradient domain"
BLENDS = (SOFT_EDGE, GRADIENT)

WORK_AREA = 768 * 768  # pixels on which pictures are aligned
COLOUR_SIDE = 256  # pixels of the longer side on which colours are measured
COARSE_SIDE = 32  # pixels of the longer side on which a colour difference is told from noise
GUARD = 1 / 100  # of the longer side: what a model changes around the mask
RING = 1 / 8  # of the longer side: distance from the mask at which a pixel counts 1 / e for the colour
SAME_COLOUR = 0.5  # dE00 at the rim below which colours are left as they are
LEAST_GAIN = (
    0.2  # share of the difference that a correction removes at least, or colours are left as they are
)
FADE = 0.15  # of the mask's longer side: over which the correction ends inside a mask that does not follow
LUMINANCE = (0.299, 0.587, 0.114)
SHOWN_SIDE, SHOWN_MOST, SQUARES = 640, 8, 8  # of the check picture: pixels, crops, squares along a side
PASTED_PIXELS_AT_ONCE = 2**18  # pixels that are pasted at once
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
        check: (h, w, 3), checkerboards of original and painted picture before and after; None if none was
            drawn.
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
        return torch.stack(shown) if shown else torch.zeros(1, 1, 1, 3)


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
    result = _canvas(crop)
    painted = painted.to(result)
    reports = []
    for place, picture in zip(crop.places, painted, strict=True):
        reports.append(_paste(result, crop, place, picture[None], options, len(reports) < SHOWN_MOST))
    return Pasted(result, tuple(reports))


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
    before: torch.Tensor  # (h, w, 3), the painted picture as it came
    painted: torch.Tensor  # (h, w, 3), aligned
    known: torch.Tensor  # (h, w) of booleans
    masked: torch.Tensor  # (h, w) of booleans
    to_painted: np.ndarray  # (3, 3), positions in the box at its own size -> in the painted picture
    alignment: Alignment | None


def _paste(
    result: torch.Tensor,
    crop: PaintingCrop,
    place: Place,
    painted: torch.Tensor,
    options: PasteOptions,
    draw: bool,
) -> PlaceReport:
    """Paste one picture (1, h, w, C) into `result` and report."""
    nothing = PlaceReport(None, (0.0, 0.0), float("nan"), float("nan"), "nothing to paste: the mask is empty")
    if options.area == MASK and place.mask is None:
        return nothing
    work = compare(crop, place, painted, options)
    correction, before, after = measure_colours(work, options)
    corrected = recoloured(work.painted, correction)
    part = place.mask
    if options.area == CHANGED:
        part = _changed_part(work.original, corrected, place.box, options.tolerance)
        if part is None:
            note = "nothing to paste: the painted picture shows nothing new"
            return replace(nothing, alignment=work.alignment, note=note)
        if place.mask is None:  # measure the colours again, now that the painted part is known
            work = _without(work, part, crop, place)
            correction, before, after = measure_colours(work, options)
            corrected = recoloured(work.painted, correction)
    assert part is not None
    _blend(result, crop, place, part, painted, work, correction, options)
    middle = part.box.shift(-place.box.top, -place.box.left)
    centre = ((middle.top + middle.bottom) / 2, (middle.left + middle.right) / 2)
    check = _check_picture(work, corrected) if draw else None
    return PlaceReport(work.alignment, centre, before, after, check=check)


def compare(crop: PaintingCrop, place: Place, painted: torch.Tensor, options: PasteOptions) -> Comparison:
    """Lay the painted picture on the original at a size that is quick to compare."""
    box = place.box
    area = min(WORK_AREA, painted.shape[1] * painted.shape[2])
    factor = min(1.0, (area / box.area) ** 0.5)
    height, width = (max(1, round(length * factor)) for length in (box.height, box.width))
    original = crop_resized(crop.picture(place.index)[..., :3], box, height, width)[0]
    known = _known(crop, place, height, width)
    masked = torch.zeros(height, width, dtype=torch.bool)
    if place.mask is not None:
        masked = _resized_part(place.mask, box, height, width)
    rows, columns = height / box.height, width / box.width
    best = None
    for to_painted in _frames((height, width), painted.shape[1:3]):
        seen = sample_painted(painted[..., :3], to_painted, height, width)[0]
        alignment = None
        if options.align != NONE:
            reference, moved = _luminance(original), _luminance(seen)
            alignment = register(reference, moved, known.numpy(), options.align)
        if best is None or (alignment and _better(alignment, best[2])):
            best = (to_painted, seen, alignment)
        if alignment is None:
            break
    assert best is not None
    to_painted, seen, alignment = best
    before = seen
    if alignment is not None and alignment.applies:
        to_painted = to_painted @ np.vstack([alignment.matrix, [0, 0, 1]])
        seen = sample_painted(painted[..., :3], to_painted, height, width)[0]
        known = known & _shown(to_painted, height, width, painted.shape[1:3])
    if alignment is not None:
        alignment = alignment.resized(1 / rows, 1 / columns)
    return Comparison(
        original, before, seen, known, masked, to_painted @ np.diag([rows, columns, 1]), alignment
    )


def _without(work: Comparison, part: MaskPart, crop: PaintingCrop, place: Place) -> Comparison:
    """Return the same work with the painted part as its mask."""
    height, width = work.known.shape
    known = _known(crop, replace(place, mask=part), height, width)
    return replace(work, known=known, masked=_resized_part(part, place.box, height, width))


def _better(first: Alignment, second: Alignment | None) -> bool:
    return second is None or np.nan_to_num(first.correlation) > np.nan_to_num(second.correlation)


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
        if rows[1] == columns[1] == 0 and painted.shape[1:3] == (
            round(rows[0] * height),
            round(columns[0] * width),
        ):
            return resize_image(painted, height, width)
        return resample(painted, rows, columns).clamp(0, 1)
    # straighten it at its own size first, then shrink or enlarge along rows and columns
    scale = np.diag([painted.shape[1] / height, painted.shape[2] / width, 1.0])
    straight = warp_affine(painted, torch.from_numpy((to_painted @ np.linalg.inv(scale))[:2]))
    return resize_image(straight.clamp(0, 1), height, width)


def _shown(to_painted: np.ndarray, height: int, width: int, size: Sequence[int]) -> torch.Tensor:
    """(height, width) of booleans: positions that lie inside the painted picture of that size."""
    rows, columns = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    inside = np.ones((height, width), bool)
    for axis, length in enumerate(size):
        position = to_painted[axis, 0] * rows + to_painted[axis, 1] * columns + to_painted[axis, 2]
        inside &= (position >= 1) & (position <= length - 1)
    return torch.from_numpy(inside)


def _luminance(image: torch.Tensor) -> np.ndarray:
    return (image.float().cpu() @ torch.tensor(LUMINANCE)).numpy()


def _resized_part(part: MaskPart, box: Box, height: int, width: int) -> torch.Tensor:
    """(height, width) of booleans on the CPU: which pixels of the resized box touch the mask."""
    window = part.within(box)[None].float()
    return resize_mask(window, height, width)[0].cpu() > 0.5


def _known(crop: PaintingCrop, place: Place, height: int, width: int) -> torch.Tensor:
    """(height, width) of booleans on the CPU: pixels that the model should have left as they were."""
    from scipy.ndimage import distance_transform_edt

    known = pixels_inside(place.box, Box(0, 0, *crop.image.shape[1:3]), height, width)
    if place.mask is None:
        return known
    masked = _resized_part(place.mask, place.box, height, width)
    if not masked.any():
        return known
    guard = max(2.0, GUARD * max(height, width))
    return known & torch.from_numpy(np.asarray(distance_transform_edt(~masked.numpy())) > guard)


# -- colour -------------------------------------------------------------------------------


def measure_colours(work: Comparison, options: PasteOptions) -> tuple[Correction | None, float, float]:
    """Return the colour correction, and the colour difference at the rim before and after."""
    from scipy.ndimage import distance_transform_edt

    height, width = fit_within(COLOUR_SIDE, *work.known.shape)
    original, painted = (
        resize_image(image[None], height, width)[0].cpu() for image in (work.original, work.painted)
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
    height, width = picture.shape[:2]
    return correction.apply(picture, normalised(height), normalised(width))


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
    work: Comparison,
    correction: Correction | None,
    options: PasteOptions,
) -> None:
    """Write the painted part into `result` where its soft edge is above 0."""
    box, margin = place.box, options.feather + (2 if options.blend == GRADIENT else 0)
    window = _shared(_shared(part.box.expand(margin), box), crop.canvas)
    if not window.area:
        return
    mask = part.within(window)
    straight = abs(work.to_painted[0, 1]) + abs(work.to_painted[1, 0]) == 0
    height = window.height
    if straight and options.follow and options.blend != GRADIENT:  # the others need the whole window at once
        height = max(1, PASTED_PIXELS_AT_ONCE // window.width)
    for top in range(window.top, window.bottom, height):
        strip = Box(top, window.left, min(top + height, window.bottom), window.right)
        inner = slice(strip.top - window.top, strip.bottom - window.top)
        offset = np.eye(3)
        offset[:2, 2] = [strip.top - box.top, strip.left - box.left]
        new = sample_painted(painted, work.to_painted @ offset, strip.height, strip.width)[0]
        if correction is not None:
            new = _recoloured_part(new, correction, box, strip, mask[inner].to(result.device), options)
        around = slice(max(0, inner.start - options.feather), inner.stop + options.feather)
        alpha = soft_edge(mask[None, around].float(), options.feather)[0].to(result.device)
        alpha = alpha[inner.start - around.start :][: strip.height]
        rows, columns = strip.shift(crop.margins.top, crop.margins.left).slices
        _mix(result[place.index, rows, columns], new, alpha, options.blend == GRADIENT)


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
    mask: torch.Tensor,
    options: PasteOptions,
) -> torch.Tensor:
    """Return the window (h, w, C) in other colours.

    Without `follow` only outside the mask and near its rim.
    """
    rows, columns = (
        (torch.arange(count, dtype=torch.float64) + 0.5 + start) * (2 / length) - 1
        for count, start, length in (
            (window.height, window.top - box.top, box.height),
            (window.width, window.left - box.left, box.width),
        )
    )
    colours = correction.apply(picture[..., :3], rows, columns)
    if not options.follow:
        from scipy.ndimage import distance_transform_edt

        inside = torch.from_numpy(np.asarray(distance_transform_edt(mask.cpu().numpy())))
        share = (1 - inside / max(1.0, FADE * max(window.height, window.width))).clamp(0, 1)
        colours = torch.lerp(picture[..., :3], colours, share.to(picture.dtype).to(picture.device)[..., None])
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


def _check_picture(work: Comparison, corrected: torch.Tensor) -> torch.Tensor:
    """(h, 2 w, 3): checkerboards of original and painted picture, as it came and as it was pasted.

    The rim of the mask is drawn in red. Edges and colours go on from square to square where the two agree.
    """
    height, width = fit_within(SHOWN_SIDE, *work.known.shape)
    pictures = [
        resize_image(image[None], height, width)[0].cpu().float()
        for image in (work.original, work.before, corrected)
    ]
    side = max(2, max(height, width) // SQUARES)
    rows, columns = torch.arange(height) // side, torch.arange(width) // side
    own = (rows[:, None] + columns[None]) % 2 == 0
    masked = resize_mask(work.masked.float()[None], height, width)[None]
    rim = (F.max_pool2d(masked, 3, 1, 1) - masked)[0, 0] > 0
    boards = []
    for picture in pictures[1:]:
        board = torch.where(own[..., None] & (masked[0, 0] < 0.5)[..., None], pictures[0], picture)
        board[rim] = torch.tensor([1.0, 0.1, 0.1])
        boards.append(board)
    return torch.cat(boards, 1)
