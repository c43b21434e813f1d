"""A training run on disk, stopped and resumed: what it was asked for, its checkpoints, its losses.

A run lives in a folder: `run.json` says what must stay the same, `step-000100` and so on hold what a resumed
run needs, `log.jsonl` the loss of every step.
"""

import itertools
import json
import logging
import os
import re
import shutil
import signal
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ...common.atomic_io import atomic_replace

KEPT_CHECKPOINTS = 2  # checkpoints of a run
CONFIG_FILE = "run.json"
ZIPPED = (".bin", ".pkl", ".pt")  # torch.save's files


@dataclass(frozen=True)
class RunConfig:
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


class InterruptFlag:
    """Whether SIGINT or SIGTERM came since it was entered; the second SIGINT ends the process at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.came = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "InterruptFlag":
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
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted((_step_of(path.name), path) for path in found)


def _step_of(name: str) -> int:
    return int(name.partition("-")[2])


def check_resumable(run: RunConfig) -> None:
    """Raises ValueError where the folder holds a run of something else, or of more steps already."""
    kept = checkpoints(run.folder)
    if kept and kept[-1][0] > run.steps:
        raise ValueError(
            f"--steps: the run in {run.folder} has gone on to step {kept[-1][0]} already; ask for no fewer,"
            " or give another --out."
        )
    file = run.folder / CONFIG_FILE
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for option, value in run.asked.items():
        if option in before and before[option] != value:
            raise ValueError(
                f"--{option}: the run in {run.folder} was started with {before[option]}, not with {value};"
                " ask for the same again, or give another --out."
            )


def resume_run(accelerator, run: RunConfig) -> int:
    """Load the run's last whole checkpoint and drop what came after it; the step it stands at.

    Raises ValueError where there are checkpoints and none is whole.
    """
    from accelerate.utils import broadcast_object_list  # slow to import

    accelerator.wait_for_everyone()  # all have looked before the first writes
    name, wrong = None, None
    if accelerator.is_main_process:
        try:
            name = _last_whole(run.folder)
            _prune(run, _step_of(name) if name else 0)
        except ValueError as error:  # the others are told of it, or they would wait
            wrong = str(error)
    name, wrong = broadcast_object_list([name, wrong])  # all go on from what one has seen
    if wrong:
        raise ValueError(wrong)
    if name:
        accelerator.load_state(str(run.folder / name))
        logging.info(f"Going on from step {_step_of(name)}.")
    return _step_of(name) if name else 0


def _prune(run: RunConfig, step: int) -> None:
    """Note what the run is asked for, and drop what it wrote after that step."""
    asked = run.folder / f"{CONFIG_FILE}.partial"
    asked.write_text(json.dumps(dict(run.asked), indent=1), encoding="utf-8")
    atomic_replace(asked, run.folder / CONFIG_FILE)
    for partial in run.folder.glob("partial-*"):
        shutil.rmtree(partial)
    log = run.folder / "log.jsonl"
    if log.exists():
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
        log.write_text("".join(lines[:step]), encoding="utf-8")


def _last_whole(folder: Path) -> str | None:
    """The name of the latest checkpoint that can be read, None without any; damaged ones are put aside."""
    kept = [path for _, path in checkpoints(folder)]
    damaged = list(itertools.takewhile(lambda path: not is_complete(path), reversed(kept)))
    if kept and len(damaged) == len(kept):
        raise ValueError(
            f"--out: no checkpoint in {folder} can be read any more; delete that folder to begin again, or"
            " give another --out."
        )
    for path in damaged:
        aside = folder / f"damaged-{path.name}"
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)  # the run will come to that step again
        logging.warning(f"{path} is damaged and now called {aside.name}; an earlier checkpoint is taken.")
    return kept[-1 - len(damaged)].name if kept else None


def is_complete(checkpoint: Path) -> bool:
    """Whether every file of a checkpoint looks complete, from its head or tail: not every byte is read."""
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    try:
        return bool(files) and all(map(_looks_complete, files))
    except OSError:
        return False


def _looks_complete(file: Path) -> bool:
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt"):  # compares the header with the size
                return True
        except SafetensorError:
            return False
    if file.suffix in ZIPPED:
        return zipfile.is_zipfile(file)  # the directory is at the end
    return file.stat().st_size > 0 or file.suffix == ".distcp"  # under FSDP a process may have nothing to say


def save_checkpoint(accelerator, run: RunConfig, step: int) -> None:
    """Every process writes its share under a temporary name, which is exchanged when all are done."""
    partial = run.folder / f"partial-{step:06d}"
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        atomic_replace(partial, run.folder / f"step-{step:06d}")
        for _, path in checkpoints(run.folder)[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(path)
    accelerator.wait_for_everyone()
