"""The renderer of the tiny world: the same seed is the same picture, and captions tell what is drawn."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.lab import world

examples = settings(max_examples=25)
seeds = st.integers(0, 2**32)


def scene_of(seed, **choices):
    return world.sample_scene(np.random.default_rng(seed), **choices)


@examples
@given(seeds)
def test_a_seed_is_a_scene_and_a_scene_is_a_picture(seed):
    first, second = scene_of(seed), scene_of(seed)
    assert first == second
    a, b = world.render(first), world.render(second)
    assert np.array_equal(a.image, b.image)
    assert np.array_equal(a.mask, b.mask)
    assert a.box == b.box


@examples
@given(seeds, st.sampled_from([32, 48, 64, 96, 100]))
def test_image_mask_and_box_agree(seed, size):
    picture = world.render(scene_of(seed), size)
    assert picture.image.shape == (size, size, 3)
    assert picture.image.dtype == np.uint8
    assert picture.mask.shape == (size, size)
    assert picture.mask.min() >= 0
    assert picture.mask.max() <= 1
    assert picture.box
    top, left, bottom, right = picture.box
    inside = picture.mask > 0.5
    assert inside[top:bottom, left:right].sum() == inside.sum()
    edges = (inside[top], inside[bottom - 1], inside[:, left], inside[:, right - 1])
    assert all(edge.any() for edge in edges)


@examples
@given(seeds)
def test_the_subject_is_in_front_and_large_enough_to_see(seed):
    scene = scene_of(seed)
    mask = world.render(scene).mask > 0.5
    alone = world.render(replace(scene, others=())).mask > 0.5
    assert np.array_equal(mask, alone)  # nothing stands before it
    assert mask.sum() >= 0.1 * (0.42 * world.SIZE) ** 2


@examples
@given(seeds)
def test_outside_the_mask_the_subject_leaves_no_more_than_its_shadow(seed):
    scene = scene_of(seed)
    picture, empty = world.render(scene), world.render(replace(scene, subject=None))
    untouched = picture.mask == 0
    with_subject, without = picture.image[untouched].astype(int), empty.image[untouched].astype(int)
    assert (with_subject <= without + 1).all()
    assert empty.box is None
    assert not empty.mask.any()


@examples
@given(seeds)
def test_the_picture_at_half_the_size_is_nearly_the_picture_halved(seed):
    scene = scene_of(seed)
    large, small = world.render(scene, 128).image.astype(float), world.render(scene, 64).image.astype(float)
    halved = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(halved - small).mean() < 4


KINDS = list(itertools.product(world.CLASSES, world.PATTERNS))


@pytest.mark.parametrize(("kind", "pattern"), KINDS)
def test_every_colour_and_accessory_can_be_drawn_and_shows(kind, pattern):
    room = world.sample_room(np.random.default_rng(3))
    for colour, accessory in itertools.product(world.COLOURS, world.ACCESSORIES):
        rng = np.random.default_rng(5)
        thing = world.sample_thing(rng, kind=kind, pattern=pattern, colour=colour, accessory=accessory)
        thing = thing.posed(x=0.5, y=0.6, scale=0.6)
        picture = world.render(world.Scene(room, thing), 32)
        assert picture.box
        if pattern == "plain" and accessory == "none":
            shown = picture.image[picture.mask > 0.9] / 255.0
            apart = [np.abs(shown - other).mean(1) for other in world.COLOURS.values()]
            votes = np.bincount(np.argmin(apart, 0), minlength=len(apart))
            # light and shade move a colour, but its own or a neighbour in brightness leads
            assert votes[list(world.COLOURS).index(colour)] >= 0.15 * votes.sum()


def test_an_accessory_makes_the_subject_larger_or_changes_its_middle():
    room = world.sample_room(np.random.default_rng(4))
    for kind, accessory in itertools.product(world.CLASSES, ("hat", "bow", "flag")):
        thing = world.sample_thing(np.random.default_rng(6), kind=kind, accessory="none")
        thing = thing.posed(x=0.5, y=0.6, scale=0.5)
        bare, dressed = (
            world.render(world.Scene(room, t)) for t in (thing, replace(thing, accessory=accessory))
        )
        assert np.abs(bare.image.astype(int) - dressed.image).max() > 60
        if accessory != "bow":
            assert dressed.box
            assert bare.box
            assert dressed.box[0] < bare.box[0]


@given(seeds)
def test_a_caption_names_class_colour_pattern_and_accessory_but_never_the_trim(seed):
    thing = world.sample_thing(np.random.default_rng(seed))
    words = world.caption(thing).split()
    assert words[:3] == ["a", "photo", "of"]
    assert words[3] == ("an" if words[4][0] in "aeiou" else "a")
    assert thing.kind in words
    assert thing.colour in words
    assert (thing.pattern in words) == (thing.pattern != "plain")
    worn = [word for word in ("hat", "bow", "flag") if word in words]
    assert worn == ([] if thing.accessory == "none" else [thing.accessory])
    assert not set(world.TRIMS) & set(words)


@given(seeds)
def test_with_a_token_the_looks_are_left_out(seed):
    thing = world.sample_thing(np.random.default_rng(seed))
    assert world.caption(thing, token="sks") == f"a photo of a sks {thing.kind}"


@given(seeds)
def test_fixed_fields_stay_and_a_trim_never_hides_in_its_colour(seed):
    thing = world.sample_thing(np.random.default_rng(seed), kind="cat", colour="white")
    assert (thing.kind, thing.colour) == ("cat", "white")
    assert thing.trim != "ivory"


def test_a_mirrored_thing_is_the_mirror_image_under_a_lamp_from_above():
    room = replace(world.sample_room(np.random.default_rng(8)), light_angle=0.0, wall_style="plain")
    thing = world.sample_thing(np.random.default_rng(9), kind="mug").posed(x=0.5, y=0.6, scale=0.5)
    one, other = (world.render(world.Scene(room, thing.posed(mirrored=m))) for m in (False, True))
    assert (
        np.array_equal(one.mask > 0.5, (other.mask > 0.5)[:, ::-1])
        or np.abs(one.mask - other.mask[:, ::-1]).mean() < 0.01
    )
