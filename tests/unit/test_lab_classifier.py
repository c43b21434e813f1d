"""The shipped judge: who it is, that it still knows renderings, and that it tells one thing from another."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from inlay.evaluation.metrics import subject_similarity
from inlay.imaging.boxes import Box
from inlay.imaging.masks import fill_box
from inlay.lab import world
from inlay.lab.models.classifier import NAMES, Judge, load_judge
from inlay.lab.models.files import WEIGHTS
from inlay.lab.models.train_judge import contrast, labels, measure, portrait, sample_group

FILE = WEIGHTS / "judge.safetensors"


@pytest.fixture(scope="module")
def judge():
    return load_judge()


def portraits(seed, things, views=1):
    """Pictures (n, 3, H, W) in [0, 1], their outlines and their filled boxes (n, H, W)."""
    rng = np.random.default_rng(seed)
    pictures = [portrait(rng, thing) for thing in things for _ in range(views)]
    images = torch.from_numpy(np.stack([p.image for p in pictures])).movedim(-1, 1) / 255
    outlines = torch.from_numpy(np.stack([p.mask > 0.5 for p in pictures])).float()
    return images, outlines, torch.cat([fill_box(Box(*p.box), *p.mask.shape) for p in pictures if p.box])


def test_the_shipped_weights_are_small_and_say_how_they_were_made():
    assert FILE.stat().st_size < 2_000_000
    with safe_open(FILE, "pt") as file:
        record = json.loads(file.metadata()["record"])
    assert record["command"].startswith("python -m inlay.lab.train_judge")
    assert {"seed", "steps", "minutes"} <= set(record)
    assert record["accuracy"]["pictures"] >= 2000
    assert record["accuracy"]["kind"] >= 0.98
    assert record["accuracy"]["colour"] >= 0.98


def test_class_and_colour_are_known_on_renderings_it_never_saw(judge):
    found = measure(judge, things=80, seed=31_337)
    assert found["kind"] >= 0.95
    assert found["colour"] >= 0.95
    assert found["same"] > found["other"] + 0.5


def test_a_verdict_names_every_field_with_a_probability(judge):
    things = [world.sample_thing(np.random.default_rng(i)) for i in range(3)]
    images, _, boxes = portraits(1, things)
    for verdict in judge.describe(images, boxes):
        for field, names in NAMES.items():
            assert getattr(verdict, field) in names
            assert 1 / len(names) <= verdict.sure[field] <= 1


def test_it_is_an_encoder_whose_likeness_falls_with_every_change(judge):
    rng = np.random.default_rng(2)
    same, recoloured, other = [], [], []
    for index in range(12):
        thing = world.sample_thing(rng, kind=world.CLASSES[index % 8], colour="red")
        stranger = world.sample_thing(rng, kind=world.CLASSES[(index + 3) % 8], colour="cyan")
        blue = world.sample_thing(rng, kind=thing.kind, colour="blue")
        references, outlines, _ = portraits([2, index], [thing], views=4)
        images, _, boxes = portraits([3, index], [thing, blue, stranger])
        scores = subject_similarity(judge, images, boxes, references, outlines).tolist()
        for kept, score in zip((same, recoloured, other), scores, strict=True):
            kept.append(score)
    assert np.mean(same) > np.mean(recoloured) + 0.2 > np.mean(other) + 0.2


def test_embeddings_are_unit_vectors_for_pictures_of_any_size(judge):
    with torch.no_grad():
        found = judge(torch.rand(2, 3, 57, 90))
    assert found.shape == (2, Judge.WIDTH)
    assert torch.allclose(found.norm(dim=1), torch.ones(2), atol=1e-5)


def test_a_group_is_a_thing_and_relatives_that_differ_in_one_field():
    base, *relatives = sample_group(np.random.default_rng(7))
    for relative in relatives:
        changed = [name for name in vars(base) if getattr(base, name) != getattr(relative, name)]
        assert len(changed) <= 1
    assert labels([base]).shape == (1, len(NAMES))


def test_the_contrast_is_infonce_computed_plainly():
    rows = torch.nn.functional.normalize(torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    a, b = rows[0::2].double().numpy(), rows[1::2].double().numpy()
    likeness = np.exp(a @ b.T / 0.1)
    forth, back = (-np.log(np.diag(likeness) / likeness.sum(axis)).mean() for axis in (1, 0))
    assert contrast(rows).item() == pytest.approx((forth + back) / 2, rel=1e-4)
