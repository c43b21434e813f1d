"""Does a close-up see a light that lies outside of it? Fill in the tiny world, on larger pictures.

    python dev.py lab lamp [--work DIR] [--models FOLDER] [--scenes 40]

DreamMix, section 3.2: the close-up gives identity, the whole window harmony, and lambda, the share of the
steps that are close-up, trades one for the other. A plain thing is painted into a box of 8 % of a picture of
256 px whose lamp lies outside the close-up and inside the window, at six shares; the autoencoder alone is a
control. Its shading is compared with the true one (see `attention.shading`). A unit is a scene. Writes
lamp.md, .json, lamp.png of curves and lamp.jpg of pictures.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...evaluation.tables import Table
from ...imaging.boxes import Box
from ...imaging.views import View
from .. import scenes
from ..models.classifier import SceneClassifier, trained_classifier
from ..scenes.render import HALF_VIEW, Camera
from . import picture_grid
from .attention import shading
from .closeup import CANVAS, SOFT_EDGE, STEP, draw_shares, paint
from .quality import SAMPLING, Inpainter, Task, as_image, edge_step, stacked
from .result_cache import pictures_of
from .study import change, rows_of, study_folders, study_parser, subject_cells, subject_file, write_table
from .subjects import SIMILARITY, numbers_of

SEED, AREA, SHOWN, WINDOW = 46, 0.08, 6, 2.0
LEAST = 0.1  # size of the true shading
SHARES = {"0.0": 0.0, "0.3": 0.3, "0.5": 0.5, "0.7": 0.7, "0.9": 0.9, "1.0": 1.0}
TRUTH, DECODED = "the truth", "the truth through the autoencoder"
SHADING, SIDE = "error of the shading", "right side"


@dataclass(frozen=True)
class LampChoices:
    """Everything that decides a scene's numbers; kept with them."""

    area: float
    canvas: int
    sampling_steps: int
    cfg: float
    model: str
    version: int = 1  # raise when the same choices give other numbers


def views_of(box: Box) -> tuple[View, View]:
    """The node's close-up and window about a box of the picture."""
    from ...sampling.stages import InpaintOptions, close_up_view, window_view

    options = InpaintOptions(side=scenes.SIZE, window=WINDOW, soft_edge=SOFT_EDGE)
    return close_up_view(box, CANVAS, CANVAS, options), window_view(box, CANVAS, CANVAS, options)


def within(box: Box, row: float, column: float, radius: float = 0.0) -> bool:
    """Whether a disc about (row, column) in pixels touches the box."""
    down = max(box.top - row, 0.0, row - box.bottom)
    across = max(box.left - column, 0.0, column - box.right)
    return (down**2 + across**2) ** 0.5 <= radius


def stacked_images(*pictures: scenes.Picture) -> Tensor:
    return torch.stack([as_image(picture.image) for picture in pictures])


def lamp_task(index: int, tries: int = 400) -> Task:
    """A plain thing in a box of about AREA, and a lamp outside the close-up and inside the window.

    The lamp decides which half of the thing is the brighter one: with the lamp at the other side of the room
    it is the other half.
    """
    rng = np.random.default_rng([SEED, index])
    for _ in range(tries):
        thing = scenes.sample_thing(rng, pattern="plain", accessory="none", emblems=())
        scale = AREA**0.5 * rng.uniform(0.7, 1.2)
        scene = scenes.sample_scene(rng, thing, others=0, scale=(scale, scale))
        reach = scenes.render(scene).reach()
        if reach is None:
            continue
        box = Box(*reach).scale(CANVAS / scenes.SIZE)
        if abs(box.area / (CANVAS**2 * AREA) - 1) > 0.2:
            continue
        room = scene.room
        column, row, depth = Camera(room.camera_height, CANVAS).project(room.lamp)
        globe = CANVAS * 0.115 / depth / HALF_VIEW / 2
        close, window = (view.box for view in views_of(box))
        row, column = CANVAS * row, CANVAS * column
        if within(close, row, column, globe) or not within(window, row, column):
            continue
        truth, empty = scenes.render(scene, CANVAS), scenes.render(replace(scene, subject=None), CANVAS)
        found = truth.reach()
        assert found
        outline = torch.from_numpy(truth.mask > 0.5).float()
        x, y, z = room.lamp
        other = scenes.render(replace(scene, room=replace(room, lamp=(-x, y, z))), CANVAS)
        lit = shading(stacked_images(truth, other), torch.stack([outline] * 2)) * float(np.sign(x))
        if lit[0] < LEAST or lit[1] > -LEAST:
            continue
        photo = torch.zeros(1, 1, 3)
        return Task(as_image(empty.image), Box(*found), thing, photo, as_image(truth.image), outline)
    raise RuntimeError(f"Scene {index}: no lamp lies between close-up and window within {tries} tries.")


def decoded(painter: Inpainter, task: Task) -> Tensor:
    """The true picture (1, H, W, 3) with its box through the autoencoder, as a close-up."""
    view, _ = views_of(task.box)
    with torch.inference_mode():
        latent = painter.vae.encode(view.image(task.truth[None]))
        back = view.restore(painter.vae.decode(latent).clamp(0, 1).cpu())
    result = task.truth[None].clone()
    rows, columns = view.box.slices
    result[:, rows, columns] = back
    return torch.where(task.hole[None, ..., None] > 0, result, task.background[None])


def measure_scene(
    painter: Inpainter, classifier: SceneClassifier, index: int, choices: LampChoices
) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    """Pictures and numbers of one scene, by the close-up's share."""
    task = lamp_task(index)
    pictures = {
        row: paint(painter, [task], index, (share, WINDOW), choices.sampling_steps, choices.cfg)
        for row, share in SHARES.items()
    }
    truth = stacked([task], "truth")
    pictures |= {DECODED: decoded(painter, task), TRUTH: truth}
    outline = stacked([task], "outline")
    wanted, true_step = float(shading(truth, outline)), edge_step(truth, [task])[0]
    numbers = {}
    for row, images in pictures.items():
        got = float(shading(images, outline))
        numbers[row] = {
            SHADING: abs(got - wanted),
            SIDE: float(np.sign(got) == np.sign(wanted)),
            SIMILARITY: numbers_of(classifier, images, [task])[SIMILARITY],
            STEP: edge_step(images, [task])[0] - true_step,
            "size of the shading": abs(got),
        }
    return pictures, numbers


def lamp_table(results: list[Any], choices: LampChoices, classifier: str) -> Table:
    """Means over scenes, and what the close-up's share changes."""
    rows = rows_of(results)
    table = Table("A lamp outside the close-up, by the close-up's share of the steps", rows)
    size = np.array(rows[TRUTH]["size of the shading"])
    ends = ("1.0", "0.0"), ("0.7", "0.0"), ("0.7", "1.0")
    sides = {row: f"{np.mean(rows[row][SIDE]):.3f}" for row in ("1.0", "0.0")}
    notes = [
        f"{len(results)} scenes of {choices.canvas} px, boxes of {choices.area:.0%}, seed {SEED}; similarity"
        f" to the true box by {classifier}. {choices.sampling_steps} steps, guidance {choices.cfg:g}.",
        "Shading: how much brighter the right half of the true outline is than the left, as a share; its mean"
        f" size is {size.mean():.3f}. Step at the edge: 1/255, less the true rendering's.",
        f"Manipulation check: the lit side is right in {sides['1.0']} with all steps as close-up, in"
        f" {sides['0.0']} with all in the window.",
        *(change(table, *pair, m) for m in (SHADING, SIDE, SIMILARITY, STEP) for pair in ends),
    ]
    return replace(table, notes=notes)


def main():
    parser = study_parser(__doc__, "lamp")
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--sampling-steps", type=int, default=20)
    a = parser.parse_args()
    out, models = study_folders(a)
    painter, classifier = Inpainter("fill", models), trained_classifier(a.work)
    file = painter.fingerprint(classifier)
    choices = LampChoices(AREA, CANVAS, a.sampling_steps, SAMPLING["fill"][3], file)
    folder = out / "scenes"
    results = subject_cells(
        folder, a.scenes, choices, partial(measure_scene, painter, classifier, choices=choices)
    )
    table = lamp_table(results, choices, classifier.name)
    write_table(table, out, "lamp")
    draw_shares(table, list(SHARES), (SHADING, SIMILARITY, STEP), out / "lamp.png")
    cells = []
    for index in range(min(SHOWN, a.scenes)):
        task, pictures = lamp_task(index), pictures_of(subject_file(folder, index))
        panels = [picture_grid.shown(task.background, 144, task.box)]
        panels += [picture_grid.shown(pictures[row][0], 144) for row in ("0.0", "0.7", "1.0", TRUTH)]
        cells.append(picture_grid.Cell(panels, [scenes.caption(task.thing)]))
    title = "the box | all steps in the window | 0.7 as close-up | all as close-up | the truth"
    picture_grid.grid(title, cells, 2).save(out / "lamp.jpg", quality=88)


if __name__ == "__main__":
    main()
