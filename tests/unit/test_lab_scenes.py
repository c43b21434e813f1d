"""The tiny world: its solids, its light, what a picture says of itself, and its captions."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.lab import scenes
from inlay.lab.scenes import shapes
from inlay.lab.scenes.render import Camera, Solid, bounds

ROOM = scenes.Room(
    wall=(0.7, 0.7, 0.7), floor=(0.5, 0.5, 0.5), camera_height=1.3, lamp=(-1.0, 1.4, 0.0),
    lamp_colour=(1.0, 1.0, 1.0), ambient=0.4, brightness=1.0, wall_style="plain", wall_phase=0.5,
)  # fmt: skip


def thing(**fixed) -> scenes.Thing:
    plain = {"kind": "ball", "colour": "white", "pattern": "plain", "trim": "navy", "accessory": "none"}
    chosen = {**plain, "shape": (0.0, 0.0, 0.0), "pattern_phase": 0.0, "scale": 0.9, **fixed}
    return scenes.Thing(**chosen)


def points(seed: int, count: int = 4000):
    """Random points of the box that holds every object, float32."""
    rng = np.random.default_rng(seed)
    return tuple(
        rng.uniform(low, high, count).astype(np.float32)
        for low, high in ((-1.1, 1.1), (-0.1, 2.0), (-1.1, 1.1))
    )


@pytest.mark.parametrize("kind", scenes.CLASSES)
@pytest.mark.parametrize("accessory", scenes.ACCESSORIES)
def test_a_distance_never_exceeds_the_way_to_the_surface(kind, accessory):
    """Sphere tracing steps by the distance: where two points differ by d, the distances differ by about d."""
    solid = Solid(thing(kind=kind, accessory=accessory, shape=(0.8, -0.7, 0.9)))
    p = points(1)
    rng = np.random.default_rng(2)
    step = rng.normal(size=(3, len(p[0]))).astype(np.float32)
    step *= 0.02 / np.linalg.norm(step, axis=0)
    near = tuple(a + s for a, s in zip(p, step, strict=True))
    distance = solid.distance(p)
    outside = distance > 0.03
    change = np.abs(solid.distance(near) - distance)[outside]
    assert np.quantile(change, 0.99) < 0.02 * 1.12
    assert (distance < 0).any()


@pytest.mark.parametrize("kind", scenes.CLASSES)
def test_an_object_stays_within_its_extent(kind):
    """The bounding sphere and the size in the picture come from the extent."""
    for seed in range(4):
        shape = tuple(np.random.default_rng(seed).uniform(-1, 1, 3))
        own = thing(kind=kind, shape=shape, accessory=scenes.ACCESSORIES[seed])
        p = points(seed, 30000)
        inside = Solid(own).distance(p) < 0
        half, height = own.extent
        assert np.hypot(p[0], p[2])[inside].max() < half + 0.03
        assert p[1][inside].max() < height + 0.03
        assert p[1][inside].min() > -0.06


def test_the_same_scene_gives_the_same_picture():
    scene = scenes.sample_scene(np.random.default_rng(3))
    first, second = scenes.render(scene, 64), scenes.render(scene, 64)
    assert (first.image == second.image).all()
    assert len(first.masks) == len(scene.things)


@settings(max_examples=12)
@given(st.integers(0, 10_000))
def test_masks_lie_in_unit_range_and_do_not_overlap(seed):
    picture = scenes.render(scenes.sample_scene(np.random.default_rng(seed)), 48)
    total = np.sum(picture.masks, axis=0)
    assert total.min() >= 0
    assert total.max() <= 1 + 1e-5
    assert picture.image.dtype == np.uint8


@settings(max_examples=12)
@given(st.integers(0, 10_000))
def test_without_its_subject_a_picture_changes_only_within_reach(seed):
    """A hole that covers the reach leaves no trace of the subject outside, a faint shadow apart."""
    scene = scenes.sample_scene(np.random.default_rng(seed))
    full, empty = scenes.render(scene, 64), scenes.render(replace(scene, subject=None), 64)
    reach = full.reach()
    if reach is None:
        return
    top, left, bottom, right = reach
    change = np.abs(full.image.astype(int) - empty.image).max(-1)
    change[top:bottom, left:right] = 0
    assert change.max() <= 26


def test_the_side_towards_the_lamp_is_brighter():
    """The lamp decides the shading: a ball lit from the left is brighter at the left, and the reverse."""
    for side in (-1, 1):
        room = replace(ROOM, lamp=(side * 1.0, 1.4, 0.2))
        picture = scenes.render(scenes.Scene(room, thing()))
        assert picture.box
        top, left, bottom, right = picture.box
        middle = (left + right) // 2
        seen = picture.mask[top:bottom, left:right] > 0.9
        bright = picture.image[top:bottom, left:right].mean(-1)
        halves = [bright[:, a:b][seen[:, a:b]].mean() for a, b in ((0, middle - left), (middle - left, None))]
        assert (halves[0] - halves[1]) * -side > 25


def test_the_lamp_is_in_the_picture():
    for seed in range(20):
        room = scenes.sample_room(np.random.default_rng(seed))
        column, row, _ = Camera(room.camera_height, 128).project(room.lamp)
        assert 0.02 < column < 0.98
        assert 0.0 < row < 0.5
        assert abs(column - 0.5) > 0.25


def test_an_object_shadows_the_floor_beside_it():
    scene = scenes.Scene(ROOM, thing(scale=0.7))
    picture = scenes.render(scene)
    box, reach = picture.box, picture.reach()
    assert box
    assert reach
    # the lamp is at the left, so the shadow falls to the right
    assert reach[3] > box[3] + 3
    assert reach[1] >= box[1] - 3


def test_an_emblem_is_seen_from_its_own_side_only():
    marked = thing(kind="mug", emblems=("disc", "", "", "", "", ""), emblem_colour="navy", colour="white")
    plain = replace(marked, emblems=())
    for yaw, seen in ((0.0, True), (np.pi, False)):
        pair = [
            scenes.render(scenes.Scene(ROOM, t.posed(yaw=yaw)), 64).image.astype(int) for t in (marked, plain)
        ]
        assert (np.abs(pair[0] - pair[1]).max() > 60) == seen


def test_another_side_gives_another_picture_of_the_same_thing():
    views = [scenes.render(scenes.Scene(ROOM, thing(kind="duck", yaw=yaw)), 64) for yaw in (0.0, 1.5, 3.1)]
    for one, other in ((0, 1), (1, 2)):
        assert np.abs(views[one].mask - views[other].mask).sum() > 50


def test_no_caption_names_an_emblem_or_a_trim():
    for seed in range(200):
        words = scenes.caption(scenes.sample_thing(np.random.default_rng(seed))).split()
        assert not set(words) & {*shapes.EMBLEMS, *scenes.TRIMS}


def test_captions():
    mug = thing(kind="mug", colour="orange", pattern="striped", accessory="hat")
    assert scenes.caption(mug) == "a photo of an orange striped mug wearing a hat"
    assert scenes.caption(mug, "sks") == "a photo of a sks mug"


def test_bounds():
    mask = np.zeros((6, 8), bool)
    assert bounds(mask) is None
    mask[2:4, 5] = True
    assert bounds(mask) == (2, 5, 4, 6)
