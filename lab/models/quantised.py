"""Weights in few bits for the repository: symmetric integers with one scale for each group of 64 in a row.

A matrix or kernel (out, ...) is taken as rows of `out`, as one row where these are short (the factors of a
LoRA); each group of up to 64 values of a row is q * scale
with |q| <= 2^(bits - 1) - 1 and the scale of least squared error out of eight. Packed values are stored as a
stream of bits (uint8), scales as float16; vectors stay float16. `bits` and shapes are in the file's
metadata.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

GROUP = 64
SHRINK = tuple(1 - 0.06 * step for step in range(8))  # of the scale that clips nothing


def quantise(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Integers (rows, groups, 64) int8 and scales (rows, groups, 1) float16 of a weight (out, ...)."""
    rows = weight.float().flatten(1)
    if rows.shape[1] < GROUP:
        rows = rows.flatten()[None]
    rows = torch.nn.functional.pad(rows, (0, -rows.shape[1] % GROUP)).view(len(rows), -1, GROUP)
    most = 2 ** (bits - 1) - 1
    widest = (
        rows.abs().amax(-1, keepdim=True).clamp(min=most * 6.2e-5) / most
    )  # 6.2e-5: float16's least normal
    best = torch.full_like(widest, torch.inf)
    chosen = widest
    for factor in SHRINK if bits < 8 else SHRINK[:1]:
        scale = (widest * factor).half().float()
        error = ((rows / scale).round().clamp(-most, most) * scale - rows).square().sum(-1, keepdim=True)
        chosen = torch.where(error < best, scale, chosen)
        best = torch.minimum(error, best)
    scale = chosen.half()
    return (rows / scale.float()).round().clamp(-most, most).to(torch.int8), scale


def to_stream(values: Tensor, bits: int) -> Tensor:
    """Signed integers of `bits` bits as a stream of bytes (uint8)."""
    unsigned = (values.flatten().numpy().astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    spread = np.unpackbits(unsigned[:, None], axis=1)[:, 8 - bits :]
    return torch.from_numpy(np.packbits(spread))


def from_stream(stream: Tensor, count: int, bits: int) -> Tensor:
    """The inverse of `to_stream`: (count,) int16."""
    spread = np.unpackbits(stream.numpy())[: count * bits].reshape(count, bits)
    places = 2 ** np.arange(bits - 1, -1, -1, dtype=np.int16)
    return torch.from_numpy(spread @ places - np.int16(2 ** (bits - 1)))


def save(
    state: dict[str, Tensor], path: Path, bits_of: Callable[[str], int], record: dict | None = None
) -> None:
    """Write a float state dict; `bits_of` gives the bits (2 to 8) of each tensor that is not a vector."""
    tensors, layout = {}, {}
    for name, value in state.items():
        if not value.is_floating_point():
            tensors[name] = value.contiguous()
        elif value.ndim < 2 or len(value) == 1:
            tensors[name] = value.half().contiguous()
        else:
            bits = bits_of(name)
            integers, scale = quantise(value.detach(), bits)
            tensors[name], tensors[f"{name}.scale"] = (
                to_stream(integers, bits),
                scale.squeeze(-1).contiguous(),
            )
            layout[name] = [bits, *value.shape]
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, partial, metadata={"layout": json.dumps(layout), "record": json.dumps(record or {})})
    os.replace(partial, path)


def load(path: Path) -> dict[str, Tensor]:
    """The state dict in float32."""
    with safe_open(path, "pt") as file:
        layout = json.loads(file.metadata()["layout"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    state = {}
    for name, value in tensors.items():
        if name in layout:
            bits, *shape = layout[name]
            scale = tensors[f"{name}.scale"].float()
            count = scale.numel() * GROUP
            rows = from_stream(value, count, bits).view(*scale.shape, GROUP) * scale[..., None]
            width = int(np.prod(shape)) // len(scale)
            state[name] = rows.flatten(1)[:, :width].reshape(shape).contiguous()
        elif name.removesuffix(".scale") not in layout:
            state[name] = value.float() if value.is_floating_point() else value
    return state
