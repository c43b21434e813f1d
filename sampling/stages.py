"""DreamMix's disentangled inpainting (sec. 3.2) on one picture, or several that share their masks.

Local content generation paints the hole on a close-up crop for the first steps; global context harmonisation
finishes it on a window of its surroundings. What runs the model is handed in, so this file is plain torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..imaging.boxes import Box, enclosing_box
from ..imaging.composite import paste_into
from ..imaging.latent_mask import view_hole, with_soft_values
from ..imaging.masks import resize_mask
from ..imaging.views import View, close_up, resize_image, surroundings, whole_picture
from .schedule import split_schedule


@dataclass(frozen=True)
class InpaintOptions:
    """How the two stages see the picture; lengths in pixels of the picture unless said otherwise."""

    side: int  # the model's working size: side of the close-up as the model sees it
    share: float = 0.7  # lambda, the share of the steps that are spent on the close-up
    context: float = 1.5  # side of the close-up's crop, in the mask's longer side (released code: 1.15)
    least: float = 0.0  # the crop is at least this share of the picture's longer side (released code: 0.5)
    grow: int = 8  # the close-up paints this much around the mask, in pixels of the close-up: m' in the paper
    soft_edge: int = 32  # width of the blend outside the mask, at the switch and at the end
    window: float = 2.0  # area of the surroundings at most, in side * side; 0: the whole picture
    multiple: int = 8  # view sizes are multiples of so many pixels, of which the model has whole tokens


class PaintedView(NamedTuple):
    """What a run of the sampler made of a view."""

    picture: Tensor  # (B, h, w, 3) at the view's size
    latent: dict  # the host's LATENT


class MaskedRegion(NamedTuple):
    """Where something goes: a mask and the box around it."""

    mask: Tensor  # (1, H, W)
    box: Box


class PaintView(Protocol):
    """Runs the sampler over `sigmas` on a view of the picture.

    known (B, h, w, 3), what the view shows, is kept outside `hole` (1, h, w), which is 0 outside and over 0.5
    inside, 1 but for soft masks; `start`, the same tensor or one
    with close-ups pasted in, is what is noised to sigmas[0] inside it. `last`: finish; otherwise return the
    predicted x0.
    """

    def __call__(
        self, view: View, known: Tensor, start: Tensor, hole: Tensor, sigmas: Tensor, last: bool
    ) -> PaintedView:
        """Return the painted view; arguments as above, sigmas (steps + 1,)."""
        ...


def inpaint(
    picture: Tensor, holes: Sequence[MaskedRegion], sigmas: Tensor, options: InpaintOptions, paint: PaintView
) -> tuple[list[Tensor], dict]:
    """Paint every hole, in place, into picture (B, H, W, 3).

    Each hole gets a close-up of its own; all are harmonised together in one window. Pixels further than the
    soft edge from every mask keep their bits, and only close-ups and window are read. Returns the close-ups,
    one (B, h, w, 3) for each hole, and the latent of the last run.
    """
    local, rest = split_schedule(sigmas, options.share)
    _, height, width, _ = picture.shape
    views = [close_up_view(hole.box, height, width, options) for hole in holes]
    close_ups, latent = [view.image(picture).clone() for view in views], {}
    if not len(local):
        return close_ups, harmonise(picture, holes, [], sigmas, options, paint)
    for i, (view, hole) in enumerate(zip(views, holes, strict=True)):
        rows, columns = view.box.slices
        inside = with_soft_values(view_hole(hole.mask, view), hole.mask[:, rows, columns], view.grow)
        close_ups[i], latent = paint(view, close_ups[i], close_ups[i], inside, local, last=not len(rest))
    painted = list(zip(views, close_ups, strict=True))
    if len(rest):
        return close_ups, harmonise(picture, holes, painted, rest, options, paint)
    for hole, (view, shown) in zip(holes, painted, strict=True):
        paste_into(picture, picture, view.restore(shown), view.box, hole.mask, options.soft_edge)
    return close_ups, latent


def harmonise(
    picture: Tensor,
    holes: Sequence[MaskedRegion],
    close_ups: Sequence[tuple[View, Tensor]],
    sigmas: Tensor,
    options: InpaintOptions,
    paint: PaintView,
) -> dict:
    """Finish all holes in one window of the picture, in place, from their close-ups or from nothing.

    Returns the latent.
    """
    _, height, width, _ = picture.shape
    wide, edge = window_view(enclosing_box([h.box for h in holes]), height, width, options), options.soft_edge
    rows, columns = wide.box.slices
    masks = [hole.mask[:, rows, columns] for hole in holes]
    part, union = picture[:, rows, columns], torch.stack(masks).amax(0)
    known = start = wide.image(picture)
    if close_ups:
        draft = part.clone()
        for mask, (view, shown) in zip(masks, close_ups, strict=True):
            there = view.box.shift(-wide.box.top, -wide.box.left)
            paste_into(draft, draft, view.restore(shown), there, mask, edge)
        start = resize_image(draft, wide.height, wide.width)
    inside = with_soft_values(resize_mask(union, wide.height, wide.width), union)
    painted, latent = paint(wide, known, start, inside, sigmas, last=True)
    paste_into(part, part, wide.restore(painted), Box(0, 0, *union.shape[1:]), union, edge)
    return latent


def close_up_view(box: Box, height: int, width: int, options: InpaintOptions) -> View:
    """Return the close-up of what lies at `box` of a (height, width) picture."""
    view = close_up(
        box,
        height,
        width,
        side=options.side,
        context=options.context,
        edge=options.soft_edge,
        least=options.least,
        multiple=options.multiple,
    )
    return replace(view, grow=options.grow)


def window_view(box: Box, height: int, width: int, options: InpaintOptions) -> View:
    """Return the window on which what lies at `box` is harmonised."""
    if not options.window:
        return whole_picture(height, width)
    area = options.window * options.side**2
    return surroundings(
        box,
        height,
        width,
        side=options.side,
        area=area,
        edge=options.soft_edge,
        multiple=options.multiple,
    )
