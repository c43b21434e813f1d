"""A workflow's picture shows what goes in and what comes out, and is small."""

import io

import numpy as np
import pytest
from PIL import Image

from inlay.headless.client import NodeOutput
from inlay.tools import template_thumbnails as cards
from inlay.tools.tiny import tiny_graph


@pytest.fixture
def graph():
    return tiny_graph("insert_subject")


def painted(colour: str) -> NodeOutput:
    file = io.BytesIO()
    Image.new("RGB", (96, 96), colour).save(file, "PNG")
    return NodeOutput(files=[("x.png", file.getvalue())])


def test_a_card_shows_references_the_box_and_every_result_but_the_curve(graph):
    result = {"16": painted("red"), "17": painted("lime"), "18": painted("blue")}
    shown = np.asarray(cards.card(graph, result))
    assert shown.shape == (cards.SIDE, cards.SIDE, 3)
    half = cards.SIDE // 2
    assert (shown[half + 60, 60] == (255, 0, 0)).all()
    assert (shown[half + 60, half + 60] == (0, 255, 0)).all()
    assert not (shown == (0, 0, 255)).all(-1).any()
    accent = (0xE8, 0x54, 0x2F)
    assert (np.abs(shown[:half, half:].astype(int) - accent).sum(-1) < 60).sum() > 50  # the box's outline


def test_a_picture_is_as_good_as_its_size_allows(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (2, cards.SIDE, cards.SIDE, 3), dtype=np.uint8)
    smooth, rough = Image.new("RGB", (cards.SIDE, cards.SIDE), "red"), Image.fromarray(noise[0] // 4)
    for name, picture in (("smooth", smooth), ("rough", rough)):
        cards.save(picture, tmp_path / f"{name}.jpg")
    sizes = [(tmp_path / f"{name}.jpg").stat().st_size for name in ("smooth", "rough")]
    assert sizes[0] < sizes[1] <= cards.BYTES
    with pytest.raises(ValueError, match="noise"):
        cards.save(Image.fromarray(noise[1]), tmp_path / "noise.jpg")


def test_several_pictures_of_one_node_share_its_panel(graph):
    files = [("x.png", painted(colour).images[0]) for colour in ("red", "lime", "blue", "yellow")]
    shown = np.asarray(cards.card(graph, {"16": NodeOutput(files=files), "17": painted("white")}))
    half = cards.SIDE // 2
    corners = [shown[half + y, x] for y in (60, half - 60) for x in (60, half - 60)]
    assert [tuple(c) for c in corners] == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
