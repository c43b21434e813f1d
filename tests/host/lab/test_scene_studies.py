"""The studies of the world of `scenes` run from end to end on untrained models."""

import pytest
import torch

from inlay.lab import scenes
from inlay.lab.models import assemble
from inlay.lab.models.scene_classifier import SceneClassifier
from inlay.lab.studies import (
    scene_attention,
    scene_closeup,
    scene_edits,
    scene_paste,
    scene_quality,
    scene_subjects,
    scene_tint,
)


@pytest.fixture(scope="module")
def models(in_process_host, tmp_path_factory):
    """A folder with the untrained models, written once."""
    folder = tmp_path_factory.mktemp("scenes")
    assemble.assemble(assemble.random_parts(0), folder)
    return folder


@pytest.fixture(scope="module")
def painter(models):
    """The untrained Fill model, opened by the host's loaders."""
    return scene_quality.Painter("fill", models)


def test_words_study(painter):
    """Every way has its figures; the mask changes the picture."""
    bench = scene_attention.SceneBench(painter, steps=1)
    table, picture = scene_attention.words_study(bench, SceneClassifier().eval(), 1)
    assert len(table.rows) == 5
    assert all(len(values) == 1 for row in table.rows.values() for values in row.values())
    assert "Manipulation check" in table.markdown()
    assert picture.width > picture.height > 0


def test_a_mask_changes_what_is_painted_in_the_box_and_nothing_outside(painter):
    both, _ = scene_attention.twin_scenes(0)
    tasks = [scene_quality.task_of(both, scene_attention.photos(0))]
    bench = scene_attention.SceneBench(painter, steps=2)
    free, masked = (bench.paint(tasks, masking) for masking in scene_attention.WORDS.values())
    changed = (free != masked).any(-1)[0]
    hole = tasks[0].hole > 0.5
    assert changed[hole].any()
    assert not changed[~hole].any()


@pytest.mark.parametrize("kind", ["unet", "fill"])
def test_a_subject_is_learned_and_painted_in_grey_and_in_tinted_rooms(models, kind, monkeypatch):
    two = {way: scene_tint.WAYS[kind][way] for way in ("(a) none", "(b) all")}
    monkeypatch.setitem(scene_tint.WAYS, kind, two)
    painter = scene_quality.Painter(kind, models)
    choices = scene_tint.TintChoices(1, 4, 1e-3, 1, 1, 1, "untrained")
    pictures, numbers = scene_tint.measure_subject(painter, 0, choices)
    assert {way for way in pictures if not way.endswith("grey room")} == {*two, "truth"}
    assert {*numbers} == {*two, "the truth"}
    assert all(image.shape == (1, scenes.SIZE, scenes.SIZE, 3) for image in pictures.values())
    assert not torch.equal(pictures["(a) none"], pictures["(b) all"])
    assert all(set(numbers[way]) == {scene_tint.LEAK, scene_tint.WHOLE, scene_tint.COVERED} for way in two)
    assert all(0 <= numbers[way][scene_tint.COVERED] <= 1 for way in two)
    empty = {row: {name: float("nan") for name in own} for row, own in numbers.items()}
    seen = {row: {name: 0.5 for name in own} for row, own in numbers.items()}
    text = scene_tint.tint_table([seen, empty, seen], choices, kind).markdown()
    assert "2 subjects x 1 scenes" in text
    assert "Left out: 1 subjects" in text


def test_photo_study(models):
    """The whole picture is painted anew, and differently where the photo acts in the box only."""
    bench = scene_attention.SceneBench(scene_quality.Painter("edit", models), steps=1)
    table, _ = scene_attention.photo_study(bench, SceneClassifier().eval(), 2)
    everywhere, words, apart, paper = table.rows.values()
    assert all(value > 0 for value in everywhere["change outside, 1/255"])
    assert everywhere["change outside, 1/255"] != words["change outside, 1/255"]
    assert all(-1 <= value <= 1 for row in table.rows.values() for value in row["subject similarity"])
    assert all(min(row["influence inside"]) > 0 for row in table.rows.values())
    assert min(everywhere["influence outside"]) > 0
    assert apart["influence outside"] == [0, 0]  # no token outside sees one that the photo reaches
    assert min(paper["influence outside"]) > 0  # there every key counts in the softmax


def test_pasting_leaves_no_change_outside(models):
    bench = scene_attention.SceneBench(scene_quality.Painter("edit", models), steps=1)
    table, picture = scene_paste.paste_study(bench, 2)
    before, *pasted = table.rows.values()
    assert all(value > 0 for value in before[scene_paste.OUTSIDE])
    for row in pasted:
        assert row[scene_paste.OUTSIDE] == [0, 0]
        assert row[scene_paste.SHARE] == [0, 0]
    assert picture.width > picture.height > 0


@pytest.mark.parametrize("kind", ["fill", "edit"])
def test_a_subject_is_learned_by_a_transformer_and_painted_in_every_way(models, kind):
    painter = scene_quality.Painter(kind, models)
    choices = scene_subjects.SubjectChoices(kind, 1, 4, 1e-2, 1, 2, 1, "untrained")
    pictures, numbers = scene_subjects.measure_subject(painter, SceneClassifier().eval(), 0, choices)
    assert set(pictures) == set(numbers) == {*scene_subjects.WAYS[kind], "truth"}
    assert numbers["truth"][scene_subjects.SIMILARITY] == pytest.approx(1, abs=1e-5)
    different = [pictures[way] for way in scene_subjects.WAYS[kind]]
    for index, image in enumerate(different):
        assert image.shape == (2, scenes.SIZE, scenes.SIZE, 3)
        assert all(not torch.equal(image, other) for other in different[index + 1 :])
    table = scene_subjects.subject_table([numbers, numbers], choices, "a classifier")
    assert "LoRA" in table.markdown()


def test_boxes_of_the_asked_size_are_painted_in_every_view(painter):
    choices = scene_closeup.CloseUpChoices(0.08, 1, scene_closeup.CANVAS, 2, 1.0, "untrained")
    pictures, numbers = scene_closeup.measure_subject(painter, SceneClassifier().eval(), 0, choices)
    assert set(pictures) == {*scene_closeup.VIEWS, "the truth"} == set(numbers)
    task = scene_closeup.small_task(0, 0, 0.08)
    assert float(task.hole.mean()) == pytest.approx(0.08, rel=0.15)
    for row in scene_closeup.VIEWS:
        changed = (pictures[row][0] != task.background).any(-1)
        assert changed[task.hole > 0.5].any()
        reach = scene_closeup.SOFT_EDGE + 16  # the node grows the hole, and to whole latent cells
        near = torch.nn.functional.max_pool2d(task.hole[None, None], 2 * reach + 1, 1, reach)[0, 0]
        assert not changed[near == 0].any()
    assert numbers["the truth"][scene_closeup.GRADIENT] == pytest.approx(1)


@pytest.mark.parametrize("study", ["words", "data"])
def test_edits_of_a_learned_subject_are_painted_in_every_way(painter, study, monkeypatch):
    monkeypatch.setattr(scene_edits, "REGULAR_PROMPTS", 2)
    monkeypatch.setattr(scene_edits, "REGULAR_EACH", 1)
    choices = scene_edits.EditChoices(study, 2, 4, 1e-2, 1, 1, 1, "untrained")
    measure, tabulated, ways = scene_edits.STUDIES[study]
    pictures, numbers = measure(painter, SceneClassifier().eval(), 0, choices)
    assert {*ways, "truth"} == set(pictures)
    assert {*ways} <= set(numbers)
    different = [pictures[way] for way in ways]
    for index, image in enumerate(different):
        alike = [way for way, other in zip(ways[index + 1 :], different[index + 1 :], strict=True)
                 if torch.equal(image, other)]  # fmt: skip
        assert not alike, f"{ways[index]} is painted like {alike}"
    assert "standard errors" in tabulated([numbers, numbers], choices, "a classifier").markdown()


def test_an_edit_contradicts_every_word_of_the_subject():
    subject = scene_edits.edited_subject(3, 4)
    own = set(scenes.looks_of(subject.thing))
    assert len(own) == 2
    for task, other in zip(subject.edits, subject.others, strict=True):
        new = set(scenes.looks_of(task.thing))
        assert len(new) == len(set(other.split())) == 2
        assert not own & new
        assert not own & set(other.split())
        assert not new & set(other.split())
        assert task.thing.shape == subject.thing.shape
        assert scene_edits.TOKEN in scene_edits.edit_prompt(task).split()
