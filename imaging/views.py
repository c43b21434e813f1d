"""Views: a part of a picture, and the size at which a model works on it; padding to a model's grid.

A view has its keys in `transformer_options`, which the sampler sets and the attention reads:

WINDOW: (top, left, bottom, right) of the view in fractions of the picture.
ROWS: (indices of the sampled pictures, number of pictures in the batch).
VIEW: the `View` that the latent shows, and the picture's (height, width).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .boxes import Box
from .masks import resize_mask

WINDOW, ROWS, VIEW = "inlay_window", "inlay_rows", "inlay_view"
Window = tuple[float, float, float, float]
UNET_MULTIPLE = 64  # pixels per cell of a UNet's coarsest grid: 8 of the autoencoder times three halvings
MAX_UPSCALE = 8  # largest enlargement of a view
MAX_ELONGATION = 2  # times the side of a square of the same area: models paint no longer strips
WINDOW_FACTOR = 3  # times the box's longer side: what the window of a small box holds


@dataclass(frozen=True)
class View:
    """`box`, which lies inside the picture, shown at (height, width).

    A hole grows by `grow` of the view's pixels on it.
    """

    box: Box
    height: int
    width: int
    grow: int = 0

    def image(self, image: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> (B, height, width, C); only the box is read."""
        rows, columns = self.box.slices
        return resize_image(image[:, rows, columns], self.height, self.width)

    def mask(self, mask: torch.Tensor) -> torch.Tensor:
        """(B, H, W) -> (B, height, width) of zeros and ones, see `resize_mask`."""
        rows, columns = self.box.slices
        return resize_mask(mask[:, rows, columns], self.height, self.width)

    def restore(self, picture: torch.Tensor) -> torch.Tensor:
        """(B, height, width, C) -> (B, h, w, C) at the box's own size."""
        return resize_image(picture, self.box.height, self.box.width)

    def window(self, height: int, width: int, grid: int) -> tuple[float, float, float, float]:
        """(top, left, bottom, right) in fractions of a (height, width) picture, padded to `grid`."""
        padded_height, padded_width = padded_size(self.height, self.width, grid)
        return (
            self.box.top / height,
            self.box.left / width,
            (self.box.top + self.box.height * padded_height / self.height) / height,
            (self.box.left + self.box.width * padded_width / self.width) / width,
        )


def close_up(
    box: Box,
    height: int,
    width: int,
    side: int,
    context: float = 1.5,
    edge: int = 0,
    least: float = 0.0,
    multiple: int = 8,
) -> View:
    """DreamMix's local patch (sec. 3.2, Crop): a square about the mask's box, shown at the model's size.

    Its side, in pixels of the (height, width) picture, is the largest of: `context` times the box's longer
    side; the box and `edge` pixels around it; the share `least` of the picture's longer side; side /
    MOST_ZOOM. Shown at side * side pixels, or at the same area where the picture is too narrow for a square.
    """
    longest = max(box.height, box.width)
    reach = max(context * longest, longest + 2 * edge, least * max(height, width), side / MAX_UPSCALE)
    part = box.square(math.ceil(reach), height, width)
    multiple = UNET_MULTIPLE if side % UNET_MULTIPLE == 0 else multiple
    return View(part, *_fit_area(part.height, part.width, side * side, multiple))


def surroundings(
    box: Box, height: int, width: int, side: int, area: float, edge: int = 0, multiple: int = 8
) -> View:
    """Return the bounded window on which the close-up is harmonised.

    It is WINDOW_FACTOR times as wide as the box, up to `side`; for a box that needs more, twice as wide as
    the box. It holds `edge` pixels around the box.

    A window narrower than `side` is enlarged to it: at the picture's own size the autoencoder's cells are as
    large as the details that the close-up has painted. Others are shown as they are, or shrunk to `area`.
    """
    longest = max(box.height, box.width)
    reach = max(min(WINDOW_FACTOR * longest, side), 2 * longest, longest + 2 * edge, side / MAX_UPSCALE)
    if reach < side:
        part = box.square(math.ceil(reach), height, width)
        return View(part, *_fit_area(part.height, part.width, min(side * side, area), multiple))
    part = box.square(math.ceil(reach / UNET_MULTIPLE) * UNET_MULTIPLE, height, width)
    if part.area <= area:
        return View(part, part.height, part.width)
    return View(part, *_fit_area(part.height, part.width, area, multiple))


def whole_picture(height: int, width: int) -> View:
    """Return the view that shows a whole picture at its own size."""
    return View(Box(0, 0, height, width), height, width)


def resize_image(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(B, H, W, C) in [0, 1] at another size, bicubic without aliasing; the same tensor at the same size."""
    if image.shape[1:3] == (height, width):
        return image
    return smooth_resize(image.movedim(-1, 1), height, width).movedim(1, -1).clamp(0, 1)


def smooth_resize(image: torch.Tensor, height: int, width: int, mode: str = "bicubic") -> torch.Tensor:
    """(B, C, H, W) at another size without aliasing; in 32 bits at least, for CPUs cannot do it in 16."""
    real = image.to(torch.promote_types(image.dtype, torch.float32))
    return F.interpolate(real, (height, width), mode=mode, antialias=True).to(image)


def fit_within(longest: int, height: int, width: int) -> tuple[int, int]:
    """(height, width), shrunk in proportion where the longer side is longer than that."""
    scale = min(1.0, longest / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _fit_area(height: int, width: int, area: float, multiple: int) -> tuple[int, int]:
    """Return sides that are multiples, of about that area and closest to the shape of (height, width)."""
    scale = math.sqrt(area / (height * width))
    longest = MAX_ELONGATION * math.sqrt(area)
    scale = min(scale, longest / max(height, width))
    rows, columns = (max(1, round(length * scale / multiple)) * multiple for length in (height, width))
    return rows, columns


GRIDS = (8, 16, 32)  # pixels per latent cell of the known autoencoders


def padded_size(height: int, width: int, multiple: int) -> tuple[int, int]:
    """Return the smallest multiples of `multiple` that hold the image."""
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def pad_to_multiple(picture: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad an IMAGE (B, H, W, C) or MASK (B, H, W) to `padded_size` by repeating its last row and column.

    A mask that touches the border is extended with it, so the hole does not end at the image's edge.
    """
    height, width = picture.shape[1:3]
    rows, columns = (
        torch.arange(padded, device=picture.device).clamp(max=length - 1)
        for padded, length in zip(padded_size(height, width, multiple), (height, width), strict=True)
    )
    return picture[:, rows[:, None], columns]


def crop_back(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return the (B, height, width, ...) part of an image that was padded to one of the `GRIDS`.

    Raises:
        ValueError: for any other size; nothing is resized.
    """
    rows, columns = picture.shape[1:3]
    if (rows, columns) not in {(height, width), *(padded_size(height, width, grid) for grid in GRIDS)}:
        raise ValueError(
            f"generated: it is {columns}x{rows} pixels but the original is {width}x{height};"
            " connect the picture that was generated from this original, or resize it to that size first."
        )
    return picture[:, :height, :width]
