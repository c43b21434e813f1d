"""The hole on the latent grid: the same for training, the mask channel, the noise mask and attention."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inlay.imaging.boxes import Box, bounding_box
from inlay.imaging.latent_mask import snap_hole, snap_labels, to_pixels, view_hole, with_soft_values
from inlay.imaging.masks import fill_box
from inlay.imaging.views import pad_to_multiple
from inlay.sampling.stages import InpaintOptions, close_up_view, window_view
from inlay.training.finetune.data import shrunk_hole


@st.composite
def holes(draw):
    height, width = draw(st.integers(16, 200)), draw(st.integers(16, 200))
    top, left = draw(st.integers(0, height - 2)), draw(st.integers(0, width - 2))
    box = Box(top, left, draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width)))
    return fill_box(box, height, width)


def latent_grid(height, width):
    return -(-height // 8), -(-width // 8)


def host_channel(mask, grid):
    """What the host's UNets read: bilinear, then rounded."""
    return torch.nn.functional.interpolate(mask[:, None], grid, mode="bilinear").round()[:, 0]


@given(holes())
def test_a_hole_is_that_of_the_first_pixel_of_every_cell(mask):
    padded = pad_to_multiple(mask, 8)
    snapped = snap_hole(mask, latent_grid(*mask.shape[1:]))
    expected = padded[:, ::8, ::8]
    if expected.any():
        assert torch.equal(snapped, expected)
    else:
        touched = padded.reshape(1, padded.shape[1] // 8, 8, -1, 8).amax((2, 4))
        assert torch.equal(snapped, touched)
        assert snapped.any()


@given(holes(), st.sampled_from([64, 128]), st.booleans(), st.integers(0, 12), st.integers(0, 32))
def test_every_consumer_gets_the_same_hole_on_both_views(mask, side, near, grow, edge):
    """Training's rule, the channel the host makes, its noise mask, and the regions of attention."""
    options = InpaintOptions(side, grow=grow, soft_edge=edge)
    make_view = close_up_view if near else window_view
    view = make_view(bounding_box(mask[0]), mask.shape[1], mask.shape[2], options)
    assert view.grow == (grow if near else 0)
    hole = pad_to_multiple(view_hole(mask, view), 8)
    grid = latent_grid(view.height, view.width)
    snapped = snap_hole(hole, grid)
    assert snapped.any()
    pixels = to_pixels(snapped, *hole.shape[1:])
    assert torch.equal(shrunk_hole(hole[:, None], grid)[:, 0], snapped)
    assert torch.equal(host_channel(pixels, grid), snapped)
    noise_mask = torch.nn.functional.interpolate(pixels[:, None], grid, mode="bilinear")[:, 0]
    assert torch.equal(noise_mask, snapped)
    labels = snap_labels(mask.to(torch.uint8), grid, view)
    assert torch.equal(labels.float(), snapped)


@given(holes())
def test_regions_of_a_whole_picture_are_snapped_as_its_hole(mask):
    grid = latent_grid(*mask.shape[1:])
    labels = snap_labels(mask.to(torch.uint8), grid)
    assert torch.equal(labels.float(), snap_hole(mask, grid))


def test_the_host_would_have_read_other_holes():
    """Of random boxes at 512 pixels 446 of 500 differ without snapping; here 50 are tried."""
    generator = torch.Generator().manual_seed(0)
    differ = 0
    for _ in range(50):
        low = torch.randint(0, 400, (2,), generator=generator)
        high = low + torch.randint(24, 112, (2,), generator=generator)
        mask = fill_box(Box(int(low[0]), int(low[1]), int(high[0]), int(high[1])), 512, 512)
        snapped = snap_hole(mask, (64, 64))
        differ += not torch.equal(host_channel(mask, (64, 64)), snapped)
        assert torch.equal(host_channel(to_pixels(snapped, 512, 512), (64, 64)), snapped)
    assert differ > 40


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_where_two_regions_meet_the_first_wins(order):
    labels = torch.zeros(1, 32, 32, dtype=torch.uint8)
    labels[:, 1:4, 1:4], labels[:, 4:7, 4:7] = order  # both vanish in one cell
    assert snap_labels(labels, (4, 4))[0, 0, 0] == 1


@given(holes(), st.floats(0.51, 0.99), st.integers(0, 12), st.integers(0, 2**31))
def test_soft_values_stay_inside_the_hole_that_the_mask_gives(mask, value, grow, seed):
    """Inside they are the mask's own, on the grown rim the largest within reach; a hard mask is its hole."""
    options = InpaintOptions(64, grow=grow)
    view = close_up_view(bounding_box(mask[0]), mask.shape[1], mask.shape[2], options)
    rows, columns = view.box.slices
    hole = view_hole(mask, view)
    assert with_soft_values(hole, mask[:, rows, columns], view.grow) is hole
    chosen = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    soft = torch.where(chosen, mask * value, mask)
    cut = soft[:, rows, columns]
    result = with_soft_values(hole, cut, view.grow)
    assert torch.equal(result > 0.5, hole > 0)
    assert (result[hole == 0] == 0).all()
    assert set(result.unique().tolist()) <= {0.0, 1.0, *cut.unique().tolist()}
    if (cut.shape[1], cut.shape[2]) == (view.height, view.width):
        assert torch.equal(result[cut > 0.5], cut[cut > 0.5])
    uniform = with_soft_values(hole, mask[:, rows, columns] * value, view.grow)
    assert set(uniform.unique().tolist()) <= {0.0, (mask * value).max().item(), 1.0}
