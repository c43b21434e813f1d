"""What a generated picture shows that the original does not: exactly the new thing, at any size."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inlay.imaging.changes import change_map, change_mask, patches
from inlay.imaging.composite import paste_back


def pictures(height=96, width=128):
    torch.manual_seed(0)
    original = torch.rand(1, height, width, 3) * 0.4 + 0.3
    return original, original.clone()


def plain_average(difference, radius):
    """The mean over a square around each pixel, the picture mirrored beyond its border."""
    wide = np.pad(difference, radius, mode="symmetric")
    rows, columns = (range(length) for length in difference.shape)
    side = 2 * radius + 1
    return np.array([[wide[y : y + side, x : x + side].mean() for x in columns] for y in rows])


def test_differences_are_averaged_over_squares():
    a, b = torch.rand(2, 9, 11, 3, dtype=torch.float64)
    average = plain_average((a - b).abs().mean(-1).numpy(), 2)
    assert (change_map(a, b, 0.33, 2) == (average > 0.33)).all()
    assert 0 < (average > 0.33).mean() < 1


@given(st.integers(0, 60), st.integers(0, 80), st.integers(16, 36), st.integers(16, 48))
def test_the_mask_holds_the_new_thing_and_little_more(top, left, height, width):
    original, generated = pictures()
    generated[:, top : top + height, left : left + width] += 0.5
    mask = change_mask(original, generated)
    inside = torch.zeros_like(mask)
    inside[:, top : top + height, left : left + width] = 1
    assert (mask[inside == 1] == 1).all()
    around = torch.nn.functional.max_pool2d(inside, 9, 1, 4)
    assert (mask[around == 0] == 0).all()


def test_the_largest_may_be_small():
    original, generated = pictures(512, 512)
    generated[:, 40:64, 40:64] += 0.5
    assert change_mask(original, generated)[:, 40:64, 40:64].all()
    with pytest.raises(ValueError, match=r"in no patch of 0\.5% of the picture by more than 0\.08"):
        change_mask(original, generated, largest=False)


def test_what_an_autoencoder_changes_everywhere_is_no_change():
    original, generated = pictures()
    generated += 0.06 * torch.randn_like(generated)
    generated[:, 30:60, 40:70] = 1
    mask = change_mask(original, generated)
    assert mask[:, 30:60, 40:70].all()
    assert mask.mean() < 1.3 * 900 / (96 * 128)


def test_the_largest_patch_or_all_that_are_no_specks():
    original, generated = pictures()
    generated[:, 10:40, 10:40] = 0
    generated[:, 70:85, 100:115] = 0
    generated[:, 90:93, 5:8] = 0
    one, all_of_them = change_mask(original, generated), change_mask(original, generated, largest=False)
    assert [len(list(patches(mask[0].numpy() > 0))) for mask in (one, all_of_them)] == [1, 2]
    assert one[:, 20, 20].all()
    assert all_of_them[:, 77, 107].all()
    assert not all_of_them[:, 91, 6].any()


def test_a_hole_as_bright_as_before_is_filled():
    original, generated = pictures()
    generated[:, 20:70, 30:90] = 0
    generated[:, 40:50, 50:70] = original[:, 40:50, 50:70]
    assert change_mask(original, generated)[:, 20:70, 30:90].all()


def test_pasted_back_every_other_pixel_keeps_its_bits():
    original, generated = pictures()
    generated = generated + 0.02
    generated[:, 20:60, 30:70] = 1
    mask = change_mask(original, generated)
    pasted = paste_back(original, generated, mask, feather=0)
    assert torch.equal(pasted[mask == 0], original[mask == 0])
    assert (pasted[:, 20:60, 30:70] == 1).all()


def test_each_picture_of_a_batch_has_its_own_and_none_at_all_is_an_error():
    original, generated = pictures()
    original, generated = original.repeat(2, 1, 1, 1), generated.repeat(2, 1, 1, 1)
    with pytest.raises(ValueError, match="generated: it differs from the original nowhere by more than"):
        change_mask(original, generated)
    generated[1, 20:60, 30:70] = 1
    mask = change_mask(original, generated)
    assert not mask[0].any()
    assert mask[1, 20:60, 30:70].all()
