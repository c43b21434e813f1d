"""A network's small change: low-rank differences to the shipped weights (Hu et al. 2021), shipped as such.

In a file they have the names of a LoRA, `diffusion_model.<layer>.lora_A.weight` and `.lora_B.weight`, which
the host's own loader applies; a layer that learned all its weights stands there whole, as `.weight`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

RANK = 16
PREFIX = "diffusion_model."
FIRST = "input_blocks.0.0"  # its channels differ between models, so it learns all its weights where it must


def attach(unet: nn.Module, rank: int = RANK) -> None:
    """Put a low-rank difference, zero at first, on every linear layer and convolution but the first."""
    from peft import LoraConfig, inject_adapter_in_model  # slow to import, so not before somebody trains

    kinds = nn.Linear, nn.Conv2d
    layers = [path for path, layer in unet.named_modules() if isinstance(layer, kinds) and path != FIRST]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), unet)


def keep_small(unet: nn.Module, first: bool, without: str = "") -> None:
    """Let only the differences learn, and the first layer where asked; not those of layers `without`."""
    for name, parameter in unet.named_parameters():
        small = ".lora_" in name or (first and name.startswith(FIRST))
        left_out = bool(without) and without in name.split(".")
        parameter.requires_grad_(parameter.requires_grad and small and not left_out)


def change_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors, from those of a UNet with differences attached (any part of its state dict)."""
    change = {}
    for name, value in state.items():
        if ".lora_" in name:
            change[PREFIX + name.replace(".default.", ".")] = value
        elif name.startswith(FIRST):
            change[PREFIX + name] = value
    return change


def changed(unet: Mapping[str, Tensor], change: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A UNet's weights with a change: W + B A for every pair, and what stands there whole."""
    result = dict(unet)
    for name, value in change.items():
        path = name.removeprefix(PREFIX)
        if path.endswith(".lora_A.weight"):
            layer = path.removesuffix(".lora_A.weight")
            up: Any = change[f"{PREFIX}{layer}.lora_B.weight"]
            weight = result[f"{layer}.weight"]
            result[f"{layer}.weight"] = weight + (up.flatten(1) @ value.flatten(1)).view_as(weight)
        elif ".lora_" not in path:
            result[path] = value
    return result


class Difference(nn.Module):
    """W + B A in place of a matrix W (out, in), zero at first: A is (rank, in), B (out, rank)."""

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, weight.shape[1]) * weight.shape[1] ** -0.5)
        self.up = nn.Parameter(torch.zeros(len(weight), rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


FACTORS = {"parametrizations.weight.0.down": "lora_A.weight", "parametrizations.weight.0.up": "lora_B.weight"}


def add_differences(network: nn.Module, rank: int, whole: tuple[str, ...]) -> dict[str, Difference]:
    """Let every matrix learn a difference of at most half its rank; layers `whole` stay as they are.

    The sum is made once for a batch, so a step costs what one with all weights does. Returns them by layer.
    """
    found = {}
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Linear) and not name.startswith(whole):
            layer.weight.requires_grad_(False)
            found[name] = Difference(layer.weight, min(rank, min(layer.weight.shape) // 2))
            parametrize.register_parametrization(layer, "weight", found[name])
    return found


def differences_of(state: Mapping[str, Tensor], fixed: str) -> dict[str, Tensor]:
    """The file's tensors, from the state of a network with differences added.

    They are the differences, and what learned whole; a layer `fixed` learned nothing.
    """
    change = {}
    for name, value in state.items():
        if name.endswith("parametrizations.weight.original") or name.startswith(fixed):
            continue
        for own, lora in FACTORS.items():
            name = name.replace(own, lora)
        change[PREFIX + name] = value
    return change


def without_source(first: Tensor, scale: float, hole: float) -> tuple[Tensor, Tensor]:
    """An inpainting UNet's first layer (C, 9, 3, 3) for a source picture: weight (C, 8, 3, 3) and bias (C,).

    It reads the source as it read what lies around the hole, `scale` being that of its latents, as if
    everything were a hole of strength `hole`: 0 keeps the source, 1 paints all of it.
    """
    weight = torch.cat([first[:, :4], first[:, 5:] * scale], 1)
    return weight, hole * first[:, 4].sum((1, 2))
