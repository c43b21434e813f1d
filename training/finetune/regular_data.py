"""Regular data (DreamMix, sec. 3.3): pictures of the subject's kind, each with its own prompt and mask."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from ...imaging.boxes import Box
from ...imaging.masks import fill_box
from .data import Concept, Examples, Reference, generator_at

BOX_SIDES = (0.55, 0.85)  # ours: of the picture's sides, so that the subject is large and its place varies
STRONG = 0.2  # ours: colours that changed more than this count alike, so that pale parts are not lost
PLAUSIBLE = (0.05, 0.95)  # ours: the share of the hole that a subject's outline can fill


def group_by_prompt(references: Sequence[Reference], prompts: Sequence[str]) -> list[Concept]:
    """Return one `Concept` for each different prompt. `prompts`: one for all pictures, or one for each.

    Raises ValueError when there are as many of neither.
    """
    if len(prompts) not in (1, len(references)):
        raise ValueError(
            f"regular_prompt: there are {len(prompts)} prompts for {len(references)} pictures; give one for"
            " all of them, or one for each."
        )
    groups: dict[str, list[Reference]] = {}
    for number, reference in enumerate(references):
        groups.setdefault(prompts[number if len(prompts) > 1 else 0], []).append(reference)
    return [Concept(prompt, group) for prompt, group in groups.items()]


def concatenate_examples(parts: Sequence[Examples]) -> Examples:
    """Return the rows of all parts as one, each with its own context."""
    whole = parts[0].take(torch.arange(len(parts[0])))
    for part in parts[1:]:
        whole = whole.joined(part.take(torch.arange(len(part))))
    return whole


def random_box(height: int, width: int, seed: int) -> Tensor:
    """Return a mask (1,H,W) with a large box of random size and place."""
    low, high = BOX_SIDES
    tall, wide, down, right = torch.rand(4, generator=generator_at(seed, 0, 2)).tolist()
    rows, columns = round(height * (low + (high - low) * tall)), round(width * (low + (high - low) * wide))
    top, left = round((height - rows) * down), round((width - columns) * right)
    return fill_box(Box(top, left, top + rows, left + columns), height, width)


def changed_mask(image: Tensor, background: Tensor, hole: Tensor) -> Tensor:
    """Return the outline (H,W) of what was painted into the hole, by its difference to the background.

    `image`, `background` (H,W,3) in [0,1]; `hole` (H,W), 1 = was painted. The pixels in the hole whose colour
    changed more than Otsu's threshold, smoothed; of these the largest connected part, its own holes filled.
    Where that is next to nothing or nearly all of the hole, the hole itself: no outline was found.
    """
    change = ((image - background).abs().amax(-1) / STRONG).clamp(max=1)
    reach = 2 * (min(change.shape) // 128) + 1
    change = F.avg_pool2d(change[None], reach, 1, reach // 2, count_include_pad=False)[0]
    inside = hole > 0.5
    changed = inside & (change > otsu(change[inside]))
    parts, count = ndimage.label(changed.cpu().numpy())  # pyright: ignore[reportGeneralTypeIssues]
    if not count:
        return inside.to(image)
    sizes = np.bincount(parts.ravel())[1:]
    outline = torch.from_numpy(ndimage.binary_fill_holes(parts == sizes.argmax() + 1)).to(inside.device)
    share = float(outline.sum() / inside.sum())
    return (outline if PLAUSIBLE[0] <= share <= PLAUSIBLE[1] else inside).to(image)


def otsu(values: Tensor) -> float:
    """Return the threshold between the two classes of values in [0,1] that differ most (Otsu 1979)."""
    counts = torch.histc(values.float(), 256, 0, 1)
    levels = (torch.arange(256) + 0.5) / 256
    below, mass = counts.cumsum(0), (counts * levels.to(counts)).cumsum(0)
    apart = (mass[-1] * below - mass * below[-1]).square() / (below * (below[-1] - below)).clamp(min=1)
    return float((apart.argmax() + 1) / 256)
