"""Aspect-ratio buckets: sizes near one area, batches of one size, and the loss over two sizes."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.imaging.augment import Augmentation, augment, draw_window
from inlay.imaging.boxes import Box
from inlay.imaging.buckets import AREA_TOLERANCE, MAX_RATIO, bucket_sizes, nearest_bucket
from inlay.imaging.masks import fill_box
from inlay.training.finetune.data import (
    BucketedExamples,
    Examples,
    Reference,
    crop_shapes,
    prepare_examples,
    small_photo_notes,
)
from inlay.training.finetune.recipes import DREAMCOM
from inlay.training.finetune.store import content_key

BUCKETS = replace(DREAMCOM, aspect_ratios="buckets", copies=2)
grids = st.tuples(st.integers(1, 96), st.sampled_from([8, 16, 32, 64]))


@given(grids)
def test_sizes_are_multiples_of_about_the_area_of_the_square(grid):
    cells, step = grid
    side = cells * step
    sizes = bucket_sizes(side, step)
    assert (side, side) in sizes
    assert len(set(sizes)) == len(sizes)
    for height, width in sizes:
        assert height % step == width % step == 0
        assert abs(height * width / side**2 - 1) <= AREA_TOLERANCE
        assert max(height, width) / min(height, width) <= MAX_RATIO
        assert (width, height) in sizes


@given(st.integers(24, 96), st.floats(1 / MAX_RATIO, MAX_RATIO))
def test_the_ratio_of_a_bucket_is_near_that_of_the_photo(cells, ratio):
    height, width = nearest_bucket(round(10_000 * ratio), 10_000, bucket_sizes(cells * 16, 16))
    assert abs(math.log(height / width) - math.log(ratio)) <= 3 / cells


def test_a_photo_that_is_longer_than_every_bucket_takes_the_longest():
    sizes = bucket_sizes(1024, 16)
    assert nearest_bucket(100, 10_000, sizes) == sizes[0]
    assert nearest_bucket(10_000, 100, sizes) == sizes[-1]


@settings(max_examples=40)
@given(st.integers(8, 60), st.integers(8, 60), st.integers(0, 999), st.sampled_from([(16, 48), (40, 24)]))
def test_a_view_has_the_size_of_its_bucket_and_does_not_stretch(height, width, seed, shape):
    mask = fill_box(Box(height // 4, width // 4, height // 2, width // 2), height, width)
    generator = torch.Generator().manual_seed(seed)
    window = draw_window(mask[0], generator, replace(Augmentation(), keep=0.0), shape)
    fit = min(height / shape[0], width / shape[1])
    assert abs(window.height * shape[1] - window.width * shape[0]) <= sum(shape)  # half a pixel on each side
    assert window.height <= fit * shape[0] / 0.8 + 1
    views = augment(torch.zeros(1, 3, height, width), mask[None], shape, generator)
    assert [tuple(view.shape[-2:]) for view in views] == [shape] * 3


def reference(height, width, seed=0):
    image = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))
    return Reference(image, fill_box(Box(height // 4, width // 4, height // 2, width // 2), height, width)[0])


def encode(pictures):
    return torch.nn.functional.avg_pool2d(pictures.movedim(-1, 1), 8)


def test_photos_of_different_shape_are_encoded_in_their_buckets():
    references = [reference(64, 128), reference(96, 96), reference(128, 256, 1)]
    found = prepare_examples(references, BUCKETS, 128, encode, torch.zeros(1, 2, 3), None, 0, 16)
    assert isinstance(found, BucketedExamples)
    wide, square = found.buckets
    assert wide.latent.shape[-2] * 2 == pytest.approx(wide.latent.shape[-1], rel=0.3)
    assert square.latent.shape[-2:] == (16, 16)
    assert wide.photo is not None
    assert square.photo is not None
    assert wide.photo.tolist() == [0, 0, 2, 2]
    assert square.photo.tolist() == [1, 1]
    assert found.first is wide
    assert len(found) == 6


def test_square_crops_are_those_of_before():
    references = [reference(64, 128), reference(96, 96)]
    square = replace(BUCKETS, aspect_ratios="square")
    found = prepare_examples(references, square, 64, encode, torch.zeros(1, 2, 3), None, 7, 16).first
    generator, views = torch.Generator().manual_seed(7), []
    for image, mask in references:
        for _ in range(2):
            picture = image.movedim(-1, 0)[None] * 2 - 1
            views.append(augment(picture, mask[None, None], 64, generator, square.augmentation)[0])
    assert torch.equal(found.latent, encode((torch.cat(views).movedim(1, -1) + 1) / 2))


def rows(count, height, width, first):
    latent = torch.arange(first, first + count).float()[:, None, None, None].expand(count, 1, height, width)
    return Examples(latent, latent, latent, latent, torch.zeros(1, 0, 0))


@settings(max_examples=40)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(0, 99),
    st.integers(0, 3),
)
def test_a_batch_has_one_size_and_a_round_uses_every_example_equally(counts, batch, seed, turn):
    firsts = [sum(counts[:i]) for i in range(len(counts))]
    parts = tuple(rows(n, 2, 2 + i, first) for i, (n, first) in enumerate(zip(counts, firsts, strict=True)))
    whole = BucketedExamples(parts)
    used = Counter()
    for step in range(turn * len(whole), (turn + 1) * len(whole)):
        drawn = whole.rows(batch, step, seed)
        assert torch.equal(drawn.latent, whole.rows(batch, step, seed).latent)
        assert drawn.latent.shape[0] == batch
        used.update(drawn.latent[:, 0, 0, 0].int().tolist())
    assert used == {i: batch for i in range(len(whole))}


def test_one_bucket_is_drawn_as_examples_without_buckets():
    part = rows(5, 2, 2, 0)
    for step in range(12):
        one = BucketedExamples((part,)).rows(2, step, 3)
        assert torch.equal(one.latent, part.rows(2, step, 3).latent)


def test_small_photos_are_named_once_with_their_size():
    references = [reference(64, 128), reference(300, 300), reference(90, 60)]
    assert crop_shapes(references, replace(BUCKETS, aspect_ratios="square"), 128, 16) == [(128, 128)] * 3
    notes = small_photo_notes(references, crop_shapes(references, BUCKETS, 128, 16))
    assert len(notes) == 1
    assert "picture 1 (128x64), 3 (60x90)" in notes[0]
    assert small_photo_notes(references[1:2], [(128, 128)]) == []


def test_the_choice_is_in_the_key_of_the_store():
    keys = {
        content_key([], replace(DREAMCOM, aspect_ratios=way), 512, 0, "") for way in ("square", "buckets")
    }
    assert len(keys) == 2
