"""Masks and pictures of other ranks and types, as other packs hand them on."""

import pytest
import torch

from inlay.imaging.inputs import as_image, as_masks, check_finite
from inlay.training.finetune.data import collect_references

M = torch.zeros(96, 96)
M[30:60, 30:60] = 1


@pytest.mark.parametrize(
    "mask",
    [M, M[None], M[None, None], M[None, ..., None], M[None, None, None], M.bool(), M.byte(), M.byte() * 255],
)
def test_a_mask_of_any_rank_is_a_batch_of_masks(mask):
    assert torch.equal(as_masks(mask), M[None])


def test_a_mask_that_is_one_already_is_not_copied():
    mask = M[None]
    assert as_masks(mask) is mask


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (None, "there is none"),
        (torch.zeros(5), r"\(5,\), which is no mask"),
        (torch.zeros(0, 8, 8), "no mask"),
        (torch.zeros(1, 8, 8, 3), "a picture with 3 channels"),
    ],
)
def test_what_is_no_mask_is_named(mask, words):
    with pytest.raises(ValueError, match=f"regular_masks: .*{words}"):
        as_masks(mask, "regular_masks")


def test_a_grey_picture_is_one_of_colours():
    grey = torch.rand(2, 4, 5, 1)
    assert torch.equal(as_image(grey), grey.expand(2, 4, 5, 3))
    both = torch.rand(2, 4, 5, 2)
    assert torch.equal(as_image(both)[..., 3], both[..., 1])
    colours = torch.rand(2, 4, 5, 4)
    assert as_image(colours) is colours
    assert as_image(colours[0]).shape == (1, 4, 5, 4)
    assert torch.equal(as_image(torch.full((1, 2, 2, 3), 255, dtype=torch.uint8)), torch.ones(1, 2, 2, 3))


@pytest.mark.parametrize("image", [None, torch.zeros(4, 4), torch.zeros(1, 3, 9, 9), torch.zeros(0, 4, 4, 3)])
def test_what_is_no_picture_is_named(image):
    with pytest.raises(ValueError, match="original: "):
        as_image(image, "original")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_picture_with_nan_is_named(value):
    with pytest.raises(ValueError, match="generated: it holds NaN or infinite values"):
        check_finite(torch.full((1, 2, 2, 3), value), "generated")


@pytest.mark.parametrize("mask", [M, M[None, None], M[None, ..., None]])
def test_references_take_masks_of_any_rank_and_grey_pictures(mask):
    ((image, found),) = collect_references([torch.rand(1, 96, 96, 1)], [mask])
    assert image.shape == (96, 96, 3)
    assert torch.equal(found, M)
