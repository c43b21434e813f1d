"""Train everything of the world of `scenes`, in order; started again, it goes on where it was stopped.

    python dev.py lab train_all --work DIR [--slots 2] [--threads 1]
    python dev.py lab train_all --work DIR --status

A stage starts when what it needs is there. Two run at the same time with one thread each, which on two cores
is faster than one with two threads. Every stage saves its state every three minutes and when it is stopped;
its log is DIR/logs/STAGE.log. With --status it only prints how far each stage is and how long the rest
takes.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import runs, scene_data

SCENES = 16384
MODULE = __package__


@dataclass(frozen=True)
class Stage:
    """One command: the module and its arguments, the state it trains, and when it can start and is done."""

    name: str
    command: tuple[str, ...]
    ready: Callable[[Path], bool]
    done: Callable[[Path], bool]


def count(work: Path, folder: str) -> int:
    return len(list((work / folder).glob("*.safetensors")))


def trained(name: str, *command: str, ready: Callable[[Path], bool]) -> Stage:
    return Stage(name, command, ready, lambda work: runs.finished(work / f"{name}.pt"))


SHARDS = -(-SCENES // scene_data.SHARD)
STAGES = (
    Stage(
        "scenes", ("scene_data", "--scenes", str(SCENES)), lambda w: True,
        lambda w: count(w, "scenes") >= SHARDS,
    ),
    trained("autoencoder4", "autoencoders", "--channels", "4", ready=lambda w: True),
    Stage(
        "latents4", ("latents", "--channels", "4"),
        lambda w: runs.finished(w / "autoencoder4.pt") and count(w, "scenes") >= SHARDS,
        lambda w: count(w, "latents4") >= SHARDS,
    ),
    trained("unet", "inpainting_unet", ready=lambda w: count(w, "latents4") >= 6),
    trained("autoencoder16", "autoencoders", "--channels", "16", ready=lambda w: True),
    Stage(
        "latents16", ("latents", "--channels", "16"),
        lambda w: runs.finished(w / "autoencoder16.pt") and count(w, "scenes") >= SHARDS,
        lambda w: count(w, "latents16") >= SHARDS,
    ),
    trained(
        "fill", "flux", "--task", "fill",
        ready=lambda w: count(w, "latents16") >= 6 and (w / "text_encoder.pt").exists(),
    ),
    trained("edit", "flux", "--task", "edit", ready=lambda w: runs.finished(w / "fill.pt")),
    trained("classifier", "scene_classifier", ready=lambda w: count(w, "scenes") >= SHARDS),
    trained(
        "decoder4", "autoencoders", "--channels", "4", "--decoder-only",
        ready=lambda w: runs.finished(w / "unet.pt")),
    trained(
        "decoder16", "autoencoders", "--channels", "16", "--decoder-only",
        ready=lambda w: runs.finished(w / "edit.pt")),
)  # fmt: skip


def start(stage: Stage, work: Path, threads: int) -> subprocess.Popen:
    log = work / "logs" / f"{stage.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    module, *arguments = stage.command
    command = [sys.executable, "-m", f"{MODULE}.{module}", "--work", str(work), *arguments]
    # idle threads that spin would take time from the others
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    with log.open("a", encoding="utf-8") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def run(work: Path, slots: int, threads: int) -> None:
    """Run the stages until all are done; a stage that fails is not started again, and the others go on."""
    running: dict[str, subprocess.Popen] = {}
    failed: set[str] = set()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        while True:
            for name, process in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    print(f"{time.strftime('%H:%M:%S')} {name} ended with {process.returncode}", flush=True)
                    if process.returncode:
                        failed.add(name)
            waiting = [
                s for s in STAGES if s.name not in running and s.name not in failed and not s.done(work)
            ]
            if not waiting and not running:
                break
            for stage in waiting:
                if len(running) < slots and stage.ready(work):
                    print(f"{time.strftime('%H:%M:%S')} {stage.name} starts", flush=True)
                    running[stage.name] = start(stage, work, threads)
            if not running and not any(stage.ready(work) for stage in waiting):
                break
            time.sleep(10)
    finally:
        for process in running.values():
            os.killpg(process.pid, signal.SIGTERM)  # each saves its state
        for process in running.values():
            process.wait()
    if failed:
        raise SystemExit(
            f"These stages failed, see their logs in {work / 'logs'}: {', '.join(sorted(failed))}."
        )


def status(work: Path) -> None:
    """Print one line per stage: steps, the last figures, seconds per step and minutes left."""
    from .autoencoders import STEPS as AUTOENCODER_STEPS
    from .flux import STEPS as FLUX_STEPS
    from .inpainting_unet import STEPS as UNET_STEPS

    totals = AUTOENCODER_STEPS | FLUX_STEPS | {"unet": UNET_STEPS}
    for stage in STAGES:
        state = runs.load(work / f"{stage.name}.pt")
        if state is None:
            folder = stage.name if (work / stage.name).is_dir() else ""
            print(
                f"{stage.name:14} {f'{count(work, folder)} of {SHARDS} shards' if folder else 'not started'}"
            )
            continue
        log, step, total = state["log"], state["step"], totals.get(stage.name)
        recent = [row for row in log if "loss" in row][-5:]
        pace = 0.0
        if len(recent) > 1:
            pace = (
                (recent[-1]["minutes"] - recent[0]["minutes"]) * 60 / (recent[-1]["step"] - recent[0]["step"])
            )
        left = f", {pace * (total - step) / 60:.0f} min left" if total else ""
        last = log[-1] if log else ""
        print(f"{stage.name:14} step {step} of {total or '?'}, {pace:.2f} s per step{left}  {last}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder of the states, outside the repository"
    )
    parser.add_argument("--slots", type=int, default=2, help="stages that run at the same time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each")
    parser.add_argument("--status", action="store_true", help="only print how far everything is")
    a = parser.parse_args()
    if a.status:
        status(a.work)
    else:
        run(a.work, a.slots, a.threads)


if __name__ == "__main__":
    main()
