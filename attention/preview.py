"""A picture of what a mask becomes: the tokens inside at every resolution of a UNet."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..imaging.views import fit_within
from .regions import Size, token_labels

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
