"""The lab's DreamMix tables without a model: cases, and what the tables say."""

import numpy as np
import pytest
import torch
from PIL import Image

from inlay.imaging.boxes import bounding_box
from inlay.lab import world
from inlay.lab.models.classifier import load_judge
from inlay.lab.studies import dreammix
from inlay.lab.studies.dreammix_cells import (
    EDIT_TAS,
    EDIT_TRUTH,
    LIKENESS,
    REMOVED,
    SHARES,
    SIDES,
    TRUTH,
    WHOLE,
    Choices,
    Wanted,
    measured,
    share_removed,
)
from inlay.lab.studies.placed_cases import held_out_case, other_colour, placed, portraits, rim

CHOICES = Choices("DreamMix", 150, 16, 1e-3, 4, 4, 2, 192, "euler", "normal", 20, 4.0, "0123")


def thing(index=0, **fixed):
    return world.sample_thing(np.random.default_rng([7, index]), **fixed)


@pytest.mark.parametrize("kind", world.CLASSES)
@pytest.mark.parametrize("accessory", world.ACCESSORIES)
def test_a_placed_thing_is_centred_and_nearly_as_long_as_its_box(kind, accessory):
    tilted = thing(kind=kind, accessory=accessory).posed(tilt=0.1, mirrored=True)
    room = world.sample_room(np.random.default_rng(1))
    seen = bounding_box(
        torch.from_numpy(world.render(world.Scene(room, placed(tilted, 0.6, 0.7, 0.3)), 200).mask)
    )
    assert max(seen.height, seen.width) == pytest.approx(0.27 * 200, abs=2.5)
    assert (seen.left + seen.right) / 400 == pytest.approx(0.6, abs=0.01)
    assert (seen.top + seen.bottom) / 400 == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize("side", SIDES.values())
def test_a_case_keeps_what_it_shows_in_its_box(side):
    case, again = (held_out_case(3, thing(3), "green", side, 3, 128) for _ in range(2))
    assert torch.equal(case.truth, again.truth)
    assert case.box.height == case.box.width == round(side * 128)
    for with_it in (case.truth, case.edited):
        brighter = (with_it - case.rooms).amax(-1) > 0.01  # all but its shadow
        assert (brighter <= (case.hole > 0.5)).all()
        assert brighter.flatten(1).any(1).all()
    inside = case.hole[0] > 0.5
    assert not torch.equal(case.truth[:, inside], case.edited[:, inside])
    assert torch.equal(case.truth[:, ~inside], case.edited[:, ~inside])


def test_the_new_colour_is_told_from_the_old_one_and_the_trim():
    for i in range(40):
        old = thing(i)
        new = other_colour(np.random.default_rng(i), old)
        for colour in (world.COLOURS[old.colour], world.TRIMS[old.trim]):
            assert np.linalg.norm(np.array(world.COLOURS[new]) - colour) > 0.35


def test_the_rim_is_the_boxs_own_edge():
    case = held_out_case(0, thing(), "green", 0.3, 1, 100)
    edge = rim(case.box, 100, 100)
    assert bounding_box(edge[0]) == case.box
    assert edge.sum() == 30**2 - 26**2
    assert rim(case.box.expand(-13), 100, 100).sum() == 4**2 - 2**2


def test_the_truth_has_no_seam_and_is_what_was_wanted():
    judge, one = load_judge(), thing(kind="cat", colour="red")
    case = held_out_case(0, one, "blue", 0.3, 3, 192)
    wanted = Wanted(one, *portraits(one, 3, 0))
    edited = Wanted(one.posed(colour="blue"), *portraits(one.posed(colour="blue"), 3, 0))
    truth = measured(judge, case.truth, case, wanted)
    assert (truth["seam"], truth["rim dE00"]) == (0, pytest.approx(0, abs=1e-6))
    assert truth["class and colour"] == measured(judge, case.edited, case, edited)["class and colour"] == 1
    empty = measured(judge, case.rooms, case, wanted)
    assert truth[LIKENESS] > empty[LIKENESS] + 0.3
    assert truth[LIKENESS] > measured(judge, case.edited, case, wanted)[LIKENESS] + 0.1


def test_the_share_removed_is_that_of_the_rows_that_changed():
    before = torch.zeros(1, 3, 2)
    before[0, 1], before[0, 2] = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])
    after = before.clone()
    after[0, 1] = torch.tensor([0.0, 4.0])
    assert share_removed([[before, {}]], [[after, {}]]) == pytest.approx(0.6)
    assert share_removed([[before, {}]], [[before, {}]]) == 0


def results(count=4):
    """Invented numbers: the close-up is 0.1 better than the whole picture in every subject."""
    rng, found = np.random.default_rng(0), []
    names = ("whole picture", "window", "close-up (DIF)")
    edits = ("edit, whole picture", "edit, close-up (DIF)", EDIT_TAS)
    for _ in range(count):
        base = float(rng.uniform(0.3, 0.6))
        rows: dict[str, dict[str, float]] = {
            row: dict.fromkeys(
                (LIKENESS, "class and colour", "seam", "rim dE00"), base + 0.1 * ("close-up" in row)
            )
            for row in (*names, *edits, TRUTH, EDIT_TRUTH)
        }
        rows[EDIT_TAS][REMOVED] = 0.05
        shares = {f"{share:.1f}": dict(rows[WHOLE]) for share in SHARES} | {TRUTH: dict(rows[TRUTH])}
        found.append(dict.fromkeys(SIDES, rows) | {"lambda": shares})
    return found


def test_the_tables_say_what_each_part_adds_and_how_surely():
    tables = dreammix.box_table(results(), load_judge(), CHOICES)
    assert len(tables) == len(SIDES)
    text = tables[0].markdown()
    assert "The close-up over the whole picture: similarity 0.100 +- 0.000" in text
    assert "TAS over none: class and colour 0.000 +- 0.000 (0.0 standard errors)" in text
    assert "TAS took 0.050 +- 0.000" in text


def test_the_curves_show_the_figures(tmp_path):
    drawn = []
    for count in (4, 4, 5):
        shares = dreammix.tabulated([result["lambda"] for result in results(count)], "shares", [])
        dreammix.lambda_curves(shares, tmp_path / "curves.png")
        drawn.append(np.asarray(Image.open(tmp_path / "curves.png")))
    assert np.array_equal(drawn[0], drawn[1])
    assert drawn[0].shape != drawn[2].shape or (drawn[0] != drawn[2]).any()
