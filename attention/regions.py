"""Regions of an image on token grids: which tokens lie inside which mask.

A mask is 1 above 0.5 at its own size, goes to the latent grid by nearest neighbour and from there
to a layer's grid by nearest neighbour (DreamCom). Nearest means torch's: token i of n looks at pixel
floor(i * size / n). A region too small for a grid keeps the token that holds its centre.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..imaging.views import Window, fit_within

Size = tuple[int, int]

WHOLE_IMAGE: Window = (0.0, 0.0, 1.0, 1.0)
OPEN = 255  # the label of every token in a batch row that no mask applies to
MOST_REPEATS = 12  # largest factor by which the host repeats a prompt to the length of others in its batch


def region_labels(masks: Sequence[Tensor]) -> Tensor:
    """Return the numbered regions of K masks: (N,H,W) uint8, 0 = background, k = inside the k-th mask.

    masks: K tensors (N,H,W) or (H,W) in [0,1], of one size, with batches of 1 or N. Where masks overlap, the
    first one wins. Raises ValueError for a mask of another rank, with NaN, with nothing above 0.5, or of a
    batch or size that does not fit the others.
    """
    masks = [_checked(mask) for mask in masks]
    batch = max(mask.shape[0] for mask in masks)
    size = masks[0].shape[1:]
    labels = torch.zeros(batch, *size, dtype=torch.uint8)
    for number, mask in reversed(list(enumerate(masks, start=1))):
        if mask.shape[1:] != size:
            raise ValueError(
                f"The masks of several subjects must have one size, but one is {tuple(mask.shape[1:])} and "
                f"another {tuple(size)}: resize them first."
            )
        if mask.shape[0] not in (1, batch):
            raise ValueError(
                f"The masks of several subjects must come in batches of 1 or {batch}, not {mask.shape[0]}."
            )
        labels[mask.expand(batch, -1, -1)] = number
    return labels


def _checked(mask: Tensor) -> Tensor:
    if mask.ndim not in (2, 3):
        raise ValueError(
            f"The mask must have the shape (batch, height, width), but it has {mask.ndim} dimensions: "
            f"{tuple(mask.shape)}."
        )
    mask = mask.detach().reshape(-1, *mask.shape[-2:]).cpu()
    if torch.isnan(mask).any():
        raise ValueError("The mask holds NaN values: check the node that made it.")
    inside = mask > 0.5
    if not inside.flatten(1).any(1).all():
        raise ValueError("The mask is empty (nothing above 0.5): paint the place where the subject goes.")
    return inside


def token_labels(
    labels: Tensor, latent: Size, grid: Size, window: Window = WHOLE_IMAGE
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Regions at a layer's grid: (N,h,w) uint8 labels, and the (image, region) pairs that had vanished.

    labels: (N,H,W) of `region_labels`. latent, grid: (height, width) of the latent and of the layer's
    tokens. window: (top, left, bottom, right), the part of the image that the latent shows, in fractions of
    the image. A region in the window that no token of the grid samples keeps the token that holds its centre.
    """
    top, left, bottom, right = window
    height, width = labels.shape[1:]
    rows = _nearest(grid[0], latent[0], 0.0, 1.0)
    columns = _nearest(grid[1], latent[1], 0.0, 1.0)
    rows = _nearest(latent[0], height, top, bottom)[rows]
    columns = _nearest(latent[1], width, left, right)[columns]
    tokens = labels[:, rows][:, :, columns]
    vanished, regions = [], range(1, int(labels.max()) + 1)
    for image in range(len(labels)):
        sampled = set(tokens[image].unique().tolist())
        for region in [region for region in regions if region not in sampled]:
            if centre := _centre(labels[image], region, window):
                y, x = centre
                tokens[image, min(int(y * grid[0]), grid[0] - 1), min(int(x * grid[1]), grid[1] - 1)] = region
                vanished.append((image, region))
    return tokens, vanished


def _nearest(count: int, size: int, start: float, end: float) -> Tensor:
    """Return the pixels, of `size`, at which `count` samples of a span (start, end in fractions) look."""
    # The small term keeps exact positions from falling to the pixel before by rounding.
    samples = [int((start + (end - start) * i / count) * size + 1e-6) for i in range(count)]
    return torch.tensor(samples).clamp_(0, size - 1)


def _centre(labels: Tensor, region: int, window: Window) -> tuple[float, float] | None:
    """Return the centre of a region's pixels in the window, in fractions of the window.

    None where it has none.
    """
    top, left, bottom, right = window
    height, width = labels.shape
    y0, x0 = int(top * height), int(left * width)
    seen = labels[y0 : max(y0 + 1, round(bottom * height)), x0 : max(x0 + 1, round(right * width))]
    pixels = (seen == region).nonzero()
    if not len(pixels):
        return None
    y, x = pixels.double().add(0.5).mean(0).tolist()
    y = ((y + y0) / height - top) / (bottom - top)
    x = ((x + x0) / width - left) / (right - left)
    return max(y, 0.0), max(x, 0.0)


def halved(size: Sequence[int], depths: int) -> list[Size]:
    """Return the grids of a UNet from a latent's (height, width) down: the host's downsampling rounds up."""
    grids = [(size[0], size[1])]
    while len(grids) < depths:
        grids.append(((grids[-1][0] + 1) // 2, (grids[-1][1] + 1) // 2))
    return grids


class RowGroup(NamedTuple):
    """Batch rows that share one map of regions.

    rows: (n,) indices into the batch, or None for the whole batch.
    tokens: index 0 the tokens of the background, index k those of region k, each (count,), possibly empty;
    an empty tuple for rows that no mask applies to.
    period: after how many tokens the rows' text begins anew, 0 where it does not.
    """

    rows: Tensor | None
    tokens: tuple[Tensor, ...]
    period: int = 0


class GridRegions(NamedTuple):
    """The regions of a batch on one grid.

    labels: (rows, tokens) uint8, OPEN in rows that no mask applies to. groups: the same as indices.
    periods: for every period of a text the rows that have it, (rows, 1, 1) of booleans.
    """

    latent: Size
    grid: Size
    labels: Tensor
    groups: tuple[RowGroup, ...]
    periods: tuple[tuple[int, Tensor], ...]

    def present(self) -> list[int]:
        """Return the regions (0 the background) that hold a token in any row."""
        maps = [group.tokens for group in self.groups if group.tokens]
        return [k for k, _ in enumerate(maps[0]) if any(len(tokens[k]) for tokens in maps)] if maps else []


class RegionPlan:
    """The regions of one batch on every grid, as index tensors on the batch's device.

    Indices of a data-dependent length cost a synchronisation on an accelerator and a break in a compiled
    graph, so they are made once per grid and kept: `at` only looks them up.

    labels: (N,H,W) of `region_labels`. row_masks: for every row of the batch the image of `labels` that
    applies to it, or None. text, released: for every region its text tokens, see `text_positions`. periods:
    of every row's text, see `text_period`; none where they are all 0.
    """

    def __init__(
        self,
        labels: Tensor,
        row_masks: Sequence[int | None],
        text: Sequence[Collection[int] | None] | None = None,
        released: bool = False,
        device: torch.device | None = None,
        window: Window = WHOLE_IMAGE,
        periods: Sequence[int] = (),
    ):
        self.labels = labels
        self.row_masks = list(row_masks)
        self.periods = list(periods) or [0] * len(self.row_masks)
        self.text = text or [None] * int(labels.max())
        self.released = released
        self.device = device
        self.window = window
        self.grids: list[GridRegions] = []
        self.texts: dict[tuple[int, int], list[Tensor | None]] = {}
        self.unmasked: set[tuple] = set()  # blocks that could not be masked; the warning is logged once

    def at(self, latent: Size, grid: Size) -> GridRegions:
        """Return the regions on a grid (height, width) of a latent (height, width)."""
        for regions in self.grids:
            if regions.latent == latent and regions.grid == grid:
                return regions
        self.grids.append(self._make(latent, grid))
        return self.grids[-1]

    def text_keys(self, length: int, period: int = 0) -> list[Tensor | None]:
        """Return what each region sees of a text of `length` tokens, background (nothing) first.

        None for all.
        """
        if (length, period) not in self.texts:
            regions = [text_positions(length, tokens, self.released, period) for tokens in self.text]
            self.texts[length, period] = [
                None if positions is None else torch.tensor(positions, dtype=torch.long).to(self.device)
                for positions in [[], *regions]
            ]
        return self.texts[length, period]

    def _make(self, latent: Size, grid: Size) -> GridRegions:
        tokens = token_labels(self.labels, latent, grid, self.window)[0].flatten(1)
        outside = torch.full_like(tokens[0], OPEN)
        rows = torch.stack([outside if mask is None else tokens[mask] for mask in self.row_masks])
        alike: dict[tuple[bytes, int], list[int]] = {}
        for row, (labels, period) in enumerate(zip(rows, self.periods, strict=True)):
            alike.setdefault((labels.numpy().tobytes(), period), []).append(row)
        groups = tuple(self._group(rows, members) for members in alike.values())
        of_row = torch.tensor(self.periods)[:, None, None]
        periods = tuple((p, (of_row == p).to(self.device)) for p in dict.fromkeys(self.periods))
        return GridRegions(latent, grid, rows.to(self.device), groups, periods)

    def _group(self, rows: Tensor, members: list[int]) -> RowGroup:
        labels, period = rows[members[0]], self.periods[members[0]]
        which = None if len(members) == len(rows) else torch.tensor(members, device=self.device)
        if labels[0] == OPEN:
            return RowGroup(which, (), period)
        tokens = tuple((labels == k).nonzero().flatten().to(self.device) for k in range(len(self.text) + 1))
        return RowGroup(which, tokens, period)


def text_positions(
    length: int, tokens: Collection[int] | None = None, released: bool = False, period: int = 0
) -> list[int] | None:
    """Return the positions of a text of `length` tokens that a subject sees, None for all of them.

    tokens: the subject's own, None for all. released: without token 0 (the start) and tokens 39-76 of every
    77, which DreamCom's published code hides from every query. period: the text begins anew after so many.
    """
    positions = [t for t in range(length) if tokens is None or t % (period or length) in tokens]
    if released:
        positions = [t for t in positions if 1 <= t % 77 <= 38]
    return None if len(positions) == length else positions


def text_period(text: Tensor) -> int:
    """After how many tokens texts (B,L,C) begin anew, 0 where they do not.

    The host repeats a shorter prompt to the length of a longer one beside it in a batch.
    """
    length = text.shape[1]
    if torch.equal(text[:, :1].expand_as(text), text):  # a prompt that was zeroed, of any length
        return 0
    for times in range(MOST_REPEATS, 1, -1):
        first = text[:, : length // times]
        if length % times == 0 and torch.equal(first.repeat(1, times, 1), text):
            return length // times
    return 0


BACKGROUND = (0.12, 0.12, 0.14)
REGION_COLOURS = ((0.92, 0.92, 0.88), (0.35, 0.70, 0.95), (0.45, 0.85, 0.50), (0.85, 0.55, 0.85))
PREVIEW_LAYERS = 1024  # pixels of the longer side of a picture
KEPT_COLOUR = (1.0, 0.55, 0.10)  # a token kept although the region is smaller than the grid resolves


def token_preview(labels: Tensor, latent: Size, grids: list[Size]) -> tuple[Tensor, list[str]]:
    """(grids*N,h,w,3) in [0,1], from the finest grid to the coarsest, and one line of text per grid.

    labels: (N,H,W) of `regions.region_labels`. Tokens inside are light (one colour per subject), outside
    dark; orange is a token kept for a region that would have vanished. The mask itself shows through. Masks
    of more than SHOWN pixels are drawn smaller; tokens are counted in the masks themselves.
    """
    colours = torch.tensor(
        [BACKGROUND, *(REGION_COLOURS[k % len(REGION_COLOURS)] for k in range(int(labels.max())))]
    )
    size = fit_within(PREVIEW_LAYERS, *labels.shape[1:])
    faint = colours[F.interpolate(labels[:, None].float(), size, mode="nearest-exact")[:, 0].long()]
    pictures, lines = [], []
    for grid in grids:
        tokens, vanished = token_labels(labels, latent, grid)
        picture = colours[tokens.long()]
        for image, region in vanished:
            picture[image, tokens[image] == region] = torch.tensor(KEPT_COLOUR)
        tall = F.interpolate(picture.movedim(-1, 1), size, mode="nearest-exact").movedim(1, -1)
        pictures.append(0.8 * tall + 0.2 * faint)
        inside = (tokens > 0).flatten(1).sum(1).tolist()
        line = f"{grid[1]}x{grid[0]} tokens: {', '.join(map(str, inside))} of {grid[0] * grid[1]} inside"
        lines.append(line + ("; the mask vanishes here, its nearest token is kept" if vanished else ""))
    return torch.cat(pictures), lines
