"""Textual attribute substitution (DreamMix, sec. 3.4): a prompt without the subject's own attributes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

JOINT, SEQUENTIAL = "joint", "sequential"
PROJECTIONS = (JOINT, SEQUENTIAL)
EXACT = 1e-6  # what is smaller is the rounding of float32 inputs

Tokens = Mapping[str, Sequence[Sequence[tuple]]]  # encoder -> chunks of (token, weight, word id)


def project_off(rows: Tensor, removed: Tensor, strength: float = 1.0, projection: str = JOINT) -> Tensor:
    """Eq. 9 for many rows: p_dec = p - strength * (the part of p that lies along the removed rows).

    rows (N, D), removed (M, D). joint: the part in the span of all removed rows, so that nothing is left
    along any of them. sequential: along one row after another, as in the released code, which leaves a
    residue along the earlier ones. Computed in float64 on the CPU, returned as the rows came.
    """
    p, e = rows.detach().to("cpu", torch.float64), removed.detach().to("cpu", torch.float64)
    if projection == JOINT:
        basis = span(e)
        left = p - p @ basis.T @ basis
    else:
        left = p
        for direction in e[e.norm(dim=1) > 0]:
            left = left - torch.outer(left @ direction, direction) / direction.square().sum()
    left = (
        left * (left.norm(dim=1) > EXACT * p.norm(dim=1))[:, None]
    )  # what is left of a row removed entirely
    return (p + strength * (left - p) if strength != 1 else left).to(rows)


def span(rows: Tensor) -> Tensor:
    """Return an orthonormal basis (r, D) of the rows' span (M, D); nearly dependent rows add nothing."""
    unit = torch.nn.functional.normalize(rows, dim=1)
    _, sizes, directions = torch.linalg.svd(unit, full_matrices=False)
    return directions[sizes > EXACT * sizes.max()]


class TokenRow(NamedTuple):
    """One projected row of a prompt."""

    index: int
    removed: float  # |p - p_dec| / |p|
    nearest: int  # which of the removed rows it pointed along the most, by |cos|


class Removed(NamedTuple):
    """What was taken out of one entry of a CONDITIONING."""

    rows: list[TokenRow]
    pooled: float | None  # the share of the pooled vector, None where there is none


def substitute(
    conditioning: list,
    removal: list,
    words: Sequence[int],
    removed_words: Sequence[int],
    strength: float = 1.0,
    projection: str = JOINT,
) -> tuple[list, list[Removed]]:
    """Return a copy of a CONDITIONING, its word rows projected off the removal's, and what each lost.

    Both come from one CLIP, so their entries (of a schedule) pair up. Rows `words` of an entry (1, L, D) are
    projected off rows `removed_words` of its partner, the pooled vector off the pooled one. Everything else
    is carried over.
    """
    result, reports = [], []
    for (text, values), (gone, gone_values) in zip(conditioning, removal, strict=True):
        chosen, off = text[0, list(words)], gone[0, list(removed_words)]
        projected = project_off(chosen, off, strength, projection)
        text = text.clone()
        text[0, list(words)] = projected
        values, share = dict(values), None
        pooled, gone_pooled = values.get("pooled_output"), gone_values.get("pooled_output")
        if pooled is not None and gone_pooled is not None:
            values["pooled_output"] = project_off(pooled, gone_pooled, strength, projection)
            share = float(_share(pooled, values["pooled_output"]))
        result.append([text, values])
        reports.append(Removed(_report(words, chosen, projected, off), share))
    return result, reports


def _report(words: Sequence[int], before: Tensor, after: Tensor, off: Tensor) -> list[TokenRow]:
    nearest = torch.nn.functional.cosine_similarity(before[:, None], off[None], dim=-1).abs().argmax(1)
    taken = _share(before, after)
    return [TokenRow(*row) for row in zip(words, taken.tolist(), nearest.tolist(), strict=True)]


def _share(before: Tensor, after: Tensor) -> Tensor:
    return (before - after).norm(dim=1) / before.norm(dim=1).clamp(min=1e-12)


def word_rows(tokens: Tokens, length: int) -> list[tuple[int, object]]:
    """(row, token) of a conditioning's rows that hold words; start, end and padding have the word id 0.

    `tokens` as the host's tokenizer gives them with return_word_ids=True; `length` is the number of rows.
    Encoders whose rows lie side by side (SDXL) share their rows; an encoder that alone has `length` tokens
    (T5 in Flux) is the one that speaks; rows one after another (SD 3) are CLIP's and then T5's. Raises
    ValueError for a text encoder that hands on other rows than tokens.
    """
    flat = {name: [token for chunk in chunks for token in chunk] for name, chunks in tokens.items()}
    beside = [part for part in flat.values() if len(part) == length]
    if not beside:
        clip = [part for name, part in flat.items() if name in ("l", "g")]
        t5 = [part for name, part in flat.items() if name not in ("l", "g")]
        if len(t5) != 1 or not clip or max(map(len, clip)) + len(t5[0]) != length:
            raise ValueError(
                "clip: this text encoder hands on other rows than its tokens, so words cannot be removed from"
                " them; use a CLIP or T5 text encoder."
            )
        beside = [max(clip, key=len) + t5[0]]
    columns = enumerate(zip(*beside, strict=True))
    return [(i, column[0][0]) for i, column in columns if any(token[2] for token in column)]
