"""The finetuning tables without a model: edits, other things, snapshots of one run, rows and their gains."""

from argparse import Namespace
from dataclasses import astuple, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from inlay.lab import world
from inlay.lab.models.classifier import load_judge
from inlay.lab.studies import finetune, quality
from inlay.lab.studies.dreamcom import LIKENESS, held_out_subject
from inlay.lab.studies.dreammix import cell_file
from inlay.lab.studies.finetune_cells import (
    EDIT_LIKENESS,
    EDIT_RIGHT,
    IDENTITY,
    NOTHING,
    OTHERS,
    OTHERS_RIGHT,
    Numbers,
    Way,
    attributes_of,
    edits_of,
    file_name,
    other_things,
    scored,
    snapshots,
)
from inlay.lab.studies.finetune_pictures import draw_curves, picture_sheet
from inlay.training.finetune.attribute_dictionary import compose_prompts
from inlay.training.finetune.recipes import DREAMMIX
from inlay.training.finetune.trainer import DEFAULT_OPTIONS

OPTIONS = Namespace(steps=150, batch=4, rate=1e-3, full_rate=1e-4, rank=16, snapshots=(25, 50, 100))


@pytest.mark.parametrize("index", range(8))
def test_an_edit_changes_one_attribute_and_says_so_after_the_token(index):
    thing = held_out_subject(index, 1, 1).thing
    edits = edits_of(thing, index)
    assert [edit.field for edit in edits] == ["colour", "pattern", "accessory"]
    for edit in edits:
        value = getattr(edit.thing, edit.field)
        assert value != getattr(thing, edit.field)
        assert edit.thing.posed(**{edit.field: getattr(thing, edit.field)}) == thing
        assert value in edit.prompt
        assert edit.prompt.startswith("a photo of a sks ")
    assert edits == edits_of(thing, index)


@pytest.mark.parametrize("index", range(8))
def test_the_dictionary_says_what_a_caption_says_and_never_the_trim(index):
    thing = held_out_subject(index, 1, 1).thing
    prompts = compose_prompts(attributes_of(thing), thing.kind, "", 99, 0, "a photo of a {subject}")
    assert world.caption(thing) in prompts
    assert not [prompt for prompt in prompts if thing.trim in prompt.split()]


def test_other_things_are_of_the_kind_and_of_another_colour():
    thing = held_out_subject(3, 1, 1).thing
    others = other_things(thing, 6, 3)
    assert {other.kind for other in others} == {thing.kind}
    assert thing.colour not in {other.colour for other in others}
    assert len({astuple(other) for other in others}) == 6


def test_the_truth_is_the_subject_and_follows_no_edit():
    subject = held_out_subject(1, 3, 3)
    truth = quality.stacked(subject.tasks, "truth")
    names = (IDENTITY, "colour", "pattern", "accessory", OTHERS)
    numbers = scored(load_judge(), subject, dict.fromkeys(names, truth), 1)
    assert numbers[LIKENESS] > 0.8
    assert numbers["class"] == numbers["colour"] == 1
    assert numbers["colour edit"] == numbers["pattern edit"] == numbers[OTHERS_RIGHT] == 0
    assert numbers[EDIT_RIGHT] < 0.4
    assert numbers[EDIT_LIKENESS] < numbers[LIKENESS]


def test_snapshots_come_from_one_run():
    """Its checkpoints, each gone on from for no step at all."""
    calls = []

    def train(model, data, recipe, seed, options=DEFAULT_OPTIONS, resume=None):
        done = resume.step if resume else 0
        calls.append((done, recipe.steps))
        for step in range(done + 1, recipe.steps):
            if options.callbacks.on_save and step % options.save_every == 0:
                options.callbacks.on_save(cast(Any, SimpleNamespace(step=step)))
        return f"LoRA of step {recipe.steps}", []

    way = Way(replace(DREAMMIX, steps=7), 4, snapshots=(25, 50, 100))
    found = list(snapshots(train, None, [], way, 0))
    assert found == [(step, f"LoRA of step {step}") for step in (25, 50, 100)]
    assert calls == [(0, 100), (25, 25), (50, 50)]
    assert list(snapshots(train, None, [], way._replace(snapshots=()), 0)) == [(7, "LoRA of step 7")]


def test_every_row_has_a_fingerprint_of_its_own_that_follows_its_recipe():
    studies = finetune.ways(OPTIONS)
    rows = {row: way for study in studies.values() for row, way in study.items()}
    assert len({finetune.named(way) for way in rows.values()}) == len(rows) - 1  # 4 references are rank 16
    changed = finetune.ways(Namespace(**{**vars(OPTIONS), "rate": 2e-3}))
    for study, ways in studies.items():
        for row, way in ways.items():
            same = finetune.named(way) == finetune.named(changed[study][row])
            assert same == (row == "the whole UNet")


def made_up(studies, subjects):
    """Every row's numbers, 0 but for the edits: each row follows 0.05 more of them than the one before."""

    def result(subject):
        zero: dict[str, float] = dict.fromkeys(finetune.MEASURES, 0.0)
        found: dict[str, Numbers] = {NOTHING: {"0": zero}}
        for place, (row, way) in enumerate(pair for rows in studies.values() for pair in rows.items()):
            steps = way.snapshots or (150,)
            found[row] = {str(s): zero | {EDIT_RIGHT: 0.05 * place + 0.01 * subject} for s in steps}
        return found

    return [result(subject) for subject in range(subjects)]


def test_the_ablation_states_its_gains_in_standard_errors():
    studies = {study: finetune.ways(OPTIONS)[study] for study in ("ablation", "steps")}
    tables = finetune.study_tables(made_up(studies, 2), studies, ["how"])
    assert list(tables["ablation"].rows) == [NOTHING, finetune.BASE, finetune.WEIGHTED, finetune.ADM,
                                            finetune.ADM_PLAIN]  # fmt: skip
    assert list(tables["steps"].rows)[:3] == [
        NOTHING,
        "base, over steps, 25 steps",
        "base, over steps, 50 steps",
    ]
    gains = [note for note in tables["ablation"].notes if EDIT_RIGHT in note]
    assert gains[0] == "+ weighted loss over base: edit followed 0.050 +- 0.000 (inf standard errors)."
    assert tables["ablation"].notes[-1] == "how"


def test_every_study_is_drawn_and_the_pictures_stand_by_their_rows(tmp_path):
    studies = finetune.ways(OPTIONS)
    tables = finetune.study_tables(made_up(studies, 2), studies, [])
    others = finetune.study_tables(made_up(studies, 3), studies, [])

    def drawn(**changed):
        draw_curves(tables | changed, studies, tmp_path / "curves.png")
        return np.asarray(Image.open(tmp_path / "curves.png"))

    whole = drawn()
    panel = whole.shape[1] / len(tables)
    for number, study in ((list(tables).index(name), name) for name in ("ablation", "steps")):
        columns = np.nonzero((drawn(**{study: others[study]}) != whole).any((0, 2)))[0]
        assert number * panel < columns.mean() < (number + 1) * panel

    subject = held_out_subject(0, 5, 2)
    truth = quality.stacked(subject.tasks, "truth")
    pictures = dict.fromkeys((IDENTITY, "colour", "pattern", "accessory"), truth)
    cells = tmp_path / "cells"
    cells.mkdir()
    for row in studies["ablation"]:
        path = cell_file(cells, 0, file_name(row)).with_suffix(".safetensors")
        save_file({name: (images * 255).byte().clone() for name, images in pictures.items()}, path)
    sheet = picture_sheet(cells, studies["ablation"], 1, 2, side=96)
    assert sheet.width > 2 * 5 * 96
    assert sheet.height > 2 * 96
