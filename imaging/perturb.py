"""Perturb an object: a small affine transform and other light (IMPRINT, sec. 3.3).

The paper describes T (affine) and C (colour and light, by look-up table) without numbers; these are ours.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Perturbation:
    """Ranges of the random changes; 0 turns a change off."""

    turn: float = 20.0  # maximum rotation in degrees, in both directions
    zoom: float = 0.2  # zoom is uniform in [1 - zoom, 1 + zoom]
    stretch: float = 0.15  # of one axis against the other, and shear
    flip: float = 0.5  # probability of mirroring
    light: float = 0.06  # standard deviation of the look-up table's five knots, common to the channels
    colour: float = 0.03  # the same for each channel separately


def perturb(
    image: torch.Tensor, mask: torch.Tensor, generator: torch.Generator, recipe: Perturbation = Perturbation()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one perturbed view of an object.

    The object is rotated, zoomed and stretched about its mask's centre and cut off at the image's border.

    Args:
        image: (1, H, W, 3) in [0, 1].
        mask: (1, H, W), 1 = object.
        generator: on the CPU.
        recipe: the ranges.

    Returns:
        The image and the mask, in the same sizes.
    """
    image = relight(image, lookup_table(generator, recipe.light, recipe.colour))
    return transform(image, mask, draw_affine(generator, recipe))


def draw_affine(generator: torch.Generator, recipe: Perturbation) -> torch.Tensor:
    """Draw a matrix (2, 2) from output to input positions, relative to the centre; determinant near 1."""
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
    """Resample both by `affine` (2, 2) about the centre of the mask; black and empty outside."""
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
    """Draw a table (knots, 3): the new values of 0, 1/4, ... 1 in each channel, never decreasing."""
    common = light * torch.randn(knots, 1, generator=generator)
    own = colour * torch.randn(knots, 3, generator=generator)
    return (torch.linspace(0, 1, knots)[:, None] + common + own).clamp(0, 1).cummax(0).values


def relight(image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Apply the table (knots, 3) to an image (1, H, W, 3) in [0, 1], linear between the knots."""
    position = image * (len(table) - 1)
    below = position.floor().clamp(max=len(table) - 2)
    channels = [table[:, c].to(image) for c in range(3)]
    low, high = (
        torch.stack([channels[c][(below[..., c] + step).long()] for c in range(3)], -1) for step in (0, 1)
    )
    return torch.lerp(low, high, position - below)
