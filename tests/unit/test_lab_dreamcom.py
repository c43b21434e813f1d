"""The lab's two tables, without a model: held-out tasks, what the truth scores, and going on after a stop."""

from dataclasses import astuple

import pytest
import torch

from inlay.lab import world
from inlay.lab.models.classifier import load_judge
from inlay.lab.studies import dreamcom, quality

CHOICES = dreamcom.Choices("DreamCom", 150, 16, 1e-3, 4, 4, 2, "euler", "normal", 20, 4.0, "0123")


@pytest.fixture(scope="module")
def judge():
    return load_judge()


@pytest.fixture(scope="module")
def subject():
    return dreamcom.held_out_subject(0, references=3, backgrounds=2)


def test_held_out_tasks_are_the_same_every_time_and_spread_over_classes_and_colours():
    tasks, again = quality.held_out_tasks(80), quality.held_out_tasks(9)
    assert {(t.thing.kind, t.thing.colour) for t in tasks} == {
        (kind, colour) for kind in world.CLASSES for colour in world.COLOURS
    }
    for one, other in zip(tasks, again, strict=False):
        for name in ("background", "hole", "truth", "truth_mask"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_a_tasks_background_lacks_the_subject_and_its_box_holds_it():
    for task in quality.held_out_tasks(16):
        assert (task.truth_mask <= task.hole).all()
        changed = (task.truth - task.background).abs().amax(-1)
        assert changed[task.truth_mask > 0.5].mean() > 0.05
        near = torch.nn.functional.max_pool2d(task.hole[None], 5, 1, 2)[0]  # its soft edge lies in here
        brighter = (task.truth - task.background).amax(-1) > 0.01
        assert not (brighter & (near < 0.5)).any()  # further out there is its shadow, at most


def test_the_truth_is_judged_right_and_an_empty_room_wrong(judge):
    tasks = quality.held_out_tasks(40)
    truth, _ = quality.judged(judge, quality.stacked(tasks, "truth"), tasks)
    empty, _ = quality.judged(judge, quality.stacked(tasks, "background"), tasks)
    assert sum(truth["class and colour"]) >= 36
    assert sum(empty["class and colour"]) <= 8


def test_a_subject_is_one_thing_in_all_its_pictures(subject):
    assert subject.references.shape == (3, world.SIZE, world.SIZE, 3)
    things = [task.thing for task in subject.tasks]
    assert all(astuple(t)[:8] == astuple(subject.thing)[:8] for t in things)  # all but the pose
    assert things[0] != things[1]


def test_the_truth_has_no_colour_error_and_is_more_like_the_subject_than_the_empty_room(judge, subject):
    truth = dreamcom.measured(judge, subject, quality.stacked(subject.tasks, "truth"))
    empty = dreamcom.measured(judge, subject, quality.stacked(subject.tasks, "background"))
    assert truth["dE00"] == pytest.approx(0, abs=1e-6)
    assert empty["dE00"] > 5
    assert empty["background SSIM"] == pytest.approx(1, abs=1e-5)
    assert truth[dreamcom.LIKENESS] > empty[dreamcom.LIKENESS] + 0.4


def test_the_table_states_the_paired_gain_in_standard_errors(judge):
    def result(plain, tuned):
        rows = {row: {dreamcom.LIKENESS: plain} for row in (*dreamcom.ROWS, dreamcom.CEILING)}
        return {
            **rows,
            dreamcom.TUNED: {dreamcom.LIKENESS: tuned - 0.1},
            dreamcom.TUNED_MASKED: {dreamcom.LIKENESS: tuned},
        }

    table = dreamcom.dreamcom_table([result(0.1, 0.5), result(0.3, 0.9), result(0.2, 0.6)], judge, CHOICES)
    text = table.markdown()
    assert "gains 0.467 +- 0.067 in similarity (7.0 standard errors)" in text
    assert judge.name in text
