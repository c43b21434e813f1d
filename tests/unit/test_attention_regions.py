"""Masks on token grids: the stated rule, tiny boxes, windows, and what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.attention.patch import row_masks
from inlay.attention.regions import (
    OPEN,
    RegionPlan,
    region_labels,
    text_period,
    text_positions,
    token_labels,
    token_preview,
)


def box(height, width, top, left, bottom, right):
    mask = torch.zeros(height, width)
    mask[top:bottom, left:right] = 1
    return mask


@settings(max_examples=80)
@given(
    size=st.tuples(st.integers(8, 90), st.integers(8, 90)),
    shrink=st.tuples(st.integers(1, 8), st.integers(1, 2)),
    seed=st.integers(0, 999),
)
def test_the_rule_is_torch_nearest_twice(size, shrink, seed):
    mask = torch.rand(1, *size, generator=torch.Generator().manual_seed(seed))
    latent = (max(1, size[0] // shrink[0]), max(1, size[1] // shrink[0]))
    grid = (math.ceil(latent[0] / shrink[1]), math.ceil(latent[1] / shrink[1]))
    inside = (mask >= 0.5).float()[:, None]
    expected = F.interpolate(F.interpolate(inside, latent, mode="nearest"), grid, mode="nearest")[:, 0]
    tokens, vanished = token_labels(region_labels([mask]), latent, grid)
    if not vanished:
        # torch multiplies by a float32 ratio, which may land one pixel before an exactly whole position
        assert (tokens != expected).float().mean() <= 0.25
    if all(n % m == 0 for n, m in zip((*size, *latent), (*latent, *grid), strict=True)):
        assert vanished or torch.equal(tokens, expected.to(torch.uint8))


@settings(max_examples=80)
@given(
    top=st.integers(0, 62), left=st.integers(0, 62), grid=st.sampled_from([(8, 8), (4, 8), (2, 3), (1, 1)])
)
def test_a_tiny_box_keeps_the_token_that_holds_it(top, left, grid):
    labels = region_labels([box(64, 64, top, left, top + 1, left + 1)])
    tokens, vanished = token_labels(labels, (64, 64), grid)
    assert tokens.sum() == 1
    y, x = (tokens[0] == 1).nonzero()[0].tolist()
    assert (y, x) == (int((top + 0.5) / 64 * grid[0]), int((left + 0.5) / 64 * grid[1]))
    sampled = top % (64 / grid[0]) == 0 and left % (64 / grid[1]) == 0
    if grid != (2, 3):
        assert vanished == ([] if sampled else [(0, 1)])


@settings(max_examples=60)
@given(
    st.tuples(*[st.integers(0, 7)] * 2, *[st.integers(1, 8)] * 2).filter(
        lambda w: w[0] < w[2] and w[1] < w[3]
    )
)
def test_a_window_masks_the_same_pixels(window):
    """A close-up of whole tokens shows the token labels of the crop."""
    mask = torch.rand(64, 64, generator=torch.Generator().manual_seed(sum(window)))
    top, left, bottom, right = (8 * edge for edge in window)
    labels = region_labels([mask])
    size = (bottom - top, right - left)
    whole, _ = token_labels(labels[:, top:bottom, left:right], size, size)
    part, _ = token_labels(labels, size, size, tuple(edge / 64 for edge in (top, left, bottom, right)))
    assert torch.equal(part, whole)


def test_a_region_outside_the_window_is_left_out():
    labels = region_labels([box(64, 64, 0, 0, 8, 8)])
    tokens, vanished = token_labels(labels, (8, 8), (8, 8), (0.5, 0.5, 1.0, 1.0))
    assert tokens.sum() == 0
    assert vanished == []


def test_a_region_that_only_grazes_the_window_stays_inside_the_grid():
    labels = region_labels([box(64, 64, 0, 0, 33, 64)])
    tokens, _ = token_labels(labels, (4, 4), (4, 4), (0.51, 0.0, 1.0, 1.0))
    assert tokens.shape == (1, 4, 4)


def test_the_first_mask_wins_and_one_mask_serves_a_batch():
    first, second = box(8, 8, 0, 0, 4, 8)[None], torch.ones(2, 8, 8)
    labels = region_labels([first, second])
    assert labels.shape == (2, 8, 8)
    assert labels[1, 0, 0] == 1
    assert labels[1, 7, 7] == 2


@pytest.mark.parametrize("value", [0.49, 0.5, 0.51, 0.98])
def test_the_threshold(value):
    mask = torch.full((1, 4, 4), value)
    if value <= 0.5:
        with pytest.raises(ValueError, match="empty"):
            region_labels([mask])
    else:
        assert region_labels([mask]).all()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.full((1, 4, 4), torch.nan), "NaN"),
        (torch.zeros(1, 4, 4), "empty"),
        (torch.stack([torch.ones(4, 4), torch.zeros(4, 4)]), "empty"),
        (torch.ones(1, 1, 4, 4), r"\(batch, height, width\)"),
        (torch.ones(4), r"\(batch, height, width\)"),
    ],
)
def test_bad_masks_are_refused_in_one_sentence(mask, message):
    with pytest.raises(ValueError, match=message) as error:
        region_labels([mask])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("second", "message"), [(torch.ones(1, 8, 4), "one size"), (torch.ones(3, 4, 4), "batches of 1 or")]
)
def test_masks_of_several_subjects_must_agree(second, message):
    with pytest.raises(ValueError, match=message):
        region_labels([torch.ones(2, 4, 4), second])


def test_rows_with_one_map_share_a_group():
    masks = torch.stack([box(8, 8, 0, 0, 4, 4), box(8, 8, 4, 4, 8, 8), box(8, 8, 0, 0, 4, 4)])
    plan = RegionPlan(region_labels([masks]), [0, 1, 2, 0, 1, None])
    regions = plan.at((8, 8), (4, 4))
    assert [None if g.rows is None else g.rows.tolist() for g in regions.groups] == [[0, 2, 3], [1, 4], [5]]
    assert regions.groups[0].tokens[1].tolist() == [0, 1, 4, 5]
    assert regions.groups[2].tokens == ()
    assert regions.labels[5].eq(OPEN).all()
    assert plan.at((8, 8), (4, 4)) is regions


def test_text_positions():
    assert text_positions(77) is None
    assert text_positions(77, released=True) == list(range(1, 39))
    assert text_positions(154, released=True) == [*range(1, 39), *range(78, 116)]
    assert text_positions(10, {2, 4, 40}) == [2, 4]
    assert text_positions(10, {2, 4, 40}, period=5) == [2, 4, 7, 9]


@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_a_texts_period(times):
    text = torch.randn(2, 6, 4).repeat(1, times, 1)
    assert text_period(text) == (6 if times > 1 else 0)
    text[1, -1, 0] += 1
    assert text_period(text) == 0


@pytest.mark.parametrize(
    ("apply_to", "masked"),
    [("both", [0, 0, 0]), ("conditional", [None, None, 0]), ("unconditional", [None, 0, None])],
)
def test_both_is_every_pass_of_a_guider_of_three_prompts(apply_to, masked):
    assert row_masks(1, 1, [2, 1, 0], apply_to) == masked
    assert row_masks(2, 2, [2, 0]) == [0, 1, 0, 1]


def test_the_tokens_of_a_large_mask_are_drawn_small_and_counted_exactly():
    mask = box(3000, 1500, 401, 300, 2200, 1207)
    picture, lines = token_preview(region_labels([mask]), (375, 187), [(375, 187), (188, 94)])
    assert picture.shape == (2, 1024, 512, 3)
    expected = mask[[int(i * 8) for i in range(375)]][:, [int(i * 1500 / 187) for i in range(187)]]
    assert lines[0] == f"187x375 tokens: {int(expected.sum())} of {375 * 187} inside"


def test_a_zeroed_prompt_does_not_repeat():
    assert text_period(torch.zeros(1, 77, 4)) == 0
    assert text_period(torch.zeros(1, 154, 4)) == 0
