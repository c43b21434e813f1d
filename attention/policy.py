"""Who sees whom in the joint attention of a transformer, as a table, and the blocks that follow from it.

Every token has a role: inside one of the regions, outside, text, a scene reference (the picture that is
edited), a subject photo, or padding. Information moves from keys to queries, through every layer. So a region
is only separate from another one if no chain of roles leads from one to the other, and in the table

    text and subject photos reach the inside of their regions and nothing else;
    the inside of a region reaches the text, never the outside, another region or the scene reference;
    the outside reaches the inside through the scene reference only.

Text or a photo that several regions share reads none of them.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..families.layout import IMAGE_KIND, PAD, REFERENCE, TEXT, Span

INSIDE, OUTSIDE_REGIONS, SCENE, PHOTO = "inside", "outside", "scene", "photo"
ANYONE, OWN = "all", "own"  # OWN: only if every region that may read the query may read the key

# Query role -> the roles of the keys that it sees.
SEES: Mapping[str, Mapping[str, str]] = {
    INSIDE: {INSIDE: OWN, TEXT: OWN, PHOTO: OWN, SCENE: ANYONE, PAD: ANYONE},
    OUTSIDE_REGIONS: {OUTSIDE_REGIONS: ANYONE, SCENE: ANYONE, PAD: ANYONE},
    SCENE: {SCENE: ANYONE, OUTSIDE_REGIONS: ANYONE, PAD: ANYONE},
    TEXT: {TEXT: OWN, INSIDE: OWN, PHOTO: OWN, PAD: ANYONE},
    PHOTO: {PHOTO: OWN, TEXT: OWN, PAD: ANYONE},
    PAD: {PAD: ANYONE},
}
PICTURE = (INSIDE, OUTSIDE_REGIONS, SCENE)


def open_text(sees: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Return the table with text that acts everywhere: every role sees it, and it sees the whole picture."""
    table = {role: dict(keys) | {TEXT: ANYONE} for role, keys in sees.items()}
    table[TEXT] |= dict.fromkeys(PICTURE, ANYONE)
    return table


def open_picture(sees: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Return the table with a picture that is not separated: inside, outside and scene see one another."""
    table = {role: dict(keys) for role, keys in sees.items()}
    for role in PICTURE:
        table[role] |= dict.fromkeys(PICTURE, ANYONE)
    return table


class ShownReference(NamedTuple):
    """What a reference latent shows.

    regions: the regions (from 1) in which a subject photo acts; empty for the scene. strength: the weight of
    a photo there, 0 to leave it out, 1 for its own weight.
    """

    regions: frozenset[int] = frozenset()
    strength: float = 1.0


class Group(NamedTuple):
    """Tokens of one role; regions: those that may read them; strength: of a photo's tokens."""

    role: str
    tokens: Tensor
    regions: frozenset[int] = frozenset()
    strength: float = 1.0


class Block(NamedTuple):
    """Queries that see the same keys.

    queries: (n,) indices. keys: (m,) indices, None for all. weights: (m,) of the keys, None where all are 1.
    """

    queries: Tensor
    keys: Tensor | None
    weights: Tensor | None = None


def token_groups(
    spans: Sequence[Span],
    labels: Tensor,
    text: Sequence[Collection[int] | None],
    references: Sequence[ShownReference] = (),
    text_start: int = 0,
) -> list[Group]:
    """Return the tokens of a sequence by role.

    Args:
        spans: of the sequence.
        labels: (tokens,) of the image span: 0 outside, k inside region k.
        text: for every region its text tokens, None for all; tokens of no region are read by none.
        references: of the reference spans, by their number.
        text_start: position of the prompt's first token in the text span.

    Regions that hold no token do not count as readers: in a view of one subject, the whole text is its own.
    """
    present = frozenset(labels.unique().tolist())
    groups: list[Group] = []
    start = 0
    for span in spans:
        tokens = torch.arange(start, start + span.count)
        start += span.count
        if span.kind == IMAGE_KIND:
            groups.append(Group(OUTSIDE_REGIONS, tokens[labels == 0]))
            groups += [Group(INSIDE, tokens[labels == k], frozenset({k})) for k in range(1, len(text) + 1)]
        elif span.kind == REFERENCE:
            shown = references[span.number]
            role = PHOTO if shown.regions else SCENE
            groups.append(Group(role, tokens, shown.regions, shown.strength))
        elif span.kind == TEXT:
            start_of_text = text_start if span.number == 0 else span.count  # padding is no region's own text
            groups += _text_groups(tokens, text, start_of_text)
        else:
            groups.append(Group(PAD, tokens))
    return [g._replace(regions=g.regions & present) for g in groups if len(g.tokens)]


def _text_groups(tokens: Tensor, text: Sequence[Collection[int] | None], start: int) -> list[Group]:
    """Text tokens, together where the same regions read them."""
    readers: dict[frozenset[int], list[int]] = {}
    for position in range(len(tokens)):
        regions = (k for k, own in enumerate(text, 1) if own is None or position - start in own)
        readers.setdefault(frozenset(regions), []).append(position)
    return [Group(TEXT, tokens[positions], regions) for regions, positions in readers.items()]


def sight(query: Group, key: Group, sees: Mapping[str, Mapping[str, str]]) -> float:
    """Return the weight with which a group sees another one; 0: not at all."""
    rule = sees[query.role].get(key.role)
    if rule is None or (rule == OWN and not query.regions <= key.regions):
        return 0.0
    return 1.0 if query is key or key.role != PHOTO else key.strength


def make_blocks(
    queries: Sequence[Group], keys: Sequence[Group], sees: Mapping[str, Mapping[str, str]] = SEES
) -> list[Block]:
    """One block per set of visible keys; for self-attention both sequences of groups are the same."""
    total = sum(len(key.tokens) for key in keys)
    alike: dict[tuple[float, ...], list[Tensor]] = {}
    for query in queries:
        weights = tuple(sight(query, key, sees) for key in keys)
        alike.setdefault(weights, []).append(query.tokens)
    blocks = []
    for weights, tokens in alike.items():
        seen = [(key, weight) for key, weight in zip(keys, weights, strict=True) if weight > 0]
        index = torch.cat([key.tokens for key, _ in seen]) if seen else torch.empty(0, dtype=torch.long)
        index, order = index.sort()
        weighted = any(weight != 1 for _, weight in seen)
        own = _weights(seen)[order] if weighted else None
        every = None if len(index) == total and not weighted else index
        blocks.append(Block(torch.cat(tokens).sort().values, every, own))
    return blocks


def _weights(seen: Sequence[tuple[Group, float]]) -> Tensor:
    """One weight per key, in double precision."""
    return torch.cat([torch.full((len(key.tokens),), weight, dtype=torch.float64) for key, weight in seen])
