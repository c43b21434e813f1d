"""Masked attention of transformers: an override of the host's attention calls, by token subsets.

With P = softmax(Q K^T / sqrt(d)) and W the weight with which a query sees a key (0 hidden, 1 visible):

    paper          out = (P * (1 - s (1 - W))) V                (DreamCom, eq. 2)
    renormalised   out = (1 - s) P V + s P' V,  P' = softmax(Q K^T / sqrt(d) + log W)

W is constant over blocks of queries, so every block is one ordinary call and no S x S matrix is built.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .policy import Block

PAPER_OPERATOR = "paper"
AttendMasked = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class RowBlocks(NamedTuple):
    """Batch rows with the same blocks; rows: indices, None for the whole batch; blocks: None for unmasked."""

    rows: Tensor | None
    blocks: list[Block] | None


class Sequences(NamedTuple):
    """The blocks of every kind of call that a network makes, by (number of queries, number of keys).

    main: the call that every block makes once. rows: of the batch. skip: how many first calls of a length are
    of another kind and stay as they are. cross: the blocks of every second call of the main length, where the
    text of a network with cross-attention has as many tokens as its image.
    """

    by_length: dict[tuple[int, int], list[RowBlocks]]
    main: tuple[int, int]
    rows: int
    skip: dict[tuple[int, int], int]
    cross: list[RowBlocks] | None = None


def attend_in_blocks(
    attend: AttendMasked,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    blocks: Sequence[Block],
    operator: str,
    strength: float,
    dim: int,
    out_dim: int,
) -> Tensor:
    """Masked attention by one or two ordinary calls per block.

    Args:
        attend: (q, k, v, mask) -> output, the call without us.
        q, k, v: as the host gives them, tokens in dimension `dim`.
        mask: the host's own mask (..., queries or 1, keys), additive or boolean.
        blocks: their queries together are all queries.
        operator: one of `masked.OPERATORS`.
        strength: s above, over 0.
        dim, out_dim: the dimension of the tokens in the inputs and in the output.
    """
    out = None
    for block in blocks:
        queries = block.queries
        q_block = q if len(queries) == q.shape[dim] else q.index_select(dim, queries)
        rows = _mask_rows(mask, queries)
        if block.keys is None:
            part = attend(q_block, k, v, rows)
        elif len(block.keys) == 0:
            part = attend(q_block, k, v, rows) * (1 - strength)
        elif operator == PAPER_OPERATOR:
            part = attend(q_block, k, _weighted_values(v, block, strength, dim), rows)
        else:
            k_block, v_block = k.index_select(dim, block.keys), v.index_select(dim, block.keys)
            seen = None if rows is None else rows.index_select(-1, block.keys)
            part = attend(q_block, k_block, v_block, _biased(seen, block.weights, q))
            if strength < 1:
                part = torch.lerp(attend(q_block, k, v, rows), part, strength)
        if len(queries) == q.shape[dim]:
            return part
        if out is None:
            shape = list(part.shape)
            shape[out_dim] = q.shape[dim]
            out = part.new_empty(shape)
        out.index_copy_(out_dim, queries, part)
    assert out is not None
    return out


def _mask_rows(mask: Tensor | None, queries: Tensor) -> Tensor | None:
    """Return the rows of a mask for some queries; a mask of the keys alone has one row."""
    return mask if mask is None or mask.shape[-2] == 1 else mask.index_select(-2, queries)


def _weighted_values(v: Tensor, block: Block, strength: float, dim: int) -> Tensor:
    """V * (1 - strength (1 - W)) for one block's W."""
    assert block.keys is not None
    weights = torch.full((v.shape[dim],), 1 - strength, dtype=v.dtype, device=v.device)
    seen = 1.0 if block.weights is None else (1 - strength * (1 - block.weights)).to(v)
    weights[block.keys] = seen
    return v * weights.view([-1 if d == dim else 1 for d in range(v.ndim)])


def _biased(mask: Tensor | None, weights: Tensor | None, like: Tensor) -> Tensor | None:
    """Return the host's mask plus log W of the keys, as (1, 1, 1, keys) where there is no mask."""
    if weights is None:
        return mask
    bias = weights.log().to(like)
    if mask is None:
        return bias.view(1, 1, 1, -1)
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(~mask, -torch.inf)
    return mask + bias


class RegionOverride:
    """`optimized_attention_override` of one call of the network, around the one that is there.

    Calls of other lengths (text encoders inside the network, refiners) and of blocks that are not chosen run
    as without it. masked: how many calls were masked; joint: how many blocks have run.
    """

    def __init__(
        self,
        sequences: Sequences,
        operator: str,
        strength: float,
        previous: Callable[..., Tensor] | None = None,
        position: Callable[[dict, int], int] | None = None,
        chosen: frozenset[int] | None = None,
    ):
        self.sequences, self.operator, self.strength = sequences, operator, strength
        self.previous, self.position, self.chosen = previous, position, chosen
        self.masked = self.joint = 0
        self.calls: Counter[tuple[int, int]] = Counter()

    def __call__(self, function, q: Tensor, k: Tensor, v: Tensor, heads: int, mask=None, *args, **kwargs):
        """Return one joint attention with masked regions, through the attention that is there.

        `function`, q, k, v, heads and mask are the host's; q, k and v are (B, L, H * D), or (B, H, L, D) with
        `skip_reshape`.
        """
        inner: Callable[..., Tensor] = function if self.previous is None else partial(self.previous, function)

        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            return inner(q, k, v, heads, mask, *args, **kwargs)

        dim = 2 if kwargs.get("skip_reshape") else 1
        rows = self._rows(q, k, dim, kwargs.get("transformer_options") or {})
        if rows is None:
            return attend(q, k, v, mask)
        self.masked += 1
        out_dim = 2 if kwargs.get("skip_output_reshape") else 1
        return self._by_rows(attend, q, k, v, mask, rows, dim, out_dim)

    def _rows(self, q: Tensor, k: Tensor, dim: int, options: dict) -> list[RowBlocks] | None:
        """Return the blocks of a call, None where it stays as it is."""
        sequences, lengths = self.sequences, (q.shape[dim], k.shape[dim])
        rows = sequences.by_length.get(lengths)
        if rows is None or q.shape[0] != sequences.rows:
            return None
        count = self.calls[lengths]
        self.calls[lengths] += 1
        if count < sequences.skip.get(lengths, 0):
            return None
        if sequences.cross is not None and lengths == sequences.main and count % 2:
            rows = sequences.cross
        elif lengths == sequences.main:
            self.joint += 1
        if self.chosen is not None and self.position is not None:
            return rows if self.position(options, self.joint - 1) in self.chosen else None
        return rows

    def _by_rows(self, attend, q, k, v, mask: Tensor | None, rows: list[RowBlocks], dim: int, out_dim: int):
        out = None
        for part in rows:
            pick = part.rows
            q_rows, k_rows, v_rows, mask_rows = q, k, v, mask
            if pick is not None:
                q_rows, k_rows, v_rows = (t.index_select(0, pick) for t in (q, k, v))
                mask_rows = _batch_rows(mask, pick, q.shape[0])
            if part.blocks is None:
                result = attend(q_rows, k_rows, v_rows, mask_rows)
            else:
                how = self.operator, self.strength, dim, out_dim
                result = attend_in_blocks(attend, q_rows, k_rows, v_rows, mask_rows, part.blocks, *how)
            if pick is None:
                return result
            if out is None:
                out = result.new_empty(q.shape[0], *result.shape[1:])
            out.index_copy_(0, pick, result)
        return out


def _batch_rows(mask: Tensor | None, pick: Tensor, batch: int) -> Tensor | None:
    """Return a mask's rows of the batch; one mask for all stays."""
    batched = mask is not None and mask.ndim > 2 and mask.shape[0] == batch and batch > 1
    return mask.index_select(0, pick) if mask is not None and batched else mask
