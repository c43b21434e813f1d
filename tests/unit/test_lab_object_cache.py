"""Where the examples of mask-free insertion put their objects."""

from dataclasses import replace

import numpy as np
import pytest

from inlay.lab import scenes
from inlay.lab.models import object_cache


@pytest.mark.parametrize("seed", range(8))
def test_the_object_stands_in_the_middle_of_the_widest_gap(seed):
    rng = np.random.default_rng(seed)
    scene = scenes.sample_scene(rng)
    other = scenes.sample_thing(rng).posed(x=(-0.8, 0.8)[seed % 2], z=0.0, scale=0.5)
    placed = object_cache.in_gap(rng, replace(scene, others=(other,)))
    assert placed is not None
    subject, others = object_cache.outlines(placed)
    taken = np.flatnonzero(others.any(0))
    gap = (taken[-1] + 1, scenes.SIZE) if seed % 2 == 0 else (0, taken[0])
    columns = np.flatnonzero(subject.any(0))
    middle, wanted = (columns[0] + columns[-1] + 1) / 2, sum(gap) / 2
    # a thing that is seen at an angle is not symmetric about its axis
    assert abs(middle - wanted) <= 5 * object_cache.JITTER * scenes.SIZE + 0.15 * len(columns)
    assert len(columns) <= gap[1] - gap[0]
    assert object_cache.covered(placed) <= object_cache.COVERED


def test_a_narrow_gap_is_none():
    rng = np.random.default_rng(0)
    scene = scenes.sample_scene(rng)
    others = tuple(scenes.sample_thing(rng).posed(x=x, z=0.3, scale=0.7) for x in (-0.5, 0.5))
    assert object_cache.in_gap(rng, replace(scene, others=others)) is None
