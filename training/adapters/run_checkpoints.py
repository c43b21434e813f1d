"""Store a training run on disk: its configuration, checkpoints and losses.

A run is a folder: `run.json` has the options that a resumed run must repeat, `step-000100` and so on are
checkpoints, `log.jsonl` has the loss of every step.
"""

import itertools
import json
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

from ...common import libraries
from ...common.files import atomic_replace, atomic_write, read_json
from ...common.log import logger

KEPT_CHECKPOINTS = 2  # newest checkpoints of a run that stay on disk
CONFIG_FILE = "run.json"
ZIPPED = (".bin", ".pkl", ".pt")  # files of torch.save are zip archives


@dataclass(frozen=True)
class RunConfig:
    """Length and batch size of a run; `batch` is the total over all processes and passes."""

    folder: Path
    steps: int
    batch: int
    passes: int = 1
    workers: int = 4
    save_every: int = 500
    seed: int = 0
    precision: str | None = None  # no, fp16, bf16; None: accelerate's own setting
    tensorboard: bool = False
    resume_config: Mapping[str, Any] = field(default_factory=dict)  # option -> value, fixed for the run


class InterruptFlag:
    """Record SIGINT and SIGTERM while entered; a second SIGINT ends the process at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.received = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "InterruptFlag":
        if threading.current_thread() is threading.main_thread():  # only there Python allows handlers
            self._previous = {number: signal.signal(number, self._record) for number in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, _) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of a run's complete checkpoints, the earliest first."""
    paths = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted((_step_of(path.name), path) for path in paths)


def _step_of(name: str) -> int:
    return int(name.partition("-")[2])


def check_resumable(run: RunConfig) -> None:
    """Check that the run can continue in its folder.

    Raises:
        ValueError: if the folder has a run with other options or with more steps.
    """
    existing = checkpoints(run.folder)
    if existing and existing[-1][0] > run.steps:
        raise ValueError(
            f"--steps: the run in {run.folder} is at step {existing[-1][0]} already; give at least as many"
            " steps, or another --out."
        )
    file = run.folder / CONFIG_FILE
    before = read_json(file, "--out") if file.is_file() else {}
    if not isinstance(before, dict):
        raise ValueError(
            f"--out: {file} holds no options of a run; delete that folder, or give another --out."
        )
    for option, value in run.resume_config.items():
        if option in before and before[option] != value:
            raise ValueError(
                f"--{option}: the run in {run.folder} was started with {before[option]}, not with {value};"
                " give the same value again, or another --out."
            )


def resume_run(accelerator, run: RunConfig) -> int:
    """Load the run's last complete checkpoint and delete the data after it.

    Returns:
        The step of the checkpoint; 0 if there is none.

    Raises:
        ValueError: if there are checkpoints and all are damaged.
    """
    accelerator.wait_for_everyone()  # every process has checked the folder before the main one changes it
    name, error_text = None, None
    if accelerator.is_main_process:
        try:
            name = _last_complete(run.folder)
            _prune(run, _step_of(name) if name else 0)
        except ValueError as error:  # sent to the other processes, which would wait forever
            error_text = str(error)
    broadcast = libraries.accelerate().utils.broadcast_object_list
    name, error_text = broadcast([name, error_text])  # all resume from the same checkpoint
    if error_text:
        raise ValueError(error_text)
    if name:
        accelerator.load_state(str(run.folder / name))
        logger.info(f"Resuming from step {_step_of(name)}.")
    return _step_of(name) if name else 0


def _prune(run: RunConfig, step: int) -> None:
    """Write the run's options, and delete partial checkpoints and the losses after `step`."""
    text = json.dumps(dict(run.resume_config), indent=1)
    atomic_write(run.folder / CONFIG_FILE, lambda partial: partial.write_text(text, encoding="utf-8"))
    for partial in run.folder.glob("partial-*"):
        shutil.rmtree(partial)
    log = run.folder / "log.jsonl"
    if log.exists():
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
        atomic_write(log, lambda partial: partial.write_text("".join(lines[:step]), encoding="utf-8"))


def _last_complete(folder: Path) -> str | None:
    """Return the name of the latest complete checkpoint, None if there are none; rename damaged ones."""
    paths = [path for _, path in checkpoints(folder)]
    damaged = list(itertools.takewhile(lambda path: not is_complete(path), reversed(paths)))
    if paths and len(damaged) == len(paths):
        raise ValueError(
            f"--out: no checkpoint in {folder} can be read any more; delete that folder to start again, or"
            " give another --out."
        )
    for path in damaged:
        renamed = folder / f"damaged-{path.name}"
        shutil.rmtree(renamed, ignore_errors=True)
        os.replace(path, renamed)  # frees the name: the run reaches that step again
        logger.warning(f"{path} is damaged and was renamed to {renamed.name}; an earlier checkpoint is used.")
    return paths[-1 - len(damaged)].name if paths else None


def is_complete(checkpoint: Path) -> bool:
    """Return whether every file of a checkpoint looks complete.

    Only the start or the end of each file is read.
    """
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    try:
        return bool(files) and all(map(_looks_complete, files))
    except OSError:
        return False


def _looks_complete(file: Path) -> bool:
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt"):  # raises if the header does not fit the file's size
                return True
        except SafetensorError:
            return False
    if file.suffix in ZIPPED:
        return zipfile.is_zipfile(file)  # a zip file's directory is at its end
    return file.stat().st_size > 0 or file.suffix == ".distcp"  # an FSDP rank may write an empty shard


def save_checkpoint(accelerator, run: RunConfig, step: int) -> None:
    """Save a checkpoint.

    Every process writes its part under a temporary name; the main process renames it when all are done.
    """
    partial = run.folder / f"partial-{step:06d}"
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        atomic_replace(partial, run.folder / f"step-{step:06d}")
        for _, path in checkpoints(run.folder)[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(path)
    accelerator.wait_for_everyone()
