"""Insertions without a mask: held-out scenes, where something new stands, and whether it is right."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...evaluation import metrics
from ...imaging.boxes import bounding_box
from ...imaging.changes import change_map, patches
from ...imaging.masks import fill_box
from .. import scenes
from ..models.classifier import SceneClassifier, Verdict
from ..models.image_conditioner import Numbers
from ..models.object_cache import COVERED, another_look, covered, in_gap, outlines, shown
from .quality import HELD_OUT, as_image

CHANGED = 0.08  # mean absolute difference of a pixel's channels, over squares of 3 pixels
SMALLEST = 100  # pixels that have to change, together, for something to be there
HIDDEN = 0.1  # of what stood there already, at most, where a place was free
HELD = "right class in a free place"
VERSION = 3  # of the scenes and their numbers: raised when either changes


@dataclass(frozen=True)
class Scene:
    """A picture (H, W, 3) in [0, 1], how the object was shown, and how it may look with it inside."""

    thing: scenes.Thing
    shown: Tensor
    source: Tensor
    truth: Tensor
    truth_mask: Tensor
    others: Tensor  # (H, W), 1 where something stands already


def kind_and_others(index: int) -> tuple[str, int]:
    """The class of a scene's object, and how many things stand about: every class meets one and two."""
    turn, place = divmod(index, len(scenes.CLASSES))
    return scenes.CLASSES[place], 1 + turn % 2


def held_out_scene(index: int) -> Scene:
    """Scene number `index`: classes take turns, one or two things stand about, and there is a free place."""
    rng = np.random.default_rng([HELD_OUT, 6, index])
    kind, others = kind_and_others(index)
    scene = None
    while scene is None or len(scene.others) != others or covered(scene) > COVERED:
        scene = in_gap(rng, scenes.sample_scene(rng, scenes.sample_thing(rng, kind=kind), others=others))
    assert scene.subject
    truth, empty = scenes.render(scene), scenes.render(replace(scene, subject=None))
    mask, standing = (torch.from_numpy(part).float() for part in outlines(scene))
    seen = shown(*another_look(rng, scene.subject))
    return Scene(scene.subject, seen, as_image(empty.image), as_image(truth.image), mask, standing)


def found(result: Tensor, source: Tensor) -> Tensor | None:
    """The largest connected patch (H, W) in which two pictures (H, W, 3) differ; None where it is small."""
    largest = next(patches(change_map(source, result, CHANGED, 1), SMALLEST), None)
    return None if largest is None else torch.from_numpy(largest).float()


def measured(classifier: SceneClassifier, scene: Scene, result: Tensor, source: Tensor) -> dict[str, float]:
    """One picture's numbers; `source` is the picture as the autoencoder gives it back."""
    patch = found(result, source)
    pictures, sources = result.movedim(-1, 0)[None], source.movedim(-1, 0)[None]
    if patch is None:
        kept = float(metrics.background_ssim(pictures, sources, torch.zeros_like(scene.others)[None]))
        return {HELD: 0.0, "there": 0.0, "class": 0.0, "colour": 0.0, "free": 0.0, "kept": kept}
    verdict = verdict_of(classifier, result, patch)
    right, colour = (
        float(getattr(verdict, field) == getattr(scene.thing, field)) for field in ("kind", "colour")
    )
    free = float((patch * scene.others).sum() <= HIDDEN * scene.others.sum())
    box = fill_box(bounding_box(patch).expand(3).clamp(*patch.shape), *patch.shape)
    kept = float(metrics.background_ssim(pictures, sources, box))
    error = metrics.colour_error(
        pictures, patch[None], scene.truth.movedim(-1, 0)[None], scene.truth_mask[None]
    )
    return {
        HELD: right * free, "there": 1.0, "class": right, "colour": colour, "free": free, "kept": kept,
        "dE00": float(error),
    }  # fmt: skip


def verdict_of(classifier: SceneClassifier, result: Tensor, patch: Tensor) -> Verdict:
    """What the classifier sees in the patch's box."""
    return classifier.describe(result.movedim(-1, 0)[None], fill_box(bounding_box(patch), *patch.shape))[0]


def true_numbers(classifier: SceneClassifier, count: int) -> Numbers:
    cases = [held_out_scene(index) for index in range(count)]
    return [measured(classifier, case, case.truth, case.source) for case in cases]
