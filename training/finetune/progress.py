"""The progress of a training: stage, loss, samples and time left, for open pages; and its plots, as images.

A page that is opened or reloaded during a run reads the whole run (`all_progress`) and then its `news`.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

POINTS = 300  # of a curve: longer runs have means of several steps as points
MAX_SAMPLES = 12  # on a strip: of more, every second one goes, the first and the last stay
MAX_NODES = 16  # remembered
_numbers = count()  # clocks stand still for some milliseconds


@dataclass
class TrainingProgress:
    """One training of `steps` steps on the node `node`; `key` distinguishes it from the node's earlier ones.

    workflow: the id of the workflow with the node, empty for a graph that came without; nodes of several
    workflows have the same number.
    """

    node: str
    steps: int
    workflow: str = ""
    key: str = field(default_factory=lambda: f"{time.time():.6f}-{next(_numbers)}")
    state: str = "running"  # then "finished", "stopped" (interrupted) or "failed"; "loaded": stored before
    stage: str = ""  # what happens before the first step; the name of what was loaded
    left: float | None = None  # seconds, estimated
    step: int = 0
    points: list[tuple[int, float]] = field(default_factory=list)  # (step, mean loss up to it)
    samples: list[tuple[int, str]] = field(default_factory=list)  # (step, picture as a data URL)
    held_out: list[tuple[int, float]] = field(default_factory=list)  # (step, loss) of a held-out picture
    notes: list[str] = field(default_factory=list)  # warnings
    _open: list[float] = field(default_factory=list)  # losses of the point that is not full yet
    _told: int = 0  # points that `news` has returned

    @property
    def stride(self) -> int:
        """Steps to a point."""
        return max(1, math.ceil(self.steps / POINTS))

    def add(self, step: int, loss: float) -> None:
        """Add the loss of a step; the curve's points are means over `stride` steps."""
        self.step = step
        self._open.append(loss)
        if len(self._open) == self.stride:
            self.points.append((step, math.fsum(self._open) / self.stride))
            self._open = []

    def add_all(self, losses: Sequence[float]) -> None:
        """Add the losses of a training that was done before."""
        for step, loss in enumerate(losses, 1):
            self.add(step, loss)

    def add_sample(self, step: int, picture: str) -> None:
        """Add a sample; above MAX_SAMPLES every second one is left out, never the last."""
        self.samples.append((step, picture))
        if len(self.samples) > MAX_SAMPLES:
            self.samples = [*self.samples[:-1:2], self.samples[-1]]

    def whole(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return self._head() | {"points": list(self.points), "samples": list(self.samples)}

    def news(self, sample: bool = False) -> dict[str, Any]:
        """Return what came since the last call, as JSON; with `sample` the latest picture too."""
        new, self._told = self.points[self._told :], len(self.points)
        return self._head() | {"points": new, "samples": self.samples[-1:] if sample else []}

    def _head(self) -> dict[str, Any]:
        said = {"workflow": self.workflow, "node": self.node, "key": self.key, "state": self.state}
        said |= {"step": self.step, "steps": self.steps, "stage": self.stage, "left": self.left}
        return said | {"held_out": list(self.held_out), "notes": list(self.notes)}


class TimeLeft:
    """Estimate the seconds that a training still takes: the median step, and the median pause for a sample.

    The mean since the start would jump whenever a sample is painted, and would keep a slow first step.
    """

    WINDOW = 50  # latest steps

    def __init__(self, steps: int, clock: Callable[[], float] = time.monotonic):
        self.steps, self.clock = steps, clock
        self.last: float | None = None
        self.durations: deque[float] = deque(maxlen=self.WINDOW)
        self.pauses: deque[float] = deque(maxlen=self.WINDOW)
        self.sampled: list[int] = []  # steps with a sample

    def step_done(self, step: int) -> float | None:
        """Seconds left after this step; None before two steps were seen."""
        now = self.clock()
        if self.last is not None:
            self.durations.append(now - self.last)
        self.last = now
        if not self.durations:
            return None
        left = median(self.durations) * (self.steps - step)
        if len(self.sampled) > 1:
            every = self.sampled[-1] - self.sampled[-2]
            left += median(self.pauses) * ((self.steps - self.sampled[-1]) // every)
        return left

    def sample_done(self, step: int) -> None:
        """Count the time since the last step as a sample's."""
        now = self.clock()
        if self.last is not None:
            self.pauses.append(now - self.last)
        self.last = now
        self.sampled.append(step)


def duration_text(seconds: float) -> str:
    """Seconds as a person reads them: 45 s, 3 min 20 s, 1 h 5 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60 // 10 * 10:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


_runs: dict[tuple[str, str], TrainingProgress] = {}


def begin_progress(node: str, steps: int, workflow: str = "", notes: Sequence[str] = ()) -> TrainingProgress:
    """Return a new run, in place of the node's last one."""
    key = workflow, node
    _runs.pop(key, None)
    while len(_runs) >= MAX_NODES:
        del _runs[next(iter(_runs))]
    _runs[key] = TrainingProgress(node, steps, workflow, notes=list(notes))
    return _runs[key]


def all_progress() -> list[dict[str, Any]]:
    """Every node's latest run, whole."""
    return [run.whole() for run in list(_runs.values())]


PAPER, INK, GRID, RAW, SMOOTH = "#fbfaf7", "#3b3a37", "#e4e1d8", "#e9b99a", "#c2410c"
BLUE = "#2563eb"
FINE = 2  # drawn this much larger and shrunk, for smooth lines
WIDTH = 768
MAX_STRIP_SAMPLES = 6  # in a row at most


def smoothed(losses: Sequence[float], span: int) -> list[float]:
    """Return the exponential mean over about `span` steps, bias-corrected (Kingma & Ba 2015, sec. 3)."""
    decay, mean, weight, out = 1 - 1 / max(span, 1), 0.0, 0.0, []
    for loss in losses:
        mean, weight = decay * mean + (1 - decay) * loss, decay * weight + (1 - decay)
        out.append(mean / weight)
    return out


def draw_curve(
    losses: Sequence[float],
    title: str,
    width: int = WIDTH,
    height: int = 432,
    notes: Sequence[str] = (),
    held_out: Sequence[Sequence[float]] = (),
) -> torch.Tensor:
    """Draw the loss of every step and its running mean as an IMAGE (1,height,width,3) in [0,1].

    `notes` are warnings that the user should see, written under the title. `held_out` are step and loss of
    a picture that was not trained on.
    """
    image = Image.new("RGB", (width * FINE, height * FINE), PAPER)
    draw = ImageDraw.Draw(image)
    text, heading = (ImageFont.load_default(size * FINE) for size in (13, 17))
    left, top, right, bottom = (v * FINE for v in (64, 52, width - 24, height - 44))
    high = max([*losses, *(loss for _, loss in held_out)]) * 1.05 or 1.0

    def place(step: float, loss: float) -> tuple[float, float]:
        return left + (right - left) * step / max(len(losses) - 1, 1), bottom - (bottom - top) * loss / high

    for part in range(5):
        y = bottom - (bottom - top) * part / 4
        draw.line([(left, y), (right, y)], fill=GRID, width=FINE)
        draw.text((left - 10 * FINE, y), f"{high * part / 4:.3g}", fill=INK, font=text, anchor="rm")
    for step in sorted({0, len(losses) // 2, len(losses) - 1}):
        draw.text((place(step, 0)[0], bottom + 10 * FINE), f"{step + 1}", fill=INK, font=text, anchor="mt")
    mean = smoothed(losses, max(len(losses) // 12, 1))
    for values, colour, thickness in ((losses, RAW, 1), (mean, SMOOTH, 3)):
        points = [place(step, value) for step, value in enumerate(values)]
        draw.line([points[0], *points], fill=colour, width=thickness * FINE, joint="curve")
    if held_out:
        points = [place(max(step - 1, 0), loss) for step, loss in held_out]
        draw.line([points[0], *points], fill=BLUE, width=2 * FINE, joint="curve")
        label = f"held-out picture {held_out[-1][1]:.4g}"
        draw.text((right, 34 * FINE), label, fill=BLUE, font=text, anchor="ra")
    draw.text((left, 16 * FINE), title, fill=INK, font=heading)
    draw.text((right, 18 * FINE), f"loss {mean[-1]:.4g}", fill=SMOOTH, font=text, anchor="ra")
    small = ImageFont.load_default(11 * FINE)
    for line, note in enumerate(notes):
        draw.text((left, (36 + 14 * line) * FINE), note, fill=SMOOTH, font=small)
    return image_to_tensor(image.resize((width, height), Image.Resampling.LANCZOS))


def draw_strip(samples: Mapping[int, torch.Tensor], width: int = WIDTH) -> Image.Image:
    """Draw samples over time, (H,W,3) in bytes by their step, side by side with the steps beneath.

    Of more than SAMPLES of them, evenly spaced ones with the first and the last.
    """
    steps = sorted(samples)
    places = np.linspace(0, len(steps) - 1, min(len(steps), MAX_STRIP_SAMPLES)).round().astype(int)
    gap, foot = 8, 26
    side = (width - gap * (MAX_STRIP_SAMPLES + 1)) // MAX_STRIP_SAMPLES
    height = max(side, *(round(side * len(samples[step]) / samples[step].shape[1]) for step in steps))
    image = Image.new("RGB", (width, height + 2 * gap + foot), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    for column, step in enumerate(steps[place] for place in places):
        picture = Image.fromarray(samples[step].numpy())
        picture.thumbnail((side, height), Image.Resampling.LANCZOS)
        if picture.width < side and picture.height < height:
            picture = picture.resize((side, round(side * picture.height / picture.width)))
        left = gap + column * (side + gap)
        image.paste(picture, (left, gap))
        draw.text((left + side // 2, height + 2 * gap), f"step {step}", fill=INK, font=font, anchor="mt")
    return image


def image_to_tensor(image: Image.Image) -> torch.Tensor:
    """Return a picture as an IMAGE (1,H,W,3) in [0,1]."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)[None]
