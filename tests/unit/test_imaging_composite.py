"""Padding and paste-back: nothing outside the soft edge changes, by a bit, at any size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.imaging.composite import distance_to, paste_back, soft_edge
from inlay.imaging.latent_mask import grey_hole, inpaint_pictures
from inlay.imaging.views import crop_back, pad_to_multiple, padded_size

examples = settings(max_examples=60)
side = st.integers(1, 40)
dtypes = st.sampled_from([torch.uint8, torch.float32, torch.float64, torch.float16])


@st.composite
def masks(draw):
    """A binary mask (1, H, W), not empty, often at the border, sometimes full."""
    height, width, seed = draw(side), draw(side), draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    mask = (
        torch.rand(1, height, width, generator=generator) < draw(st.sampled_from([0.0, 0.1, 1.0]))
    ).float()
    mask[0, draw(st.sampled_from([0, height - 1, height // 2])), draw(st.sampled_from([0, width - 1]))] = 1.0
    return mask


def picture(mask, dtype, seed):
    """Random (B, H, W, 3): all 256 values, or [0, 1]."""
    bytes_ = torch.randint(
        0, 256, (*mask.shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    return bytes_ if dtype == torch.uint8 else bytes_.to(dtype) / 255


def distance_by_hand(mask):
    """Every pixel against every masked pixel, in float64."""
    points = torch.cartesian_prod(*(torch.arange(n) for n in mask.shape[1:])).reshape(-1, 2).double()
    masked = mask[0].nonzero().double()
    return torch.cdist(points, masked).amin(1).reshape(mask.shape)


@examples
@given(masks(), st.integers(0, 12))
def test_distance_is_euclidean_up_to_its_reach(mask, reach):
    expected, distance = distance_by_hand(mask), distance_to(mask, reach).double()
    near = expected <= reach
    assert torch.allclose(distance[near], expected[near], atol=1e-5)
    assert (distance[~near] > reach).all()


@examples
@given(masks(), st.integers(0, 12))
def test_soft_edge_is_one_inside_and_falls_to_zero_outside(mask, feather):
    alpha, distance = soft_edge(mask, feather), distance_by_hand(mask)
    assert (alpha[distance == 0] == 1).all()
    assert (alpha[distance > feather] == 0).all()
    between = (distance > 0) & (distance <= feather)
    t = 1 - distance[between] / (feather + 1)
    assert torch.allclose(alpha[between].double(), t**2 * (3 - 2 * t), atol=1e-5)


@examples
@given(masks(), st.integers(0, 12), dtypes)
def test_pasting_back_keeps_every_bit_outside_the_edge_and_inside_the_mask(mask, feather, dtype):
    original, generated = picture(mask, dtype, 1), picture(mask, dtype, 2)
    before = original.clone()
    result = paste_back(original, generated, mask, feather)
    distance = distance_by_hand(mask)
    assert result.dtype == dtype
    assert torch.equal(result[distance > feather], original[distance > feather])
    assert torch.equal(result[distance == 0], generated[distance == 0])
    low, high = torch.minimum(original, generated).double(), torch.maximum(original, generated).double()
    slack = 1e-3 if dtype == torch.float16 else 1e-6
    assert ((result.double() >= low - slack) & (result.double() <= high + slack)).all()
    assert torch.equal(original, before)


def test_pasting_back_mixes_by_the_formula():
    mask = torch.zeros(1, 1, 9)
    mask[..., 0] = 1
    original, generated = torch.zeros(1, 1, 9, 3), torch.ones(1, 1, 9, 3)
    result = paste_back(original, generated, mask, feather=3)[0, 0, :, 0]
    t = torch.tensor([1, 0.75, 0.5, 0.25, 0, 0, 0, 0, 0])
    assert torch.allclose(result, t**2 * (3 - 2 * t))


def test_what_is_broken_in_the_generated_background_stays_out():
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:5, 2:5] = 1
    original, generated = torch.rand(1, 8, 8, 3), torch.full((1, 8, 8, 3), 0.5)
    generated[:, 7, 7] = float("nan")
    assert torch.isfinite(paste_back(original, generated, mask, 1)).all()


@examples
@given(side, side, st.sampled_from([1, 8, 16, 32]), st.booleans(), dtypes)
def test_padding_crops_back_exactly_and_repeats_the_edge(height, width, multiple, is_image, dtype):
    original = picture(torch.zeros(2, height, width), dtype, 3)
    original = original if is_image else original[..., 0]
    padded = pad_to_multiple(original, multiple)
    rows, columns = padded.shape[1:3]
    assert (rows, columns) == padded_size(height, width, multiple)
    assert rows % multiple == columns % multiple == 0
    assert rows - height < multiple
    assert columns - width < multiple
    assert torch.equal(crop_back(padded, height, width), original)
    assert torch.equal(padded[:, -1, -1], original[:, -1, -1])
    below = padded[:, height - 1 :, :width]
    assert torch.equal(below, original[:, -1:].expand_as(below))


@pytest.mark.parametrize("size", [(300, 450), (296, 448), (320, 464), (600, 902), (312, 456)])
def test_another_size_is_not_cropped_but_named(size):
    with pytest.raises(ValueError, match="but the original is 451x300"):
        crop_back(torch.zeros(1, *size, 3), 300, 451)


@examples
@given(masks())
def test_the_hole_is_grey_and_the_rest_is_the_picture(mask):
    image = picture(mask, torch.float64, 4)
    masked = grey_hole(image, mask.double()) * 2 - 1
    assert torch.allclose(masked, (image * 2 - 1) * (1 - mask[..., None].double()), atol=1e-12)
    assert (masked[mask == 1] == 0).all()


@examples
@given(masks(), st.sampled_from([1, 3]))
def test_padding_never_shows_what_the_hole_hides(mask, batch):
    image = picture(mask, torch.float32, 5)
    other = torch.where(mask[..., None] > 0.5, torch.rand_like(image), image)
    pictures = [inpaint_pictures(x.expand(batch, -1, -1, -1), mask, 8) for x in (image, other)]
    (_, masked, hole), (_, masked_other, _) = pictures
    _, height, width = mask.shape
    assert masked.shape == (batch, *padded_size(height, width, 8), 3)
    assert hole.shape == masked.shape[:3]
    assert torch.equal(masked, masked_other)


@pytest.mark.parametrize("reach", [33, 256])
def test_a_long_reach_on_the_cpu_gives_the_same_distances(reach):
    mask = torch.zeros(2, 90, 70)
    mask[0, 4:9, 60:66] = 1
    mask[1, 80:, :3] = 1
    expected = torch.cat([distance_by_hand(mask[:1]), distance_by_hand(mask[1:])])
    assert torch.allclose(distance_to(mask, reach).double(), expected, atol=1e-5)
    assert distance_to(0 * mask, reach).isinf().all()
