"""Areas, masks and ControlNet hints through a window, without a host."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.imaging.boxes import Box
from inlay.imaging.views import View
from inlay.sampling.crop_conditioning import CropRegion, crop_area, crop_conditions, crop_part, only_rows

examples = settings(max_examples=60)


def place(box: Box, picture, shown=None, rows=(0,)):
    shown = shown or (box.height, box.width)
    window = View(box, *shown).window(*picture, grid=8)
    return CropRegion(window, picture, (-(-shown[0] // 8) * 8, -(-shown[1] // 8) * 8), rows)


@st.composite
def boxes(draw, height, width):
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return Box(top, left, draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width)))


@examples
@given(boxes(24, 40), boxes(24, 40))
def test_an_area_in_the_window_covers_the_pixels_it_covered_in_the_picture(area, window):
    """Painted on the picture and cut out, or cropped as numbers and painted on the window: the same."""
    height, width = 24, 40
    canvas = torch.zeros(height, width)
    canvas[area.slices] = 1
    expected = canvas[window.slices]
    fractions = (window.top / height, window.left / width, window.bottom / height, window.right / width)
    steps = (area.height / height, area.width / width, area.top / height, area.left / width)
    cropped = crop_area(("percentage", *steps), fractions, height, width)
    got = torch.zeros_like(expected)
    if cropped is not None:
        down, across, top, left = (
            round(share * n) for share, n in zip(cropped[1:], got.shape * 2, strict=True)
        )
        got[top : top + down, left : left + across] = 1
    assert torch.equal(got, expected)


def test_an_area_in_latent_pixels_is_eight_times_as_large_in_the_picture():
    steps = crop_area((4, 8, 2, 6), (0.0, 0.0, 1.0, 1.0), 64, 128)
    assert steps == ("percentage", 0.5, 0.5, 0.25, 0.375)


@pytest.mark.parametrize(
    ("view", "shown", "expected"),
    [
        (Box(112, 112, 157, 157), (96, 96), (8.5, 8.5, 2.1, 2.1)),
        (Box(90, 90, 180, 180), (96, 96), (4.3, 4.3, 4, 4)),
    ],
)
def test_a_gligen_box_is_moved_into_the_view(view, shown, expected):
    """A box of 4 cells at cell 15 of a 192 x 192 picture, in close-up and window of 12 x 12 cells."""
    condition = {"gligen": ("position", "model", [("text", 4, 4, 15, 15), ("else", 2, 2, 0, 0)])}
    (cropped,) = crop_conditions({"positive": [condition]}, place(view, (192, 192), shown))["positive"]
    ((text, *box),) = cropped["gligen"][2]
    assert text == "text"
    assert box == pytest.approx(expected, abs=0.06)
    assert condition["gligen"][2][0][1:] == (4, 4, 15, 15)
    missed = place(Box(0, 64, 64, 128), (192, 192), shown)
    (cropped,) = crop_conditions({"positive": [condition]}, missed)["positive"]
    assert "gligen" not in cropped


def test_an_area_at_the_border_holds_the_padding():
    view = place(Box(50, 50, 99, 99), (99, 99))  # 49 pixels, padded to 56
    assert view.window[2] > 1
    assert crop_area(("percentage", 1.0, 0.5, 0.0, 0.0), view.window, 99, 99) is None
    area = crop_area(("percentage", 1.0, 1.0, 0.0, 0.0), view.window, 99, 99)
    assert area is not None
    assert area[1:] == pytest.approx((1, 1, 0, 0))


@examples
@given(boxes(24, 40), st.sampled_from([1, 2, 3]))
def test_a_part_is_the_slice_with_its_last_pixels_repeated(box, finer):
    picture = torch.rand(2, 24 * finer, 40 * finer)
    part = crop_part(picture, place(box, (24, 40)).window)
    expected = picture[:, box.top * finer : box.bottom * finer, box.left * finer : box.right * finer]
    down, across = (finer * -(-n // 8) * 8 for n in (box.height, box.width))
    assert part.shape[1:] == (down, across)
    beyond_rows = torch.arange(box.top * finer, box.top * finer + down).clamp(max=24 * finer - 1)
    beyond_columns = torch.arange(box.left * finer, box.left * finer + across).clamp(max=40 * finer - 1)
    assert torch.equal(part, picture[:, beyond_rows[:, None], beyond_columns])
    assert torch.equal(part[:, : expected.shape[1], : expected.shape[2]], expected)


def test_a_part_of_a_coarse_picture_is_never_empty():
    assert crop_part(torch.ones(1, 2, 2), (0.6, 0.6, 0.7, 0.7)).shape == (1, 1, 1)
    assert crop_part(torch.ones(1, 1, 1, 1), (0.9, 0.9, 1.0, 1.0)).shape == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("length", "rows", "kept"),
    [(1, [0], [0]), (1, [3], [0]), (4, [2], [2]), (4, range(4), range(4)), (2, [0, 1, 2], [0, 1])],
)
def test_only_a_batch_with_a_row_for_every_picture_is_split(length, rows, kept):
    assert only_rows(torch.arange(length), rows).tolist() == list(kept)


class Control:
    """What the host asks of a ControlNet here."""

    def __init__(self, hint, previous=None, extra=(), algorithm="nearest-exact"):
        self.cond_hint_original, self.previous_controlnet = hint, previous
        self.extra_concat_orig, self.upscale_algorithm = list(extra), algorithm

    def copy(self):
        return Control(self.cond_hint_original, None, self.extra_concat_orig, self.upscale_algorithm)

    def set_previous_controlnet(self, previous):
        self.previous_controlnet = previous


def test_a_hint_is_cut_and_enlarged_once_for_every_control_net():
    first = Control(torch.rand(1, 3, 64, 64))
    second = Control(torch.rand(1, 3, 64, 64), first, [torch.rand(1, 1, 32, 32), torch.ones(1, 1, 1, 1)])
    conds = {"positive": [{"control": second}], "negative": [{"control": second}, {"control": first}]}
    before = second.cond_hint_original.clone()
    cropped = crop_conditions(conds, place(Box(16, 8, 48, 40), (64, 64), (64, 64)))
    ours = cropped["positive"][0]["control"]
    assert ours is cropped["negative"][0]["control"]
    assert ours.previous_controlnet is cropped["negative"][1]["control"]
    assert ours.cond_hint_original.shape == (1, 3, 64, 64)
    part = before[..., 16:48, 8:40]
    enlarged = torch.nn.functional.interpolate(part, (64, 64), mode="nearest-exact")
    assert torch.equal(ours.cond_hint_original, enlarged)
    assert [tuple(mask.shape[-2:]) for mask in ours.extra_concat_orig] == [(16, 16), (1, 1)]
    assert torch.equal(ours.extra_concat_orig[0], second.extra_concat_orig[0][..., 8:24, 4:20])
    assert torch.equal(second.cond_hint_original, before)
    assert second.previous_controlnet is first


@pytest.mark.parametrize(
    ("algorithm", "mode"), [("nearest-exact", "nearest-exact"), ("bilinear", "bilinear"), ("lanczos", None)]
)
def test_a_hint_is_resized_as_the_host_does_and_keeps_its_values(algorithm, mode):
    """The inpaint preprocessor marks the hole with -1, and a latent as a hint has any values."""
    hint = 2 * torch.rand(1, 3, 32, 32)
    hint[..., 8:20, 8:20] = -1
    cond = {"control": Control(hint, algorithm=algorithm)}
    cropped = crop_conditions({"positive": [cond]}, place(Box(0, 0, 32, 32), (32, 32), (80, 80)))
    expected = torch.nn.functional.interpolate(hint, (80, 80), mode=mode or "nearest-exact")
    assert torch.equal(cropped["positive"][0]["control"].cond_hint_original, expected)


def test_a_hint_of_other_proportions_is_cut_in_the_middle_as_the_host_does():
    hint = torch.rand(1, 3, 64, 96)
    control = Control(hint)
    cropped = crop_conditions({"positive": [{"control": control}]}, place(Box(0, 0, 32, 32), (64, 64)))
    assert torch.equal(cropped["positive"][0]["control"].cond_hint_original, hint[..., :32, 16:48])


def test_prompts_for_other_places_are_left_out_and_none_left_is_an_error():
    masks = torch.zeros(2, 32, 32)
    masks[0, :16], masks[1, 16:] = 1, 1
    here, there, everywhere = {"mask": masks[:1]}, {"mask": masks[1]}, {"strength": 1.0}
    upper = place(Box(0, 0, 16, 32), (32, 32))
    cropped = crop_conditions({"positive": [here, there, everywhere], "negative": []}, upper)
    assert [set(cond) for cond in cropped["positive"]] == [{"mask"}, {"strength"}]
    assert cropped["positive"][0]["mask"].shape == (1, 16, 32)
    assert cropped["positive"][0]["mask"].all()
    assert cropped["negative"] == []
    area = {"area": ("percentage", 0.4, 1.0, 0.6, 0.0)}
    with pytest.raises(ValueError, match="negative: none of its areas"):
        crop_conditions({"positive": [everywhere], "negative": [there, area]}, upper)


@examples
@given(boxes(200, 320), boxes(200, 320), st.sampled_from([0.5, 1.0, 1.7]))
def test_an_area_leaves_the_host_at_least_one_cell_of_the_latent(area, window, zoom):
    """With the host's rounding (comfy.samplers.resolve_areas_and_cond_masks_multidim, get_area_and_mult)."""
    height, width = 200, 320
    steps = (area.height / height, area.width / width, area.top / height, area.left / width)
    there = place(
        window, (height, width), tuple(max(8, round(zoom * n)) for n in (window.height, window.width))
    )
    conds = [{"strength": 1.0}, {"area": ("percentage", *steps)}]
    for cond in crop_conditions({"positive": conds}, there)["positive"][1:]:
        cells = [pixels // 8 for pixels in there.shown]
        shares = cond["area"][1:]
        for share, start, count in zip(shares[:2], shares[2:], cells, strict=True):
            first = round(start * count)
            assert min(count - first, max(1, round(share * count))) >= 1
            assert share * count > 0.99


def test_a_row_of_the_batch_keeps_its_own_words_mask_and_hint():
    text, masks, hints = torch.rand(3, 7, 5), torch.ones(3, 8, 8), torch.rand(3, 3, 8, 8)
    cond = {"cross_attn": text, "pooled_output": None, "mask": masks, "control": Control(hints)}
    own = crop_conditions({"positive": [cond]}, place(Box(0, 0, 8, 8), (8, 8), rows=[2]))["positive"][0]
    assert torch.equal(own["cross_attn"], text[2:])
    assert own["pooled_output"] is None
    assert own["mask"].shape == (1, 8, 8)
    assert torch.equal(own["control"].cond_hint_original, hints[2:])
    assert cond["cross_attn"] is text


def test_what_has_no_place_is_shared():
    hooks = SimpleNamespace()
    cropped = crop_conditions({"positive": [{"hooks": hooks}]}, place(Box(0, 0, 8, 8), (16, 16)))
    assert cropped["positive"][0]["hooks"] is hooks
