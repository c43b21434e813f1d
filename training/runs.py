"""A training run on disk, stopped and resumed: what it was asked for, its checkpoints, its losses.

A run lives in a folder: `run.json` says what must stay the same, `step-000100` and so on hold what a resumed
run needs, `log.jsonl` the loss of every step.
"""

import json
import logging
import os
import re
import shutil
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEPT = 2  # checkpoints of a run
ASKED = "run.json"


@dataclass(frozen=True)
class Run:
    """How long and in which portions; `batch` is that of all processes and passes together."""

    folder: Path
    steps: int
    batch: int
    passes: int = 1
    workers: int = 4
    save_every: int = 500
    seed: int = 0
    precision: str | None = None  # no, fp16, bf16; None: as accelerate is configured
    tensorboard: bool = False
    asked: Mapping[str, Any] = field(default_factory=dict)  # option -> what a resumed run must ask for too


class Interrupt:
    """Whether SIGINT or SIGTERM came since it was entered; the second SIGINT ends the process at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.came = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():  # others may not ask for signals
            self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _) -> None:
        if self.came and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.came = True


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of a run's complete checkpoints, the earliest first."""
    found = [(re.fullmatch(r"step-(\d+)", path.name), path) for path in folder.glob("step-*")]
    return sorted((int(match[1]), path) for match, path in found if match)


def check(run: Run) -> None:
    """Raises ValueError where the folder holds a run of something else, or of more steps already."""
    kept = checkpoints(run.folder)
    if kept and kept[-1][0] > run.steps:
        raise ValueError(
            f"--steps: the run in {run.folder} has gone on to step {kept[-1][0]} already; ask for no fewer,"
            " or give another --out."
        )
    file = run.folder / ASKED
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for option, value in run.asked.items():
        if option in before and before[option] != value:
            raise ValueError(
                f"--{option}: the run in {run.folder} was started with {before[option]}, not with {value};"
                " ask for the same again, or give another --out."
            )


def resume(accelerator, run: Run) -> int:
    """Load the run's last checkpoint and drop what came after it; the step it stands at."""
    kept = checkpoints(run.folder)
    step = kept[-1][0] if kept else 0
    accelerator.wait_for_everyone()  # all have looked before the first writes
    if accelerator.is_main_process:
        (run.folder / ASKED).write_text(json.dumps(dict(run.asked), indent=1), encoding="utf-8")
        for partial in run.folder.glob("partial-*"):
            shutil.rmtree(partial)
        log = run.folder / "log.jsonl"
        if log.exists():
            lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
            log.write_text("".join(lines[:step]), encoding="utf-8")
    accelerator.wait_for_everyone()
    if kept:
        accelerator.load_state(str(kept[-1][1]))
        logging.info(f"Going on from step {step}.")
    return step


def save(accelerator, run: Run, step: int) -> None:
    """Every process writes its share under a temporary name, which is exchanged when all are done."""
    partial = run.folder / f"partial-{step:06d}"
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        os.replace(partial, run.folder / f"step-{step:06d}")
        for _, path in checkpoints(run.folder)[:-KEPT]:
            shutil.rmtree(path)
    accelerator.wait_for_everyone()
