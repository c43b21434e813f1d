"""What is being trained, for whoever looks: the loss so far and a few samples, by workflow and node.

A page that is opened or reloaded half-way reads a whole run (`all_progress`) and then follows its `news`.
"""

import math
import time
from dataclasses import dataclass, field
from typing import Any

POINTS = 300  # of a curve: longer runs have means of several steps as points
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
    state: str = "running"  # then "finished", "stopped" (interrupted) or "failed"
    step: int = 0
    points: list[tuple[int, float]] = field(default_factory=list)  # (step, mean loss up to it)
    samples: list[tuple[int, str]] = field(default_factory=list)  # (step, picture as a data URL)
    _open: list[float] = field(default_factory=list)  # losses of the point that is not full yet
    _told: int = 0  # points that `news` has told

    @property
    def stride(self) -> int:
        """Steps to a point."""
        return max(1, math.ceil(self.steps / POINTS))

    def add(self, step: int, loss: float) -> None:
        self.step = step
        self._open.append(loss)
        if len(self._open) == self.stride:
            self.points.append((step, math.fsum(self._open) / self.stride))
            self._open = []

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
        return said | {"step": self.step, "steps": self.steps}


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
