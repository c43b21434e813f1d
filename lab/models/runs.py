"""One loop for all trainings: a learning rate schedule, a running mean of the weights, checkpoints, a log.

What a step draws at random depends on the seed and the step alone, so a run that was stopped and started
again takes the same steps as one that was not. A checkpoint holds weights, their mean, optimizer, step,
seconds and log, and is written to a temporary name first.
"""

import json
import math
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import get_ema_multi_avg_fn


def device() -> torch.device:
    """Where trainings run: the accelerator if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def half_precision():
    """A context of bfloat16 arithmetic on that device."""
    return torch.autocast(device().type, torch.bfloat16)


def training_attention():
    """A context of the attention kernel with the fastest gradient at these sizes: on a CPU the plain one."""
    return sdpa_kernel(SDPBackend.MATH) if device().type == "cpu" else nullcontext()


def save(state, path: Path) -> None:
    """Write a state so that an interrupt at any moment leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load(path: Path):
    """The state at `path`, or None when there is none yet."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def draws(seed: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """The random generators of one step."""
    return np.random.default_rng([seed, step]), torch.Generator().manual_seed(seed * 1_000_003 + step)


def cosine(step: int, total: int, warm_up: int = 200, least: float = 0.02) -> float:
    """The learning rate's factor: linear warm-up, then a half cosine down to `least`."""
    return min(1.0, (step + 1) / warm_up) * (
        least + (1 - least) * 0.5 * (1 + math.cos(math.pi * min(step / total, 1)))
    )


def finished(path: Path) -> bool:
    """Whether the run at `path` has taken all its steps."""
    return path.with_suffix(".done").exists()


class Fit:
    """A training: `modules` by name, trained by AdamW at `rate` for `total` steps, its state at `path`.

    The matrices `hidden` are trained by Muon (Jordan et al. 2024) at `hidden_rate` instead, its updates
    scaled to AdamW's size (Liu et al. 2025, equation 4).
    """

    def __init__(
        self,
        path: Path,
        modules: Mapping[str, nn.Module],
        total: int,
        rate: float,
        average: float = 0.0,
        decay: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        hidden: Sequence[nn.Parameter] = (),
        hidden_rate: float = 0.0,
    ):
        self.path, self.modules, self.total, self.average = path, modules, total, average
        for module in modules.values():
            module.to(device())
        self.parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        own = {id(p) for p in hidden}
        others = [p for p in self.parameters if id(p) not in own]
        groups = [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": decay},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)
        self.optimizers: list[tuple[torch.optim.Optimizer, float]] = [(adamw, rate)]
        if hidden:
            muon = torch.optim.Muon(
                hidden, lr=hidden_rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw", ns_steps=4
            )
            self.optimizers.append((muon, hidden_rate))
        self.mean = [p.detach().clone() for p in self.parameters] if average else []
        self.step, self.seconds, self.log = 0, 0.0, []
        if state := load(path):
            for name, module in modules.items():
                module.load_state_dict(state["modules"][name])
            for (optimizer, _), kept in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
            self.mean = [kept.to(device()) for kept in state["mean"]]
            self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]

    @property
    def done(self) -> bool:
        return self.step >= self.total

    def state(self) -> dict:
        return {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizers": [optimizer.state_dict() for optimizer, _ in self.optimizers],
            "mean": self.mean,
            "step": self.step,
            "seconds": self.seconds,
            "log": self.log,
        }

    def run(
        self,
        loss_at: Callable[[int], tuple[Tensor, dict[str, float]]],
        measure: Callable[[], dict[str, float]] | None = None,
        log_every: int = 50,
        measure_every: int = 1000,
        save_every: float = 180.0,
    ) -> None:
        """Take the steps that are left. `loss_at(step)` gives the loss and what to log beside it."""
        stopped = []
        previous = signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
        try:
            self._run(loss_at, measure, log_every, measure_every, save_every, stopped)
        finally:
            signal.signal(signal.SIGTERM, previous)
        if self.done:
            self.path.with_suffix(".done").touch()
        elif stopped:
            raise SystemExit(143)

    def _run(self, loss_at, measure, log_every, measure_every, save_every, stopped) -> None:
        saved = last = time.monotonic()
        rows: list[dict[str, float]] = []
        while not self.done and not stopped:
            for optimizer, rate in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate * cosine(self.step, self.total)
            loss, shown = loss_at(self.step)
            for optimizer, _ in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            if torch.isfinite(norm):
                for optimizer, _ in self.optimizers:
                    optimizer.step()
            self.step += 1
            decay = min(self.average, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                if self.mean:
                    get_ema_multi_avg_fn(decay)(self.mean, list(self.parameters), 0)
            rows.append({"loss": loss.item(), "norm": norm.item(), **shown})
            now = time.monotonic()
            self.seconds, last = self.seconds + now - last, now
            if self.step % log_every == 0:
                self._note({k: float(np.mean([r[k] for r in rows if k in r])) for k in rows[-1]})
                rows = []
            if measure and (self.step % measure_every == 0 or self.done):
                with torch.no_grad(), Averaged(self):
                    self._note({"measured": 1.0, **measure()})
                last = time.monotonic()  # not part of the training
            if now - saved > save_every or self.done or stopped:
                save(self.state(), self.path)
                saved = time.monotonic()

    def _note(self, numbers: dict[str, float]) -> None:
        row = {"step": self.step, "minutes": round(self.seconds / 60, 2)}
        row |= {name: round(value, 5) for name, value in numbers.items()}
        self.log.append(row)
        print(json.dumps({"run": self.path.stem, **row}), flush=True)


class Averaged:
    """Context in which the modules hold the mean of their weights (if the training keeps one)."""

    def __init__(self, fit: Fit):
        self.fit = fit

    def swap(self) -> None:
        for kept, parameter in zip(self.fit.mean, self.fit.parameters, strict=True) if self.fit.mean else ():
            held = parameter.data.clone()
            parameter.data.copy_(kept)
            kept.copy_(held)

    def __enter__(self):
        self.swap()

    def __exit__(self, *_):
        self.swap()
