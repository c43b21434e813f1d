"""DreamCom's augmentation: what a view shows, keeps and leaves out."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.imaging.augment import Augmentation, augment, draw_window
from inlay.imaging.boxes import Box
from inlay.imaging.masks import fill_box

examples = settings(max_examples=60)
PAPER = Augmentation()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@st.composite
def scenes(draw):
    """A picture (1, 3, H, W) in [-1, 1] and the mask of a subject in it."""
    height, width, seed = draw(st.integers(4, 60)), draw(st.integers(4, 60)), draw(st.integers(0, 2**16))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    box = Box(top, left, draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width)))
    return torch.rand(1, 3, height, width, generator=seeded(seed)) * 2 - 1, fill_box(box, height, width)[None]


@examples
@given(scenes(), st.integers(2, 48), st.integers(0, 2**16))
def test_a_view_is_a_picture_with_a_subject_and_a_ring_of_the_fill(scene, size, seed):
    image, mask = scene
    view, view_mask, valid = augment(image, mask, size, seeded(seed))
    assert view.shape == (1, 3, size, size)
    assert view_mask.shape == valid.shape == (1, 1, size, size)
    assert view.abs().max() <= 1
    assert view_mask.any()
    assert set(valid.unique().tolist()) <= {0.0, 1.0}
    ring = valid == 0
    assert (view_mask[ring] == 0).all()
    assert (view[ring.expand_as(view)] == PAPER.fill).all()


@examples
@given(scenes(), st.integers(0, 2**16))
def test_every_window_shows_some_of_the_subject(scene, seed):
    _, mask = scene
    window = draw_window(mask[0, 0], seeded(seed), replace(PAPER, keep=0.0, relax=0.0))
    rows, columns = window.clamp(*mask.shape[-2:]).slices
    assert mask[0, 0, rows, columns].any()


def test_more_than_eighty_percent_of_a_subject_that_fits_is_always_kept():
    mask = fill_box(Box(5, 30, 25, 50), 40, 90)[0]
    for seed in range(200):
        rows, columns = draw_window(mask, seeded(seed), replace(PAPER, relax=0.0)).clamp(40, 90).slices
        assert mask[rows, columns].sum() > 0.8 * mask.sum()


def test_a_subject_too_large_for_any_window_is_let_through_by_the_falling_threshold():
    mask = torch.ones(20, 200)  # a square window shows at most an eighth of it
    window = draw_window(mask, seeded(0), PAPER)
    assert 0 < window.clamp(20, 200).area <= 20 * 25


@examples
@given(scenes(), st.integers(0, 2**16))
def test_zoom_stays_in_its_range_and_places_the_window(scene, seed):
    _, mask = scene
    height, width = mask.shape[-2:]
    short = min(height, width)
    window = draw_window(mask[0, 0], seeded(seed), PAPER)
    assert window.height == window.width
    assert round(short / 1.2) <= window.height <= round(short / 0.8)
    for start, end, length in ((window.top, window.bottom, height), (window.left, window.right, width)):
        if window.height <= length:
            assert start >= 0
            assert end <= length
        else:  # centred: the ring is as wide on both sides, give or take the odd pixel
            assert abs(-start - (end - length)) <= 1


def test_no_zoom_of_a_square_picture_is_the_picture():
    image, mask = torch.rand(2, 3, 16, 16) * 2 - 1, fill_box(Box(3, 4, 9, 12), 16, 16).expand(2, 1, 16, 16)
    view, view_mask, valid = augment(image, mask, 16, seeded(0), replace(PAPER, scale_chance=0.0))
    assert torch.allclose(view, image, atol=1e-6)
    assert torch.equal(view_mask, mask)
    assert valid.all()


def test_no_colour_of_the_ring_bleeds_into_the_picture():
    image, mask = torch.full((1, 3, 64, 64), -0.5), torch.ones(1, 1, 64, 64)
    for seed in range(20):
        view, _, valid = augment(image, mask, 32, seeded(seed), replace(PAPER, scale_chance=1.0))
        shown = view[(valid == 1).expand_as(view)]
        assert torch.allclose(shown, torch.full_like(shown, -0.5), atol=1e-6)


def test_one_seed_is_one_view_and_samples_differ():
    image, mask = (torch.rand(1, 3, 30, 50) * 2 - 1).expand(2, -1, -1, -1), torch.zeros(2, 1, 30, 50)
    mask[..., 10:14, 20:24] = 1
    first, again, other = (augment(image, mask, 24, seeded(s))[0] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_zooming_happens_as_often_as_stated():
    mask = fill_box(Box(40, 40, 60, 60), 100, 100)[0]
    generator = seeded(0)
    zoomed = sum(draw_window(mask, generator, PAPER).height != 100 for _ in range(1000))
    assert 550 < zoomed < 640  # 0.6, less the windows that round to the picture itself


def test_an_empty_mask_is_named():
    with pytest.raises(ValueError, match="empty mask"):
        augment(torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8), 8, seeded(0))
