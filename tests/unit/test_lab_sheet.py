"""The contact sheet holds every picture whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from inlay.imaging.boxes import Box
from inlay.lab.studies import sheet


@given(st.integers(1, 300), st.integers(1, 300))
def test_an_enlarged_picture_keeps_its_shape(width, height):
    size = sheet.enlarge(Image.new("RGB", (width, height)), 120).size
    assert max(size) == 120
    assert min(size) == max(round(120 * min(width, height) / max(width, height)), 1)


@pytest.mark.parametrize("count", [1, 2, 4, 5, 9])
def test_a_mosaic_shows_each_picture(count):
    colours = [(20 * n + 10, 0, 0) for n in range(count)]
    shown = np.asarray(sheet.mosaic([Image.new("RGB", (8, 6), colour) for colour in colours], 200))
    assert shown.shape == (200, 200, 3)
    for colour in colours:
        assert (shown == colour).all(-1).sum() > 200


def test_the_box_is_drawn_where_it_is():
    shown = np.asarray(sheet.with_box(Image.new("RGB", (100, 50)), Box(10, 20, 40, 80), 400))
    rows, columns = np.nonzero(shown.max(-1))
    assert shown.shape == (200, 400, 3)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (40, 160, 80, 320)


def test_a_sheet_has_room_for_its_panels():
    panels = [(f"panel {n}", Image.new("RGB", (sheet.PANEL, 99 * n + 1), "#123456")) for n in range(4)]
    drawn = np.asarray(sheet.contact_sheet("title", panels, "note"))
    assert (drawn == (0x12, 0x34, 0x56)).all(-1).sum() == sheet.PANEL * sum(99 * n + 1 for n in range(4))
