"""Aspect-ratio buckets: sizes of about one area, so that photos keep their shape in a training."""

import math
from collections.abc import Sequence

AREA_TOLERANCE = 0.05  # of a bucket's area, relative to the square's
MAX_RATIO = 3.0  # of the longer side to the shorter one; longer photos are cropped to it


def bucket_sizes(side: int, step: int) -> list[tuple[int, int]]:
    """Return the sizes (height, width) whose area is about side x side, from the flattest to the tallest.

    Both sides are multiples of `step`, and so is `side`; the square is always one of them.
    """
    cells = side // step
    sizes = set()
    for short in range(1, cells + 1):
        long = round(cells * cells / short)
        if long <= MAX_RATIO * short and abs(short * long / cells**2 - 1) <= AREA_TOLERANCE:
            sizes |= {(short * step, long * step), (long * step, short * step)}
    return sorted(sizes, key=lambda size: size[0] / size[1])


def nearest_bucket(height: int, width: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the size whose ratio of the sides is nearest to a picture's, by the difference of logarithms."""
    wanted = math.log(height / width)
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1]) - wanted))
