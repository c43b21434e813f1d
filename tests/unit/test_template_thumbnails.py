"""A template's picture shows what goes in and what comes out, fills its square, and is small."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from inlay.headless.client import NodeOutput
from inlay.imaging.boxes import Box
from inlay.lab.studies import sheet
from inlay.tools import template_thumbnails as cards
from inlay.tools.template_plans import PLANS
from inlay.tools.templates import WORKFLOWS

BY_NAME = {plan.graph: plan for plan in PLANS}
PAPER = (0xFA, 0xF9, 0xF6)  # of a contact sheet, where it holds no picture
RED, LIME, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def painted(*colours, size=(96, 96)) -> NodeOutput:
    files = []
    for colour in colours:
        file = io.BytesIO()
        Image.new("RGB", size, colour).save(file, "PNG")
        files.append(("x.png", file.getvalue()))
    return NodeOutput(files=files)


def card(name: str, result=None) -> np.ndarray:
    plan = BY_NAME[name] if result is None else replace(BY_NAME[name], caption="")
    shown = np.asarray(cards.card(plan, result))
    assert shown.shape == (cards.SIDE, cards.SIDE, 3)
    return shown


def accents(pixels: np.ndarray) -> int:
    """How many pixels have the colour of the box's outline."""
    accent = np.array([int(sheet.ACCENT[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(pixels.astype(int) - accent).sum(-1) < 60).sum())


def test_the_result_fills_the_square_with_what_goes_in_at_the_top():
    shown = card("insert_subject", {"17": painted(LIME)})
    assert (shown[cards.GAP + cards.INSET :] == LIME).all()
    assert (shown[cards.GAP + 1, cards.GAP + 1] == WHITE).all()  # the frame of the photos
    assert accents(shown[: cards.INSET, cards.INSET : 2 * cards.INSET + 20]) > 20  # the box in the scene


def test_nodes_that_the_template_does_not_show_are_not_on_its_card():
    dropped = {"16": painted(RED), "17": painted(LIME), "18": painted(BLUE)}
    assert (card("insert_subject", dropped) == card("insert_subject", {"17": painted(LIME)})).all()


def test_without_a_result_the_picture_with_its_box_fills_the_square():
    assert accents(card("edit_box")[: -cards.BAND]) > 1000


def test_a_drawn_shape_is_outlined_and_four_results_stand_around_the_first():
    shown = card("insert_by_shape", {"14": painted(LIME, RED, BLUE, (255, 255, 0))})
    third = cards.SIDE // 3
    assert (shown[third + 9 : -9, 9 : 2 * third - 9] == LIME).all()
    middles = [tuple(shown[third * row + third // 2, third * 5 // 2]) for row in range(3)]
    assert middles == [RED, BLUE, (255, 255, 0)]
    assert accents(shown[:third, third : 2 * third]) > 50


def test_pictures_side_by_side_become_a_table():
    strips = painted(RED, LIME, BLUE, size=(296, 96))
    shown = card("compare", {"22": strips})
    third = cards.SIDE // 3
    assert (shown[third + 2 : 2 * third - 2] == RED).all()
    assert (shown[2 * third + 2 :] == LIME).all()
    assert accents(shown[:third, 2 * third :]) > 50


def test_a_square_is_cut_around_what_must_stay_in_it():
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("lime", (210, 0, 290, 100))
    shown = np.asarray(cards.Panel(wide, Box(20, 215, 80, 285)).square(100))
    assert (shown[:, 12:88] == LIME).all()


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.graph)
def test_a_published_card_is_filled_to_its_edges(plan):
    picture = Image.open(WORKFLOWS / f"{plan.title}.jpg").convert("RGB")
    assert picture.size == (cards.SIDE, cards.SIDE)
    empty = np.abs(np.asarray(picture).astype(int) - PAPER).max(-1) < 4
    assert empty.mean() < 0.02


def test_templates_without_a_result_have_words_to_tell_them_apart():
    words = [plan.caption for plan in PLANS if plan.caption]
    assert len(set(words)) == len(words)
    assert all(plan.caption for plan in PLANS)


def test_a_picture_is_as_good_as_its_size_allows(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (2, cards.SIDE, cards.SIDE, 3), dtype=np.uint8)
    smooth, rough = Image.new("RGB", (cards.SIDE, cards.SIDE), "red"), Image.fromarray(noise[0] // 4)
    for name, picture in (("smooth", smooth), ("rough", rough)):
        cards.save(picture, tmp_path / f"{name}.jpg")
    sizes = [(tmp_path / f"{name}.jpg").stat().st_size for name in ("smooth", "rough")]
    assert sizes[0] < sizes[1] <= cards.BYTES
    with pytest.raises(ValueError, match="noise"):
        cards.save(Image.fromarray(noise[1]), tmp_path / "noise.jpg")
