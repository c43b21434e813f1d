"""What the demo makes of its command line and its graph, without a host."""

import argparse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from inlay.imaging.boxes import Box
from inlay.tools import demo_options as job
from inlay.tools import example_pictures
from inlay.tools.demo import arguments

numbers = st.integers(-50, 300)


def parsed(*line: str) -> argparse.Namespace:
    return arguments().parse_args(line)


@given(numbers, numbers, numbers, numbers, st.integers(1, 200), st.integers(1, 200))
def test_a_box_is_cut_to_the_picture_or_refused(x, y, w, h, width, height):
    text = f"{x},{y},{w},{h}"
    across, down = range(max(x, 0), min(x + w, width)), range(max(y, 0), min(y + h, height))
    if not across or not down or (len(across), len(down)) == (width, height):
        with pytest.raises(ValueError, match=r"^--box"):
            job.parse_box(text, width, height)
    else:
        box = job.parse_box(text, width, height)
        assert range(box.left, box.right) == across
        assert range(box.top, box.bottom) == down


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1.5,2,3,4"])
def test_a_box_that_is_not_four_numbers_says_what_to_give(text):
    with pytest.raises(ValueError, match="give four whole numbers"):
        job.parse_box(text, 64, 64)


@given(st.integers(1, 3000), st.integers(1, 3000), st.data())
def test_a_fitted_picture_is_small_enough_and_its_box_stays_inside(width, height, data):
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    size, box = job.fitted((width, height), Box(top, left, bottom, right), largest=100)
    assert max(size) == min(100, max(width, height))
    assert box.clamp(size[1], size[0]) == box
    assert box.area


def test_the_bundled_graph_starts_from_the_bundled_box():
    for checkpoint in (None, Path("sd15.safetensors")):
        where = job.read_graph(checkpoint)["4"]["inputs"]
        assert (where["x"], where["y"], where["width"], where["height"]) == example_pictures.BOX


def test_without_arguments_the_bundled_things_are_used():
    graph = job.read_graph()
    assert job.fill_in(graph, job.check(parsed())) == graph


def test_ones_own_choices_reach_the_graph(tmp_path):
    picture = Image.new("RGB", (451, 300))
    (tmp_path / "dog").mkdir()
    picture.save(tmp_path / "dog" / "1.jpg")
    sofa, checkpoint = tmp_path / "sofa.png", tmp_path / "sd15.safetensors"
    picture.save(sofa)
    checkpoint.touch()
    line = ["--checkpoint", checkpoint, "--references", tmp_path / "dog", "--background", sofa]
    line += ["--box", "10,20,30,40", "--class-name", "dog", "--seed", "7", "--steps", "5"]
    graph = job.fill_in(job.read_graph(checkpoint), job.check(parsed(*map(str, line))))
    assert graph["1"]["inputs"]["ckpt_name"] == "sd15.safetensors"
    place = {"x": 10, "y": 20, "width": 30, "height": 40}
    assert graph["4"]["inputs"] == {"image": ["3", 0], "mask": ["3", 1], **place}
    assert graph["5"]["inputs"]["class_name"] == "dog"
    assert graph["5"]["inputs"]["steps"] == 5
    assert graph["5"]["inputs"]["resolution"] == 0
    assert graph["7"]["inputs"]["text"] == "a photo of sks dog"
    assert graph["10"]["inputs"]["seed"] == graph["11"]["inputs"]["seed"] == 7
    assert graph["10"]["inputs"]["sampler_name"] == graph["11"]["inputs"]["sampler_name"] == "dpmpp_2m"


def test_both_samplers_differ_in_their_model_alone():
    graph = job.read_graph()
    plain, inlay = dict(graph["10"]["inputs"]), dict(graph["11"]["inputs"])
    assert plain.pop("model") != inlay.pop("model")
    assert plain == inlay


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--references", "nowhere"], "--references nowhere: there is no such folder"),
        (["--references", "."], "the folder"),
        (["--background", "nothing.png", "--box", "0,0,8,8"], "there is no picture nothing.png"),
        (
            ["--background", "notes.txt", "--box", "0,0,8,8"],
            "--background: 'notes.txt' is no readable picture",
        ),
        (["--background", "notes.txt"], "--box x,y,width,height"),
        (["--checkpoint", "nothing.safetensors"], "--checkpoint nothing.safetensors: there is no such file"),
        (["--box", "500,500,8,8"], "outside the picture, which is 128 x 128"),
        (["--steps", "-1"], "--steps -1"),
    ],
)
def test_a_wrong_option_is_one_sentence_that_names_it(line, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("not a picture", encoding="utf-8")
    with pytest.raises(ValueError, match=said) as caught:
        job.check(parsed(*line))
    assert "\n" not in str(caught.value)


def test_a_subject_of_ones_own_needs_a_name(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match="--class-name"):
        job.check(parsed("--references", str(tmp_path)))


def test_inputs_of_an_earlier_run_do_not_stay(tmp_path):
    subject = tmp_path / "inlay_subject"
    subject.mkdir()
    (subject / "old.png").touch()
    job.put_inputs(job.check(parsed()), tmp_path)
    assert {file.name for file in subject.iterdir()} == {"1.png", "2.png", "3.png", "4.png"}
    assert Image.open(tmp_path / "inlay_background.png").size == (128, 128)
