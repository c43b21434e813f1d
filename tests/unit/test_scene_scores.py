"""What scores the new tiny models: the measures of scene_quality and the labels of the classifier."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from inlay.imaging.boxes import Box
from inlay.lab import scenes
from inlay.lab.models import scene_classifier
from inlay.lab.scenes import shapes
from inlay.lab.studies import scene_attention, scene_quality, scene_tint


def task(truth: torch.Tensor, box: Box) -> scene_quality.Task:
    thing = scenes.sample_thing(np.random.default_rng(0))
    return scene_quality.Task(torch.zeros_like(truth), box, thing, torch.zeros(64, 64, 3), truth)


def test_the_step_at_the_edge_is_the_jump_across_the_border():
    image = torch.zeros(16, 16, 3)
    image[4:12, 5:11] = 51 / 255
    assert scene_quality.edge_step(image[None], [task(image, Box(4, 5, 12, 11))]) == [pytest.approx(51)]
    assert scene_quality.edge_step(image[None], [task(image, Box(1, 1, 3, 3))]) == [0]


def test_the_gradient_share_of_the_truth_is_one_and_of_half_the_contrast_a_half():
    truth = torch.rand(16, 16, 3, generator=torch.Generator().manual_seed(0))
    own = task(truth, Box(2, 2, 14, 14))
    shares = scene_quality.gradient_share(torch.stack([truth, truth / 2]), [own, own])
    assert shares == [pytest.approx(1), pytest.approx(0.5)]


def test_psnr_of_a_known_error():
    truth = torch.full((1, 8, 8, 3), 0.5)
    assert scene_quality.psnr(truth + 0.1, truth) == [pytest.approx(20, abs=1e-4)]


def test_held_out_tasks_cover_classes_and_colours():
    tasks = scene_quality.held_out_tasks(12)
    assert [t.thing.kind for t in tasks] == [*scenes.CLASSES, *scenes.CLASSES[:2]]
    assert {t.thing.colour for t in tasks} == set(list(scenes.COLOURS)[:2])
    for own in tasks:
        outside = own.hole < 0.5
        # what the subject changes lies in the box, a faint shadow apart
        assert (own.background - own.truth)[outside].abs().max() <= 26 / 255


def test_the_label_of_an_emblem_says_whether_it_is_seen():
    rng = np.random.default_rng(1)
    right = total = 0
    for _ in range(40):
        side = int(rng.integers(6))
        emblems = tuple("disc" if i == side else "" for i in range(6))
        own = scenes.sample_thing(
            rng, kind="mug", pattern="plain", accessory="none", colour="white", emblems=emblems
        )
        scene = scenes.sample_scene(rng, subject=own, others=0)
        subject = scene.subject
        assert subject
        plain = replace(scene, subject=replace(subject, emblems=()))
        pair = [scenes.render(s, 64).image.astype(int) for s in (scene, plain)]
        changed = (np.abs(pair[0] - pair[1]).max(-1) > 30).sum()
        label = scene_classifier.visible_emblems(subject)[shapes.EMBLEMS.index("disc")]
        right += (changed > 8) == bool(label)
        total += 1
    # an emblem at the very edge, or one behind the handle, may count either way
    assert right / total > 0.85


def test_relatives_differ_and_keep_the_rules_of_things():
    rng = np.random.default_rng(2)
    for _ in range(20):
        group = scene_classifier.sample_group(rng)
        assert len(group) == scene_classifier.GROUP
        for thing in group:
            assert thing.pattern == "plain" or not thing.emblems
            assert len(thing.emblems) in (0, shapes.SIDES.get(thing.kind, 6))


def test_a_crop_without_a_thing_is_found_where_there_is_room():
    rng = np.random.default_rng(3)
    image = np.full((scenes.SIZE, scenes.SIZE, 3), 200, np.uint8)
    anything = np.zeros((scenes.SIZE, scenes.SIZE), bool)
    anything[:, :20] = True
    crop = scene_classifier.empty_crop(rng, image, anything)
    assert crop is not None
    assert crop.shape == (3, scene_classifier.SIZE, scene_classifier.SIZE)
    assert scene_classifier.empty_crop(rng, image, np.ones_like(anything)) is None


def test_the_classifier_names_every_field():
    classifier = scene_classifier.SceneClassifier().eval()
    verdicts = classifier.describe(torch.rand(2, 3, 80, 80), torch.ones(2, 80, 80))
    for verdict in verdicts:
        for name, names in scene_classifier.NAMES.items():
            assert getattr(verdict, name) in names
    embedding = classifier(torch.rand(3, 3, 40, 40))
    assert torch.allclose(embedding.norm(dim=1), torch.ones(3), atol=1e-5)


def test_a_twin_has_the_subject_s_looks_and_stands_clear_of_its_box():
    both, alone = scene_attention.twin_scenes(0)
    assert alone == replace(both, others=())
    subject, [other] = both.subject, both.others
    assert subject
    assert (other.kind, other.colour, other.pattern) == (subject.kind, subject.colour, subject.pattern)
    picture = scenes.render(both)
    reach = picture.reach()
    assert reach
    inside = picture.masks[1][Box(*reach).slices]
    assert inside.sum() < 0.01 * picture.masks[1].sum()


def test_shading_is_the_relative_step_between_the_halves():
    image, mask = torch.zeros(1, 8, 8, 3), torch.zeros(1, 8, 8)
    mask[:, 2:6, 1:7] = 1
    image[:, :, :4], image[:, :, 4:] = 0.2, 0.6
    assert scene_attention.shading(image, mask).item() == pytest.approx(2 * 0.4 / 0.8)
    assert scene_attention.shading(image.flip(2), mask).item() == pytest.approx(-1.0)
    # what lies outside of the outline does not count
    image[:, :, 7] = 1.0
    assert scene_attention.shading(image, mask).item() == pytest.approx(1.0)


def test_the_lamp_s_side_of_a_thing_is_the_brighter_one():
    right = 0
    for seed in range(12):
        scene = scene_attention.lit_scene(seed)
        picture = scenes.render(scene)
        image = scene_quality.as_image(picture.image)[None]
        side = scene_attention.shading(image, torch.from_numpy(picture.mask > 0.5).float()[None])
        right += int((side.item() > 0) == (scene.room.lamp[0] > 0))
    # chance would give 6; a trim or a dark part can outweigh the light
    assert right >= 10


def test_the_part_of_a_shift_along_a_tint():
    shift = torch.tensor([[50.0, 3.0, 4.0], [0.0, 1.0, -1.0]])
    tints = torch.tensor([[0.6, 0.8], [0.6, 0.8]])
    assert scene_tint.along(shift, tints).tolist() == pytest.approx([5.0, -0.2])  # lightness does not count


def test_the_colour_under_an_outline_is_its_median():
    image, mask = torch.zeros(1, 6, 6, 3), torch.zeros(1, 6, 6)
    mask[:, 1:4, 1:4] = 1
    image[:, 1:4, 1:4] = 1.0
    image[:, 1, 1] = torch.tensor([1.0, 0.0, 0.0])
    assert scene_tint.lab_colour(image, mask)[0].tolist() == pytest.approx([100, 0, 0], abs=0.05)


def test_a_subject_painted_truly_leaks_nothing_and_a_tinted_copy_does():
    subject = scene_tint.tinted_subject(0, 1)
    grey, tinted = (stacked_truth(tasks) for tasks in (subject.grey, subject.tinted))
    assert not torch.equal(grey, tinted)
    true = scene_tint.shifts(grey, tinted, subject)
    assert true[scene_tint.COVERED].item() > 0.9
    nothing = scene_tint.leaks(true, true)
    assert nothing[scene_tint.LEAK] == nothing[scene_tint.WHOLE] == 0
    leaked = torch.where(subject.outlines[..., None] > 0.5, 0.8 * tinted + 0.2 * wall_of(subject), tinted)
    leak = scene_tint.leaks(scene_tint.shifts(grey, leaked, subject), true)
    assert leak[scene_tint.LEAK] > 2
    assert leak[scene_tint.WHOLE] > 2


def test_where_nothing_is_painted_the_room_s_colour_is_no_leak():
    """A third of the thing is there, and elsewhere under its outline the empty room."""
    subject = scene_tint.tinted_subject(1, 1)
    whole = subject.outlines.flatten()
    third = (whole * (whole.cumsum(0) < 0.33 * whole.sum())).view_as(subject.outlines)
    grey, tinted = (
        torch.where(third[..., None] > 0.5, stacked_truth(tasks), scene_quality.stacked(tasks, "background"))
        for tasks in (subject.grey, subject.tinted)
    )
    true = scene_tint.shifts(stacked_truth(subject.grey), stacked_truth(subject.tinted), subject)
    leak = scene_tint.leaks(scene_tint.shifts(grey, tinted, subject), true)
    assert 0.2 < leak[scene_tint.COVERED] < 0.34
    assert abs(leak[scene_tint.LEAK]) < 0.2 * abs(leak[scene_tint.WHOLE])


def stacked_truth(tasks) -> torch.Tensor:
    return scene_quality.stacked(tasks, "truth")


def wall_of(subject: scene_tint.TintedSubject) -> torch.Tensor:
    """The commonest colour of the tinted room."""
    return subject.tinted[0].background.flatten(0, 1).median(0).values
