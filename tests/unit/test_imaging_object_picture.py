"""The object cut out for an encoder, and the four levels of its mask."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from inlay.imaging.mask_levels import MASK_LEVELS, level_preview, mask_level
from inlay.imaging.masks import box_mask
from inlay.imaging.object_picture import subject_picture


def picture(height, width, seed=0):
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(seed))


def masked(height, width, top, left, bottom, right):
    mask = torch.zeros(1, height, width)
    mask[:, top:bottom, left:right] = 1
    return mask


@pytest.mark.parametrize(("background", "value"), [("black", 0.0), ("white", 1.0), ("grey", 0.5)])
def test_the_object_keeps_its_pixels_and_the_rest_is_one_colour(background, value):
    image, mask = picture(40, 50), masked(40, 50, 10, 20, 26, 36)
    square = subject_picture(image, mask, 20, background, margin=0.125)  # 16 + 2 * 2: no resizing
    assert square.shape == (1, 20, 20, 3)
    assert torch.allclose(square[:, 2:18, 2:18], image[:, 10:26, 20:36], atol=1e-6)
    ring = torch.ones(20, 20, dtype=torch.bool)
    ring[2:18, 2:18] = False
    assert torch.allclose(square[0][ring], torch.tensor(value), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_picture_of_half_precision_is_shown_as_well(dtype):
    """The host can be told to keep its pictures so."""
    image, mask = picture(40, 50), masked(40, 50, 10, 20, 26, 36)
    square = subject_picture(image.to(dtype), mask, 30)
    assert square.dtype == dtype
    assert (square.float() - subject_picture(image, mask, 30)).abs().max() < 2e-2


def test_the_square_is_padded_where_the_object_is_narrow_or_at_the_border():
    image, mask = picture(30, 30), masked(30, 30, 0, 0, 16, 8)
    square = subject_picture(image, mask, 16, "white", margin=0.0)
    assert torch.allclose(square[:, :, 4:12], image[:, 0:16, 0:8], atol=1e-6)
    assert (square[:, :, :4] > 0.999).all()
    assert (square[:, :, 12:] > 0.999).all()


def test_the_original_background_stays_and_its_border_is_repeated():
    image, mask = picture(30, 30), masked(30, 30, 0, 0, 16, 8)
    square = subject_picture(image, mask, 16, "original", margin=0.0)
    assert torch.allclose(square[:, :, 4:], image[:, 0:16, 0:12], atol=1e-6)
    assert torch.allclose(square[:, :, :4], image[:, 0:16, :1].expand(-1, -1, 4, -1), atol=1e-6)
    whole = subject_picture(image[:, :, :20], None, 30, "original", margin=0.2)  # framed already
    assert torch.allclose(whole[:, :, 5:25], image[:, :, :20], atol=1e-6)


def test_soft_edges_are_mixed():
    image, mask = torch.ones(1, 16, 16, 3), torch.full((1, 16, 16), 0.75)
    assert torch.allclose(subject_picture(image, mask, 16, "black", 0.0), torch.tensor(0.75))


@given(
    size=st.tuples(st.integers(8, 60), st.integers(8, 60)),
    corner=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    share=st.tuples(st.floats(0.2, 1), st.floats(0.2, 1)),
    side=st.sampled_from([14, 28, 56]),
    background=st.sampled_from(["black", "white", "original"]),
    margin=st.floats(0, 0.5),
)
@settings(max_examples=60)
def test_any_object_gives_a_square_of_finite_pixels(size, corner, share, side, background, margin):
    height, width = size
    tall, wide = max(8, int(share[0] * height)), max(8, int(share[1] * width))
    top, left = int(corner[0] * (height - tall)), int(corner[1] * (width - wide))
    square = subject_picture(
        picture(height, width), masked(height, width, top, left, top + tall, left + wide), side, background,
        margin,
    )  # fmt: skip
    assert square.shape == (1, side, side, 3)
    assert torch.isfinite(square).all()
    assert square.min() >= 0
    assert square.max() <= 1


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (None, "neither a mask nor an alpha channel"),
        (torch.zeros(1, 20, 30), "mask 2: it is empty"),
        (masked(20, 30, 3, 3, 7, 8), "mask 2: the object is only 5x4 pixels"),
        (torch.ones(1, 20, 20), "mask 2: it is 20x20 pixels but the image is 30x20"),
        (torch.full((1, 20, 30), float("nan")), "mask 2: it holds NaN"),
    ],
)
def test_what_is_no_object_is_named(mask, says):
    with pytest.raises(ValueError, match=says):
        subject_picture(picture(20, 30), mask, 14, name="masks: mask 2")


# -- levels


@st.composite
def outlines(draw):
    """A mask of a few discs, at least one pixel."""
    height, width = draw(st.integers(6, 70)), draw(st.integers(6, 70))
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    mask = torch.zeros(height, width)
    for _ in range(draw(st.integers(1, 4))):
        row, column = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        radius = draw(st.integers(0, 20))
        mask[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = 1
    return mask[None]


@given(outlines())
@settings(max_examples=80)
def test_each_level_holds_the_one_before_and_lies_in_the_box(mask):
    levels = [mask_level(mask, level) for level in MASK_LEVELS]
    assert torch.equal(levels[0], mask)
    assert torch.equal(levels[3], box_mask(mask))
    for inner, outer in itertools.pairwise(levels):
        assert ((outer == 0) | (outer == 1)).all()
        assert (inner <= outer).all()


def test_levels_grow_and_smooth():
    mask = torch.zeros(1, 100, 100)
    mask[:, 20:80, 45:55] = 1  # a cross with notches
    mask[:, 45:55, 20:80] = 1
    areas = [float(mask_level(mask, level).sum()) for level in MASK_LEVELS]
    assert areas[0] < areas[1] < areas[2] < areas[3] == 3600
    assert areas[1] > 1.15 * areas[0]
    assert areas[2] > 1.25 * areas[1]


def test_levels_are_made_sample_by_sample_and_keep_the_dtype():
    a, b = masked(20, 20, 2, 2, 12, 6), masked(20, 20, 8, 8, 18, 19)
    both = torch.cat([a, b]).half()
    for level in MASK_LEVELS:
        made = mask_level(both, level)
        assert made.dtype == torch.float16
        assert torch.equal(made.float(), torch.cat([mask_level(a, level), mask_level(b, level)]))


def test_levels_are_the_same_wherever_the_object_stands():
    small = masked(40, 40, 5, 5, 20, 30)
    small[:, 5:12, 5:12] = 0
    moved = torch.zeros(1, 90, 80)
    moved[:, 50:90, 40:80] = small
    for level in MASK_LEVELS:
        assert torch.equal(mask_level(moved, level)[:, 50:90, 40:80], mask_level(small, level))


def ring(side):
    """A thick ring with a gap, (1, side, side)."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, side)] * 2, indexing="ij")
    radius = (y**2 + x**2).sqrt()
    return (((radius < 0.95) & (radius > 0.5)) & ~((x > 0) & (y.abs() < 0.25))).float()[None]


def test_a_large_object_costs_no_more_and_has_the_levels_of_a_smaller_one():
    large, small = ring(1500), ring(500)
    made, costs = [], []
    for mask in (large, small):
        with FlopCounterMode(display=False) as counter:
            made.append(mask_level(mask, 3))
        costs.append(counter.get_total_flops())
    assert costs[0] <= 1.5 * costs[1]  # at one scale it would be nine times as much and more
    second = mask_level(large, 2)
    assert (large <= second).all()
    assert (second <= made[0]).all()
    assert (made[0] <= box_mask(large)).all()
    assert abs(float(made[0].mean() - made[1].mean())) < 0.01


def test_a_line_that_is_longer_than_what_is_worked_on_stays():
    line = torch.zeros(1, 4, 2000)
    line[:, 1, 10:1990] = 1
    assert torch.equal(mask_level(line, 3), line)  # its box is the line


def test_an_empty_mask_is_an_error():
    with pytest.raises(ValueError, match="mask: it is empty"):
        mask_level(torch.zeros(1, 9, 9), 3)


def test_the_preview_shows_the_four_side_by_side():
    mask = masked(30, 20, 4, 4, 24, 10)
    shown = level_preview(picture(30, 20), mask)
    assert shown.shape == (1, 30, 80, 3)
    assert 0 <= float(shown.min()) <= float(shown.max()) <= 1
    tinted = [(shown[0, :, 20 * k : 20 * k + 20] != shown[0, :, 0:20]).any(-1) for k in range(4)]
    assert not tinted[0].any()
    assert torch.equal(tinted[3], (mask_level(mask, 4) - mask)[0] > 0.5)


def test_the_preview_of_a_large_picture_is_small():
    assert level_preview(picture(1500, 600), masked(1500, 600, 100, 100, 1400, 500)).shape == (
        1, 1024, 4 * 410, 3
    )  # fmt: skip


def test_a_picture_that_is_no_square_is_shown_as_its_layout_does():
    """Padded, or as CLIP's processor does its middle, or as Paint-by-Example does stretched."""
    image = torch.arange(24.0).reshape(1, 1, 24, 1).expand(1, 8, 24, 3) / 24
    crop = subject_picture(image, None, 8, "original", fit="crop")
    assert torch.equal(crop, image[:, :, 8:16])
    squash = subject_picture(image, None, 8, "original", fit="squash")
    expected = torch.nn.functional.interpolate(
        image.movedim(-1, 1), (8, 8), mode="bicubic", antialias=True
    ).clamp(0, 1)
    assert torch.allclose(squash, expected.movedim(1, -1))
    pad = subject_picture(image, None, 24, "original")
    assert torch.equal(pad[:, 8:16], image)
    assert torch.equal(pad[:, :1], pad[:, 7:8])


def test_an_object_under_a_mask_is_never_cropped():
    image, mask = torch.rand(1, 20, 40, 3), torch.zeros(1, 20, 40)
    mask[:, 5:10, 4:36] = 1
    crop = subject_picture(image, mask, 32, "original", margin=0.0, fit="crop")
    assert torch.equal(crop, subject_picture(image, mask, 32, "original", margin=0.0))
