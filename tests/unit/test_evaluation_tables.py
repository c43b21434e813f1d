"""Tables: means and errors against the textbook, pairs, and what they look like on paper."""

import json
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay.evaluation.tables import Mean, Table, paired_difference

numbers = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30)


@given(numbers)
def test_mean_and_standard_error_are_the_textbooks(values):
    found = Mean.of(values)
    assert found.n == len(values)
    assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert found.error == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), rel=1e-6, abs=1e-6)


@given(numbers, st.floats(-5, 5))
def test_a_constant_gain_is_certain_when_units_are_paired(values, gain):
    found = paired_difference([v + gain for v in values], values)
    assert found.mean == pytest.approx(gain, abs=1e-6)
    assert found.error == pytest.approx(0, abs=1e-6)


def test_one_value_has_no_error_and_none_has_no_mean():
    assert math.isnan(Mean.of([3.0]).error)
    with pytest.raises(ValueError, match="no values"):
        Mean.of([])


def test_the_z_score_counts_standard_errors():
    assert Mean(0.6, 0.2, 9).z_score == pytest.approx(3)
    assert Mean(-1.0, 0.0, 2).z_score == -math.inf
    assert Mean(0.0, 0.0, 2).z_score == 0
    assert math.isnan(Mean.of([1.0]).z_score)


def test_values_of_different_units_cannot_be_paired():
    with pytest.raises(ValueError, match="measure the same units"):
        paired_difference([1.0], [1.0, 2.0])


def table():
    rows = {"plain": {"likeness": [0.1, 0.3]}, "tuned": {"likeness": [0.5, 0.9], "colour": [1.0, 2.0]}}
    return Table("Subjects", rows, ["judge: the tiny world's"])


def test_markdown_has_every_row_measure_error_and_note():
    text = table().markdown(2)
    assert "| plain | 0.20 +- 0.10 | - | 2 |" in text
    assert "| tuned | 0.70 +- 0.20 | 1.50 +- 0.50 | 2 |" in text
    assert "the tiny world's" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1


def test_a_row_can_have_nothing_but_a_measure_of_the_whole_set():
    assert "| a | 1.000 | 0 |" in Table("A title", {"a": {}}, [], {"a": {"FID": 1.0}}).markdown()


def test_the_difference_of_two_rows_is_paired():
    found = table().difference("tuned", "plain", "likeness")
    assert (found.mean, found.n) == (pytest.approx(0.5), 2)
    assert found.error == pytest.approx(0.1)


def test_json_keeps_the_values_and_no_nan():
    kept = json.loads(Table("one", {"row": {"m": [0.25]}}).to_json(), parse_constant=pytest.fail)
    assert kept["rows"]["row"]["m"] == {"mean": 0.25, "error": None, "n": 1, "values": [0.25]}
