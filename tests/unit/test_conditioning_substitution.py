"""Eq. 9 against a plain reference, which rows hold words, and which words a prompt contradicts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.conditioning.attribute_words import words_to_remove
from inlay.conditioning.substitution import JOINT, SEQUENTIAL, project_off, span, substitute, word_rows

examples = settings(max_examples=40)
seeds = st.integers(0, 2**16)


def rows(count, width, seed):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + 0.5


def reference_one(p, e):
    """Eq. 9 as printed, for vectors: p - (p . e / |e|) e / |e|."""
    return p - (p @ e / e.norm()) * e / e.norm()


def reference(rows, removed, projection):
    """In float64, row by row: sequential as printed; joint by the normal equations of least squares."""
    rows, removed = rows.double(), removed.double()
    if projection == SEQUENTIAL:
        for e in removed:
            rows = torch.stack([reference_one(p, e) for p in rows])
        return rows
    gram = removed @ removed.T
    return rows - rows @ removed.T @ torch.linalg.solve(gram, removed)


def cosines(a, b):
    return torch.nn.functional.cosine_similarity(a[:, None].double(), b[None].double(), dim=-1).abs()


@examples
@given(seeds, st.integers(1, 9), st.integers(1, 7), st.sampled_from([16, 768, 2048]))
def test_both_projections_are_eq_9(seed, count, removals, width):
    p, e = rows(count, width, seed), rows(removals, width, seed + 1)
    for projection in (JOINT, SEQUENTIAL):
        expected = reference(p, e, projection)
        assert (project_off(p, e, 1.0, projection) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert torch.allclose(project_off(p, e[:1]), project_off(p, e[:1], 1.0, SEQUENTIAL), atol=1e-6)


@examples
@given(seeds, st.integers(2, 12))
def test_joint_leaves_nothing_along_any_removed_row(seed, removals):
    p, e = rows(20, 768, seed), rows(removals, 768, seed + 1)
    assert cosines(project_off(p, e), e).max() <= 1e-5
    assert cosines(project_off(p, e, 1.0, SEQUENTIAL), e)[:, 0].max() > 1e-4  # why it is not the default


@examples
@given(seeds)
def test_rows_that_are_alike_do_not_break_the_joint_projection(seed):
    e = rows(3, 64, seed)
    e = torch.cat([e, 2 * e[:1], e[:1] + e[1:2], torch.zeros(1, 64)])
    left = project_off(rows(5, 64, seed + 1), e)
    assert len(span(e.double())) == 3
    assert cosines(left, e[:3]).max() <= 1e-5
    assert torch.isfinite(project_off(rows(5, 64, seed), e, 1.0, SEQUENTIAL)).all()


def test_a_row_that_is_removed_entirely_is_zero_and_not_noise():
    e = rows(4, 64, 0)
    assert not project_off(e[:2] + e[2:], e).any()


@examples
@given(seeds, st.floats(0, 1))
def test_strength_goes_in_a_straight_line_from_the_prompt_to_eq_9(seed, strength):
    p, e = rows(4, 64, seed), rows(3, 64, seed + 1)
    expected = p + strength * (project_off(p, e) - p)
    assert torch.allclose(project_off(p, e, strength), expected, atol=1e-5)
    assert torch.equal(project_off(p, e, 0.0), p)


def test_the_rows_keep_their_dtype_and_the_input_its_values():
    p, e = rows(4, 64, 0).half(), rows(2, 64, 1)
    before = p.clone()
    assert project_off(p, e).dtype == torch.float16
    assert torch.equal(p, before)


def entry(seed, pooled=True, **values):
    text = rows(7, 32, seed)[None]
    return [text, {"pooled_output": rows(1, 32, seed + 9) if pooled else None, **values}]


def test_only_words_and_the_pooled_vector_change_and_schedules_pair_up():
    conditioning = [entry(0, clip_start_percent=0.0, hooks="a"), entry(1, clip_start_percent=0.5, hooks="b")]
    removal = [entry(2), entry(3)]
    before = [text.clone() for text, _ in conditioning]
    result, reports = substitute(conditioning, removal, [1, 3, 4], [2, 5])
    for (text, values), (old, old_values), (gone, gone_values) in zip(
        result, conditioning, removal, strict=True
    ):
        others = [0, 2, 5, 6]
        assert torch.equal(text[:, others], old[:, others])
        assert cosines(text[0, [1, 3, 4]], gone[0, [2, 5]]).max() <= 1e-5
        assert cosines(values["pooled_output"], gone_values["pooled_output"]).max() <= 1e-5
        assert {key: values[key] for key in ("clip_start_percent", "hooks")} == {
            key: old_values[key] for key in ("clip_start_percent", "hooks")
        }
    assert all(torch.equal(old, text) for old, (text, _) in zip(before, conditioning, strict=True))
    for report in reports:
        assert [row.index for row in report.rows] == [1, 3, 4]
        assert all(0 < row.removed < 1 for row in report.rows)
        assert report.pooled is not None
        assert 0 < report.pooled < 1


def test_the_report_says_how_much_and_to_whom_the_row_was_closest():
    text = torch.zeros(1, 2, 4)
    text[0, 0], text[0, 1] = torch.tensor([3.0, 4, 0, 0]), torch.tensor([0.0, 0, 2, 0])
    gone = torch.eye(4)[None, :3] * 5
    (_,), (report,) = substitute([[text, {}]], [[gone, {}]], [0, 1], [0, 2])
    assert [(row.index, row.nearest) for row in report.rows] == [(0, 0), (1, 1)]
    assert [row.removed for row in report.rows] == pytest.approx([0.6, 1.0])
    assert report.pooled is None


def chunk(*words, length=8, start=True):
    """(token, weight, word id) of a chunk: start, words (id, pieces), end, padding."""
    inner = [(100 + i, 1.0, i) for i in words]
    return [(1, 1.0, 0)] * start + inner + [(2, 1.0, 0)] * (length - start - len(inner))


def test_words_of_several_tokens_and_several_chunks_are_all_found():
    tokens = {"l": [chunk(1, 1, 2), chunk(3)]}
    assert [row for row, _ in word_rows(tokens, 16)] == [1, 2, 3, 9]


def test_encoders_side_by_side_share_their_rows():
    tokens = {"g": [chunk(1, 2)], "l": [chunk(1, 2)]}
    assert [row for row, _ in word_rows(tokens, 8)] == [1, 2]


def test_the_encoder_that_speaks_is_told_by_its_length():
    flux = {"l": [chunk(1, 2)], "t5xxl": [chunk(1, 1, 2, length=12, start=False)]}
    assert [row for row, _ in word_rows(flux, 12)] == [0, 1, 2]
    sd3 = {"l": [chunk(1)], "g": [chunk(1)], "t5xxl": [chunk(1, 2, length=12, start=False)]}
    assert [row for row, _ in word_rows(sd3, 20)] == [1, 8, 9]


def test_rows_that_are_no_tokens_are_named():
    with pytest.raises(ValueError, match="clip: this text encoder hands on other rows"):
        word_rows({"qwen": [chunk(1, 2)]}, 5)


OWN = {"material": ["brass", "polished metal"], "Color": ["gold"], "accessory": ["lid"]}


@pytest.mark.parametrize(
    ("prompt", "typed", "expected"),
    [
        ("a glass sks teapot", "", ["brass", "polished metal"]),
        ("a GLASS, red sks teapot", "", ["brass", "polished metal", "gold"]),
        ("a sks teapot", "", []),
        ("a brass sks teapot", "", []),
        ("a glass and brass sks teapot", "", ["polished metal"]),
        ("a sks teapot", "shiny, old\nlid", ["shiny", "old", "lid"]),
        ("a sks teapot", "materials", ["brass", "polished metal"]),
        ("a glass sks teapot", "brass, (worn:1.2)", ["brass", "polished metal", "(worn:1.2)"]),
        ("a glassy sks teapot", " , ", []),
    ],
)
def test_which_words_are_removed(prompt, typed, expected):
    assert words_to_remove(prompt, OWN, typed) == expected


DOG = {"colour": ["brown"], "size": ["large"], "material": ["clay"], "shape": ["round"]}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a photo of sks mug on a wooden table", []),
        ("a small sks mug next to a red car", ["large"]),
        ("a denim sks mug", ["clay"]),
        ("a hexagonal sks mug", ["round"]),
        ("a corduroy, tiny sks mug", ["large", "clay"]),
        ("a (glass:1.3), (red:1.2) sks mug on a sofa", ["brown", "clay"]),
        ("a wooden table, sks mug", []),
        ("sks mug made of glass, on a wooden floor", ["clay"]),
        ("the sks mug is red and small. A wooden table.", ["brown", "large"]),
        ("a photo of sks mug in red", ["brown"]),
        ("a sks mug in a red room", []),
        ("a glass mug", ["clay"]),
        ("two tiny mugs", ["large"]),
        ("a glass cup", []),
    ],
)
def test_only_what_is_said_of_the_subject_counts(prompt, expected):
    assert words_to_remove(prompt, DOG, "", ["sks mug", "mug", "sks"]) == expected


def test_without_a_subject_the_typed_words_are_removed():
    assert words_to_remove("a glass teapot", {}, "material, brass") == ["material", "brass"]
