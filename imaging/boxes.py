"""Boxes: where something lies in a picture, in whole pixels with exclusive ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Box:
    """Rows `top` to `bottom` and columns `left` to `right`, ends exclusive; may reach outside a picture."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        """Height in pixels; 0 for an empty box."""
        return max(0, self.bottom - self.top)

    @property
    def width(self) -> int:
        """Width in pixels; 0 for an empty box."""
        return max(0, self.right - self.left)

    @property
    def area(self) -> int:
        """Area in pixels; 0 for an empty box."""
        return self.height * self.width

    @property
    def as_dict(self) -> dict[str, int]:
        """One box of ComfyUI's BOUNDING_BOX."""
        return {"x": self.left, "y": self.top, "width": self.width, "height": self.height}

    @property
    def slices(self) -> tuple[slice, slice]:
        """(rows, columns) for a tensor that ends in (..., H, W); the box must lie inside it."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def clamp(self, height: int, width: int) -> "Box":
        """Return the part of the box inside a picture of that size; area 0 where they do not meet."""
        top, left = min(max(self.top, 0), height), min(max(self.left, 0), width)
        bottom, right = min(max(self.bottom, top), height), min(max(self.right, left), width)
        return Box(top, left, bottom, right)

    def expand(self, margin: int) -> "Box":
        """Return the box with `margin` pixels more on every side; it may reach over the picture."""
        return Box(self.top - margin, self.left - margin, self.bottom + margin, self.right + margin)

    def square(self, side: int, height: int, width: int) -> "Box":
        """Return the square about the box's centre, moved into a picture of that size and cut to it.

        It holds the box, which lies in the picture, when `side` is no shorter than the box.
        """
        down, across = min(side, height), min(side, width)
        top = (self.top + self.bottom - down) // 2
        left = (self.left + self.right - across) // 2
        top, left = min(max(top, 0), height - down), min(max(left, 0), width - across)
        return Box(top, left, top + down, left + across)

    def shift(self, down: int, right: int) -> "Box":
        """Return the box moved by that many pixels; it may reach over the picture."""
        return Box(self.top + down, self.left + right, self.bottom + down, self.right + right)

    def scale(self, factor: float) -> "Box":
        """Return the box on a grid `factor` times as fine, every edge rounded on its own."""
        return Box(*(round(edge * factor) for edge in (self.top, self.left, self.bottom, self.right)))


def read_boxes(given: Any) -> list[Box]:
    """Return the boxes of ComfyUI's BOUNDING_BOX, each a dict of x, y, width and height.

    Detectors give a list for each picture of a batch, of which the first counts. Raises ValueError when there
    is no box.
    """
    given = [given] if isinstance(given, dict) else given
    try:
        listed = given[0] if given and not isinstance(given[0], dict) else given
        edges = [(b["y"], b["x"], b["y"] + b["height"], b["x"] + b["width"]) for b in listed]
        boxes = [Box(*map(round, sides)) for sides in edges]
    except (TypeError, KeyError, ValueError, OverflowError, RuntimeError):
        raise ValueError(
            "bboxes: these are no boxes with x, y, width and height; connect SAM3 Detect or Bounding Box."
        ) from None
    if not boxes:
        raise ValueError(
            "bboxes: there is no box; lower the detector's threshold, or disconnect it and draw the box."
        )
    return boxes


def bounding_box(mask: torch.Tensor) -> Box:
    """Return the smallest box that holds every masked pixel of `mask` (H, W), thresholded above 0.5.

    Raises ValueError when nothing is masked.
    """
    box = find_box(mask)
    if box is None:
        raise ValueError("mask: it is empty, so no box can be put around it; paint over the subject.")
    return box


def find_box(mask: torch.Tensor) -> Box | None:
    """`bounding_box`, or None when nothing is masked; a large mask is read once."""
    rows = (mask.amax(1) > 0.5).nonzero()
    if not len(rows):
        return None
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = (mask[top:bottom].amax(0) > 0.5).nonzero()
    return Box(top, int(columns[0]), bottom, int(columns[-1]) + 1)


def enclosing_box(boxes: Sequence[Box]) -> Box:
    """Return the smallest box that holds them all."""
    return Box(
        min(box.top for box in boxes),
        min(box.left for box in boxes),
        max(box.bottom for box in boxes),
        max(box.right for box in boxes),
    )


def outline(image: torch.Tensor, box: Box, thickness: int) -> torch.Tensor:
    """Return a copy of `image` (B, H, W, C) in [0, 1] with a red frame drawn just inside `box`."""
    box = box.clamp(*image.shape[1:3])
    rows, columns = box.slices
    hollow = Box(box.top + thickness, box.left + thickness, box.bottom - thickness, box.right - thickness)
    framed = image.clone()
    framed[:, rows, columns, :3] = image.new_tensor([1.0, 0.1, 0.1])
    if hollow.area:
        rows, columns = hollow.slices
        framed[:, rows, columns] = image[:, rows, columns]
    return framed
