"""Make four masks of an object, from its outline to its box (IMPRINT, sec. 3.2; SmartBrush, Xie et al. 2023).

Level 1 is the segmentation, level 4 its bounding box. The papers blur the outline in between and do not state
the strength. Here levels 2 and 3 are dilated by 2 s, blurred with standard deviation s and thresholded at
0.5; s is 3 % and 8 % of the object's longer side. Dilating by 2 s keeps every pixel of the object (a dot
dilated to radius r keeps 1 - exp(-r^2 / 2 s^2) = 0.86 at its centre). Each level contains the one before it
and lies inside the box. Larger objects are processed at WORK_PX pixels, to bound the cost.
"""

import torch
import torch.nn.functional as F

from .boxes import Box, bounding_box
from .composite import distance_to
from .masks import binarize, box_mask, resize_mask
from .views import fit_within, resize_image

MASK_LEVELS = (1, 2, 3, 4)
BLUR = {2: 0.03, 3: 0.08}  # standard deviation relative to the object's longer side; ours
WORK_PX, PREVIEW_PX = 512, 1024  # maximum longer side in pixels: of an object while it is grown, of a preview
LEVEL_NAMES = {1: "1 outline", 2: "2 near the outline", 3: "3 rough shape", 4: "4 box"}


def mask_level(mask: torch.Tensor, level: int) -> torch.Tensor:
    """Return the masks (B, H, W) of zeros and ones at a level from 1 to 4.

    Args:
        mask: the objects' masks (B, H, W).
        level: 1 (outline) to 4 (box).

    Raises:
        ValueError: if a mask is empty.
    """
    outline = binarize(mask)
    if level == 1:
        return outline
    if level == 4:
        return box_mask(outline)
    return torch.stack([_rough(m, level) for m in outline])


def _rough(outline: torch.Tensor, level: int) -> torch.Tensor:
    box = bounding_box(outline)
    window = grown = outline[box.slices]
    small = resize_mask(window[None], *fit_within(WORK_PX, *window.shape))[0]
    for step in range(2, level + 1):
        blurred = _blurred(small, BLUR[step] * max(small.shape))
        if blurred.shape != window.shape:
            blurred = F.interpolate(blurred[None, None], window.shape, mode="bilinear")[0, 0]
        grown = torch.maximum(grown, (blurred > 0.5).to(window))
    result = torch.zeros_like(outline)
    result[box.slices] = grown
    return result


def _blurred(window: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return mask (h, w) dilated by 2 sigma and blurred with sigma; outside the window it is empty."""
    radius = max(1, round(2 * sigma))
    padded = F.pad(window, (2 * radius,) * 4)[None]
    grown = (distance_to(padded, radius) <= radius).to(window)
    kernel = torch.exp(-0.5 * (torch.arange(-2 * radius, 2 * radius + 1).to(window) / max(sigma, 0.5)) ** 2)
    kernel = kernel / kernel.sum()
    blurred = F.conv2d(grown[None], kernel.view(1, 1, -1, 1), padding=(2 * radius, 0))
    blurred = F.conv2d(blurred, kernel.view(1, 1, 1, -1), padding=(0, 2 * radius))
    height, width = window.shape
    window_box = Box(2 * radius, 2 * radius, 2 * radius + height, 2 * radius + width)
    return blurred[0, 0][window_box.slices]


def level_preview(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the four levels over one image, side by side (1, h, 4 w, 3); the added area is tinted.

    Args:
        image: (1, H, W, 3) in [0, 1]; shrunk to PREVIEW_PX pixels if larger.
        mask: (1, H, W), not empty.
    """
    size = fit_within(PREVIEW_PX, *mask.shape[1:])
    image, mask = resize_image(image, *size), resize_mask(mask, *size)
    tint = image.new_tensor([1.0, 0.55, 0.1])
    tinted = [0.4 * image + 0.6 * tint, 0.75 * image + 0.25 * tint]
    panels = []
    for level in MASK_LEVELS:
        outline, grown = (mask_level(mask, k)[..., None] > 0.5 for k in (1, level))
        panels.append(torch.where(outline, tinted[1], torch.where(grown, tinted[0], 0.5 * image)))
    return torch.cat(panels, 2)
