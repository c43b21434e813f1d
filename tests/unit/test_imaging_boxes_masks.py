"""Boxes and masks: geometry as properties, and the sentences a user gets."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.imaging.boxes import Box, bounding_box, outline
from inlay.imaging.masks import (
    binarize,
    box_mask,
    check_mask,
    check_not_empty,
    check_not_full,
    fill_box,
    match_batch,
    resize_mask,
    touching,
)

examples = settings(max_examples=60)

side = st.integers(1, 40)
edge = st.integers(-50, 90)
box = st.builds(Box, edge, edge, edge, edge)


@st.composite
def masks(draw, batch=1):
    """A binary mask (batch, H, W) with at least one masked pixel in every sample."""
    height, width, seed = draw(side), draw(side), draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(batch, height, width, generator=generator) < draw(st.floats(0, 0.5))).float()
    mask[:, draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))] = 1.0
    return mask


@examples
@given(box, side, side)
def test_clamped_box_lies_inside_and_keeps_exactly_the_shared_pixels(box, height, width):
    inside = box.clamp(height, width)
    assert 0 <= inside.top <= inside.bottom <= height
    assert 0 <= inside.left <= inside.right <= width
    shared = {(y, x) for y in range(height) for x in range(width)}
    shared = {p for p in shared if box.top <= p[0] < box.bottom and box.left <= p[1] < box.right}
    assert inside.area == len(shared)


@examples
@given(masks())
def test_bounding_box_is_the_smallest_that_holds_the_mask(mask):
    box = bounding_box(mask[0])
    rows, columns = box.slices
    assert mask[0, rows, columns].sum() == mask.sum()
    for line in (mask[0, box.top], mask[0, box.bottom - 1], mask[0, :, box.left], mask[0, :, box.right - 1]):
        assert line.any()


@examples
@given(masks(batch=3))
def test_box_mask_is_a_filled_box_per_sample_and_its_own_box_mask(mask):
    boxes = box_mask(mask)
    for filled, original in zip(boxes, mask, strict=True):
        assert filled.sum() == bounding_box(original).area
        assert bounding_box(filled) == bounding_box(original)
    assert torch.equal(box_mask(boxes), boxes)


@examples
@given(box, side, side)
def test_fill_box_covers_as_much_as_lies_inside(box, height, width):
    assert fill_box(box, height, width).sum() == box.clamp(height, width).area


@examples
@given(masks(), side, side)
def test_resized_mask_touches_every_masked_pixel_and_no_other(mask, height, width):
    resized = resize_mask(mask, height, width)[0]
    rows, columns = mask.shape[1:]
    for y in range(height):
        for x in range(width):
            top, bottom = y * rows // height, -(-(y + 1) * rows // height)
            left, right = x * columns // width, -(-(x + 1) * columns // width)
            assert resized[y, x] == mask[0, top:bottom, left:right].max()


@examples
@given(masks())
def test_resizing_to_the_same_size_changes_nothing(mask):
    assert torch.equal(resize_mask(mask, *mask.shape[1:]), mask)


def test_binarize_rounds_like_the_host():
    soft = torch.linspace(0, 1, 1001)[None, None]
    assert torch.equal(binarize(soft), soft.round())
    assert binarize(torch.tensor([[[0.98]]])).item() == 1.0


@pytest.mark.parametrize(("images", "masks"), [(1, 1), (1, 3), (3, 1), (3, 3)])
def test_one_stands_for_many(images, masks):
    image, mask = match_batch(image=torch.rand(images, 4, 5, 3), mask=torch.rand(masks, 4, 5))
    assert len(image) == len(mask) == max(images, masks)


@pytest.mark.parametrize(
    ("images", "masks", "says"),
    [(3, 2, "mask: there are 2 in the batch but 3 in image"), (2, 4, "image: there are 2 .* 4 in mask")],
)
def test_batches_that_do_not_fit_are_named(images, masks, says):
    with pytest.raises(ValueError, match=says):
        match_batch(image=torch.rand(images, 4, 5, 3), mask=torch.rand(masks, 4, 5))


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (torch.ones(1, 5, 4), "it is 4x5 pixels but the image is 5x4"),
        (torch.full((1, 4, 5), float("nan")), "NaN"),
        (torch.full((1, 4, 5), float("inf")), "NaN"),
    ],
)
def test_a_mask_that_cannot_be_used_is_named(mask, says):
    with pytest.raises(ValueError, match=says):
        check_mask(torch.rand(1, 4, 5, 3), mask)


@pytest.mark.parametrize(
    ("check", "value", "says"),
    [
        (check_not_empty, 0.0, "empty"),
        (check_not_empty, 0.4, "empty"),
        (check_not_full, 1.0, "whole"),
        (check_not_full, 0.6, "whole"),
    ],
)
def test_a_hole_that_is_none_is_named(check, value, says):
    mask = fill_box(Box(1, 1, 2, 2), 4, 5)
    check(mask)
    with pytest.raises(ValueError, match=says):
        check(torch.cat([mask, torch.full_like(mask, value)]))


def test_an_empty_mask_has_no_bounding_box():
    with pytest.raises(ValueError, match="empty"):
        bounding_box(torch.zeros(4, 5))


@examples
@given(box, side, side, st.integers(1, 4))
def test_outline_changes_only_the_rim_of_the_box(box, height, width, thickness):
    image = torch.zeros(1, height, width, 3)
    red = outline(image, box, thickness)[0, ..., 0] > 0
    seen = box.clamp(height, width)
    inner = max(0, seen.height - 2 * thickness) * max(0, seen.width - 2 * thickness)
    assert red.sum() == seen.area - inner
    assert red.sum() == 0 or bounding_box(red.float()) == seen
    assert not image.any()


@examples
@given(side, side, st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**16))
def test_booleans_are_resized_like_masks(height, width, rows, columns, seed):
    pixels = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < 0.1
    resized = touching(touching(pixels, 0, rows), 1, columns)
    assert torch.equal(resized.float(), resize_mask(pixels[None].float(), rows, columns)[0])
