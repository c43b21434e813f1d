"""Take optimiser steps with float32 masters, loss scaling, clipping and an average of the weights (EMA)."""

import math
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from io import StringIO
from typing import Any, Literal

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim.swa_utils import get_ema_multi_avg_fn

OptimizerKind = Literal["AdamW", "AdamW8bit", "Adafactor", "Prodigy"]
Average = Callable[[Sequence[Tensor]], None]  # averages gradients over all processes, in place
ADAFACTOR_RATE = 1e-2  # torch's default, of the root mean square of each weight
# Learning rates of the optimisers that have one of their own. Prodigy multiplies its estimate by it.
OWN_RATES: dict[str, float] = {"Adafactor": ADAFACTOR_RATE, "Prodigy": 1.0}
PRODIGY_ESTIMATE = ("d", "d_max", "d_numerator", "k")  # what Prodigy keeps for all parameters together
NO_STATE = ("", "master", "mean", "sample")  # checkpoint keys that are not part of the optimiser's state


@dataclass(frozen=True)
class OptimizerSpec:
    """Adafactor's rate is relative to the size of each weight, Prodigy's to its own estimate."""

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)  # DreamCom and DreamMix, released code
    weight_decay: float = 1e-2
    eps: float = 1e-8  # DreamCom, released code
    clip_norm: float = 1.0  # DreamCom, released code
    kind: OptimizerKind = "AdamW"  # betas and eps are AdamW's and Prodigy's
    schedule: Literal["constant", "cosine"] = "constant"  # of the learning rate after the warm-up
    warmup: int = 0  # steps in which the learning rate rises from 0 in a straight line

    def rate_at(self, step: int, steps: int) -> float:
        """Return the learning rate of step `step`, counted from 0, of `steps`.

        cosine: half a cosine from the full rate to 0 (Loshchilov & Hutter 2017, eq. 5, without restarts).
        """
        if step < self.warmup:
            return self.learning_rate * (step + 1) / (self.warmup + 1)
        if self.schedule == "constant":
            return self.learning_rate
        share = (step - self.warmup) / max(steps - self.warmup, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def eight_bit_installed() -> bool:
    """Return whether bitsandbytes, which has AdamW with 8-bit moments, is installed."""
    return find_spec("bitsandbytes") is not None


def check_optimizer(spec: OptimizerSpec) -> None:
    """Check that the optimiser of a spec is installed.

    Raises:
        ValueError: if it is not.
    """
    if spec.kind == "Prodigy" and find_spec("prodigyopt") is None:
        raise ValueError(
            "optimiser: Prodigy needs the Python package prodigyopt, which is not installed; install it or"
            " choose another optimiser."
        )
    if spec.kind == "AdamW8bit" and not eight_bit_installed():
        raise ValueError(
            "optimiser: AdamW8bit needs the Python package bitsandbytes, which is not installed; install it"
            " or choose another optimiser."
        )


def make_optimizer(parameters: Sequence[Tensor], spec: OptimizerSpec) -> Any:
    """Return the optimiser of a spec for `parameters`.

    AdamW (Loshchilov & Hutter 2019) and Adafactor (Shazeer & Stern 2018) are torch's; AdamW8bit with moments
    in 8 bits (Dettmers et al. 2022) is bitsandbytes'; Prodigy (Mishchenko & Defazio 2024) is its authors'.
    """
    common: dict[str, Any] = {"lr": spec.learning_rate, "weight_decay": spec.weight_decay}
    if spec.kind == "Adafactor":
        return torch.optim.Adafactor(parameters, **common)
    common |= {"betas": spec.betas, "eps": spec.eps}
    if spec.kind == "AdamW8bit":
        import bitsandbytes  # pyright: ignore[reportMissingImports]  (optional, see check_optimizer)

        return bitsandbytes.optim.AdamW8bit(parameters, **common)
    if spec.kind == "Prodigy":
        import prodigyopt  # pyright: ignore[reportMissingImports]  (optional, see check_optimizer)

        with redirect_stdout(StringIO()):  # it prints a line about weight decay
            # Both switches are the authors' advice for diffusion models.
            return prodigyopt.Prodigy(parameters, safeguard_warmup=True, use_bias_correction=True, **common)
    return torch.optim.AdamW(parameters, fused=has_fused_kernel(parameters[0].device), **common)


@cache
def has_fused_kernel(device: torch.device) -> bool:
    """Return whether AdamW's fused kernel runs on this device, by one step of one number.

    DirectML and older versions of MPS have none, and torch reports that at the first step only.
    """
    with torch.inference_mode(False):
        number = torch.zeros(1, device=device, requires_grad=True)
        number.grad = torch.zeros_like(number)
        try:
            torch.optim.AdamW([number], fused=True).step()
        except (RuntimeError, ValueError):  # NotImplementedError is a RuntimeError
            return False
    return True


class UnfitState(ValueError):
    """A checkpoint is no state of this optimizer and these parameters."""


# Shapes of an optimizer's tensors by their names, for a parameter's shape.
FULL_SHAPED = ("exp_avg", "exp_avg_sq", "variance", "state1", "state2")
FLATTENED = ("s", "p0")
STATE_NAMES = {
    "AdamW": ({"step", "exp_avg", "exp_avg_sq"},),
    "Adafactor": ({"step", "row_var", "col_var"}, {"step", "variance"}),
    "AdamW8bit": (
        {"step", "state1", "state2"},  # small parameters
        {"step", "state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2"},
    ),
    "Prodigy": ({"step", "s", "p0", "exp_avg", "exp_avg_sq"},),
}
EIGHT_BIT_BLOCK, EIGHT_BIT_LEVELS = 256, 256  # of bitsandbytes: values with one scale, and values of a byte


def state_shape(name: str, shape: torch.Size) -> tuple[int, ...] | None:
    """Return the shape of an optimizer's tensor for a parameter of `shape`; None for an unknown name."""
    if name in FULL_SHAPED:
        return tuple(shape)
    if name in FLATTENED:
        return (shape.numel(),)
    return {
        "step": (),
        "row_var": (*shape[:-1], 1),
        "col_var": (*shape[:-2], 1, *shape[-1:]),
        "qmap1": (EIGHT_BIT_LEVELS,),
        "qmap2": (EIGHT_BIT_LEVELS,),
        "absmax1": (-(-shape.numel() // EIGHT_BIT_BLOCK),),
        "absmax2": (-(-shape.numel() // EIGHT_BIT_BLOCK),),
    }.get(name)


class MixedPrecisionOptimizer:
    """Optimise in float32: half-precision parameters get float32 masters, float16 also gets loss scaling.

    Args:
        parameters: the trained tensors, all of one dtype.
        optimiser: kind, learning rate and the other settings.
        ema_decay: decay of the exponential moving average of the masters; 0 keeps none.
        average: averages the gradients over the processes that train together; None in a single process.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        optimiser: OptimizerSpec,
        ema_decay: float = 0.0,
        average: Average | None = None,
    ):
        self.parameters = list(parameters)
        half = self.parameters[0].dtype != torch.float32
        self.masters = (
            [p.detach().float().requires_grad_() for p in self.parameters] if half else self.parameters
        )
        self.kind, self.clip_norm = optimiser.kind, optimiser.clip_norm
        self.optimiser = make_optimizer(self.masters, optimiser)
        self.scaler = GradScaler(
            self.parameters[0].device.type, enabled=self.parameters[0].dtype == torch.float16
        )
        self.ema_decay = ema_decay
        self.means = [m.detach().clone() for m in self.masters] if ema_decay else []
        self.average = average
        self.taken = 0

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next steps."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, scaled for float16."""
        self.scaler.scale(loss).backward()

    def step(self) -> bool:
        """Take one step.

        Returns:
            False if the gradients are not finite; then nothing is changed.
        """
        gradients = self._gradients()
        if self.average:
            self.average(gradients)
        self.scaler.unscale_(self.optimiser)
        norm = torch.nn.utils.clip_grad_norm_(self.masters, self.clip_norm)
        # With loss scaling, infinite gradients are expected: GradScaler skips the step and lowers the scale.
        if not self.scaler.is_enabled() and not torch.isfinite(norm):
            return False
        self.taken += 1  # count first: an interrupt inside step() is then detectable
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self._update_parameters()
        return True

    def _gradients(self) -> list[Tensor]:
        """Return the gradients of the masters; first move those of half-precision parameters to them."""
        for p in self.parameters:
            if p.grad is None:  # the last block of some transformers ends in text that nothing reads
                p.grad = torch.zeros_like(p)
        if self.masters is not self.parameters:
            for master, p in zip(self.masters, self.parameters, strict=True):
                assert p.grad is not None
                master.grad, p.grad = p.grad.float(), None
        return [master.grad for master in self.masters if master.grad is not None]

    @torch.no_grad()
    def _update_parameters(self) -> None:
        """Copy the masters to the parameters and update the moving average."""
        if self.masters is not self.parameters:
            for master, p in zip(self.masters, self.parameters, strict=True):
                p.copy_(master)
        # EMA warm-up: decay = min(decay, t / (9 + t))
        decay = min(self.ema_decay, self.taken / (9 + self.taken))
        if self.means:
            get_ema_multi_avg_fn(decay)(self.means, self.masters, self.taken)

    def finish(self) -> None:
        """Replace the parameters by their moving average, or by the last masters without one, in float32.

        A half type would round off small updates; the network itself does not run again afterwards.
        """
        for value, p in zip(self.means or self.masters, self.parameters, strict=True):
            p.data = value.detach()

    def tensors(self) -> dict[str, Tensor]:
        """Return copies on the CPU of all tensors that the next step depends on."""
        state = {f"master.{i}": p for i, p in enumerate(self.masters)}
        state |= {f"mean.{i}": mean for i, mean in enumerate(self.means)}
        for i, p in enumerate(self.masters):
            state |= {f"{name}.{i}": torch.as_tensor(v) for name, v in self.optimiser.state[p].items()}
        if self.scaler.is_enabled():
            scaler = self.scaler.state_dict()
            state["scale"] = torch.tensor([scaler["scale"], scaler["_growth_tracker"]], dtype=torch.float64)
        if self.kind == "Prodigy":
            group = self.optimiser.param_groups[0]
            state["estimate"] = torch.tensor([group[n] for n in PRODIGY_ESTIMATE], dtype=torch.float64)
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    def check(self, tensors: dict[str, Tensor]) -> None:
        """Raise UnfitState unless `tensors` have the names and shapes that `tensors()` gives.

        The fused kernels read out of bounds where a state is smaller than its parameter.
        """
        found: dict[tuple[str, int], tuple[int, ...]] = {}
        for key, tensor in tensors.items():
            name, _, i = key.rpartition(".")
            if name and name != "sample":
                if not i.isdecimal():
                    raise UnfitState(f"{key} is no part of it")
                found[name, int(i)] = tuple(tensor.shape)
        if self.scaler.is_enabled() and tensors.get("scale", torch.zeros(2)).shape != (2,):
            raise UnfitState("scale holds no two numbers")
        estimate = tensors.get("estimate")
        if self.kind == "Prodigy" and (estimate is None or estimate.shape != (len(PRODIGY_ESTIMATE),)):
            raise UnfitState("estimate is not there")
        # Loss scaling may have left out every step so far: then there is no state at all.
        begun = any(name not in NO_STATE for name, _ in found)
        allowed = STATE_NAMES[self.kind] if begun else (set(),)
        for i, master in enumerate(self.masters):
            shape = tuple(master.shape)
            for name in ["master"] + ["mean"] * bool(self.means):
                if found.pop((name, i), None) != shape:
                    raise UnfitState(f"{name}.{i} is not there in the shape {shape}")
            names = {name for name, number in found if number == i}
            if names not in allowed:
                raise UnfitState(f"{self.kind} keeps other tensors than {', '.join(sorted(names)) or 'none'}")
            for name in names:
                shape = found.pop((name, i))
                # AdamW's step may be (1,); Prodigy's p0 of a weight that began at 0 is one number.
                other = {"step": (1,), "p0": ()}.get(name)
                if shape not in (state_shape(name, master.shape), other):
                    raise UnfitState(f"{name}.{i} has the shape {shape}")
        if found:
            raise UnfitState(f"it has {len(found)} tensors too many")

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], taken: int) -> None:
        """Continue from a state that `tensors()` returned.

        Args:
            tensors: the state; it is copied, because a file read in inference mode gives inference tensors.
            taken: number of steps taken before.

        Raises:
            UnfitState: with nothing changed, if the tensors are those of another run.
        """
        self.check(tensors)
        self.taken = taken
        states: dict[int, dict[str, Any]] = {i: {} for i in range(len(self.masters))}
        for key, tensor in tensors.items():
            name, _, i = key.rpartition(".")
            if name not in NO_STATE:
                states[int(i)][name] = int(tensor) if tensor.dtype == torch.int64 else tensor
        for i, (master, p) in enumerate(zip(self.masters, self.parameters, strict=True)):
            master.copy_(tensors[f"master.{i}"])
            p.copy_(master)
            self.optimiser.state[master] = {
                name: value.to(master.device, copy=True) if isinstance(value, Tensor) else value
                for name, value in states[i].items()
            }
        for i, mean in enumerate(self.means):
            mean.copy_(tensors[f"mean.{i}"])
        if self.kind == "Prodigy":
            *estimate, k = tensors["estimate"].tolist()
            self.optimiser.param_groups[0].update(zip(PRODIGY_ESTIMATE, [*estimate, int(k)], strict=True))
        if "scale" in tensors:
            scale, tracker = tensors["scale"].tolist()
            self.scaler.load_state_dict(
                self.scaler.state_dict() | {"scale": scale, "_growth_tracker": int(tracker)}
            )
