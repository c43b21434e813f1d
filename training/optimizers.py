"""One optimiser step: float32 masters, loss scaling, clipping, a running mean; and all of it as tensors."""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from .finetune.recipes import OptimizerSpec

Average = Callable[[Sequence[Tensor]], None]  # over all processes, in place
NO_STATE = ("", "master", "mean", "sample")  # what else a checkpoint holds beside an optimiser's state


def eight_bit_installed() -> bool:
    return find_spec("bitsandbytes") is not None


def check_optimizer(spec: OptimizerSpec) -> None:
    """Raise ValueError for an optimizer that is not installed."""
    if spec.kind == "AdamW8bit" and not eight_bit_installed():
        raise ValueError(
            "optimiser: AdamW8bit needs the Python package bitsandbytes, which is not installed; install it"
            " or choose another optimiser."
        )


def make_optimizer(parameters: Sequence[Tensor], spec: OptimizerSpec) -> Any:
    """Return the optimizer that `spec` names.

    AdamW (Loshchilov & Hutter 2019), Adafactor (Shazeer & Stern 2018), or bitsandbytes' AdamW with its
    moments in 8 bits (Dettmers et al. 2022).
    """
    common: dict[str, Any] = {"lr": spec.learning_rate, "weight_decay": spec.weight_decay}
    if spec.kind == "Adafactor":
        return torch.optim.Adafactor(parameters, **common)
    common |= {"betas": spec.betas, "eps": spec.eps}
    if spec.kind == "AdamW8bit":
        import bitsandbytes  # pyright: ignore[reportMissingImports]  (optional, see check_optimiser)

        return bitsandbytes.optim.AdamW8bit(parameters, **common)
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
STATE_NAMES = {
    "AdamW": ({"step", "exp_avg", "exp_avg_sq"},),
    "Adafactor": ({"step", "row_var", "col_var"}, {"step", "variance"}),
    "AdamW8bit": (
        {"step", "state1", "state2"},  # small parameters
        {"step", "state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2"},
    ),
}
EIGHT_BIT_BLOCK, EIGHT_BIT_LEVELS = 256, 256  # of bitsandbytes: values with one scale, and values of a byte


def state_shape(name: str, shape: torch.Size) -> tuple[int, ...] | None:
    """Return the shape of an optimizer's tensor for a parameter of `shape`; None for an unknown name."""
    if name in FULL_SHAPED:
        return tuple(shape)
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
    """An optimiser in float32. Parameters of a half type get float32 masters, and float16 gets loss scaling.

    `ema_decay` above 0 keeps a running mean of the masters. `finish` leaves these or the means in the
    parameters. `average` takes the mean of the gradients over the processes that train together.
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

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self) -> bool:
        """Take the step; return False, with nothing changed, where the gradients are not finite."""
        gradients = self._gradients()
        if self.average:
            self.average(gradients)
        self.scaler.unscale_(self.optimiser)
        norm = torch.nn.utils.clip_grad_norm_(self.masters, self.clip_norm)
        # Loss scaling skips steps of infinite gradients itself, and scales less afterwards.
        if not self.scaler.is_enabled() and not torch.isfinite(norm):
            return False
        self.taken += 1  # count first: an interrupt inside step() is then detectable
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self._publish()
        return True

    def _gradients(self) -> list[Tensor]:
        """Return every master's gradient; a half-precision network's are moved to its masters."""
        if self.masters is not self.parameters:
            for master, p in zip(self.masters, self.parameters, strict=True):
                assert p.grad is not None
                master.grad, p.grad = p.grad.float(), None
        return [master.grad for master in self.masters if master.grad is not None]

    @torch.no_grad()
    def _publish(self) -> None:
        if self.masters is not self.parameters:
            for master, p in zip(self.masters, self.parameters, strict=True):
                p.copy_(master)
        # EMA warm-up: decay = min(decay, t / (9 + t))
        decay = min(self.ema_decay, self.taken / (9 + self.taken))
        for mean, master in zip(self.means, self.masters, strict=False):
            mean.lerp_(master, 1 - decay)

    def finish(self) -> None:
        """Leave the result in the parameters, in float32: the last weights, or their running mean.

        A half type would round away the sum of small steps; the network does not run again.
        """
        for value, p in zip(self.means or self.masters, self.parameters, strict=True):
            p.data = value.detach()

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that decides the next step, copied to the CPU."""
        kept = {f"master.{i}": p for i, p in enumerate(self.masters)}
        kept |= {f"mean.{i}": mean for i, mean in enumerate(self.means)}
        for i, p in enumerate(self.masters):
            kept |= {f"{name}.{i}": torch.as_tensor(v) for name, v in self.optimiser.state[p].items()}
        if self.scaler.is_enabled():
            scaler = self.scaler.state_dict()
            kept["scale"] = torch.tensor([scaler["scale"], scaler["_growth_tracker"]], dtype=torch.float64)
        return {name: value.detach().cpu().clone() for name, value in kept.items()}

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
                if shape != state_shape(name, master.shape) and not (name == "step" and shape == (1,)):
                    raise UnfitState(f"{name}.{i} has the shape {shape}")
        if found:
            raise UnfitState(f"it has {len(found)} tensors too many")

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], taken: int) -> None:
        """Go on from what `tensors()` gave. Copies: it may come from a file read in inference mode.

        Raises UnfitState, with nothing changed, for tensors of another run.
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
        if "scale" in tensors:
            scale, tracker = tensors["scale"].tolist()
            self.scaler.load_state_dict(
                self.scaler.state_dict() | {"scale": scale, "_growth_tracker": int(tracker)}
            )
