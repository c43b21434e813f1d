"""What a training needs in memory, known before its first step, and presets that need less.

need = weights + adapter + optimiser + activations, in bytes:

weights      parameters of the frozen network, times their size
adapter      trained parameters, times: their size, their gradients', in 16 bits a float32 master (4), and a
             running mean (4)
optimiser    trained parameters, times 8 (AdamW) or 2 (in 8 bits); Adafactor: 4 for each row and column of
             a matrix
activations  what the forward pass keeps for the backward pass, twice the largest output of a layer (its
             gradient, and that of its input), and the largest quantised weight, widened. Measured on the
             network itself, on two small grids: all of it is a + b * latent pixels, for attention keeps no
             matrix of weights. With checkpointing: what enters each block, and the inside of the largest one.
             The gradients that are made after the peak are taken off. When no activations are left, the
             optimizer makes the gradients of the masters (4); the larger of both counts
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from ..optimizers import OptimizerSpec
from .recipes import MemoryPreset, Recipe

GIGABYTE = 2**30
LEFT_FREE = 2  # gigabytes of a preset's card for driver, desktop and VAE
OUTSIDE = -1  # of every block


def with_preset(recipe: Recipe, preset: MemoryPreset, eight_bit: bool) -> Recipe:
    """Return the recipe as the preset runs it; where the recipe itself names a precision, that stays.

    `eight_bit`: whether 8-bit moments are available and no other optimizer was chosen.
    """
    if preset.half and recipe.precision == "model":
        recipe = replace(recipe, precision="half")
    if preset.at_once and preset.at_once < recipe.batch_size:
        at_once = max(n for n in range(1, preset.at_once + 1) if recipe.batch_size % n == 0)
        passes = recipe.accumulation * recipe.batch_size // at_once
        recipe = replace(recipe, batch_size=at_once, accumulation=passes)
    if preset.eight_bit and eight_bit and recipe.optimiser.kind == "AdamW":
        recipe = replace(recipe, optimiser=replace(recipe.optimiser, kind="AdamW8bit"))
    return recipe


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of the device; `loaded` of the weights are in its memory already."""

    weights: int
    adapter: int
    optimiser: int
    activations: int
    loaded: int = 0
    checkpointing: bool = False  # whether the activations are those with gradient checkpointing

    @property
    def total(self) -> int:
        """Bytes of everything."""
        return self.weights + self.adapter + self.optimiser + self.activations

    @property
    def missing(self) -> int:
        """Bytes that are not in memory yet."""
        return self.total - self.loaded

    def without(self, count: int) -> "MemoryNeed":
        """Return this need without so many bytes of loaded weights."""
        return replace(self, weights=self.weights - count, loaded=self.loaded - count)

    def __str__(self) -> str:
        parts = ("weights", "adapter", "optimiser", "activations")
        return ", ".join(f"{name} {getattr(self, name) / GIGABYTE:.2f} GB" for name in parts)


class ActivationTrace(NamedTuple):
    """What one picture's forward pass keeps, in bytes: outside of the blocks, entering each, inside each."""

    outside: float
    entering: tuple[float, ...]
    inside: tuple[float, ...]
    largest: float  # output of a layer

    def at(self, pixels: int, other: "ActivationTrace", measured: tuple[int, int]) -> "ActivationTrace":
        """Return the straight line through this trace and another's, measured at so many latent pixels."""
        share = (pixels - measured[0]) / (measured[1] - measured[0])

        def line(a: float, b: float) -> float:
            return a + (b - a) * share

        return ActivationTrace(
            line(self.outside, other.outside),
            tuple(map(line, self.entering, other.entering)),
            tuple(map(line, self.inside, other.inside)),
            line(self.largest, other.largest),
        )

    def activations(self, checkpointing: bool, gradients: Sequence[float] = ()) -> float:
        """Return the bytes at the peak of the backward pass, which goes from the last block to the first.

        With checkpointing a block keeps what enters it, and has its inside while its gradients are computed.

        Args:
            checkpointing: whether it is on.
            gradients: bytes of the gradients of each block. Those of the blocks before the one at the peak
                are not there yet and are taken off. Empty: all of them are there before the pass.
        """
        most = kept = later = 0.0
        for number, (entering, inside) in enumerate(zip(self.entering, self.inside, strict=True)):
            kept += entering if checkpointing else inside
            most = max(most, kept + inside * checkpointing - later)
            later += gradients[number] if gradients else 0.0
        return self.outside + most + 2 * self.largest


def trained_need(
    shapes: Iterable[Sequence[int]], size: int, optimiser: OptimizerSpec, ema: bool
) -> tuple[int, int]:
    """Return the bytes of adapter and optimizer; `shapes` of what is trained, `size` of one number."""
    sizes = [torch.Size(shape) for shape in shapes]
    count = sum(shape.numel() for shape in sizes)
    masters = 0 if size == 4 else 4
    factored = sum(
        shape.numel() // shape[-1] + shape.numel() // shape[-2] if len(shape) > 1 else shape.numel()
        for shape in sizes
    )
    states = {"AdamW": 8 * count, "AdamW8bit": 2 * count, "Adafactor": 4 * factored, "Prodigy": 16 * count}
    return count * (2 * size + masters + 4 * ema), states[optimiser.kind]


def update_need(shapes: Iterable[Sequence[int]], size: int) -> int:
    """Return the bytes that the optimizer's step takes beside `trained_need`: the masters' gradients."""
    return 0 if size == 4 else 4 * sum(torch.Size(shape).numel() for shape in shapes)


def trace(unet: nn.Module, blocks: Sequence[nn.Module], forward: Callable[[], Tensor]) -> ActivationTrace:
    """Run `forward`, a pass of one picture through the network, and measure what it keeps.

    `blocks` do not lie inside one another.
    """
    # By the storage's own address: tensors without memory (device "meta") have no other. A weak reference
    # keeps the address from being given to another storage, and keeps no memory.
    seen, addresses = {p.untyped_storage()._cdata for p in unet.parameters()}, []
    entered: set[tuple[int, int]] = set()
    entering, inside = [0.0] * len(blocks), dict.fromkeys(range(OUTSIDE, len(blocks)), 0.0)
    where, largest = [OUTSIDE], [0.0]

    def keep(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            addresses.append(StorageWeakRef(storage))
            inside[where[0]] += storage.nbytes()

    def enter(number: int):
        def hook(block, args, kwargs):
            where[0] = number
            for value in (*args, *kwargs.values()):
                if not isinstance(value, Tensor):
                    continue
                storage = value.untyped_storage()
                state = storage._cdata, value._version  # blocks change some of their inputs in place
                if state not in entered:
                    entered.add(state)
                    addresses.append(StorageWeakRef(storage))
                    entering[number] += storage.nbytes()

        return hook

    def leave(block, args, output):
        where[0] = OUTSIDE

    def measure(layer, args, output):
        if isinstance(output, Tensor):
            largest[0] = max(largest[0], float(output.untyped_storage().nbytes()))

    with ExitStack() as hooks:
        for number, block in enumerate(blocks):
            hooks.callback(block.register_forward_pre_hook(enter(number), with_kwargs=True).remove)
            hooks.callback(block.register_forward_hook(leave).remove)
        for layer in unet.modules():
            hooks.callback(layer.register_forward_hook(measure).remove)
        hooks.enter_context(saved_tensors_hooks(keep, lambda nothing: nothing))  # no backward pass follows
        forward()
    return ActivationTrace(
        inside[OUTSIDE], tuple(entering), tuple(inside[n] for n in range(len(blocks))), largest[0]
    )


def room_on(card: int) -> int:
    """Return the bytes that a training may take of a card of so many gigabytes."""
    return (card - LEFT_FREE) * GIGABYTE


def need_on(
    card: int, checkpointing: bool | None, need: Callable[[bool], MemoryNeed], offloadable: int = 0
) -> MemoryNeed:
    """Return what a step needs.

    Args:
        card: gigabytes of the card; 0: any.
        checkpointing: None: where `card` would not hold the step without it.
        need: bytes by whether gradient checkpointing is on.
        offloadable: bytes of weights that can stay in the computer's memory, as far as `card` is too small.
    """
    step = need(False)
    if checkpointing is None:
        checkpointing = bool(card) and step.total > room_on(card)
    if checkpointing:
        step = replace(need(True), checkpointing=True)
    away = min(offloadable, max(0, step.total - room_on(card))) if card else 0
    return step.without(away)


def check_fits(need: MemoryNeed, free: int, others: dict[str, MemoryNeed], otherwise: str) -> None:
    """Raise ValueError when more is needed than is free.

    `others`: what each preset would need, the largest first; `otherwise`: the advice where none of them fits.
    """
    if need.missing <= free:
        return
    fitting = [name for name, other in others.items() if other.missing <= free]
    leave = "leave optimiser and checkpointing to it"
    advice = f'use the memory preset "{fitting[0]}" and {leave}' if fitting else otherwise
    raise ValueError(
        f"memory: this training will not fit: it needs about {need.missing / GIGABYTE:.1f} GB besides the"
        f" loaded model and {free / GIGABYTE:.1f} GB are free; {advice}."
    )


def recompute(blocks: Iterable[nn.Module], in_place: bool = False) -> Callable[[], None]:
    """Make each block keep only what enters it (Chen et al. 2016), and return what undoes that.

    Gradients stay the same. Until it is undone a block refers to itself, so its weights would stay in memory
    after the last other reference to it, until Python's garbage collector looks for cycles.

    `in_place`: the blocks change what enters them, so each pass gets a copy.
    """
    before = [(block, vars(block).get("forward")) for block in blocks]
    for block, _ in before:
        forward = partial(_on_copies, block.forward) if in_place else block.forward
        block.forward = partial(_recomputed, forward)

    def undo():
        for block, own in before:
            if own is None:
                del block.forward  # the method of its class again
            else:
                block.forward = own

    return undo


def _on_copies(forward: Callable, *args, **kwargs):
    copies = {name: _copy(value) for name, value in kwargs.items()}
    return forward(*[_copy(value) for value in args], **copies)


def _copy(value):
    return value.clone() if isinstance(value, Tensor) else value


def _recomputed(forward: Callable, *args, **kwargs):
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # Copied: the host changes transformer_options["block"] during the forward pass.
    args = [_as_now(value) for value in args]
    pass_again = partial(forward, **{name: _as_now(value) for name, value in kwargs.items()})
    return checkpoint(pass_again, *args, use_reentrant=False, preserve_rng_state=False)


def _as_now(value):
    return dict(value) if isinstance(value, dict) else value
