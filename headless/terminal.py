"""Show a progress bar per node in a terminal, in plain ASCII."""

import shutil
import sys
import time
from typing import TextIO

from .client import Graph, NodeProgressEvent, title_of

BAR = 24


def bar_line(title: str, column: int, progress: NodeProgressEvent, seconds: float) -> str:
    """Return one node's line: title, bar, count, time and the node's own text.

    >>> bar_line("KSampler", 10, NodeProgressEvent("3", 5, 20, "running"), 1.5)
    '  KSampler    [######..................]    5/20   1.5 s'
    """
    finished = progress.state != "running"
    share = 1.0 if finished else min(progress.value / progress.maximum, 1.0) if progress.maximum else 0.0
    bar = ("#" * int(share * BAR)).ljust(BAR, ".")
    count = f"{progress.value:.0f}/{progress.maximum:.0f}" if progress.maximum > 1 else ""
    duration = "cached" if progress.state == "cached" else f"{seconds:.1f} s"
    text = f"  {progress.text}" if progress.text and not finished else ""
    return f"  {title:<{column}}  [{bar}] {count:>7} {duration:>7}{text}".rstrip()


class Bars:
    """Draw the progress of one run of `graph`; pass it to `Client.run` as `on_progress`.

    In a terminal the running node's line is redrawn in place; in a file or a pipe each node gets one line
    when it has finished.
    """

    def __init__(self, graph: Graph, stream: TextIO | None = None):
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty()
        self.titles = {node: title_of(node, graph) for node in graph}
        self.column = max(map(len, self.titles.values()), default=0)
        self.started: dict[str, float] = {}
        self.ended: set[str] = set()

    def __call__(self, progress: NodeProgressEvent) -> None:
        """Draw a progress event."""
        node = progress.node
        if node in self.ended:
            return
        now = time.monotonic()
        seconds = now - self.started.setdefault(node, now)
        line = bar_line(self.titles.get(node, node), self.column, progress, seconds)
        if progress.state != "running":
            self.ended.add(node)
            self._draw(line, end="\n")
        elif self.live:
            self._draw(line, end="")

    def _draw(self, line: str, end: str) -> None:
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            line = "\r" + line[:width].ljust(width)
        self.stream.write(line + end)
        self.stream.flush()
