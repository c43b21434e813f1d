"""Masked attention from ordinary attention calls on token subsets; no S x S mask is ever built.

With P = softmax(Q K^T / sqrt(d)) and M = 1 where a query may see a key (DreamCom, eq. 2):

    paper          out = (P * w) V,   w = 1 - strength (1 - M):  masked after the softmax, not renormalised
    renormalised   out = (1 - strength) P V + strength P' V,   P' = softmax over the keys with M = 1 alone

M is constant over blocks of queries, so each block of `paper` is one call with the values weighted by w, and
each block of `renormalised` one call with the keys it sees. A query that sees no key gets 0 in both.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .regions import OPEN, GridRegions, RegionPlan, RowGroup

OPERATORS = ("paper", "renormalised")

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
AttentionBlock = tuple[Tensor, Tensor | None]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, **kwargs) -> Tensor:
    """Unmasked attention (B,S,heads*d) in the calling convention of the host's `optimized_attention`."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Sequence[AttentionBlock],
    attend: Attend,
    operator="paper",
    strength=1.0,
) -> Tensor:
    """Masked attention (B,S,C) over blocks of queries.

    q: (B,S,C), k, v: (B,L,C), projected, heads not yet split. blocks: pairs (queries, keys) of token indices;
    the queries of all blocks together are 0..S-1; keys is None for all keys, empty for none.
    attend: the attention call, (q, k, v) -> (B,n,C). strength: 0 = unmasked, 1 = masked.
    """
    out = v.new_zeros(q.shape[0], q.shape[1], v.shape[2])
    for queries, keys in blocks:
        blind = keys is not None and len(keys) == 0
        if len(queries) == 0 or (blind and strength == 1):
            continue
        q_block = q if len(queries) == q.shape[1] else q.index_select(1, queries)
        if keys is None or len(keys) == k.shape[1]:
            block = attend(q_block, k, v)
        elif blind:
            block = attend(q_block, k, v) * (1 - strength)
        elif operator == "paper":
            block = attend(q_block, k, _weighted(v, keys, strength))
        else:
            block = attend(q_block, k.index_select(1, keys), v.index_select(1, keys))
            if strength < 1:
                block = torch.lerp(attend(q_block, k, v), block, strength)
        if len(queries) == q.shape[1]:
            return block
        out.index_copy_(1, queries, block)
    return out


def _weighted(v: Tensor, keys: Tensor, strength: float) -> Tensor:
    """Return the values, weighted by 1 - strength except at the keys."""
    weighted = torch.zeros_like(v) if strength == 1 else v * (1 - strength)
    return weighted.index_copy_(1, keys, v.index_select(1, keys))


Blocks = Callable[[RowGroup], list[AttentionBlock]]


def self_blocks(group: RowGroup) -> list[AttentionBlock]:
    """Self-attention: the tokens of each region, and those of the background, see one another only."""
    return [(region, region) for region in group.tokens]


def cross_blocks(plan: RegionPlan, length: int) -> Blocks:
    """Cross-attention: each region sees its own of a text's `length` tokens."""
    return lambda group: list(zip(group.tokens, plan.text_keys(length, group.period), strict=True))


def masked_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    regions: GridRegions,
    blocks: Blocks,
    attend: Attend,
    operator: str = "paper",
    strength: float = 1.0,
) -> Tensor:
    """`masked_attention` for a batch whose rows have different regions: one set of calls per group."""
    out = v.new_empty(q.shape[0], q.shape[1], v.shape[2])
    for group in regions.groups:
        rows = group.rows
        q_rows, k_rows, v_rows = (q, k, v) if rows is None else (x.index_select(0, rows) for x in (q, k, v))
        if group.tokens:
            out_rows = masked_attention(q_rows, k_rows, v_rows, blocks(group), attend, operator, strength)
        else:
            out_rows = attend(q_rows, k_rows, v_rows)
        if rows is None:
            return out_rows
        out.index_copy_(0, rows, out_rows)
    return out


def replaced_self(
    q: Tensor, k: Tensor, v: Tensor, regions: GridRegions, replace: Attend, operator="paper", strength=1.0
) -> Tensor:
    """Masked self-attention through another pack's replacement, which is called with every query and key.

    renormalised divides by the share of attention that falls into the region, got by attending to the
    indicator of the region instead of the values: exact for whatever is linear in v.
    """
    labels = regions.labels.unsqueeze(-1)
    all_masked = all(group.tokens for group in regions.groups)
    out = v.new_zeros(()) if all_masked else replace(q, k, v)
    for number in regions.present():
        inside = ((labels == number) | (labels == OPEN)).to(v.dtype)
        if operator == "paper":
            part = replace(q, k, v * (1 - strength * (1 - inside)))
        else:
            share = replace(q, k, inside.expand_as(v).contiguous())
            part = replace(q, k, v * inside) / share.clamp_min(torch.finfo(v.dtype).tiny)
            if strength < 1:
                part = torch.lerp(replace(q, k, v), part, strength)
        out = torch.where(labels == number, part, out)
    return out


def replaced_cross(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    regions: GridRegions,
    plan: RegionPlan,
    replace: Attend,
    operator: str = "paper",
    strength: float = 1.0,
) -> Tensor:
    """Masked cross-attention through another pack's replacement, which is called with every query."""
    labels = regions.labels.unsqueeze(-1)
    full = replace(q, k, v)
    out = torch.where(labels == 0, full * (1 - strength), full)
    for period, rows in regions.periods:
        text = plan.text_keys(k.shape[1], period)
        for number in regions.present():
            keys = text[number]
            if number == 0 or keys is None:
                continue
            if len(keys) == 0:
                part = full * (1 - strength)
            elif operator == "paper":
                part = replace(q, k, _weighted(v, keys, strength))
            else:
                seen = replace(q, k.index_select(1, keys), v.index_select(1, keys))
                part = torch.lerp(full, seen, strength)
            out = torch.where((labels == number) & rows, part, out)
    return out
