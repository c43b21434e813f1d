"""Where the examples of mask-free insertion put their objects."""

from dataclasses import replace

import numpy as np
import pytest

from inlay.lab import world
from inlay.lab.models import object_cache as object_bank


@pytest.mark.parametrize("seed", range(8))
def test_the_object_stands_in_the_middle_of_the_widest_gap(seed):
    rng = np.random.default_rng(seed)
    scene = world.sample_scene(rng, others=1)
    other = scene.others[0].posed(x=(0.15, 0.85)[seed % 2], scale=0.3)
    placed = object_bank.in_gap(rng, replace(scene, others=(other,)))
    assert placed is not None
    assert placed.subject is not None
    taken = np.flatnonzero(object_bank.outlines(placed)[1].any(0))
    gap = (taken[-1] + 1, world.SIZE) if seed % 2 == 0 else (0, taken[0])
    middle = sum(gap) / 2 / world.SIZE
    assert placed.subject.x == pytest.approx(middle, abs=5 * object_bank.JITTER)
    assert placed.subject.scale * world.SIZE <= gap[1] - gap[0]


def test_a_narrow_gap_is_none():
    rng = np.random.default_rng(0)
    scene = world.sample_scene(rng, others=2)
    others = tuple(o.posed(x=x, scale=0.45) for o, x in zip(scene.others, (0.25, 0.75), strict=True))
    assert object_bank.in_gap(rng, replace(scene, others=others)) is None
