"""Teach a model a subject without a graph: the engine and the store of the node Subject Finetune.

    python -m inlay finetune --config finetune.toml
    accelerate launch --num_processes 4 -m inlay finetune --config finetune.toml

The file says what to teach and to which model; workflows/finetune.toml shows every key. Under `accelerate
launch` each process takes its share of every batch, on its own accelerator; one process with the same batch
gets the same result up to rounding. Stopped or killed, the same command goes on where it was. The subject's
LoRA and its facts are printed as one line of JSON, progress goes to stderr.

Exit codes: 0 done, 1 the training failed, 2 what was asked for is wrong, 3 no host, 130 stopped.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..training.adapters.run_checkpoints import InterruptFlag
from ..training.finetune.distributed import any_rank_stopping, close_group, on_cpu, open_group
from ..training.finetune.toml_config import read_toml
from ..training.finetune.trainer import Diverged, ProcessGroup
from .errors import DONE, FAILED, NO_HOST, STOPPED, WRONG, HostError
from .server import open_host


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--config", type=Path, required=True, metavar="FILE", help="what to teach, in TOML")
    add("--comfyui", type=Path, metavar="DIR", help="the host (default: COMFYUI_PATH, or the one around us)")


def main(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, stop_handler)
    try:
        config = read_toml(options.config)
        group = open_group()
        open_host(options.comfyui, cpu=on_cpu())
        # the host can be imported from here on
        from ..training.finetune.finetune_subject import finetune_from_config
    except ValueError as error:
        return end(WRONG, str(error))
    except HostError as error:
        return end(NO_HOST, str(error))
    first = group.number == 0
    begun = time.monotonic()
    try:
        with between_steps(
            print_result_line(config.recipe.steps) if first else lambda *_: None, group
        ) as on_step:
            subject, path = finetune_from_config(config, group, on_step)
    except Diverged as error:
        return end(FAILED, str(error))
    except ValueError as error:
        return end(WRONG, str(error))
    except KeyboardInterrupt:
        return end(STOPPED, "Stopped; the same command goes on from here.")
    close_group(group)
    if first:
        facts = {"lora": str(path), "words": subject.words, "recipe": subject.recipe, "steps": subject.steps}
        facts |= {"loss": subject.losses[-1], "processes": group.size}
        print(json.dumps(facts | {"seconds": round(time.monotonic() - begun, 1)}))
    return DONE


def stop_handler(*_) -> None:
    """A machine that is taken back says SIGTERM: end as on Ctrl-C."""
    raise KeyboardInterrupt


@contextmanager
def between_steps(
    show: Callable[[int, float], None], group: ProcessGroup
) -> Iterator[Callable[[int, float], None]]:
    """An on_step that shows the step; it raises KeyboardInterrupt once a process was told to stop within it.

    Until the first step is done there is nothing to keep, and a signal ends the process at once.
    """
    interrupt, waiting = InterruptFlag(), False

    with ExitStack() as until_the_end:

        def on_step(step: int, loss: float) -> None:
            nonlocal waiting
            if not waiting:
                until_the_end.enter_context(interrupt)
                waiting = True
            show(step, loss)
            if any_rank_stopping(group, interrupt.came):
                raise KeyboardInterrupt

        yield on_step


def print_result_line(steps: int):
    """Prints step, loss and time left: every step on a terminal, every tenth of the way in a file."""
    start: list[tuple[int, float]] = []

    def show(step: int, loss: float) -> None:
        now = time.monotonic()
        start[:] = start or [(step, now)]
        done, spent = step - start[0][0], now - start[0][1]
        left = spent / done * (steps - step) if done else 0.0
        line = f"step {step} of {steps}, loss {loss:.4f}, {left:.0f} s left"
        if sys.stderr.isatty():
            print(f"\r{line:<60}", end="\n" if step == steps else "", file=sys.stderr, flush=True)
        elif step % max(steps // 10, 1) == 0 or step == steps:
            print(line, file=sys.stderr, flush=True)

    return show


def end(code: int, message: str) -> int:
    print(message, file=sys.stderr, flush=True)
    return code
