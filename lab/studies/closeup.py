"""Does a close-up help small boxes? A tiny model in the tiny world, on larger pictures.

    python dev.py lab closeup [--kind fill] [--work DIR] [--models FOLDER] [--only "8 %" shares]

DreamMix, section 3.2, by `DisentangledInpaintSampler` itself: the whole picture, a window at the close-up's
size, and the close-up followed by the whole window, into boxes of 8, 15 and 30 % of pictures of 256 px, twice
the size the model was trained on. `shares` has a box of 8 % at every share of the steps that the close-up can
take (DreamMix's lambda). A unit of a table is a subject (20 without --subjects), the mean over its rooms; one
JSON file for each, so an interrupted run goes on. Writes closeup_KIND_8.md and so on, .json, closeup_KIND.png
and, of the shares, closeup_KIND_shares.png.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...evaluation.tables import Table
from ...imaging.boxes import Box
from .. import scenes
from ..models.classifier import SceneClassifier, trained_classifier
from . import picture_grid
from .quality import SAMPLING, Inpainter, Task, as_image, edge_step, gradient_share, stacked
from .result_cache import pictures_of
from .study import (
    change,
    rows_of,
    study_folders,
    study_parser,
    subject_cells,
    subject_file,
    write_table,
)
from .subjects import SIMILARITY, numbers_of

SEED, CANVAS, SOFT_EDGE, SHOWN = 45, 256, 2, 6
AREAS = {"8 %": 0.08, "15 %": 0.15, "30 %": 0.30}  # of the box in the picture
# row -> (close_up_share, window_area); 0: the whole picture
VIEWS = {"whole picture": (0.0, 0.0), "window": (0.0, 2.0), "close-up": (0.7, 2.0)}
SHARES = "shares"  # of the steps that the close-up takes, in the smallest box
STEPPED = {f"{share / 10:.1f}": (share / 10, 2.0) for share in range(11)}
STEP, GRADIENT = "step at the edge", "gradient"


@dataclass(frozen=True)
class CloseUpChoices:
    """Everything that decides a subject's numbers; kept with them."""

    part: str
    area: float
    rooms: int
    canvas: int
    sampling_steps: int
    cfg: float
    model: str
    version: int = 1  # raise when the same choices give other numbers


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
    outline = torch.from_numpy(truth.mask > 0.5).float()
    no_photo = torch.zeros(1, 1, 3)
    return Task(as_image(empty.image), Box(*reach), thing, no_photo, as_image(truth.image), outline)


def paint(
    painter: Inpainter, tasks: list[Task], seed: int, view: tuple[float, float], steps: int, cfg: float
):
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
                steps, cfg, *SAMPLING[painter.kind][:2], close_up_share=view[0], window_area=view[1],
                close_up_size=scenes.SIZE, soft_edge=SOFT_EDGE,
            )  # fmt: skip
        painted.append(output.result[0].clamp(0, 1).cpu())
    return torch.cat(painted)


def measure_subject(
    painter: Inpainter, classifier: SceneClassifier, index: int, choices: CloseUpChoices
) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    """Pictures and numbers of one subject in boxes of one size, by view."""
    tasks = [small_task(index, room, choices.area) for room in range(choices.rooms)]
    pictures = {
        row: paint(painter, tasks, index, view, choices.sampling_steps, choices.cfg)
        for row, view in views_of(choices.part).items()
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


def views_of(part: str) -> dict[str, tuple[float, float]]:
    """The rows of a part of the study."""
    return STEPPED if part == SHARES else VIEWS


def closeup_table(results: Sequence[Mapping], choices: CloseUpChoices, classifier: str) -> Table:
    """Means over subjects, and what the close-up changes."""
    rows, stepped = rows_of(results), choices.part == SHARES
    title = "The close-up's share of the steps, boxes" if stepped else "Boxes"
    table = Table(f"{title} of {choices.area:.0%} of the picture", rows)
    whole, window, close = ("0.0", "0.0", "0.7") if stepped else tuple(VIEWS)
    bases = dict.fromkeys((whole, window))
    notes = [
        f"{len(results)} subjects x {choices.rooms} rooms of {choices.canvas} px, seed {SEED}; errors over"
        f" subjects; similarity to the true box by {classifier}. {choices.sampling_steps} steps, guidance"
        f" {choices.cfg:g}. Step at the edge: 1/255, less the true rendering's.",
        *(change(table, close, base, measure) for measure in (SIMILARITY, GRADIENT) for base in bases),
    ]
    return replace(table, notes=notes)


def draw_shares(table: Table, rows: Sequence[str], measures: Sequence[str], path: Path) -> None:
    """The measures over the close-up's share, which rows are named by, and where the truth lies."""
    from matplotlib.figure import Figure

    cells = table.cells()
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(measures)), measures, strict=True):
        means = [cells[row][measure] for row in rows]
        shares = [float(row) for row in rows]
        axes.errorbar(shares, [m.mean for m in means], [m.error for m in means], capsize=2, marker="o", ms=3)
        axes.axhline(cells["the truth"][measure].mean, color="0.6", lw=0.8, ls="--")
        axes.set(xlabel="share of the steps spent on the close-up", title=measure)
    figure.savefig(path, dpi=120)


def shown_cells(folder: Path, choices: CloseUpChoices, count: int) -> list[picture_grid.Cell]:
    """For the first subjects: the box | every view | the truth."""
    cells = []
    for index in range(count):
        task, pictures = small_task(index, 0, choices.area), pictures_of(subject_file(folder, index))
        panels = [picture_grid.shown(task.background, 144, task.box)]
        panels += [picture_grid.shown(pictures[row][0], 144) for row in (*VIEWS, "the truth")]
        cells.append(picture_grid.Cell(panels, [scenes.caption(task.thing), f"{choices.area:.0%}"]))
    return cells


def main():
    parser = study_parser(__doc__, "closeup")
    parser.add_argument("--kind", default="fill", choices=["unet", "fill"])
    parser.add_argument("--subjects", type=int, default=20)
    parser.add_argument("--rooms", type=int, default=4)
    parser.add_argument("--only", nargs="*", default=[*AREAS, SHARES], choices=[*AREAS, SHARES])
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, help="default: the model's usual guidance")
    a = parser.parse_args()
    out, models = study_folders(a)
    painter, classifier = Inpainter(a.kind, models), trained_classifier(a.work)
    file = painter.fingerprint(classifier)
    cells, boxes = [], [part for part in a.only if part != SHARES]
    for part in a.only:
        folder = out / f"{a.kind}_{part.split()[0]}"
        area = AREAS.get(part, min(AREAS.values()))
        cfg = a.cfg or SAMPLING[a.kind][3]
        choices = CloseUpChoices(part, area, a.rooms, CANVAS, a.sampling_steps, cfg, file)
        measure = partial(measure_subject, painter, classifier, choices=choices)
        results = subject_cells(folder, a.subjects, choices, measure)
        table = closeup_table(results, choices, classifier.name)
        write_table(table, out, f"closeup_{folder.name}")
        if part == SHARES:
            draw_shares(
                table, list(STEPPED), (SIMILARITY, GRADIENT, STEP), out / f"closeup_{a.kind}_shares.png"
            )
        else:
            cells += shown_cells(folder, choices, min(SHOWN // len(boxes), a.subjects))
    if cells:
        title = " | ".join(["the box", *VIEWS, "the truth"])
        picture_grid.grid(title, cells, 1).save(out / f"closeup_{a.kind}.png")


if __name__ == "__main__":
    main()
