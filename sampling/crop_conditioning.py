"""What a prompt states about places, cut to a window: its area, its mask, its ControlNet's picture.

The host stretches masks and hints over whatever is sampled, and counts areas from its corner. Here they are
made for a part of the picture first.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..host.control import hints_of, previous_of, with_hints
from ..imaging.views import Window

AREA_PIXEL = 8  # pixels of the picture in one step of an area that is not in percent
RESIZERS = ("nearest", "nearest-exact", "bilinear", "bicubic", "area")  # of the host's, those of torch


class CropRegion(NamedTuple):
    """Which part of which pictures is sampled."""

    window: Window  # top, left, bottom, right in fractions of the picture; past 1 where it is padded
    picture: tuple[int, int]  # height and width
    shown: tuple[int, int]  # height and width of the window as the autoencoder sees it
    rows: Sequence[int] = (0,)  # the pictures of the batch
    batch: int = 1  # how many there are


def crop_conditions(conditions: Mapping[str, Sequence[dict]], place: CropRegion) -> dict[str, list[dict]]:
    """Return the conditions of a guider ("positive", "negative", ...) for a place.

    Those that miss it are left out.

    Raises ValueError where all of a kind miss it.
    """
    controls: dict[int, object] = {}
    cropped = {}
    for kind, conds in conditions.items():
        parts = (_crop_condition(cond, place, controls) for cond in conds)
        cropped[kind] = [part for part in parts if part is not None]
        if conds and not cropped[kind]:
            raise ValueError(
                f"{kind}: none of its areas and masks reaches the place that is painted; add a prompt for the"
                " whole picture."
            )
    return cropped


def _crop_condition(cond: dict, place: CropRegion, controls: dict) -> dict | None:
    cond = dict(cond)
    if "mask" in cond:
        cond["mask"] = cond["mask"].reshape(-1, *cond["mask"].shape[-2:])
    for key in ("cross_attn", "pooled_output", "mask"):
        if cond.get(key) is not None:
            cond[key] = only_rows(cond[key], place.rows)
    if "area" in cond:
        cond["area"] = crop_area(cond["area"], place.window, *place.picture)
        if cond["area"] is None or _is_sliver(cond["area"], place):
            return None
    if "mask" in cond:
        cond["mask"] = crop_part(cond["mask"], place.window)
        if not cond["mask"].any():
            return None
    if cond.get("gligen") is not None:
        kind, model, boxes = cond["gligen"]
        boxes = [crop_box(box, place) for box in boxes]
        cond["gligen"] = (kind, model, [box for box in boxes if box is not None])
        if not cond["gligen"][2]:
            del cond["gligen"]
    if "control" in cond:
        cond["control"] = _crop_control(cond["control"], place, controls)
    return cond


def only_rows(batch: Tensor, rows: Sequence[int]) -> Tensor:
    """Those rows of a batch that has one for every picture; any other batch as it is."""
    return batch[list(rows)] if len(batch) > max(1, len(rows), *rows) else batch


def crop_area(area: Sequence, window: Window, height: int, width: int) -> tuple | None:
    """Return the host's area (height, width, top, left) of a picture, in percent of the window.

    None where the two do not meet. An area that ends at the picture's border holds its padding too.
    """
    sizes = (height, width, height, width)
    steps = (
        area[1:]
        if area[0] == "percentage"
        else [AREA_PIXEL * a / n for a, n in zip(area, sizes, strict=True)]
    )
    tall, wide, top, left = steps
    down, first_row = _overlap(top, tall, window[0], window[2])
    across, first_column = _overlap(left, wide, window[1], window[3])
    return ("percentage", down, across, first_row, first_column) if down > 0 and across > 0 else None


def crop_box(box: tuple, place: CropRegion) -> tuple | None:
    """Return a GLIGEN box (text, height, width, top, left) of the picture in latent pixels of the place.

    None where it lies outside.
    """
    text, *area = box
    part = crop_area(tuple(area), place.window, *place.picture)
    if part is None:
        return None
    rows, columns = (pixels / AREA_PIXEL for pixels in place.shown)
    _, down, across, top, left = part
    return text, down * rows, across * columns, top * rows, left * columns


def _is_sliver(area: tuple, place: CropRegion) -> bool:
    """Less than one cell of the latent, which the host may round to none: UNets fail on an empty part."""
    sides = zip(area[1:3], place.shown, strict=True)
    return any(share * pixels < AREA_PIXEL - 1e-6 for share, pixels in sides)


def _overlap(start: float, length: float, low: float, high: float) -> tuple[float, float]:
    """(length, start) of an interval inside another, in shares of that."""
    end = high if start + length > 1 - 1e-6 else min(start + length, high)
    start = max(start, low)
    return (end - start) / (high - low), (start - low) / (high - low)


def crop_part(picture: Tensor, window: Window) -> Tensor:
    """Return the window of a picture (..., h, w) of any size, to its pixel.

    Past the border the last one repeats.
    """
    (top, left, bottom, right), (height, width) = window, picture.shape[-2:]
    rows, columns = _pixels(top, bottom, height), _pixels(left, right, width)
    if rows.stop <= height and columns.stop <= width:
        return picture[..., rows.start : rows.stop, columns.start : columns.stop]
    down, across = (
        torch.arange(part.start, part.stop, device=picture.device).clamp(max=length - 1)
        for part, length in ((rows, height), (columns, width))
    )
    return picture[..., down[:, None], across]


def _pixels(low: float, high: float, length: int) -> range:
    first = min(round(low * length), length - 1)
    return range(first, max(round(high * length), first + 1))


def _crop_control(control, place: CropRegion, controls: dict):
    """Return a copy of a ControlNet, and of those chained before it, that looks at the window of its hint.

    One copy for each, so that the host still runs prompts that share a ControlNet in one batch.
    """
    if control is None:
        return None
    if id(control) not in controls:
        picture, extras, algorithm = hints_of(control)
        if picture is not None:
            picture = _resize_hint(_seen_part(picture, place), place.shown, algorithm)
        extras = [_seen_part(extra, place) for extra in extras]
        previous = _crop_control(previous_of(control), place, controls)
        controls[id(control)] = with_hints(control, picture, extras, previous)
    return controls[id(control)]


def _seen_part(hint: Tensor, place: CropRegion) -> Tensor:
    """Return the window of a hint (B, C, h, w), for the rows of the place."""
    return crop_part(_fitted(only_rows(hint, place.rows), place), place.window)


def _resize_hint(hint: Tensor, size: tuple[int, int], algorithm: str) -> Tensor:
    """Return a hint (B, C, h, w) at another size as the host makes it.

    Some mark the hole with -1, others blur.
    """
    return F.interpolate(hint, size, mode=algorithm if algorithm in RESIZERS else RESIZERS[1])


def _fitted(hint: Tensor, place: CropRegion) -> Tensor:
    """Return the middle of a hint (B, C, h, w), in the picture's proportions.

    The part that the host looks at.
    """
    (height, width), (rows, columns) = place.picture, hint.shape[-2:]
    top = max(0, round((rows - columns * height / width) / 2))
    left = max(0, round((columns - rows * width / height) / 2))
    return hint[..., top : rows - top, left : columns - left]
