"""Crops for painting and paste back: geometry as properties, bits outside the soft edge, planted drifts."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from inlay.imaging.boxes import Box, bounding_box
from inlay.imaging.colour_match import (
    FIELD,
    METHODS,
    delta_e,
    fit_correction,
    lab_to_rgb,
    normalised,
    rgb_to_lab,
)
from inlay.imaging.composite import paste_back
from inlay.imaging.crop import (
    CROPS,
    EXACT_SIZE,
    KEEP,
    ORIGINAL_SIZE,
    PER_MASK,
    PER_PATCH,
    SHAPES,
    SIZES,
    SQUARE,
    Margins,
    MaskOptions,
    SizeOptions,
    clean_mask,
    crop_masks,
    crop_pictures,
    plan_crops,
)
from inlay.imaging.paste import (
    AREAS,
    BLENDS,
    CHANGED,
    NONE,
    PasteOptions,
    compare,
    match_painted,
    measure_colours,
    paste_paintings,
    recoloured,
    sample_painted,
    whole_pictures,
    with_masks,
)
from inlay.imaging.registration import SHIFT_AND_SCALE
from inlay.lab.studies.planted_drift import plant

examples = settings(max_examples=25)
side = st.integers(1, 40)


def count_patches(mask: np.ndarray) -> int:
    """Return the number of separate patches, diagonal neighbours included."""
    patches = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, np.ones((3, 3)), output=patches)
    return int(patches.max())


@st.composite
def pictures(draw, batch=1):
    """Random bytes (batch, H, W, 3) as floats, and a mask with at least one pixel in every picture."""
    height, width, seed = draw(side), draw(side), draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (batch, height, width, 3), generator=generator) / 255
    mask = (
        torch.rand(batch, height, width, generator=generator) < draw(st.sampled_from([0, 0.02, 0.3]))
    ).float()
    for number in range(batch):
        mask[number, draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))] = 1
    return image, mask


sizes = st.builds(
    SizeOptions,
    context=st.floats(1, 4),
    margin=st.integers(0, 20),
    size=st.sampled_from(SIZES),
    megapixels=st.floats(0.0005, 0.01),
    width=st.integers(8, 90),
    height=st.integers(8, 90),
    multiple=st.sampled_from([1, 8, 16]),
    shape=st.sampled_from(SHAPES),
    least=st.sampled_from([0.0, 0.5, 1.0]),
    most=st.sampled_from([1.0, 2.0, 8.0]),
)
margins = st.one_of(st.just(Margins()), st.builds(Margins, *[st.integers(0, 12)] * 4))


# -- geometry -----------------------------------------------------------------------------


@examples
@given(pictures(), sizes, margins)
def test_a_crop_holds_its_mask_and_has_the_size_that_was_asked_for(picture, options, margins):
    image, mask = picture
    crop = plan_crops(image, mask, margins=margins, size_options=options)
    place, canvas = crop.places[0], crop.canvas
    assert place.mask is not None
    inner = place.mask.box
    assert place.box.top <= inner.top <= inner.bottom <= place.box.bottom
    assert place.box.left <= inner.left <= inner.right <= place.box.right
    assert crop.height % options.multiple == crop.width % options.multiple == 0
    if options.size == ORIGINAL_SIZE:
        assert (place.box.height, place.box.width) == (crop.height, crop.width)
    if options.shape == SQUARE and options.size != EXACT_SIZE:
        assert crop.height == crop.width
    for length, first, end, start in (
        (place.box.height, canvas.top, canvas.bottom, place.box.top),
        (place.box.width, canvas.left, canvas.right, place.box.left),
    ):
        if length <= end - first:  # it lies inside the canvas where it fits
            assert first <= start <= end - length
    assert crop_pictures(crop).shape == (1, crop.height, crop.width, 3)
    assert crop_masks(crop).shape == (1, crop.height, crop.width)
    assert crop_masks(crop).max() == 1


def test_the_default_is_a_square_of_1024_with_half_of_the_box_around_it():
    image, mask = torch.rand(1, 900, 1200, 3), torch.zeros(1, 900, 1200)
    mask[:, 300:500, 400:500] = 1
    crop = plan_crops(image, mask)
    assert (crop.height, crop.width) == (1024, 1024)
    assert crop.places[0].box == Box(250, 300, 550, 600)


def test_limits_of_the_scale():
    image, mask = torch.rand(1, 400, 400, 3), torch.zeros(1, 400, 400)
    mask[:, 200:210, 200:210] = 1
    small = plan_crops(image, mask, size_options=SizeOptions(most=4))
    assert small.places[0].box.height == 256
    mask[:, 50:350, 50:350] = 1
    large = plan_crops(image, mask, size_options=SizeOptions(megapixels=0.01, least=0.5))
    assert large.height == 224  # half of 400 pixels, rounded up to 32
    narrow = plan_crops(image, mask, size_options=SizeOptions(most=1.0))
    assert narrow.height == 416  # the picture's 400 pixels, rounded up to 32


def test_the_shape_is_kept_and_exact_sizes_are_exact():
    image, mask = torch.rand(1, 600, 900, 3), torch.zeros(1, 600, 900)
    mask[:, 200:300, 200:500] = 1
    kept = plan_crops(image, mask, size_options=SizeOptions(shape=KEEP))
    assert abs(kept.width / kept.height - 3) < 0.15
    exact = plan_crops(image, mask, size_options=SizeOptions(size=EXACT_SIZE, width=832, height=640))
    assert (exact.height, exact.width) == (640, 832)
    context = torch.zeros(1, 600, 900)
    context[:, 550, 850] = 1
    wide = plan_crops(image, mask, context)
    assert wide.places[0].box.bottom > 550
    assert wide.places[0].box.right > 850


def test_masks_are_cleaned():
    mask = torch.zeros(40, 50)
    mask[10:20, 10:20] = 0.98
    mask[13:16, 13:16] = 0
    mask[35, 45] = 1
    part = clean_mask(mask, MaskOptions(fill_holes=True, specks=4))
    assert part is not None
    assert part.box == Box(10, 10, 20, 20)
    assert part.pixels.all()
    assert clean_mask(mask, MaskOptions(threshold=0.99, specks=4)) is None
    grown = clean_mask(mask, MaskOptions(fill_holes=True, specks=4, grow=3))
    assert grown is not None
    assert grown.box == Box(7, 7, 23, 23)
    assert not grown.pixels[0, 0]  # round corners
    shrunk = clean_mask(mask, MaskOptions(fill_holes=True, specks=4, grow=-2))
    assert shrunk is not None
    assert shrunk.box == Box(12, 12, 18, 18)
    other = clean_mask(mask, MaskOptions(invert=True))
    assert other is not None
    assert other.box == Box(0, 0, 40, 50)
    assert int(other.pixels.sum()) == 40 * 50 - 91 - 1


def test_nothing_to_paint_is_an_error():
    with pytest.raises(ValueError, match="mask: nothing is left to paint"):
        plan_crops(torch.rand(1, 20, 20, 3), torch.zeros(1, 20, 20))


def test_frames_have_one_crop_masks_and_patches_have_their_own():
    image, mask = torch.rand(1, 100, 100, 3), torch.zeros(2, 100, 100)
    mask[0, 10:20, 10:20] = 1
    mask[1, 70:90, 70:90] = 1
    options = SizeOptions(size=EXACT_SIZE, width=64, height=64)
    steady = plan_crops(image.expand(2, -1, -1, -1), mask, size_options=options)
    assert len({place.box for place in steady.places}) == 1
    assert [place.index for place in steady.places] == [0, 1]
    own = plan_crops(image, mask, size_options=options, crops=PER_MASK)
    assert own.count == 1
    assert [place.index for place in own.places] == [0, 0]
    both = paste_paintings(own, torch.zeros(2, 64, 64, 3), PasteOptions(0)).image
    assert both.shape == image.shape
    assert not both[0][mask.amax(0) > 0.5].any()
    assert torch.equal(both[0][mask.amax(0) < 0.5], image[0][mask.amax(0) < 0.5])
    patches = plan_crops(image, mask.amax(0, keepdim=True), size_options=options, crops=PER_PATCH)
    assert [place.mask.box.height for place in patches.places if place.mask] == [20, 10]


def test_several_variants_of_one_crop_give_several_pictures():
    image, mask = torch.rand(1, 60, 60, 3), torch.zeros(1, 60, 60)
    mask[:, 20:40, 20:40] = 1
    crop = plan_crops(image, mask)
    painted = torch.stack([torch.full((64, 64, 3), value) for value in (0.1, 0.9)])
    result = paste_paintings(match_painted(crop, painted), painted, PasteOptions(0)).image
    assert result[:, 30, 30, 0].tolist() == pytest.approx([0.1, 0.9], abs=1e-6)
    with pytest.raises(ValueError, match="generated: there are 3 pictures but 2 crops"):
        match_painted(plan_crops(image, mask.expand(2, -1, -1), crops=PER_MASK), torch.rand(3, 8, 8, 3))


# -- bits ---------------------------------------------------------------------------------


def saved(image):
    """The bytes that the host's Save Image writes."""
    return np.clip(255.0 * image.numpy(), 0, 255).astype(np.uint8)


@settings(max_examples=50)
@given(
    st.integers(1, 3).flatmap(pictures),
    sizes,
    margins,
    st.integers(0, 9),
    st.sampled_from(CROPS),
    st.sampled_from([NONE, SHIFT_AND_SCALE]),
    st.sampled_from([NONE, *METHODS]),
    st.sampled_from(AREAS),
    st.sampled_from(BLENDS),
    st.integers(0, 2**16),
)
def test_outside_the_soft_edge_every_bit_is_the_originals(
    picture, options, margins, feather, crops, align, colour, area, blend, seed
):
    image, mask = picture
    if crops == PER_PATCH:
        assume(all(count_patches(m.numpy()) <= 6 for m in mask))
    before = image.clone()
    generator = torch.Generator().manual_seed(seed)
    crop = plan_crops(image, mask, margins=margins, size_options=options, crops=crops)
    painted = torch.rand(len(crop.places), crop.height, crop.width, 3, generator=generator)
    paste = PasteOptions(feather, align, colour, bool(seed % 2), area, blend)
    result = paste_paintings(crop, painted, paste).image
    height, width = image.shape[1:3]
    rows, columns = Box(0, 0, height, width).shift(margins.top, margins.left).slices
    assert result.shape[1:3] == (crop.canvas.height, crop.canvas.width)
    inner = result[:, rows, columns]
    if area == CHANGED:  # it may reach over all of the crop
        boxes = torch.zeros(len(inner), height, width, dtype=torch.bool)
        for place in crop.places:
            boxes[(place.index, *place.box.clamp(height, width).slices)] = True
        outside = ~boxes
    else:
        masked = mask.amax(0, keepdim=True).expand(len(inner), -1, -1) if crop.count == 1 else mask
        wide = torch.nn.functional.pad(
            masked, (margins.left, margins.right, margins.top, margins.bottom), value=1.0
        )
        distance = np.stack([np.asarray(ndimage.distance_transform_edt(m.numpy() < 0.5)) for m in wide])
        outside = torch.from_numpy(distance > feather)[:, rows, columns]
    assert torch.equal(inner[outside], image.expand_as(inner)[outside])
    assert np.array_equal(saved(inner[outside]), saved(image.expand_as(inner)[outside]))
    assert torch.equal(image, before)
    assert torch.isfinite(result).all()


@examples
@given(pictures(), st.integers(0, 6))
def test_without_options_it_is_the_plain_paste_back(picture, feather):
    image, mask = picture
    painted = torch.rand_like(image)
    ours = paste_paintings(whole_pictures(image, mask), painted, PasteOptions(feather)).image
    assert torch.equal(ours, paste_back(image, painted, mask, feather))


@examples
@given(pictures())
def test_at_the_original_size_a_crop_comes_back_bit_for_bit(picture):
    image, mask = picture
    crop = plan_crops(image, mask, size_options=SizeOptions(size=ORIGINAL_SIZE, multiple=8))
    result = paste_paintings(crop, crop_pictures(crop), PasteOptions(4, SHIFT_AND_SCALE, METHODS[1])).image
    assert torch.equal(result, image)


# -- colours ------------------------------------------------------------------------------


def test_lab_and_its_differences_are_scikit_images():
    from skimage.color import deltaE_ciede2000, rgb2lab

    rng = np.random.default_rng(0)
    first, second = rng.random((2, 60, 50, 3))
    first[0, :20], second[0, :10] = 0.5, 0.5  # greys have no hue
    labs = [rgb_to_lab(torch.from_numpy(image)) for image in (first, second)]
    assert np.abs(labs[0].numpy() - rgb2lab(first)).max() < 0.01  # its matrix has fewer digits
    assert (lab_to_rgb(labs[0]) - torch.from_numpy(first)).abs().max() < 1e-9
    expected = deltaE_ciede2000(labs[0].numpy(), labs[1].numpy())
    assert np.abs(delta_e(*labs).numpy() - expected).max() < 1e-9


@pytest.mark.parametrize(
    ("first", "second", "difference"),
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),  # in the blue, where hue turns the ellipses
        ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1.0000),
        ((50, 0, 0), (50, -1, 2), 2.3669),  # a grey has no hue
        ((50, 2.49, -0.001), (50, -2.49, 0.0010), 7.1792),  # the mean of the hues jumps here
        ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_delta_e_has_the_published_values(first, second, difference):
    """Sharma, Wu and Dalal 2005, table 1, to its four decimals."""
    pair = (torch.tensor(lab, dtype=torch.float64) for lab in (first, second))
    assert delta_e(*pair).item() == pytest.approx(difference, abs=5e-5)


def test_the_smooth_field_removes_a_vignette_and_a_gain_exactly():
    torch.manual_seed(0)
    original = torch.rand(60, 80, 3, dtype=torch.float64) * 0.6 + 0.2
    y, x = normalised(60)[:, None, None], normalised(80)[None, :, None]
    painted = (original - 0.03 - 0.02 * x) / (1.1 + 0.1 * x * x - 0.05 * y)
    weight = torch.ones(60, 80)
    weight[20:40, 30:50] = 0
    correction = fit_correction("smooth field", original, painted, weight)
    assert correction is not None
    assert (correction.apply(painted, normalised(60), normalised(80)) - original).abs().max() < 2e-3


def test_mean_and_deviation_are_matched_in_lab():
    torch.manual_seed(0)
    lab = torch.randn(5000, 3, dtype=torch.float64) * torch.tensor([12.0, 8.0, 8.0]) + torch.tensor(
        [55.0, 3, -4]
    )
    original = lab_to_rgb(lab).clamp(0, 1).view(50, 100, 3)
    painted = lab_to_rgb(lab * 0.9 + torch.tensor([3.0, 2.0, 4.0])).clamp(0, 1).view(50, 100, 3)
    correction = fit_correction("mean and deviation", original, painted, torch.ones(50, 100))
    assert correction is not None
    corrected = correction.apply(painted, normalised(50), normalised(100))
    assert delta_e(rgb_to_lab(corrected), rgb_to_lab(original)).mean() < 0.1


def test_few_known_pixels_give_no_correction():
    image = torch.rand(10, 10, 3)
    assert fit_correction(METHODS[0], image, image, torch.zeros(10, 10)) is None


# -- planted drifts on photographs --------------------------------------------------------


def tensors(case):
    return [torch.from_numpy(array).float()[None] for array in (case.original, case.painted, case.mask)]


@pytest.mark.parametrize("seed", range(4))
def test_planted_drifts_and_casts_are_found_and_removed(seed):
    case = plant(seed, longest=360)
    original, painted, mask = tensors(case)
    options = PasteOptions(align=SHIFT_AND_SCALE, colour="smooth field")
    crop = whole_pictures(original, mask)
    work = compare(crop, crop.places[0], painted, options)
    assert work.alignment is not None
    assert work.alignment.applies
    found = case.rim @ work.to_painted[:2, :2].T + work.to_painted[:2, 2]
    assert np.linalg.norm(found - case.position(case.rim), axis=1).max() < 0.25
    correction, before, after = measure_colours(work, options)
    assert after < max(1.0, before / 2)
    clean = sample_painted(torch.from_numpy(case.clean)[None].float(), work.to_painted, *case.mask.shape)[0]
    band = torch.from_numpy(ndimage.binary_dilation(case.mask, iterations=8) & ~case.mask & case.visible(6))
    pair = [
        rgb_to_lab(torch.from_numpy(ndimage.gaussian_filter(image, (2, 2, 0)))[band])
        for image in (recoloured(clean, correction).double().numpy(), case.original)
    ]
    assert delta_e(*pair).mean() < 1.5


@pytest.mark.parametrize("damage", [False, True])
def test_nothing_planted_changes_nothing(damage):
    for seed in (1, 3):
        case = plant(seed, drift=False, cast=False, damage=damage, longest=300)
        original, painted, mask = tensors(case)
        options = PasteOptions(0, SHIFT_AND_SCALE, "smooth field")
        pasted = paste_paintings(whole_pictures(original, mask), painted, options)
        inside = mask[0] > 0.5
        assert (pasted.image[0][inside] - painted[0][inside]).abs().max() <= 1 / 255
        assert "in place already" in pasted.text()


def test_what_changed_is_pasted_without_a_mask():
    case = plant(2, cast=False, longest=360)
    original, painted, _ = tensors(case)
    options = PasteOptions(4, SHIFT_AND_SCALE, area=CHANGED)
    result = paste_paintings(whole_pictures(original, None), painted, options).image[0]
    changed = (result - original[0]).abs().amax(-1) > 0
    inside = torch.from_numpy(case.mask)
    truth = torch.from_numpy(case.content).float()
    middle = torch.from_numpy(ndimage.binary_erosion(case.mask, iterations=6))
    assert (result[middle] - truth[middle]).abs().mean() < 0.05
    assert changed[~inside].float().mean() < 0.1


def test_a_painted_crop_of_another_size_and_shape_is_laid_on_its_place():
    """As an API returns it: larger, and its left and right cut off."""
    case = plant(6, drift=False, cast=False, damage=False, longest=360)
    original, content, mask = tensors(case)
    width = mask.shape[2]
    cut = width // 10
    painted = torch.nn.functional.interpolate(
        content[:, :, cut : width - cut].movedim(-1, 1), scale_factor=1.5, mode="bicubic"
    ).movedim(1, -1)
    options = PasteOptions(align=SHIFT_AND_SCALE)
    crop = whole_pictures(original, mask)
    work = compare(crop, crop.places[0], painted.clamp(0, 1), options)
    rim = case.rim
    expected = 1.5 * (rim - [0, cut])
    assert (
        np.linalg.norm(rim @ work.to_painted[:2, :2].T + work.to_painted[:2, 2] - expected, axis=1).max()
        < 0.3
    )


def test_other_masks_replace_those_of_a_crop_and_the_check_picture_is_drawn():
    image, mask = torch.rand(1, 64, 80, 3), torch.zeros(1, 64, 80)
    mask[:, 20:40, 30:60] = 1
    other = torch.zeros(1, 64, 80)
    other[:, 30:35, 40:50] = 1
    crop = with_masks(plan_crops(image, mask), other)
    pasted = paste_paintings(crop, torch.zeros(1, 64, 64, 3), PasteOptions(0))
    changed = (pasted.image != image).any(-1)[0]
    assert bounding_box(changed.float()) == Box(30, 40, 35, 50)
    check = pasted.check_picture()
    assert check.shape[0] == 1
    assert check.shape[2] == 2 * check.shape[1]  # two squares side by side


def test_strips_leave_no_trace(monkeypatch):
    """Large windows are pasted in strips of rows; the result is the same as in one piece."""
    image, painted, mask = torch.rand(1, 90, 70, 3), torch.rand(1, 60, 50, 3), torch.zeros(1, 90, 70)
    mask[:, 20:70, 15:50] = (torch.rand(1, 50, 35) < 0.4).float()
    crop = whole_pictures(image, mask)
    whole = paste_paintings(crop, painted, PasteOptions(7)).image
    monkeypatch.setattr("inlay.imaging.paste.PASTED_PIXELS_AT_ONCE", 300)
    assert torch.allclose(paste_paintings(crop, painted, PasteOptions(7)).image, whole, atol=1e-6)


@pytest.mark.parametrize("rows_down", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_a_field_measured_on_a_strip_stays_small_at_the_other_end(seed, rows_down):
    """Known is a strip at one border; the painted picture differs there by small smooth errors."""
    generator = torch.Generator().manual_seed(seed)

    def smooth(values):
        return torch.nn.functional.interpolate(values[None], (128, 128), mode="bicubic", align_corners=True)[
            0
        ]

    original = smooth(torch.rand(3, 6, 6, generator=generator)).clamp(0, 1).movedim(0, -1) * 0.6 + 0.2
    error = 0.03 * smooth(torch.randn(3, 4, 4, generator=generator)).movedim(0, -1)
    known = torch.zeros(128, 128)
    known[:22] = 1
    if not rows_down:
        original, error, known = original.transpose(0, 1), error.transpose(0, 1), known.T
    painted = (original + error).clamp(0, 1)
    correction = fit_correction(FIELD, original, painted, known)
    assert correction
    change = (correction.apply(painted, normalised(128), normalised(128)) - painted).abs()
    assert change[known == 1].max() < 0.1
    assert change[known == 0].max() < 0.2  # up to 0.5 for a parabola through the strip
