"""The studies of the tiny world run from end to end on untrained models."""

import importlib
import shlex
from types import SimpleNamespace

import pytest
import torch

from inlay.imaging.boxes import Box
from inlay.lab import scenes
from inlay.lab.models import assemble
from inlay.lab.models.classifier import SceneClassifier
from inlay.lab.studies import (
    attention,
    closeup,
    edits,
    finetune,
    lamp,
    paste,
    quality,
    subjects,
    tint,
)
from inlay.lab.studies.result_cache import keep
from inlay.lab.studies.study import subject_file
from inlay.training.finetune.recipes import RECIPES


@pytest.fixture(scope="module")
def models(in_process_host, tmp_path_factory):
    """A folder with the untrained models, written once."""
    folder = tmp_path_factory.mktemp("scenes")
    assemble.assemble(assemble.random_parts(0), folder)
    return folder


@pytest.fixture(scope="module")
def painter(models):
    """The untrained Fill model, opened by the host's loaders."""
    return quality.Inpainter("fill", models)


def test_words_study(painter):
    """Every way has its figures; the mask changes the picture."""
    bench = attention.SceneBench(painter, steps=1)
    table, picture = attention.words_study(bench, SceneClassifier().eval(), 1)
    assert len(table.rows) == 5
    assert all(len(values) == 1 for row in table.rows.values() for values in row.values())
    assert "Manipulation check" in table.markdown()
    assert picture.width > picture.height > 0


def test_a_mask_changes_what_is_painted_in_the_box_and_nothing_outside(painter):
    both, _ = attention.twin_scenes(0)
    tasks = [quality.task_of(both, attention.photos(0))]
    bench = attention.SceneBench(painter, steps=2)
    free, masked = (bench.paint(tasks, masking) for masking in attention.WORDS.values())
    changed = (free != masked).any(-1)[0]
    hole = tasks[0].hole > 0.5
    assert changed[hole].any()
    assert not changed[~hole].any()


@pytest.mark.parametrize("kind", ["unet", "fill"])
def test_a_subject_is_learned_and_painted_in_grey_and_in_tinted_rooms(models, kind, monkeypatch):
    two = {way: tint.WAYS[kind][way] for way in ("(a) none", "(b) all")}
    monkeypatch.setitem(tint.WAYS, kind, two)
    painter = quality.Inpainter(kind, models)
    choices = tint.TintChoices(1, 4, 1e-3, 1, 1, 1, "untrained")
    pictures, numbers = tint.measure_subject(painter, 0, choices)
    assert {way for way in pictures if not way.endswith("grey room")} == {*two, "truth"}
    assert {*numbers} == {*two, "the truth"}
    assert all(image.shape == (1, scenes.SIZE, scenes.SIZE, 3) for image in pictures.values())
    assert not torch.equal(pictures["(a) none"], pictures["(b) all"])
    assert all(set(numbers[way]) == {tint.LEAK, tint.WHOLE, tint.COVERED} for way in two)
    assert all(0 <= numbers[way][tint.COVERED] <= 1 for way in two)
    empty = {row: {name: float("nan") for name in own} for row, own in numbers.items()}
    seen = {row: {name: 0.5 for name in own} for row, own in numbers.items()}
    text = tint.tint_table([seen, empty, seen], choices, kind).markdown()
    assert "2 subjects x 1 scenes" in text
    assert "Left out: 1 subjects" in text


def test_photo_study(models):
    """The whole picture is painted anew, and differently where the photo acts in the box only."""
    bench = attention.SceneBench(quality.Inpainter("edit", models), steps=1)
    table, _ = attention.photo_study(bench, SceneClassifier().eval(), 2)
    everywhere, words, apart, paper = table.rows.values()
    assert all(value > 0 for value in everywhere["change outside, 1/255"])
    assert everywhere["change outside, 1/255"] != words["change outside, 1/255"]
    assert all(-1 <= value <= 1 for row in table.rows.values() for value in row["subject similarity"])
    assert all(min(row["influence inside"]) > 0 for row in table.rows.values())
    assert min(everywhere["influence outside"]) > 0
    assert apart["influence outside"] == [0, 0]  # no token outside sees one that the photo reaches
    assert min(paper["influence outside"]) > 0  # there every key counts in the softmax


def test_pasting_leaves_no_change_outside(models):
    bench = attention.SceneBench(quality.Inpainter("edit", models), steps=1)
    table, picture = paste.paste_study(bench, 2)
    before, *pasted = table.rows.values()
    assert all(value > 0 for value in before[paste.OUTSIDE])
    for row in pasted:
        assert row[paste.OUTSIDE] == [0, 0]
        assert row[paste.SHARE] == [0, 0]
    assert picture.width > picture.height > 0


@pytest.mark.parametrize("kind", ["unet", "fill", "edit"])
def test_a_subject_is_learned_and_painted_in_every_way(models, kind):
    painter = quality.Inpainter(kind, models)
    choices = subjects.SubjectChoices(kind, 1, 4, 1e-2, 1, 2, 1, "untrained")
    pictures, numbers = subjects.measure_subject(painter, SceneClassifier().eval(), 0, choices)
    assert set(pictures) == set(numbers) == {*subjects.WAYS[kind], "truth"}
    assert numbers["truth"][subjects.SIMILARITY] == pytest.approx(1, abs=1e-5)
    different = [pictures[way] for way in subjects.WAYS[kind]]
    for index, image in enumerate(different):
        assert image.shape == (2, scenes.SIZE, scenes.SIZE, 3)
        assert all(not torch.equal(image, other) for other in different[index + 1 :])
    table = subjects.subject_table([numbers, numbers], choices, "a classifier")
    assert "LoRA" in table.markdown()


def test_boxes_of_the_asked_size_are_painted_in_every_view(painter):
    choices = closeup.CloseUpChoices("8 %", 0.08, 1, closeup.CANVAS, 2, 1.0, "untrained")
    pictures, numbers = closeup.measure_subject(painter, SceneClassifier().eval(), 0, choices)
    assert set(pictures) == {*closeup.VIEWS, "the truth"} == set(numbers)
    task = closeup.small_task(0, 0, 0.08)
    assert float(task.hole.mean()) == pytest.approx(0.08, rel=0.15)
    for row in closeup.VIEWS:
        changed = (pictures[row][0] != task.background).any(-1)
        assert changed[task.hole > 0.5].any()
        reach = closeup.SOFT_EDGE + 16  # the node grows the hole, and to whole latent cells
        near = torch.nn.functional.max_pool2d(task.hole[None, None], 2 * reach + 1, 1, reach)[0, 0]
        assert not changed[near == 0].any()
    assert numbers["the truth"][closeup.GRADIENT] == pytest.approx(1)


def test_a_lamp_lies_outside_the_close_up_and_lights_the_thing_from_its_side(painter):
    choices = lamp.LampChoices(lamp.AREA, closeup.CANVAS, 2, 1.0, "untrained")
    pictures, numbers = lamp.measure_scene(painter, SceneClassifier().eval(), 0, choices)
    assert {*pictures} == {*numbers} == {*lamp.SHARES, lamp.DECODED, lamp.TRUTH}
    task = lamp.lamp_task(0)
    light = task.background.mean(-1)
    bulb = (light == light.max()).nonzero().float().mean(0)  # the brightest place of the empty room
    close, window = (view.box for view in lamp.views_of(task.box))
    assert lamp.within(window, *bulb.tolist())
    assert not lamp.within(close, *bulb.tolist())
    assert float(task.hole.mean()) == pytest.approx(lamp.AREA, rel=0.3)
    lit = attention.shading(task.truth[None], task.outline[None])
    side = float(bulb[1]) - task.outline.nonzero()[:, 1].float().mean()
    assert lit.sign() == side.sign()
    assert numbers[lamp.TRUTH][lamp.SHADING] == 0
    assert numbers[lamp.TRUTH][lamp.SIDE] == 1
    assert numbers[lamp.DECODED][lamp.SIDE] == 1  # the shipped autoencoder keeps the light
    text = lamp.lamp_table([numbers, numbers], choices, "a classifier").markdown()
    assert "2 scenes of 256 px" in text
    assert "Manipulation check" in text


@pytest.mark.parametrize(
    ("row", "column", "radius", "touches"),
    [(5, 5, 0, True), (12, 5, 0, False), (13, 14, 4.9, False), (13, 14, 5, True)],
)
def test_a_disc_touches_a_box(row, column, radius, touches):
    assert lamp.within(Box(0, 0, 10, 10), row, column, radius) == touches


def test_every_view_stands_under_its_name(tmp_path):
    choices = closeup.CloseUpChoices("8 %", 0.08, 1, closeup.CANVAS, 2, 1.0, "untrained")
    rows = (*closeup.VIEWS, "the truth")
    pictures = {row: torch.full((1, 9, 9, 3), 0.2 * place) for place, row in enumerate(rows)}
    keep(subject_file(tmp_path, 0), choices, pictures, {})
    [cell] = closeup.shown_cells(tmp_path, choices, 1)
    assert [picture.getpixel((70, 70)) for picture in cell.pictures[1:]] == [
        (51 * place,) * 3 for place in range(len(rows))
    ]


def test_shares_of_the_close_up_are_rows_of_a_table_and_points_of_curves(tmp_path):
    rows = [*closeup.STEPPED, "the truth"]
    measures = (subjects.SIMILARITY, closeup.GRADIENT, closeup.STEP)
    results = [
        {row: {m: 0.1 * place + subject for m in measures} for place, row in enumerate(rows)}
        for subject in range(2)
    ]
    choices = closeup.CloseUpChoices(closeup.SHARES, 0.08, 1, 256, 2, 1.0, "untrained")
    table = closeup.closeup_table(results, choices, "a classifier")
    assert list(table.rows) == rows
    assert "0.7 against 0.0 0.700 +- 0.000" in table.markdown()
    closeup.draw_shares(table, rows[:-1], measures, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_finetuning_is_measured_after_every_snapshot_and_before(models, tmp_path):
    painter, classifier = quality.Inpainter("unet", models), SceneClassifier().eval()
    choices = finetune.FinetuneChoices("", 2, 4, 1e-2, 1, 1, 1, "untrained")

    def measured(way):
        return finetune.measure_subject(painter, classifier, way, 0, choices)

    shown, numbers = measured(finetune.Way(rank=4, snapshots=(1, 2)))
    _, before = measured(None)
    fewer, _ = measured(finetune.Way(photos=1, rank=4))
    whole, _ = measured(finetune.Way(full=True))
    assert list(numbers) == ["1", "2"]
    assert list(before) == ["0"]
    assert numbers["1"] != numbers["2"]
    for other in (fewer, whole):
        assert not torch.equal(shown["as it is"], other["as it is"])
    tables = {
        "steps": finetune.table_of("steps", {"LoRA": [numbers] * 2}, ["how"]),
        "photos": finetune.table_of("photos", {"1 photo": [before] * 2, "5 photos": [before] * 2}, []),
    }
    assert list(tables["steps"].rows) == ["LoRA, 1 steps", "LoRA, 2 steps"]
    assert "5 photos against 1 photo 0.000" in tables["photos"].markdown()
    finetune.draw_curves(tables, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_snapshots_come_from_one_run():
    """Its checkpoints, each gone on from for no step at all."""
    calls = []

    def train(pipeline, data, recipe, seed, options=None, resume=None):
        done = resume.step if resume else 0
        calls.append((done, recipe.steps))
        for step in range(done + 1, recipe.steps):
            if options and step % options.save_every == 0:
                options.callbacks.on_save(SimpleNamespace(step=step))
        return f"LoRA of step {recipe.steps}", []

    found = list(finetune.snapshots_of(train, None, [], RECIPES["DreamCom"], (25, 50, 100), 0))
    assert found == [(step, f"LoRA of step {step}") for step in (25, 50, 100)]
    assert calls == [(0, 100), (25, 25), (50, 50)]


def test_every_way_of_finetuning_has_a_name_of_its_own():
    ways = [finetune.ways_of(part, "unet", (25, 50)) for part in finetune.PARTS]
    assert [len(part) for part in ways] == [5, 3, 1]
    names = [[finetune.folder_name(way) for way in part.values()] for part in ways]
    assert len({name for part in names for name in part}) == 8
    assert names[0][3] == names[1][1]  # 4 photos and rank 16: trained once
    assert "all weights" not in finetune.ways_of("adapter", "fill", ())


@pytest.mark.parametrize("study", ["words", "data"])
def test_edits_of_a_learned_subject_are_painted_in_every_way(painter, study, monkeypatch):
    monkeypatch.setattr(edits, "REGULAR_PROMPTS", 2)
    monkeypatch.setattr(edits, "REGULAR_EACH", 1)
    choices = edits.EditChoices(study, 2, 4, 1e-2, 1, 1, 1, 1.5, "untrained")
    measure, tabulated, ways = edits.STUDIES[study]
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
    subject = edits.edited_subject(3, 4)
    own = set(scenes.looks_of(subject.thing))
    assert len(own) == 2
    for task, other in zip(subject.edits, subject.others, strict=True):
        new = set(scenes.looks_of(task.thing))
        assert len(new) == len(set(other.split())) == 2
        assert not own & new
        assert not own & set(other.split())
        assert not new & set(other.split())
        assert task.thing.shape == subject.thing.shape
        assert edits.TOKEN in edits.edit_prompt(task).split()


SHORT = "--steps 1 --sampling-steps 1 --scenes 1"
RUNS = {
    "attention": "--only light --kinds unet --scenes 2",
    "closeup": "--subjects 2 --rooms 1 --sampling-steps 2 --only '30 %'",
    "edits": f"--subjects 2 {SHORT} --only words",
    "finetune": f"--kind fill --subjects 2 {SHORT} --only steps --snapshots 1 2",
    "paste": "--scenes 2",
    "quality": "--only fill --prompts 2",
    "subjects": f"--kinds fill --subjects 2 {SHORT}",
    "tint": f"--kind fill --subjects 2 {SHORT}",
}


@pytest.mark.parametrize("study", RUNS)
def test_a_study_s_command_leaves_a_table_and_a_picture(models, study, tmp_path, monkeypatch):
    for kind, (*how, _, cfg) in quality.SAMPLING.items():
        monkeypatch.setitem(quality.SAMPLING, kind, (*how, 1, cfg))
    options = ["--models", str(models), "--out", str(tmp_path), *shlex.split(RUNS[study])]
    monkeypatch.setattr("sys.argv", [study, *options])
    importlib.import_module(f"inlay.lab.studies.{study}").main()
    tables, pictures = list(tmp_path.glob("*.md")), [*tmp_path.glob("*.png"), *tmp_path.glob("*.jpg")]
    assert tables
    assert all("nan" not in table.read_text() for table in tables)
    assert pictures
    assert all(picture.stat().st_size > 1000 for picture in pictures)
