"""The attention layers of a UNet: read off the model, named, and chosen by preset or by a free list."""

import re
from typing import Any, NamedTuple

from torch import nn

LAYER_PRESETS = ("auto", "paper", "all", "none", "decoder_outer", "released")


class Layer(NamedTuple):
    """One transformer block of a UNet: one self-attention (attn1) and one cross-attention (attn2).

    block, number: "input" | "middle" | "output" and the block's number there, as the host names it in
    `transformer_options["block"]`. index: the transformer's number inside the block. depth: how often the
    grid has been halved since the latent. self_attention: False where attn1 attends to the text instead.
    """

    block: str
    number: int
    index: int
    depth: int
    self_attention: bool

    @property
    def name(self) -> str:
        """As the free list writes it: "input 4", "output 5.1" (the second transformer of the block)."""
        return f"{self.block} {self.number}" + (f".{self.index}" if self.index else "")


def unet_layers(unet: nn.Module) -> list[Layer]:
    """Return the attention layers of a host `UNetModel`, in the order they run.

    Raises ValueError, naming the class, for a network without the host's input, middle and output blocks, and
    for video UNets, whose second attention runs over time.
    """
    family = type(unet).__name__
    if not all(hasattr(unet, part) for part in ("input_blocks", "middle_block", "output_blocks")):
        raise ValueError(
            f"Masked attention does not know the layers of {family} yet: it works on UNet models "
            "(SD 1.5, SD 2, SDXL and their inpainting variants)."
        )
    sides: Any = unet
    blocks = [("input", number, block) for number, block in enumerate(sides.input_blocks)]
    blocks += [("middle", 0, sides.middle_block)] if sides.middle_block is not None else []
    blocks += [("output", number, block) for number, block in enumerate(sides.output_blocks)]
    layers, depth = [], 0
    for name, number, block in blocks:
        for module in block:
            if hasattr(module, "time_stack"):
                raise ValueError("Masked attention does not know the layers of video UNets yet.")
            for index, transformer in enumerate(getattr(module, "transformer_blocks", ())):
                layers.append(Layer(name, number, index, depth, not transformer.disable_self_attn))
            depth += _step(module)
    if not layers:
        raise ValueError(f"This {family} has no attention layers: choose an SD 1.5, SD 2 or SDXL model.")
    return layers


def _step(module: nn.Module) -> int:
    """+1 where a module halves the grid, -1 where it doubles it."""
    module = getattr(module, "h_upd", module)  # a residual block that resizes holds the resizer here
    return {"Downsample": 1, "Upsample": -1}.get(type(module).__name__, 0)


def preset_layers(layers: list[Layer], preset: str) -> set[Layer]:
    """Return the layers that a preset masks in self-attention.

    auto: decoder_outer; docs/masked_attention.md has the measurements behind it.
    paper (DreamCom 4.3): every layer but the decoder's outer ones, which harmonise the picture.
    decoder_outer (supplement 1, c): only the decoder's outer layers. all, none: every layer, no layer.
    released: the decoder's outer layers without the first, which is what DreamCom's published code masks.

    The decoder's outer layers are those at the two finest resolutions at which the decoder attends. In SD 1.5
    these are output blocks 6-11, the paper's "last 6 layers". In SDXL, and in a UNet of one or two levels,
    they are the whole decoder: then `paper` masks the encoder and the middle.
    """
    if preset not in LAYER_PRESETS:
        raise ValueError(
            f'There is no preset "{preset}" of layers: choose {", ".join(LAYER_PRESETS)} or a list.'
        )
    decoder = [layer for layer in layers if layer.block == "output"]
    finest = sorted({layer.depth for layer in decoder})[:2]
    outer = [layer for layer in decoder if layer.depth in finest]
    return {
        "auto": set(outer),
        "paper": set(layers) - set(outer),
        "all": set(layers),
        "none": set(),
        "decoder_outer": set(outer),
        "released": set(outer[1:]),
    }[preset]


ENTRY = re.compile(r"(input|middle|output)(?:\s+(\d+)(?:\s*-\s*(\d+)|\.(\d+))?)?", re.IGNORECASE)


def listed_layers(layers: list[Layer], text: str) -> set[Layer]:
    """Return the layers that a free list names: "output 3-5, middle, input 4.1".

    An entry is a side of the UNet ("output": all of it), a block ("output 3"), a range of blocks, or one
    transformer of a block ("input 4.1"). Raises ValueError for an entry that matches no attention layer.
    """
    chosen: set[Layer] = set()
    for entry in filter(None, (part.strip() for part in re.split(r"[,;\n]", text))):
        found = set(_matching(layers, entry))
        if not found:
            raise ValueError(
                f'The layer list names "{entry}", but this model\'s attention layers are:'
                f" {describe_layers(layers)}."
            )
        chosen |= found
    if not chosen:
        raise ValueError(
            'The layer list is empty: write for example "output 3-5, middle"; '
            f"this model's attention layers are: {describe_layers(layers)}."
        )
    return chosen


def _matching(layers: list[Layer], entry: str):
    match = ENTRY.fullmatch(entry)
    if not match:
        return
    block, first, last, index = match.groups()
    numbers = None if first is None else range(int(first), int(last or first) + 1)
    for layer in layers:
        if (
            layer.block == block.lower()
            and (numbers is None or layer.number in numbers)
            and (index is None or layer.index == int(index))
        ):
            yield layer


def describe_layers(layers: list[Layer]) -> str:
    """Return the blocks that hold attention layers, as "input 1, 2, 4; middle 0; output 3, 4"."""
    sides: dict[str, list[str]] = {}
    for layer in layers:
        numbers = sides.setdefault(layer.block, [])
        if str(layer.number) not in numbers:
            numbers.append(str(layer.number))
    return "; ".join(f"{side} {', '.join(numbers)}" for side, numbers in sides.items())
