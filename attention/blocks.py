"""The blocks of a transformer: read off the network, named, and chosen by kind, share or a free list."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from ..families.layout import TokenOrder

ALL_BLOCKS, NO_BLOCKS = "all", "none"
BLOCK_ENTRY = re.compile(r"(double|single)(?:\s+(\d+)(?:\s*-\s*(\d+))?)?", re.IGNORECASE)
SHARE = re.compile(r"first\s+(\d+(?:\.\d+)?)\s*%", re.IGNORECASE)


class TransformerBlock(NamedTuple):
    """One block: "double" (text and image have their own weights) or "single", and its number there."""

    kind: str
    number: int


def transformer_blocks(network: nn.Module, order: TokenOrder) -> list[TransformerBlock]:
    """Return the blocks that attend over the joint sequence, in the order they run."""
    return [
        TransformerBlock(kind, number)
        for kind, attribute in order.blocks
        for number in range(len(getattr(network, attribute)))
    ]


def choose_blocks(blocks: Sequence[TransformerBlock], text: str) -> frozenset[int]:
    """Return the positions of the blocks that a list names.

    "all", "double", "single 0-9, double", "first 50%".

    Raises:
        ValueError: For an entry that matches no block.
    """
    if text.strip().lower() == ALL_BLOCKS:
        return frozenset(range(len(blocks)))
    chosen: set[int] = set()
    for entry in filter(None, (part.strip() for part in re.split(r"[,;\n]", text))):
        found = _matching(blocks, entry)
        if not found:
            raise ValueError(
                f'layers: "{entry}" names no block of this model, which has {describe_blocks(blocks)}; write'
                ' for example "double", "single 0-9" or "first 50%".'
            )
        chosen |= found
    if not chosen:
        raise ValueError(
            f"layers: the list is empty; this model has {describe_blocks(blocks)}; write for example"
            ' "double".'
        )
    return frozenset(chosen)


def _matching(blocks: Sequence[TransformerBlock], entry: str) -> set[int]:
    if match := SHARE.fullmatch(entry):
        return set(range(max(1, round(float(match[1]) / 100 * len(blocks))))) & set(range(len(blocks)))
    if match := BLOCK_ENTRY.fullmatch(entry):
        kind, first, last = match[1].lower(), match[2], match[3]
        numbers = None if first is None else range(int(first), int(last or first) + 1)
        return {
            position
            for position, block in enumerate(blocks)
            if block.kind == kind and (numbers is None or block.number in numbers)
        }
    return set()


def describe_blocks(blocks: Sequence[TransformerBlock]) -> str:
    """Return "double 0-18, single 0, 2": the numbers of the blocks by kind."""
    kinds: dict[str, list[int]] = {}
    for block in blocks:
        kinds.setdefault(block.kind, []).append(block.number)
    parts = []
    for kind, numbers in kinds.items():
        whole = len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1))
        parts.append(f"{kind} {f'{numbers[0]}-{numbers[-1]}' if whole else ', '.join(map(str, numbers))}")
    return ", ".join(parts)
