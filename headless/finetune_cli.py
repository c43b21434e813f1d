"""Finetune a model on a subject without a graph, with the trainer and the store of the node Train Subject.

    python -m inlay finetune --config finetune.toml
    accelerate launch --num_processes 4 -m inlay finetune --config finetune.toml

The file has the subject, the model and the settings; workflows/finetune.toml shows every key. Under
`accelerate launch` each process computes a part of every batch on its own accelerator; one process with the
same batch size gets the same result up to rounding. After an interruption, the same command continues the
training. The LoRA and its data are printed as one line of JSON on stdout, progress on stderr.

Exit codes: 0 done, 1 the training failed, 2 wrong arguments or files, 3 no host, 130 interrupted.
"""

import argparse
import errno
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from ..training import Diverged
from ..training.adapters.run_checkpoints import InterruptFlag
from .errors import DONE, FAILED, NO_HOST, STOPPED, WRONG, HostError
from .server import open_host

if TYPE_CHECKING:
    from ..training.finetune.trainer import ProcessGroup


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--config", type=Path, required=True, metavar="FILE", help="the training's settings in TOML")
    add(
        "--comfyui",
        type=Path,
        metavar="DIR",
        help="folder of ComfyUI (default: COMFYUI_PATH, or the one this pack is installed in)",
    )


def main(options: argparse.Namespace) -> int:
    """Run `python -m inlay finetune`; return the exit code."""
    from ..training.finetune.toml_config import read_toml  # these import torch, which --help does not need
    from ..training.finetune.trainer import close_group, on_cpu, open_group

    signal.signal(signal.SIGTERM, stop_handler)
    try:
        config = read_toml(options.config)
        group = open_group()
        open_host(options.comfyui, cpu=on_cpu())
        # imports the host, which is possible from here on
        from ..training.finetune.finetune_subject import finetune_from_config
    except ValueError as error:
        return end(WRONG, str(error))
    except HostError as error:
        return end(NO_HOST, str(error))
    first = group.number == 0
    start_time = time.monotonic()
    try:
        plan: list[int] = []  # number of steps, which a model's family may decide
        show = progress_printer(plan) if first else lambda *_: None
        with interrupt_between_steps(show, group) as on_step:
            subject, path = finetune_from_config(config, group, on_step, plan.append)
    except Diverged as error:
        return end(FAILED, str(error))
    except ValueError as error:
        return end(FAILED if is_full_disk(error.__cause__) else WRONG, str(error))
    except KeyboardInterrupt:
        return end(STOPPED, "Stopped; the same command goes on from here.")
    close_group(group)
    if first:
        facts = {"lora": str(path), "words": subject.words, "recipe": subject.recipe, "steps": subject.steps}
        facts |= {"loss": subject.losses[-1], "processes": group.size}
        print(json.dumps(facts | {"seconds": round(time.monotonic() - start_time, 1)}))
    return DONE


def stop_handler(*_) -> None:
    """Handle SIGTERM, which cloud machines send before they shut down, as Ctrl-C."""
    raise KeyboardInterrupt


@contextmanager
def interrupt_between_steps(
    show: Callable[[int, float], None], group: "ProcessGroup"
) -> Iterator[Callable[[int, float], None]]:
    """Yield an `on_step` that shows a step and raises KeyboardInterrupt if a process was stopped during it.

    Before the end of the first step there is nothing to save, so a signal ends the process at once.
    """
    from ..training.finetune.trainer import any_rank_stopping  # imports torch

    interrupt, entered = InterruptFlag(), False

    with ExitStack() as stack:

        def on_step(step: int, loss: float) -> None:
            nonlocal entered
            if not entered:
                stack.enter_context(interrupt)
                entered = True
            show(step, loss)
            if any_rank_stopping(group, interrupt.received):
                raise KeyboardInterrupt

        yield on_step


def progress_printer(plan: list[int]) -> Callable[[int, float], None]:
    """Return a function that shows step, loss and time left on stderr; `plan` ends with the number of steps.

    A terminal gets a bar; a file gets one line for every tenth of the run.
    """
    live, first = sys.stderr.isatty(), []
    began = time.monotonic()

    def show(step: int, loss: float) -> None:
        steps = plan[-1]
        if not first:  # not known before, because a resumed run starts at a later step
            first.append((step - 1, tqdm(total=steps, initial=step - 1, unit="step", disable=not live)))
        before, bar = first[0]
        bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        bar.update(step - bar.n)
        if step == steps:
            bar.close()
        if not live and (step % max(steps // 10, 1) == 0 or step == steps):
            left = (time.monotonic() - began) / (step - before) * (steps - step)
            print(f"step {step} of {steps}, loss {loss:.4f}, {left:.0f} s left", file=sys.stderr, flush=True)

    return show


def is_full_disk(cause: BaseException | None) -> bool:
    """Whether a file could not be written for want of room, as the system or safetensors reports it."""
    full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "os error 28" in str(cause)


def end(code: int, message: str) -> int:
    """Print a message on stderr and return the exit code."""
    print(message, file=sys.stderr, flush=True)
    return code
