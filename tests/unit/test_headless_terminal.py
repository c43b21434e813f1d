"""Progress bars: what they say, and that they stay one line on a terminal and readable in a file."""

import io

from hypothesis import given
from hypothesis import strategies as st

from inlay.headless.client import NodeProgressEvent, explain_refusal, progress_of
from inlay.headless.terminal import BAR, Bars, bar_line

GRAPH = {"1": {"class_type": "Load"}, "2": {"class_type": "KSampler", "_meta": {"title": "Sample"}}}


@given(st.floats(0, 1000), st.floats(0, 1000), st.sampled_from(["running", "finished", "cached"]))
def test_a_bar_is_ascii_and_never_wider_than_full(value, maximum, state):
    line = bar_line("Sample", 8, NodeProgressEvent("2", value, maximum, state), 1.0)
    bar = line[line.index("[") + 1 : line.index("]")]
    assert line.isascii()
    assert len(bar) == BAR
    assert set(bar) <= {"#", "."}
    assert state == "running" or bar == "#" * BAR


def test_a_running_node_says_how_far_it_is():
    line = bar_line("Sample", 8, NodeProgressEvent("2", 5, 20, "running", "loss 0.1"), 1.5)
    assert line == "  Sample    [" + "#" * 6 + "." * 18 + "]    5/20   1.5 s  loss 0.1"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(stream):
    bars = Bars(GRAPH, stream)
    for progress in (
        NodeProgressEvent("1", 1, 1, "cached"),
        NodeProgressEvent("2", 0, 2, "running"),
        NodeProgressEvent("2", 1, 2, "running"),
        NodeProgressEvent("2", 2, 2, "finished"),
        NodeProgressEvent("2", 2, 2, "finished"),
    ):
        bars(progress)
    return stream.getvalue()


def test_in_a_file_each_node_has_one_line():
    lines = run(io.StringIO()).splitlines()
    assert [line.split()[0] for line in lines] == ["Load", "Sample"]
    assert "cached" in lines[0]
    assert "2/2" in lines[1]


def test_on_a_terminal_the_line_is_redrawn_in_place():
    text = run(Terminal())
    assert text.count("\n") == 2
    assert text.count("\r") == 4


def test_what_a_node_says_stays_until_it_says_more():
    seen = {"2": NodeProgressEvent("2", 1, 9, "running")}
    (said,) = progress_of("text", {"node": "2", "text": "loss 0.1"}, seen)
    assert said == NodeProgressEvent("2", 1, 9, "running", "loss 0.1")
    states = {"2": {"display_node_id": "2", "value": 2, "max": 9, "state": "running"}}
    (moved,) = progress_of("progress_state", {"nodes": states}, {"2": said})
    assert moved == NodeProgressEvent("2", 2, 9, "running", "loss 0.1")


def test_what_the_node_itself_says_of_an_input_is_not_buried():
    error = {
        "type": "custom_validation_failed",
        "message": "Custom validation failed for node",
        "details": "folder - references: the folder 'x' holds no picture",
    }
    answer = {"error": {"message": "invalid"}, "node_errors": {"2": {"errors": [error]}}}
    said = explain_refusal(answer, GRAPH)
    assert said == "The host refused the graph. Sample (node 2): references: the folder 'x' holds no picture"
