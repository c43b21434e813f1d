"""DreamMix's training masks: where a blob may lie, and what it must cover."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.imaging.bezier import BezierMask, bezier_mask, bezier_outline
from inlay.imaging.boxes import Box
from inlay.imaging.masks import fill_box

examples = settings(max_examples=60)
STEADY = BezierMask(jitter=(0, 0))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@st.composite
def boxes(draw, height=60, width=80):
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return Box(top, left, draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width)))


@examples
@given(boxes(), st.sampled_from(STEADY.ratios), st.integers(0, 2**16))
def test_without_jitter_a_blob_covers_the_box_and_stays_in_its_bulge(box, ratio, seed):
    blob = bezier_mask(fill_box(box, 60, 80), seeded(seed), replace(STEADY, ratios=(ratio,)))[0]
    rows, columns = box.slices
    assert blob[rows, columns].all()
    down, across = -(-box.height * ratio // 2), -(-box.width * ratio // 2)
    bulge = Box(*(int(e) for e in (box.top - down, box.left - across, box.bottom + down, box.right + across)))
    rows, columns = bulge.expand(1).clamp(60, 80).slices
    assert blob[rows, columns].sum() == blob.sum()


@examples
@given(boxes(), st.integers(0, 2**16))
def test_jitter_moves_no_point_further_than_stated(box, seed):
    recipe = replace(BezierMask(), ratios=(0.1,), jitter=(0, 3), jitter_at=60)
    blob = bezier_mask(fill_box(box, 60, 80), seeded(seed), recipe)[0]
    inner, outer = box.expand(-4), box.expand(4 + max(box.height, box.width) // 10)
    if inner.area:
        rows, columns = inner.slices
        assert blob[rows, columns].all()
    rows, columns = outer.clamp(60, 80).slices
    assert blob[rows, columns].sum() == blob.sum()


def test_the_curve_is_the_formula_in_float64():
    box, ratio = Box(10, 20, 31, 61), 0.5
    points = bezier_outline(box, ratio, 4).double()
    top, right = points[:4], points[4:8]
    for i, t in enumerate((0, 0.25, 0.5, 0.75)):
        x = (1 - t) ** 2 * 20 + 2 * t * (1 - t) * 40 + t**2 * 60
        y = (1 - t) ** 2 * 10 + 2 * t * (1 - t) * (10 - 0.5 * 21) + t**2 * 10
        assert top[i].tolist() == pytest.approx([x, y], abs=1e-5)
    assert right[2].tolist() == pytest.approx([60 + 0.25 * 41, 20], abs=1e-5)  # bulges by half the ratio


def test_every_part_of_the_subject_gets_its_own_blob():
    mask = fill_box(Box(2, 2, 8, 8), 60, 80) + fill_box(Box(40, 60, 50, 75), 60, 80)
    blob = bezier_mask(mask, seeded(0), replace(STEADY, ratios=(0.1,)))[0]
    assert blob[2:8, 2:8].all()
    assert blob[40:50, 60:75].all()
    assert not blob[20:30].any()


def test_parts_that_touch_at_a_corner_are_one():
    mask = torch.eye(20)[None]
    blob = bezier_mask(mask, seeded(0), replace(STEADY, ratios=(0.1,)))[0]
    assert blob.all()


def test_one_seed_is_one_mask_and_samples_differ():
    mask = fill_box(Box(20, 20, 40, 50), 60, 80).expand(2, -1, -1)
    first, again, other = (bezier_mask(mask, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_an_empty_mask_is_named():
    with pytest.raises(ValueError, match="empty"):
        bezier_mask(torch.zeros(1, 8, 8), seeded(0))
