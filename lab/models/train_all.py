"""Train the tiny world's models in order; started again, it goes on where it was stopped.

    python dev.py lab train_all --work DIR [--slots 2] [--threads 1] [--share 1.0]
    python dev.py lab train_all --work DIR --status

A stage starts when what it needs is there. Two run at the same time with one thread each, which on two cores
is faster than one with two threads. Every stage saves its state every three minutes and when it is stopped;
its log is DIR/logs/STAGE.log. With --status it only prints how far each stage is and how long the rest
takes. --share takes that part of every stage's steps and of the scenes. Stages run on the accelerator if
there is one; more slots are useful there. Not among them are the models that see one photo (train_imprint,
train_pix2pix): they stand on the shipped UNet.
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
    steps: int = 0


def count(work: Path, folder: str) -> int:
    return len(list((work / folder).glob("*.safetensors")))


SHARDS = -(-SCENES // scene_data.SHARD)


def shards(share: float) -> int:
    """How many shards of scenes there are when that share of the whole recipe is taken."""
    return max(round(share * SHARDS), 3)


def stages(share: float = 1.0) -> tuple[Stage, ...]:
    """All stages in the order in which they should start; `share` shortens every one of them."""
    from .autoencoders import STEPS as AUTOENCODER_STEPS
    from .classifier import STEPS as CLASSIFIER_STEPS
    from .flux import STEPS as FLUX_STEPS
    from .inpainting_unet import STEPS as UNET_STEPS

    totals = AUTOENCODER_STEPS | FLUX_STEPS | {"unet": UNET_STEPS, "classifier": CLASSIFIER_STEPS}
    enough = shards(share)

    def trained(name: str, ready: Callable[[Path], bool], *command: str) -> Stage:
        steps = round(share * totals[name])
        return Stage(
            name, (*command, "--steps", str(steps)), ready,
            lambda work: runs.finished(work / f"{name}.pt"), steps,
        )  # fmt: skip

    def encoded(channels: int) -> Stage:
        folder, first = f"latents{channels}", f"autoencoder{channels}.pt"
        return Stage(
            folder, ("latents", "--channels", str(channels), "--limit", str(enough)),
            lambda w: runs.finished(w / first) and count(w, "scenes") >= enough,
            lambda w: count(w, folder) >= enough,
        )  # fmt: skip

    def after(name: str) -> Callable[[Path], bool]:
        return lambda w: runs.finished(w / f"{name}.pt")

    def words_and_latents(w: Path) -> bool:
        return count(w, "latents4") >= 3 and (w / "text_encoder.pt").exists()

    return (
        Stage(
            "scenes", ("scene_data", "--scenes", str(enough * scene_data.SHARD)), lambda w: True,
            lambda w: count(w, "scenes") >= enough,
        ),
        trained("autoencoder4", lambda w: True, "autoencoders", "--channels", "4"),
        trained("autoencoder16", lambda w: True, "autoencoders", "--channels", "16"),
        encoded(16),
        trained("fill", lambda w: count(w, "latents16") >= 3, "flux", "--task", "fill"),
        encoded(4),
        trained("unet", words_and_latents, "inpainting_unet"),
        trained("edit", after("fill"), "flux", "--task", "edit"),
        trained("classifier", lambda w: count(w, "scenes") >= enough, "classifier"),
        trained("decoder4", after("unet"), "autoencoders", "--channels", "4", "--decoder-only"),
        trained("decoder16", after("edit"), "autoencoders", "--channels", "16", "--decoder-only"),
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


def run(work: Path, slots: int, threads: int, share: float = 1.0) -> None:
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
                s
                for s in stages(share)
                if s.name not in running and s.name not in failed and not s.done(work)
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


def status(work: Path, share: float = 1.0) -> None:
    """Print one line per stage: steps, the last figures, seconds per step and minutes left."""
    for stage in stages(share):
        state = runs.load(work / f"{stage.name}.pt")
        if state is None:
            folder = stage.name if (work / stage.name).is_dir() else ""
            print(
                f"{stage.name:14} "
                f"{f'{count(work, folder)} of {shards(share)} shards' if folder else 'not started'}"
            )
            continue
        log, step, total = state["log"], state["step"], stage.steps
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
    parser.add_argument("--share", type=float, default=1.0, help="of every stage's steps and of the scenes")
    parser.add_argument("--status", action="store_true", help="only print how far everything is")
    a = parser.parse_args()
    if a.status:
        status(a.work, a.share)
    else:
        run(a.work, a.slots, a.threads, a.share)


if __name__ == "__main__":
    main()
