"""References to examples: what belongs together, what is refused, what the holes and rings are."""

import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inlay.imaging.augment import Augmentation, augment
from inlay.imaging.bezier import bezier_mask
from inlay.imaging.masks import box_mask
from inlay.training.finetune.data import (
    ENCODED_AT_ONCE,
    Examples,
    Reference,
    check_references,
    collect_references,
    prepare_examples,
    rows_of_step,
    shrunk_hole,
    with_subject_references,
)
from inlay.training.finetune.recipes import DREAMCOM, DREAMMIX
from inlay.training.objective import generator_at

STILL = replace(DREAMCOM, copies=1, augmentation=Augmentation(scale_chance=0.0))


def reference(height=64, width=64, box=(16, 48, 20, 50)):
    mask = torch.zeros(height, width)
    mask[box[0] : box[1], box[2] : box[3]] = 1
    return Reference(torch.rand(height, width, 3, generator=generator_at(0, height * width)), mask)


def encode(picture):
    """A stand-in for a VAE: 8x8 means of the three channels and their mean."""
    latent = torch.nn.functional.avg_pool2d(picture.movedim(-1, 1), 8)
    return torch.cat([latent, latent.mean(1, keepdim=True)], 1)


def test_batches_and_lists_become_single_references():
    images = [torch.rand(2, 64, 48, 3), torch.rand(1, 32, 32, 3)]
    masks = [torch.ones(2, 64, 48), torch.ones(1, 32, 32)]
    found = collect_references(images, masks)
    assert [tuple(r.image.shape) for r in found] == [(64, 48, 3), (64, 48, 3), (32, 32, 3)]
    assert [tuple(r.mask.shape) for r in found] == [(64, 48), (64, 48), (32, 32)]


def test_alpha_is_the_mask_and_without_it_the_whole_picture():
    picture = torch.rand(1, 8, 8, 4)
    found = collect_references([picture], None)[0]
    assert torch.equal(found.mask, picture[0, ..., 3])
    assert found.image.shape[-1] == 3
    assert collect_references([torch.rand(1, 8, 8, 3)], None)[0].mask.all()


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        ([], None, "images: there are no reference pictures"),
        ([torch.rand(3, 8, 8, 3)], [torch.ones(2, 8, 8)], "masks: there are 2 masks for 3 images"),
        ([torch.rand(1, 8, 8, 3)], [torch.ones(2, 8, 8)], "masks: there are 2 masks for 1 images"),
    ],
)
def test_what_does_not_belong_together_is_refused(images, masks, message):
    with pytest.raises(ValueError, match=message):
        collect_references(images, masks)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(64, 64), "mask 2 is empty"),
        (torch.ones(32, 64), "mask 2: it is 64x32 pixels but the image is 64x64"),
        (reference(box=(3, 5, 3, 6)).mask, "mask 2: the subject is only 3x2 pixels of a 64x64 picture"),
    ],
)
def test_a_mask_without_a_subject_is_refused_by_its_number(mask, message):
    with pytest.raises(ValueError, match=message):
        check_references([reference(), Reference(torch.rand(64, 64, 3), mask)], 64, masked=True)


def test_a_mask_of_the_whole_picture_is_warned_of_where_masks_were_connected():
    references = [reference(), Reference(torch.rand(64, 64, 3), torch.ones(64, 64))]
    [warning] = check_references(references, 64, masked=True)
    assert warning.startswith("masks: there is no mask for picture 2 (it covers the whole picture)")
    assert check_references(references, 64, masked=False) == []


def test_regular_pictures_are_refused_by_their_own_inputs_names():
    for images, masks, message in (
        ([], None, "^regular_images: there are no"),
        ([torch.rand(3, 8, 8, 3)], [torch.ones(2, 8, 8)], "^regular_masks: there are 2 masks for 3 images"),
    ):
        with pytest.raises(ValueError, match=message):
            collect_references(images, masks, "regular_")
    bad = torch.full((64, 64, 3), float("nan"))
    for wrong, message in (
        (Reference(bad, torch.zeros(64, 64)), "^regular_masks: mask 1 is empty"),
        (Reference(bad, reference().mask), "^regular_images: picture 1 holds NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            check_references([wrong], 64, True, "regular_")


def test_a_whole_picture_may_be_the_subject_when_no_mask_is_wired():
    check_references([Reference(torch.rand(64, 64, 3), torch.ones(64, 64))], 64, masked=False)


def test_identical_references_are_worth_a_warning(caplog):
    check_references([reference(), reference()], 64, masked=True)
    assert "identical" in caplog.text


def test_examples_are_the_picture_with_its_box_filled_grey():
    r = reference(box=(16, 48, 24, 56))
    r.mask[20, 30] = 0  # a dent does not change the box
    found = prepare_examples([r], STILL, 64, encode, torch.zeros(1, 2, 3), None, 0).first
    hole = torch.zeros(1, 1, 8, 8)
    hole[..., 2:6, 3:7] = 1
    assert torch.equal(found.mask, hole)
    assert found.valid.all()
    whole = encode(r.image[None])
    torch.testing.assert_close(found.latent, whole)
    torch.testing.assert_close(found.masked, whole * (1 - hole) + 0.5 * hole)


def test_the_ring_of_a_shrunk_copy_is_not_valid():
    recipe = replace(DREAMCOM, copies=40)
    found = prepare_examples([reference()], recipe, 64, encode, torch.zeros(1, 2, 3), None, 0).first
    ringed = found.valid.flatten(1).min(1).values == 0
    assert 0 < ringed.sum() < 40
    assert (found.valid[ringed][..., 0, :] == 0).all()  # the ring reaches all around
    assert (found.valid[ringed][..., 4, 4] == 1).all()


def test_bezier_holes_hold_the_subject_and_vary():
    recipe = replace(DREAMMIX, copies=6)
    found = prepare_examples([reference()], recipe, 64, encode, torch.zeros(1, 2, 3), None, 0).first
    assert (found.mask[..., 3:5, 4:6] == 1).all()
    assert len({tuple(mask.flatten().tolist()) for mask in found.mask}) > 1


def test_the_same_seed_prepares_the_same_examples():
    first, second, other = (
        prepare_examples([reference(72, 90)], DREAMCOM, 64, encode, torch.zeros(1, 2, 3), None, seed).first
        for seed in (3, 3, 4)
    )
    assert torch.equal(first.latent, second.latent)
    assert not torch.equal(first.latent, other.latent)


@pytest.mark.parametrize("recipe", [DREAMCOM, DREAMMIX])
def test_pictures_are_encoded_a_few_at_a_time_with_the_draws_of_all_at_once(recipe):
    references = [reference(72, 90), reference(), reference(64, 80)]
    recipe = replace(recipe, copies=7)
    generator, views, holes = torch.Generator().manual_seed(3), [], []
    for image, mask in references:
        for _ in range(7):
            x, m = image.movedim(-1, 0)[None] * 2 - 1, mask[None, None]
            view, subject, _ = augment(x, m, 64, generator, recipe.augmentation)
            views.append(view)
            hole = box_mask(subject[:, 0]) if recipe.hole == "box" else bezier_mask(subject[:, 0], generator)
            holes.append(hole[:, None])
    view, hole, sizes, alive, held = torch.cat(views), torch.cat(holes), [], [], []

    def counted(picture):
        alive.append(weakref.ref(picture))
        held.append(sum(one() is not None for one in alive))
        sizes.append(len(picture))
        return encode(picture)

    found = prepare_examples(references, recipe, 64, counted, torch.zeros(1, 2, 3), None, 3).first
    assert max(sizes) == ENCODED_AT_ONCE
    assert sum(sizes) == 2 * 3 * 7
    assert max(held) == 1
    assert torch.equal(found.latent, encode((view.movedim(1, -1) + 1) / 2))
    assert torch.equal(found.masked, encode(((view * (1 - hole)).movedim(1, -1) + 1) / 2))
    assert torch.equal(found.mask, hole[..., ::8, ::8])


def test_a_thin_subject_keeps_a_hole():
    """A box of 6 pixels between the pixels that the latents' grid looks at."""
    r = reference(box=(9, 15, 8, 56))
    found = prepare_examples([r], STILL, 64, encode, torch.zeros(1, 2, 3), None, 0).first
    assert found.mask.nonzero()[:, 2].unique().tolist() == [1]
    assert found.mask.sum() == 6
    thick, thin = torch.zeros(2, 1, 1, 64, 64)
    thick[..., 4:44, 4:44], thin[..., 9:15, 9:15] = 1, 1
    small = shrunk_hole(torch.cat([thick, thin]), (8, 8))
    assert torch.equal(small[:1], torch.nn.functional.interpolate(thick, (8, 8)))  # as it always was
    assert small[1].nonzero().tolist() == [[0, 1, 1]]


@given(st.integers(1, 9), st.integers(1, 7), st.integers(0, 2**63))
def test_every_example_comes_up_once_an_epoch(count, batch, seed):
    seen = torch.cat([rows_of_step(count, batch, step, seed) for step in range(count)])
    assert torch.equal(seen.bincount(minlength=count), torch.full((count,), batch))


def test_take_and_joined_keep_rows_and_their_words_together():
    def some(count, words):
        latent, mask, masked, valid = (torch.full((count, c, 2, 2), float(words)) for c in (4, 1, 4, 1))
        return Examples(latent, mask, masked, valid, torch.full((1, 3, 5), float(words)))

    both = some(4, 1).take(torch.tensor([2, 0])).joined(some(3, 7).take(torch.tensor([1])))
    assert len(both) == 3
    assert both.context[:, 0, 0].tolist() == [1, 1, 7] == both.latent[:, 0, 0, 0].tolist()
    assert both.pooled is None


@given(
    pictures=st.integers(2, 6),
    count=st.integers(1, 4),
    dropout=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_a_picture_is_never_among_its_own_references(pictures, count, dropout, seed):
    photo = torch.tensor([*range(pictures), -1])  # the last row is a regular picture
    grid = torch.zeros(len(photo), 1, 2, 2)
    rows = Examples(grid, grid, grid, grid, torch.zeros(1, 0, 0), photo=photo)
    drawn = with_subject_references(rows, count, pictures, dropout, generator_at(seed, 0)).subject_references
    assert drawn is not None
    assert drawn.shape == (len(photo), count)
    for own, shown in zip(photo.tolist(), drawn.tolist(), strict=True):
        found = [number for number in shown if number >= 0]
        assert own not in found
        assert len(set(found)) == len(found)
        assert set(found) <= set(range(pictures))
        whole = min(count, pictures - 1)
        if own < 0 or dropout == 1:
            assert not found
        else:
            assert len(found) == whole or (dropout and not found)


def test_without_references_no_number_is_drawn():
    """Trainings of today keep their random numbers."""
    grid = torch.zeros(2, 1, 2, 2)
    rows = Examples(grid, grid, grid, grid, torch.zeros(1, 0, 0), photo=torch.tensor([0, 1]))
    generator = generator_at(0, 0)
    assert with_subject_references(rows, 0, 2, 0.1, generator) is rows
    assert torch.equal(generator.get_state(), generator_at(0, 0).get_state())
