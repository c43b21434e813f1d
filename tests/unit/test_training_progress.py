"""The state behind the live view: a page that comes late knows as much as one that was there all along."""

import itertools
import json
import math

from hypothesis import given
from hypothesis import strategies as st

from inlay.training.finetune import progress as live

losses = st.lists(st.floats(0, 10), min_size=1, max_size=200)


def follow(page: dict, news: dict) -> None:
    """What the front end does with an event: it may know a part of it from the whole already."""
    page |= {name: news[name] for name in ("state", "step", "steps")}
    last = page["points"][-1][0] if page["points"] else 0
    page["points"] += [point for point in news["points"] if point[0] > last]


@given(losses, st.integers(1, 20), st.integers(1, 20), st.integers(1, 1500))
def test_whole_and_news_agree_whenever_one_starts_to_look(values, every, opened, steps):
    run = live.TrainingProgress("5", steps)
    pages = [run.whole()]
    for step, loss in enumerate(values, 1):
        run.add(step, loss)
        if step % every == 0:
            news = run.news()
            for page in pages:
                follow(page, news)
        if step % opened == 0:
            pages.append(run.whole())
    news = run.news()
    for page in pages:
        follow(page, news)
        assert page["points"] == run.whole()["points"]
        assert page["step"] == len(values)


@given(losses, st.integers(1, 5000))
def test_a_curve_has_a_bounded_number_of_points_each_the_mean_of_its_steps(values, steps):
    run = live.TrainingProgress("5", max(steps, len(values)))
    for step, loss in enumerate(values, 1):
        run.add(step, loss)
    assert len(run.points) == len(values) // run.stride <= live.POINTS
    for number, (step, mean) in enumerate(run.points):
        part = values[number * run.stride : step]
        assert len(part) == run.stride
        assert math.isclose(mean, sum(part) / len(part), abs_tol=1e-9)


@given(st.integers(1, 100))
def test_a_strip_is_bounded_and_keeps_its_first_and_last_picture(count):
    run = live.TrainingProgress("5", count)
    for step in range(1, count + 1):
        run.add_sample(step, f"picture {step}")
    steps = [step for step, _ in run.samples]
    assert len(steps) <= live.MAX_SAMPLES
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (1, count)


def test_what_is_told_is_json_and_only_the_latest_sample_travels():
    run = live.TrainingProgress("5:7", 2)
    run.add(1, 0.5)
    run.add_sample(1, "data:a")
    run.add_sample(2, "data:b")
    news = json.loads(json.dumps(run.news(sample=True)))
    assert news["points"] == [[1, 0.5]]
    assert news["samples"] == [[2, "data:b"]]
    assert json.loads(json.dumps(run.whole()))["samples"] == [[1, "data:a"], [2, "data:b"]]


def test_a_node_has_its_latest_run_alone_and_old_nodes_are_forgotten():
    first = live.begin_progress("1", 10)
    second = live.begin_progress("1", 20)
    assert first.key != second.key
    assert [run["steps"] for run in live.all_progress() if run["node"] == "1"] == [20]
    for number in range(2, live.MAX_NODES + 2):
        live.begin_progress(str(number), 1)
    known = [run["node"] for run in live.all_progress()]
    assert len(known) == live.MAX_NODES
    assert "1" not in known


def test_nodes_of_two_workflows_with_one_number_have_a_run_each():
    for steps, workflow in ((10, "a"), (20, "b"), (30, ""), (40, "a")):
        live.begin_progress("5", steps, workflow)
    known = {run["workflow"]: run["steps"] for run in live.all_progress() if run["node"] == "5"}
    assert known == {"a": 40, "b": 20, "": 30}
    assert live.TrainingProgress("5", 1, "a").news()["workflow"] == "a"


def time_left(steps, durations, samples=()):
    """The estimates after each step, with steps and samples of those lengths in seconds."""
    now = 0.0
    estimate = live.TimeLeft(steps, lambda: now)
    found = []
    for step, duration in enumerate(durations, 1):
        now += duration
        found.append(estimate.step_done(step))
        if step in samples:
            now += samples[step]
            estimate.sample_done(step)
    return found


def test_the_time_left_is_the_median_step_and_pause_and_does_not_jump():
    samples = {10: 30.0, 20: 30.0, 30: 30.0}
    found = time_left(100, [20.0] + [2.0] * 39, samples)  # the first step compiles
    assert found[0] is None
    assert found[1] == 2.0 * 98
    assert found[19] == 2.0 * 80  # one sample does not tell how often they come
    assert found[30] == 2.0 * 69 + 7 * 30.0
    changes = [before - after for before, after in itertools.pairwise(found[30:])]
    assert changes == [2.0] * len(changes)


def test_a_stored_training_is_a_curve_of_bounded_length():
    run = live.TrainingProgress("5", 1000, state="loaded")
    run.add_all([1.0] * 1000)
    assert len(run.whole()["points"]) <= live.POINTS
    assert run.whole()["step"] == 1000


def test_durations_are_written_for_people():
    texts = [live.duration_text(seconds) for seconds in (0, 59.6, 89, 90, 200, 3599, 3900)]
    assert texts == ["0 s", "60 s", "89 s", "1 min 30 s", "3 min 20 s", "59 min 50 s", "1 h 5 min"]
