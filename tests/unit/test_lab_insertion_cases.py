"""Where something new stands in a picture, and whether it is the right thing in a free place."""

from dataclasses import replace

import pytest
import torch

from inlay.lab.models.classifier import trained_classifier
from inlay.lab.scenes import CLASSES
from inlay.lab.studies.insertion_cases import HELD, found, held_out_scene, kind_and_others, measured


@pytest.fixture(scope="module")
def scenes():
    return [held_out_scene(index) for index in range(8)]


def test_the_largest_patch_that_changed_is_found():
    before = torch.rand(128, 128, 3)
    after = before.clone()
    after[10:40, 20:50] = 1 - after[10:40, 20:50].round()
    after[70:75, 70:75] = 1 - after[70:75, 70:75].round()
    patch = found(after, before)
    assert patch is not None
    assert patch[12:38, 22:48].mean() > 0.9
    assert not patch[60:].any()
    assert found(before, before) is None
    assert found(before + 0.02, before) is None  # the autoencoder's own error is nothing new


def test_scenes_have_things_about_and_a_free_place(scenes):
    for index, scene in enumerate(scenes):
        assert scene.others.any()
        assert (scene.truth_mask * scene.others).sum() <= 0.05 * scene.others.sum()
        assert torch.equal(scene.source, held_out_scene(index).source)


def test_every_class_meets_one_thing_and_two():
    met = [kind_and_others(index) for index in range(2 * len(CLASSES))]
    assert sorted(met) == sorted((kind, others) for kind in CLASSES for others in (1, 2))


def test_a_picture_that_is_spoiled_evenly_is_not_kept(scenes):
    """No patch changed, and yet not every pixel is what it was."""
    scene = scenes[0]
    noise = 0.1 * torch.rand(scene.source.shape, generator=torch.Generator().manual_seed(0))
    numbers = measured(trained_classifier(None), scene, (scene.source + noise).clamp(0, 1), scene.source)
    assert numbers["there"] == 0
    assert numbers["kept"] < 0.95


def test_the_truth_counts_as_inserted_and_the_source_does_not(scenes):
    classifier = trained_classifier(None)
    truth = [measured(classifier, scene, scene.truth, scene.source) for scene in scenes]
    assert sum(one["there"] for one in truth) == len(scenes)
    assert sum(one[HELD] for one in truth) >= len(scenes) - 2
    assert all(one["kept"] > 0.9 for one in truth)
    nothing = [measured(classifier, scene, scene.source, scene.source) for scene in scenes]
    assert all(one[HELD] == one["there"] == 0 for one in nothing)
    assert all(one["kept"] == pytest.approx(1, abs=1e-3) for one in nothing)


def test_a_thing_on_top_of_another_is_in_no_free_place(scenes):
    classifier = trained_classifier(None)
    covered = [replace(scene, others=scene.truth_mask) for scene in scenes]
    assert not any(measured(classifier, s, s.truth, s.source)[HELD] for s in covered)
