"""What is being trained, for every open page: stage, loss, samples and time left, by workflow and node.

A page that is opened or reloaded half-way reads a whole run (`all_progress`) and then follows its `news`.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

CURVE_POINTS = 300  # of a curve: longer runs have means of several steps as points
MAX_SAMPLES = 12  # on a strip: of more, every second one goes, the first and the last stay
MAX_NODES = 16  # remembered


@dataclass
class TrainingProgress:
    """One training of `steps` steps on the node `node`; `key` tells it from the node's earlier ones.

    workflow: the id of the workflow with the node, empty for a graph that came without; nodes of several
    workflows have the same number.
    """

    node: str
    steps: int
    workflow: str = ""
    key: str = field(default_factory=lambda: f"{time.time():.6f}")
    state: str = "running"  # then "finished", "stopped" (interrupted) or "failed"; "loaded": stored before
    stage: str = ""  # what happens before the first step; the name of what was loaded
    left: float | None = None  # seconds, estimated
    step: int = 0
    points: list[tuple[int, float]] = field(default_factory=list)  # (step, mean loss up to it)
    samples: list[tuple[int, str]] = field(default_factory=list)  # (step, picture as a data URL)
    _open: list[float] = field(default_factory=list)  # losses of the point that is not full yet
    _told: int = 0  # points that `news` has told

    @property
    def stride(self) -> int:
        """Steps to a point."""
        return max(1, math.ceil(self.steps / CURVE_POINTS))

    def add(self, step: int, loss: float) -> None:
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
        self.samples.append((step, picture))
        if len(self.samples) > MAX_SAMPLES:
            self.samples = [*self.samples[:-1:2], self.samples[-1]]

    def whole(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return self._head() | {"points": list(self.points), "samples": list(self.samples)}

    def news(self, sample: bool = False) -> dict[str, Any]:
        """What came since the last call, as JSON; with `sample` the latest picture too."""
        new, self._told = self.points[self._told :], len(self.points)
        return self._head() | {"points": new, "samples": self.samples[-1:] if sample else []}

    def _head(self) -> dict[str, Any]:
        said = {"workflow": self.workflow, "node": self.node, "key": self.key, "state": self.state}
        return said | {"step": self.step, "steps": self.steps, "stage": self.stage, "left": self.left}


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


def begin_progress(node: str, steps: int, workflow: str = "") -> TrainingProgress:
    """A new run, in place of the node's last one."""
    key = workflow, node
    _runs.pop(key, None)
    while len(_runs) >= MAX_NODES:
        del _runs[next(iter(_runs))]
    _runs[key] = TrainingProgress(node, steps, workflow)
    return _runs[key]


def all_progress() -> list[dict[str, Any]]:
    """Every node's latest run, whole."""
    return [run.whole() for run in list(_runs.values())]
