"""Batches of pictures, and several masks in one picture: who is painted with whom."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..imaging.boxes import find_box
from ..imaging.masks import match_batch
from .schedule import split_schedule
from .stages import InpaintOptions, MaskedRegion, PaintView, inpaint

EACH, IN_TURN, TOGETHER = "one image each", "one after another", "together"
SEVERAL_MASKS = (EACH, IN_TURN, TOGETHER)


class BatchPlan(NamedTuple):
    """Pictures of the batch that one run of the sampler can paint, for their masks are the same."""

    rows: range
    turns: list[list[MaskedRegion]]  # the holes of a turn are painted together, turns one after another


def plan_batch(image: Tensor, mask: Tensor, several: str) -> tuple[Tensor, list[BatchPlan]]:
    """Return the pictures (B, H, W, C) to return, and who is painted how; rows with empty masks have no job.

    EACH: image and mask are batches, one of which may be 1. IN_TURN, TOGETHER: every mask goes into every
    image. Raises ValueError when the batches do not fit.
    """
    boxes = [find_box(m) for m in mask]
    holes = [None if box is None else MaskedRegion(mask[i : i + 1], box) for i, box in enumerate(boxes)]
    found, everyone = [hole for hole in holes if hole], range(len(image))
    if several == IN_TURN:
        return image, [BatchPlan(everyone, [[hole] for hole in found])] if found else []
    if several == TOGETHER or len(mask) == 1:
        return image, [BatchPlan(everyone, [found])] if found else []
    image, _ = match_batch(image=image, mask=mask)
    return image, [BatchPlan(range(i, i + 1), [[hole]]) for i, hole in enumerate(holes) if hole]


def count_steps(jobs: Sequence[BatchPlan], sigmas: Tensor, share: float) -> int:
    """Return steps of the sampler over all runs."""
    local, rest = (max(len(part) - 1, 0) for part in split_schedule(sigmas, share))
    return sum(len(masks) * local + rest for job in jobs for masks in job.turns)


class InpaintResult(NamedTuple):
    """The finished pictures, the close-ups before they were harmonised, and the last latents."""

    image: Tensor  # (B, H, W, C)
    close_up: Tensor  # (N, h, w, 3), one for each mask and picture
    latent: dict  # the host's LATENT of the last runs


def inpaint_batch(
    image: Tensor,
    jobs: Sequence[BatchPlan],
    sigmas: Tensor,
    options: InpaintOptions,
    runs: Callable[[range], PaintView],
) -> InpaintResult:
    """Run the jobs, at least one, on a copy of image (B, H, W, C); channels past the third stay as they are.

    Close-ups and latents of other sizes are stretched to the first one's, as the host does in batches.
    """
    finished, close_ups, latents = image.clone(), [], []
    for job in jobs:
        paint, latent = runs(job.rows), {}
        for holes in job.turns:
            picture = finished[job.rows.start : job.rows.stop, ..., :3]
            shown, latent = inpaint(picture, holes, sigmas, options, paint)
            close_ups += shown
        latents.append({key: part.expand(len(job.rows), *part.shape[1:]) for key, part in latent.items()})
    latent = {key: _stack([each[key] for each in latents]) for key in latents[0]}
    return InpaintResult(finished, _stack([c.movedim(-1, 1) for c in close_ups]).movedim(1, -1), latent)


def _stack(parts: Sequence[Tensor]) -> Tensor:
    """(b, C, ..., h, w) tensors as one batch of the first one's size."""
    size = parts[0].shape[-2:]
    return torch.cat([p if p.shape[-2:] == size else _stretched(p, size) for p in parts])


def _stretched(part: Tensor, size: Sequence[int]) -> Tensor:
    """Return a tensor (b, C, ..., h, w) at another (height, width)."""
    flat = F.interpolate(part.reshape(part.shape[0], -1, *part.shape[-2:]), tuple(size), mode="bilinear")
    return flat.reshape(*part.shape[:-2], *size)
