"""The cells of DreamMix's tables: one subject in one box, painted in every way and measured."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...evaluation import metrics
from .. import world
from ..models.classifier import Judge
from ..models.inpainter import Painter
from .attention import seam
from .dreamcom import TOKEN
from .placed_cases import Case, rim
from .quality import SIZE

SIDES = {"8 %": 0.08, "15 %": 0.15, "30 %": 0.30}
SHARES = tuple(round(0.1 * i, 1) for i in range(11))
EDIT, TRUTH = "edit, ", "the truth"
WHOLE, WINDOW, CLOSE = "whole picture", "window", "close-up (DIF)"
EDIT_WHOLE, EDIT_CLOSE, EDIT_TAS = EDIT + WHOLE, EDIT + CLOSE, EDIT + "close-up and TAS"
EDIT_TRUTH = EDIT + TRUTH
WINDOW_AREA, SOFT_EDGE = 2.0, 2
# row -> (close_up_share, window_area); 0: the whole picture
VIEWS = {WHOLE: (0.0, 0.0), WINDOW: (0.0, WINDOW_AREA), CLOSE: (0.7, WINDOW_AREA)}
EDITS = {EDIT_WHOLE: VIEWS[WHOLE], EDIT_CLOSE: VIEWS[CLOSE], EDIT_TAS: VIEWS[CLOSE]}
ORDER = (*VIEWS, TRUTH, *EDITS, EDIT_TRUTH)
LIKENESS, RIGHT, SEAM, RIM, REMOVED = "similarity", "class and colour", "seam", "rim dE00", "removed"
LAMBDA = "lambda"
Pictures = dict[str, Tensor]  # row -> (rooms, S, S, 3) in [0, 1]
Numbers = dict[str, dict[str, float]]  # row -> measure -> mean over the rooms


@dataclass(frozen=True)
class Choices:
    """Everything that decides a cell's numbers; kept with them, so that a changed run starts anew."""

    recipe: str
    steps: int
    rank: int
    learning_rate: float
    batch_size: int
    references: int
    rooms: int
    canvas: int
    sampler: str
    scheduler: str
    sampling_steps: int
    cfg: float
    checkpoint: str


class Wanted(NamedTuple):
    """What should be in the box: a thing, pictures of it (N, H, W, 3) and its masks (N, H, W) on them."""

    thing: world.Thing
    references: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Learned:
    """A subject, its edited self, and what paints it."""

    plain: Wanted
    edited: Wanted
    painter: Painter
    model: Any  # the painter's MODEL with the subject learned
    prompt: str  # the recipe's
    seed: int
    choices: Choices

    def words(self, wanted: Wanted, remove: str = ""):
        """CONDITIONING: "a sks mug", or "a blue sks mug", with words taken out of it."""
        thing = self.plain.thing
        looks = [wanted.thing.colour] if wanted is self.edited else []
        return self.encode(self.prompt.format(token=" ".join([*looks, TOKEN]), class_name=thing.kind), remove)

    def encode(self, prompt: str, remove: str = ""):
        from ...nodes import AttributeSubstitutionEncode

        with torch.inference_mode():
            output: Any = AttributeSubstitutionEncode.execute(self.painter.clip, prompt, remove)
        return output.result[0]

    def paint(self, case: Case, positive, share: float, area: float) -> Tensor:
        """The case's rooms with the prompt in the box (B, S, S, 3), by the node itself."""
        from ...nodes import DisentangledInpaintSampler

        how = self.choices
        with torch.inference_mode():
            output: Any = DisentangledInpaintSampler.execute(
                self.model, positive, self.encode(""), self.painter.vae, case.rooms, case.hole, self.seed,
                how.sampling_steps, how.cfg, how.sampler, how.scheduler,
                close_up_share=share, window_area=area, close_up_size=SIZE, soft_edge=SOFT_EDGE,
            )  # fmt: skip
        return output.result[0].clamp(0, 1).cpu()


def box_cell(learned: Learned, judge: Judge, case: Case) -> tuple[Pictures, Numbers]:
    """One box's pictures and numbers, row by row."""
    plain, edit = learned.words(learned.plain), learned.words(learned.edited)
    substituted = learned.words(learned.edited, remove=learned.plain.thing.colour)
    prompts = dict.fromkeys(VIEWS, plain) | dict.fromkeys(EDITS, edit) | {EDIT_TAS: substituted}
    pictures = {row: learned.paint(case, prompts[row], *view) for row, view in (VIEWS | EDITS).items()}
    pictures |= {TRUTH: case.truth, EDIT_TRUTH: case.edited}
    rows = {
        row: measured(judge, images, case, learned.edited if row.startswith(EDIT) else learned.plain)
        for row, images in pictures.items()
    }
    rows[EDIT_TAS][REMOVED] = share_removed(edit, substituted)
    return pictures, rows


def lambda_cell(learned: Learned, judge: Judge, case: Case) -> tuple[Pictures, Numbers]:
    """A box at every share of the close-up."""
    prompt = learned.words(learned.plain)
    pictures = {f"{share:.1f}": learned.paint(case, prompt, share, WINDOW_AREA) for share in SHARES}
    pictures[TRUTH] = case.truth
    return pictures, {row: measured(judge, x, case, learned.plain) for row, x in pictures.items()}


def measured(judge: Judge, images: Tensor, case: Case, wanted: Wanted) -> dict[str, float]:
    """Means over the rooms of one row's pictures (B, S, S, 3)."""
    pictures, truth = images.movedim(-1, 1), case.truth.movedim(-1, 1)
    holes = case.hole.expand(len(images), -1, -1)
    edge = rim(case.box, *images.shape[1:3]).expand(len(images), -1, -1)
    with torch.no_grad():
        likeness = metrics.subject_similarity(
            judge, pictures, holes, wanted.references.movedim(-1, 1), wanted.masks
        )
    verdicts = judge.describe(pictures, holes)
    kind, colour = (
        np.array([getattr(verdict, field) == getattr(wanted.thing, field) for verdict in verdicts])
        for field in ("kind", "colour")
    )
    return {
        LIKENESS: float(likeness.mean()),
        "class": float(kind.mean()),
        "colour": float(colour.mean()),
        RIGHT: float((kind & colour).mean()),
        SEAM: float((seam(images, holes) - seam(case.truth, holes)).mean()),
        RIM: float(metrics.colour_error(pictures, edge, truth, edge).mean()),
    }


def share_removed(before, after) -> float:
    """The mean share of a word row's length that was taken out of a CONDITIONING."""
    taken = (before[0][0] - after[0][0]).norm(dim=-1) / before[0][0].norm(dim=-1)
    return float(taken[taken > 0].mean()) if (taken > 0).any() else 0.0


Cell = Callable[[Learned, Judge, Case], tuple[Pictures, Numbers]]
CELLS: dict[str, tuple[float, Cell]] = {
    **{name: (side, box_cell) for name, side in SIDES.items()},
    LAMBDA: (min(SIDES.values()), lambda_cell),
}
