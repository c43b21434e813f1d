"""How an object looks elsewhere: turned a little, and in another light (IMPRINT, sec. 3.3).

The paper says T (affine) and C (colour and light, by look-up table) and gives no numbers; these are ours.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Perturbation:
    """Ranges that are drawn from; 0 switches one off."""

    turn: float = 20.0  # degrees to either side
    zoom: float = 0.2  # 1 - zoom to 1 + zoom
    stretch: float = 0.15  # one axis against the other, and shear
    flip: float = 0.5  # chance of a mirror image
    light: float = 0.06  # deviation of the look-up table's five knots, common to the channels
    colour: float = 0.03  # the same, for each channel of its own


def perturb(
    image: torch.Tensor, mask: torch.Tensor, generator: torch.Generator, recipe: Perturbation = Perturbation()
) -> tuple[torch.Tensor, torch.Tensor]:
    """One random look of an object: image (1, H, W, 3) in [0, 1] and its mask (1, H, W), of the same sizes.

    Turned, zoomed and stretched about the mask's middle, with other light; what leaves the picture is cut.
    """
    image = relight(image, lookup_table(generator, recipe.light, recipe.colour))
    return transform(image, mask, draw_affine(generator, recipe))


def draw_affine(generator: torch.Generator, recipe: Perturbation) -> torch.Tensor:
    """(2, 2): where a point of the new picture comes from, relative to the middle; determinant near 1."""
    turn, zoom, stretch, shear, flip = torch.rand(5, generator=generator).tolist()
    angle = math.radians(recipe.turn * (2 * turn - 1))
    rotation = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    across = 1 + recipe.stretch * (2 * stretch - 1)
    shape = torch.tensor([[across, recipe.stretch * (2 * shear - 1)], [0.0, 1 / across]])
    mirror = torch.diag(torch.tensor([-1.0 if flip < recipe.flip else 1.0, 1.0]))
    return rotation @ shape @ mirror / (1 + recipe.zoom * (2 * zoom - 1))


def transform(
    image: torch.Tensor, mask: torch.Tensor, affine: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both resampled by `affine` (2, 2) about the middle of the mask, black and empty outside."""
    height, width = mask.shape[1:]
    rows, columns = mask[0].any(1).nonzero(), mask[0].any(0).nonzero()
    middle = torch.tensor([(columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2])
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    points = (torch.stack([x, y], -1) - middle) @ affine.T + middle
    grid = (2 * points + 1) / torch.tensor([float(width), float(height)]) - 1
    both = torch.cat([image.movedim(-1, 1), mask[:, None]], 1)
    moved = F.grid_sample(both, grid[None].to(both), mode="bilinear", align_corners=False)
    return moved[:, :3].movedim(1, -1), moved[:, 3]


def lookup_table(generator: torch.Generator, light: float, colour: float, knots: int = 5) -> torch.Tensor:
    """(knots, 3): the new value of 0, 1/4, ... 1 in each channel; rising, so that no shade turns over."""
    common = light * torch.randn(knots, 1, generator=generator)
    own = colour * torch.randn(knots, 3, generator=generator)
    return (torch.linspace(0, 1, knots)[:, None] + common + own).clamp(0, 1).cummax(0).values


def relight(image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """image (1, H, W, 3) in [0, 1] through the table (knots, 3), linear between its knots."""
    place = image * (len(table) - 1)
    below = place.floor().clamp(max=len(table) - 2)
    channels = [table[:, c].to(image) for c in range(3)]
    low, high = (
        torch.stack([channels[c][(below[..., c] + step).long()] for c in range(3)], -1) for step in (0, 1)
    )
    return torch.lerp(low, high, place - below)
