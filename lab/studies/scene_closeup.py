"""Does a close-up help small boxes on a transformer? Fill in the world of `scenes`, on larger pictures.

    python dev.py lab scene_closeup [--work DIR] [--models FOLDER] [--subjects 20] [--rooms 4] [--only "8 %"]

DreamMix, section 3.2, on the tiny Fill model by `DisentangledInpaintSampler` itself: the whole picture, a
window at the close-up's size, and the close-up followed by the whole window, into boxes of 8, 15 and 30 % of
pictures of 256 px, twice the size the model was trained on. A unit of a table is a subject, the mean over its
rooms; one JSON file for each, so an interrupted run goes on. Writes closeup.md, closeup.json, closeup.png.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...evaluation.tables import Table
from ...imaging.boxes import Box
from .. import scenes
from ..models.scene_classifier import SceneClassifier, trained_classifier
from . import picture_grid
from .attention import change
from .quality import write_table
from .result_cache import fingerprint, pictures_of
from .scene_quality import Painter, Task, as_image, edge_step, gradient_share, model_file, stacked
from .scene_study import rows_of, study_folders, study_parser, subject_cells, subject_file
from .scene_subjects import SIMILARITY, numbers_of

SEED, CANVAS, SOFT_EDGE, SHOWN = 45, 256, 2, 6
AREAS = {"8 %": 0.08, "15 %": 0.15, "30 %": 0.30}  # of the box in the picture
# row -> (close_up_share, window_area); 0: the whole picture
VIEWS = {"whole picture": (0.0, 0.0), "window": (0.0, 2.0), "close-up": (0.7, 2.0)}
STEP, GRADIENT = "step at the edge", "gradient"


@dataclass(frozen=True)
class CloseUpChoices:
    """Everything that decides a subject's numbers; kept with them."""

    area: float
    rooms: int
    canvas: int
    sampling_steps: int
    cfg: float
    model: str


def small_task(index: int, room: int, area: float, tries: int = 60) -> Task:
    """Subject number `index` in one room, its box within a tenth of `area` of the picture."""
    rng = np.random.default_rng([SEED, index])
    thing = scenes.sample_thing(rng, kind=scenes.CLASSES[index % len(scenes.CLASSES)])
    rng = np.random.default_rng([SEED, index, room])
    side, nearest, found = area**0.5, 1.0, None
    for _ in range(tries):
        scale = side * rng.uniform(0.7, 1.2)
        scene = scenes.sample_scene(rng, thing, others=0, scale=(scale, scale))
        reach = scenes.render(scene).reach()
        if reach is None:
            continue
        top, left, bottom, right = reach
        away = abs((bottom - top) * (right - left) / (scenes.SIZE**2 * area) - 1)
        if away < nearest:
            nearest, found = away, scene
        if nearest < 0.1:
            break
    assert found
    truth, empty = scenes.render(found, CANVAS), scenes.render(replace(found, subject=None), CANVAS)
    reach = truth.reach()
    assert reach
    return Task(
        as_image(empty.image), Box(*reach), thing, torch.zeros(1, 1, 3), as_image(truth.image)
    )  # fmt: skip


def paint(painter: Painter, tasks: list[Task], seed: int, view: tuple[float, float], steps: int, cfg: float):
    """Pictures (n, H, W, 3) with each caption in its box, by the node."""
    from ...nodes import DisentangledInpaintSampler

    painted = []
    for task in tasks:
        positive, negative = (
            [[painter.clip.encode_from_tokens(painter.clip.tokenize(text)), {}]]
            for text in (scenes.caption(task.thing), "")
        )
        with torch.inference_mode():
            output: Any = DisentangledInpaintSampler.execute(
                painter.model, positive, negative, painter.vae, task.background[None], task.hole[None], seed,
                steps, cfg, "euler", "simple", close_up_share=view[0], window_area=view[1],
                close_up_size=scenes.SIZE, soft_edge=SOFT_EDGE,
            )  # fmt: skip
        painted.append(output.result[0].clamp(0, 1).cpu())
    return torch.cat(painted)


def measure_subject(
    painter: Painter, classifier: SceneClassifier, index: int, choices: CloseUpChoices
) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    """Pictures and numbers of one subject in boxes of one size, by view."""
    tasks = [small_task(index, room, choices.area) for room in range(choices.rooms)]
    pictures = {
        row: paint(painter, tasks, index, view, choices.sampling_steps, choices.cfg)
        for row, view in VIEWS.items()
    }
    pictures["the truth"] = stacked(tasks, "truth")
    true_step = np.mean(edge_step(pictures["the truth"], tasks))
    return pictures, {
        row: {
            **numbers_of(classifier, images, tasks),
            GRADIENT: float(np.mean(gradient_share(images, tasks))),
            STEP: float(np.mean(edge_step(images, tasks)) - true_step),
        }
        for row, images in pictures.items()
    }


def closeup_table(name: str, results: list[Mapping], choices: CloseUpChoices, judge: str) -> Table:
    """Means over subjects, and what the close-up changes."""
    rows = rows_of(results)
    table, (whole, window, close) = Table(f"Boxes of {name} of the picture", rows), VIEWS
    notes = [
        f"{len(results)} subjects x {choices.rooms} rooms of {choices.canvas} px, seed {SEED}; errors over"
        f" subjects; similarity to the true box by {judge}. {choices.sampling_steps} steps, guidance"
        f" {choices.cfg:g}. Step at the edge: 1/255, less the true rendering's.",
        *(change(table, close, base, SIMILARITY) for base in (whole, window)),
        *(change(table, close, base, GRADIENT) for base in (whole, window)),
    ]
    return replace(table, notes=notes)


def main():
    parser = study_parser(__doc__, "closeup")
    parser.add_argument("--subjects", type=int, default=20)
    parser.add_argument("--rooms", type=int, default=4)
    parser.add_argument("--only", nargs="*", default=list(AREAS), choices=list(AREAS))
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=4.0)
    a = parser.parse_args()
    out, models = study_folders(a)
    painter, classifier = Painter("fill", models), trained_classifier(a.work)
    file = model_file("fill", models)
    cells = []
    for name in a.only:
        folder = out / name.split()[0]
        choices = CloseUpChoices(AREAS[name], a.rooms, CANVAS, a.sampling_steps, a.cfg, fingerprint(file))
        measure = partial(measure_subject, painter, classifier, choices=choices)
        results = subject_cells(folder, a.subjects, choices, measure)
        write_table(closeup_table(name, results, choices, classifier.name), out, f"closeup_{folder.name}")
        for index in range(min(SHOWN // len(a.only), a.subjects)):
            task, shown = small_task(index, 0, choices.area), pictures_of(subject_file(folder, index))
            panels = [picture_grid.shown(task.background, 144, task.box)]
            panels += [picture_grid.shown(images[0], 144) for images in shown.values()]
            cells.append(picture_grid.Cell(panels, [scenes.caption(task.thing), name]))
    picture_grid.grid(" | ".join(["the box", *VIEWS, "the truth"]), cells, 1).save(out / "closeup.png")


if __name__ == "__main__":
    main()
