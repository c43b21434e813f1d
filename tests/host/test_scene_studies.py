"""The studies of the world of `scenes` run from end to end on untrained models."""

import pytest
import torch

from inlay.lab import scenes
from inlay.lab.models import assemble
from inlay.lab.models.scene_classifier import SceneClassifier
from inlay.lab.studies import scene_attention, scene_quality, scene_tint


@pytest.fixture(scope="module")
def painter(in_process_host, tmp_path_factory):
    """The untrained Fill model, opened by the host's loaders."""
    parts = assemble.random_parts(0)
    chosen = {name: parts[name] for name in ("fill", "text", "autoencoder16")}
    models = tmp_path_factory.mktemp("scenes")
    assemble.assemble(chosen, models)
    return scene_quality.Painter("fill", models)


def test_words_study(painter):
    """Every way has its figures; the mask changes the picture."""
    bench = scene_attention.SceneBench(painter, steps=1)
    table, picture = scene_attention.words_study(bench, SceneClassifier().eval(), 2)
    assert len(table.rows) == 5
    assert all(len(values) == 2 for row in table.rows.values() for values in row.values())
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


def test_a_subject_is_learned_and_painted_in_grey_and_in_tinted_rooms(in_process_host, tmp_path):
    from inlay.training.finetune.recipes import RECIPES

    parts = assemble.random_parts(0)
    assemble.assemble({name: parts[name] for name in ("unet", "text", "autoencoder4")}, tmp_path)
    painter = scene_quality.Painter("unet", tmp_path)
    choices = scene_tint.TintChoices(1, 4, 1e-3, 1, 1, 1, "untrained")
    recipe = RECIPES["DreamCom"].with_choices(
        steps=1, rank=4, learning_rate=1e-3, batch_size=1, resolution=scenes.SIZE
    )
    pictures, numbers = scene_tint.measure_subject(painter, 0, choices, recipe)
    assert {row for row in numbers if row != "the truth"} | {"truth"} == set(pictures)
    assert all(image.shape == (1, scenes.SIZE, scenes.SIZE, 3) for image in pictures.values())
    assert not torch.equal(pictures["(a) none"], pictures["(b) all"])
    other = {row: {name: value + 1 for name, value in own.items()} for row, own in numbers.items()}
    table = scene_tint.tint_table([numbers, other], choices)
    leak = numbers["(a) none"][scene_tint.SHIFT] - numbers["the truth"][scene_tint.SHIFT]
    assert numbers["(a) none"][scene_tint.LEAK] == pytest.approx(leak, abs=1e-9)
    assert "Manipulation check" in table.markdown()
