"""Figures on pages: found, compared within what they are sure of, and renewed."""

import subprocess
import sys
from argparse import Namespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from inlay import dev
from inlay.evaluation.tables import Mean, Table
from inlay.lab.studies import all as every
from inlay.lab.studies.reproduce_figures import (
    Figure,
    compare_pictures,
    compare_texts,
    figures,
    only_columns,
    update,
)

TABLE = Table(
    "How good?",
    {"with": {"class": [0.9, 0.8, 1.0], "colour": [0.5, 0.7, 0.6]}, "without": {"class": [0.1, 0.2, 0.3]}},
    ["3 subjects, guidance 4.5."],
)
PAGE = """# Page
<!-- lab good --subjects 3 : good.md -->
old
<!-- end -->
words
<!-- lab good --subjects 3 : good.md | colour -->
old
<!-- end -->
<!-- lab good --subjects 3 : good.png -->
![a picture](docs/good.png)
<!-- end -->
"""


@pytest.fixture
def pack(tmp_path):
    """A pack with a page of three figures, and what their lab made."""
    (tmp_path / "README.md").write_text(PAGE, encoding="utf-8")
    (tmp_path / "docs").mkdir()
    made = tmp_path / "out" / "good"
    made.mkdir(parents=True)
    (made / "good.md").write_text(TABLE.markdown(), encoding="utf-8")
    Image.new("RGB", (8, 8), "red").save(made / "good.png")
    return tmp_path


def test_a_page_names_the_command_and_the_file_of_every_figure(pack):
    found = figures(pack, pack / "out")
    assert [(f.command, f.file, f.columns) for f in found] == [
        (("good", "--subjects", "3"), "good.md", ()),
        (("good", "--subjects", "3"), "good.md", ("colour",)),
        (("good", "--subjects", "3"), "good.png", ()),
    ]
    assert found[2].picture == pack / "docs" / "good.png"


def test_an_old_page_is_complained_about_and_a_renewed_one_is_not(pack):
    assert [f.complaints() for f in figures(pack, pack / "out")] == [
        ["another text"],
        ["another text"],
        ["there is no good.png"],
    ]
    update(figures(pack, pack / "out"))
    assert [f.complaints(exact=True) for f in figures(pack, pack / "out")] == [[], [], []]
    text = (pack / "README.md").read_text(encoding="utf-8")
    update(figures(pack, pack / "out"))
    assert (pack / "README.md").read_text(encoding="utf-8") == text
    assert text.startswith("# Page\n<!-- lab good --subjects 3 : good.md -->\n")
    assert "3 subjects, guidance 4.5." in text
    assert "| with | 0.600 +- 0.058 | 3 |" in text


def test_only_some_columns():
    assert only_columns(TABLE.markdown(), ["colour"]).splitlines() == [
        "|  | colour | n |",
        "| --- | ---: | ---: |",
        "| with | 0.600 +- 0.058 | 3 |",
        "| without | - | 3 |",
    ]
    with pytest.raises(ValueError, match="no column shape; it has class, colour, n"):
        only_columns(TABLE.markdown(), ["shape"])


@given(st.floats(-5, 5), st.floats(0.002, 2), st.floats(-3, 3))
def test_a_mean_may_move_by_its_error_and_no_further(mean, error, steps):
    printed = Mean(mean, error, 9).text()
    made = Mean(mean + steps * error, error, 9).text()
    moved = abs(float(made.split()[0]) - float(printed.split()[0]))
    said = compare_texts(f"| a | {printed} | 9 |", f"| a | {made} | 9 |")
    assert bool(said) == (moved > float(printed.split()[-1]) + 0.001)
    assert bool(compare_texts(printed, made, exact=True)) == (printed != made)


@pytest.mark.parametrize(
    ("printed", "made", "agrees"),
    [
        ("20 subjects", "21 subjects", False),
        ("it took 31.0 s", "it took 36.5 s", True),
        ("it took 31.0 s", "it took 99.0 s", False),
        ("(5.3 standard errors)", "(4.4 standard errors)", True),
        ("0.5 +- nan", "0.5 +- nan", True),
        ("1.000 +- 0.000", "0.995 +- 0.005", True),
        ("a cat", "a dog", False),
        ("| 0.500 +- 0.100 |", "| - |", False),
    ],
)
def test_what_else_may_differ(printed, made, agrees):
    assert (not compare_texts(printed, made)) == agrees


def test_pictures_may_differ_a_little(tmp_path):
    grey, shifted, spotted, other = (tmp_path / f"{n}.png" for n in ("grey", "shifted", "spotted", "other"))
    Image.new("RGB", (20, 20), (100, 100, 100)).save(grey)
    Image.new("RGB", (20, 20), (110, 100, 100)).save(shifted)
    spots = Image.new("RGB", (20, 20), (100, 100, 100))
    spots.paste((200, 100, 100), (0, 0, 4, 1))  # 1 in 100
    spots.save(spotted)
    Image.new("RGB", (21, 20), (100, 100, 100)).save(other)
    assert compare_pictures(grey, shifted) == compare_pictures(grey, spotted) == []
    assert compare_pictures(grey, spotted, exact=True) == ["1.0% of the picture is another"]
    assert compare_pictures(grey, shifted, exact=True) == ["100.0% of the picture is another"]
    assert compare_pictures(grey, other) == ["20 x 20 pixels are now 21 x 20"]
    spots.paste((200, 100, 100), (0, 1, 4, 2))
    spots.save(spotted)
    assert compare_pictures(grey, spotted) == ["2.0% of the picture is another"]


def test_a_figure_without_its_picture_says_so(pack):
    figure = Figure(pack / "README.md", ("good",), "good.png", (), pack / "out", "", "nothing\n", "")
    with pytest.raises(ValueError, match=r"no picture stands after the comment for good\.png"):
        figure.complaints()


@pytest.fixture
def lab(pack, monkeypatch):
    """The pack of `pack` with a lab `good` that imports a neighbour and, in a function, a module above."""
    (pack / "lab" / "studies").mkdir(parents=True)
    (pack / "common").mkdir()
    (pack / "common" / "numbers.py").write_text("ONE = 1\n", encoding="utf-8")
    (pack / "common" / "other.py").write_text("TWO = 2\n", encoding="utf-8")
    (pack / "lab" / "studies" / "near.py").write_text("import os\n", encoding="utf-8")
    source = "from . import near\n\n\ndef f():\n    from ...common.numbers import ONE\n    return ONE, near\n"
    file = pack / "lab" / "studies" / "good.py"
    file.write_text(source, encoding="utf-8")
    monkeypatch.setattr(dev, "PACK", pack)
    monkeypatch.setattr(dev, "scripts", lambda command: {"good": "lab/studies/good"})
    return file


def test_the_code_of_a_lab_is_what_it_imports(lab, pack):
    names = [path.relative_to(pack).as_posix() for path in every.sources(lab, pack)]
    assert names == ["common/numbers.py", "lab/studies/good.py", "lab/studies/near.py"]


def test_a_figure_is_stale_when_the_code_behind_it_changes(lab, pack):
    command, before = ("good", "--subjects", "3"), every.digest("good", pack)
    assert every.state(command, every.read_records(pack), before) == "unknown"
    every.keep_record(pack, command, before, 61.4)
    assert every.state(command, every.read_records(pack), before) == "current, the last run took 61 s"
    (pack / "common" / "other.py").write_text("TWO = 3\n", encoding="utf-8")
    assert every.digest("good", pack) == before
    (pack / "common" / "numbers.py").write_text("ONE = 2\n", encoding="utf-8")
    assert (
        every.state(command, every.read_records(pack), every.digest("good", pack))
        == "stale, the last run took 61 s"
    )


def test_a_part_ends_in_time_and_the_next_one_goes_on(lab, pack, monkeypatch, capsys):
    """What a stopped lab had not finished is stale still; what was written is not."""
    script = "import sys, time; time.sleep(float(sys.argv[1]))"
    delay = ["3600"]
    monkeypatch.setattr(dev, "module", lambda name, *options: ["-c", script, *delay])
    chosen = Namespace(out=pack / "out", write=True)
    command, shown = ("good", "--subjects", "3"), figures(pack, pack / "out")
    assert every.make(command, shown, chosen, seconds=0.1) == "stopped; the next call goes on"
    monkeypatch.setattr(sys, "argv", ["all", "--minutes", "0", "--write", "--out", str(pack / "out")])
    assert every.main() == 1  # no time is left: nothing is started
    assert "lab good --subjects 3: unknown" in capsys.readouterr().out
    assert every.read_records(pack) == {}
    delay[0] = "0"
    monkeypatch.setattr(sys, "argv", ["all", "--write", "--out", str(pack / "out")])
    assert every.main() == 0
    assert "lab good --subjects 3: written" in capsys.readouterr().out
    assert "0.900 +- 0.058" in (pack / "README.md").read_text(encoding="utf-8")
    assert every.main() == 0
    assert "lab good --subjects 3: current" in capsys.readouterr().out


def test_a_lab_that_fails_is_an_error(lab, pack, monkeypatch):
    monkeypatch.setattr(dev, "module", lambda name, *options: ["-c", "raise SystemExit(3)"])
    monkeypatch.setattr(sys, "argv", ["all", "--out", str(pack / "out")])
    with pytest.raises(subprocess.CalledProcessError):
        every.main()
