"""Masked attention from token subsets against a plain dense mask in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.attention.masked import (
    cross_blocks,
    masked_rows,
    plain_attention,
    replaced_cross,
    replaced_self,
    self_blocks,
)
from inlay.attention.regions import OPEN, RegionPlan, region_labels

HEADS = 2
CHANNELS = 16


def dense(q, k, v, sees, operator, strength):
    """The operators as their formulas read, with an explicit mask `sees` (B,S,L) and float64 inside."""
    q, k, v = (x.double().unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    sees = sees[:, None]
    p = scores.softmax(-1)
    if operator == "paper":
        p = p * (1 - strength * (~sees).double())
    else:
        alone = scores.masked_fill(~sees, -torch.inf).softmax(-1).nan_to_num(0.0)
        p = (1 - strength) * p + strength * alone
    return (p @ v).transpose(1, 2).flatten(2)


def attend(q, k, v):
    assert q.shape[1] > 0
    assert k.shape[1] > 0, "attention over nothing gives NaN"
    return plain_attention(q, k, v, HEADS)


def projected(batch, queries, keys, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, queries, CHANNELS), (batch, keys, CHANNELS), (batch, keys, CHANNELS))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def plan_of(labels, rows=None, **kwargs):
    """A plan whose image, latent and layer grids are one, so that `labels` (N,h,w) are the token labels."""
    return RegionPlan(labels, rows or list(range(len(labels))), **kwargs)


def regions_of(plan):
    grid = tuple(plan.labels.shape[1:])
    return plan.at(grid, grid)


label_maps = st.tuples(
    st.integers(1, 3), st.integers(1, 7), st.integers(1, 9), st.integers(1, 3), st.integers(0, 2**31)
).map(
    lambda t: torch.randint(
        0, t[3] + 1, (t[0], t[1], t[2]), generator=torch.Generator().manual_seed(t[4]), dtype=torch.uint8
    )
)
operators = st.sampled_from(["paper", "renormalised"])
strengths = st.sampled_from([0.25, 0.7, 1.0])


@settings(max_examples=60)
@given(labels=label_maps, operator=operators, strength=strengths)
def test_self_attention_equals_the_dense_mask(labels, operator, strength):
    q, k, v = projected(len(labels), labels[0].numel(), labels[0].numel())
    flat = labels.flatten(1)
    expected = dense(q, k, v, flat[:, :, None] == flat[:, None, :], operator, strength)
    regions = regions_of(plan_of(labels))
    ours = masked_rows(q, k, v, regions, self_blocks, attend, operator, strength)
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=0)
    through = replaced_self(q, k, v, regions, attend, operator, strength)
    torch.testing.assert_close(through.double(), expected, atol=1e-5, rtol=0)


@settings(max_examples=60)
@given(
    labels=label_maps, operator=operators, strength=strengths, own_text=st.booleans(), released=st.booleans()
)
def test_cross_attention_equals_the_dense_mask(labels, operator, strength, own_text, released):
    length = 77
    text = [{0, 3, 4}, None, set()] if own_text else [None] * 3  # some of subjects nowhere in sight
    q, k, v = projected(len(labels), labels[0].numel(), length)
    sees = torch.zeros(len(labels), labels[0].numel(), length, dtype=torch.bool)
    for number, own in enumerate(text, start=1):
        for token in range(length) if own is None else own:
            if not released or 1 <= token <= 38:
                sees[:, :, token] |= labels.flatten(1) == number
    expected = dense(q, k, v, sees, operator, strength)
    plan = plan_of(labels, text=text, released=released)
    regions = regions_of(plan)
    ours = masked_rows(q, k, v, regions, cross_blocks(plan, length), attend, operator, strength)
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=0)
    through = replaced_cross(q, k, v, regions, plan, attend, operator, strength)
    torch.testing.assert_close(through.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("operator", ["paper", "renormalised"])
def test_a_repeated_text_is_seen_as_the_text_itself(operator):
    labels = torch.tensor([[[0, 1, 1], [2, 2, 0]]] * 2, dtype=torch.uint8)
    text, (q, k, v) = [{0, 3, 4}, {1, 7}], projected(2, 6, 8)
    twice = plan_of(labels, text=text, periods=[8, 0])
    kk, vv = torch.cat([k, k], 1), torch.cat([v, v], 1)
    long_k, long_v = projected(2, 6, 16, seed=1)[1:]
    kk[1], vv[1] = long_k[1], long_v[1]  # the other row's text is that long
    ours = masked_rows(q, kk, vv, regions_of(twice), cross_blocks(twice, 16), attend, operator)
    for row, (own_k, own_v) in enumerate(((k, v), (kk, vv))):
        own = plan_of(labels[:1], text=text)
        one_q, one_k, one_v = (x[row : row + 1] for x in (q, own_k, own_v))
        blocks = cross_blocks(own, own_k.shape[1])
        alone = masked_rows(one_q, one_k, one_v, regions_of(own), blocks, attend, operator)
        torch.testing.assert_close(ours[row : row + 1], alone, atol=1e-6, rtol=0)
    through = replaced_cross(q, kk, vv, regions_of(twice), twice, attend, operator)
    torch.testing.assert_close(through, ours, atol=1e-6, rtol=0)


@pytest.mark.parametrize("operator", ["paper", "renormalised"])
@pytest.mark.parametrize(
    "labels",
    [
        torch.zeros(1, 4, 6, dtype=torch.uint8),
        torch.ones(1, 4, 6, dtype=torch.uint8),
        torch.eye(1, 24, dtype=torch.uint8).view(1, 4, 6),
    ],
    ids=["empty", "full", "one token"],
)
def test_no_nan_at_the_edges(labels, operator):
    q, k, v = projected(1, 24, 24)
    plan = plan_of(labels)
    regions = regions_of(plan)
    for out in (
        masked_rows(q, k, v, regions, self_blocks, attend, operator),
        masked_rows(q, k, v, regions, cross_blocks(plan, 24), attend, operator),
        replaced_self(q, k, v, regions, attend, operator),
    ):
        assert torch.isfinite(out).all()


def test_a_full_mask_is_plain_attention_bit_for_bit():
    q, k, v = projected(2, 24, 24)
    plan = plan_of(torch.ones(1, 4, 6, dtype=torch.uint8), rows=[0, 0])
    assert torch.equal(masked_rows(q, k, v, regions_of(plan), self_blocks, attend), attend(q, k, v))


def test_open_rows_of_a_batch_are_plain_attention():
    labels = region_labels([torch.eye(4)])
    plan = plan_of(labels, rows=[None, 0, None, 0])
    regions = regions_of(plan)
    q, k, v = projected(4, 16, 16)
    assert regions.labels[0].eq(OPEN).all()
    for out in (
        masked_rows(q, k, v, regions, self_blocks, attend),
        replaced_self(q, k, v, regions, attend),
        replaced_self(q, k, v, regions, attend, "renormalised"),
    ):
        torch.testing.assert_close(out[0::2], attend(q, k, v)[0::2], atol=1e-6, rtol=0)
        assert (out[1::2] - attend(q, k, v)[1::2]).abs().max() > 1e-2


def test_gradients_flow_through_the_masked_calls():
    labels = torch.randint(0, 2, (2, 4, 4), dtype=torch.uint8)
    q, k, v = (x.requires_grad_() for x in projected(2, 16, 16))
    regions = regions_of(plan_of(labels))
    flat = labels.flatten(1)
    ours = torch.autograd.grad(masked_rows(q, k, v, regions, self_blocks, attend).square().sum(), (q, k, v))
    expected = dense(q, k, v, flat[:, :, None] == flat[:, None, :], "paper", 1.0)
    reference = torch.autograd.grad(expected.square().sum(), (q, k, v))
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
