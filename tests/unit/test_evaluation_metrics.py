"""Measures against known values, plain references, and what they must not see."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.evaluation import metrics
from inlay.imaging.boxes import Box
from inlay.imaging.masks import fill_box
from inlay.imaging.object_picture import square_crop, subject_crops

examples = settings(max_examples=30)
side = st.integers(8, 40)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@st.composite
def boxes(draw):
    """A picture's (height, width) and a box inside it."""
    height, width = draw(side), draw(side)
    top, left = draw(st.integers(0, height - 2)), draw(st.integers(0, width - 2))
    box = Box(top, left, draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width)))
    return height, width, box


class MeanColour:
    """The simplest encoder: a picture's mean colour as a unit vector."""

    name, size = "mean colour", 16

    def __call__(self, images):
        return torch.nn.functional.normalize(images.mean((2, 3)), dim=-1)


@examples
@given(boxes(), st.floats(0, 0.3))
def test_a_crop_of_the_boxs_own_size_is_the_box_centred_on_the_fill(shape, margin):
    height, width, box = shape
    image = torch.rand(3, height, width, generator=seeded(0))
    size = max(1, round(max(box.height, box.width) * (1 + 2 * margin)))
    crop = square_crop(image, box, size, margin, fill=2.0)
    assert crop.shape == (3, size, size)
    top, left = (box.top + box.bottom - size) // 2, (box.left + box.right - size) // 2
    rows, columns = box.shift(-top, -left).slices
    assert torch.allclose(crop[:, rows, columns], image[:, box.slices[0], box.slices[1]], atol=1e-5)
    y, x = torch.meshgrid(torch.arange(size) + top, torch.arange(size) + left, indexing="ij")
    over = (y < 0) | (y >= height) | (x < 0) | (x >= width)
    assert torch.allclose(crop[:, over], torch.tensor(2.0), atol=1e-5)


@examples
@given(boxes(), st.integers(0, 999))
def test_the_subjects_crop_never_depends_on_its_background(shape, seed):
    height, width, box = shape
    mask = fill_box(box, height, width)
    image = torch.rand(1, 3, height, width, generator=seeded(seed))
    other = torch.where(mask[:, None] > 0.5, image, torch.rand(image.shape, generator=seeded(seed + 1)))
    assert torch.equal(subject_crops(image, mask, 16), subject_crops(other, mask, 16))


def test_similarity_is_the_mean_cosine_over_the_references_computed_plainly():
    generator = seeded(1)
    images, references = (
        torch.rand(3, 3, 20, 20, generator=generator),
        torch.rand(4, 3, 30, 24, generator=generator),
    )
    masks, reference_masks = (
        fill_box(Box(2, 3, 15, 16), 20, 20).expand(3, -1, -1),
        fill_box(Box(5, 5, 20, 20), 30, 24),
    )
    reference_masks = reference_masks.expand(4, -1, -1)
    found = metrics.subject_similarity(MeanColour(), images, masks, references, reference_masks)
    a = subject_crops(images, masks, 16).mean((2, 3)).double().numpy()
    b = subject_crops(references, reference_masks, 16).mean((2, 3)).double().numpy()
    plain = [np.mean([x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b]) for x in a]
    assert np.allclose(found.numpy(), plain, atol=1e-5)


def test_a_subject_is_entirely_similar_to_itself():
    image, mask = torch.rand(1, 3, 24, 24, generator=seeded(2)), fill_box(Box(4, 4, 20, 18), 24, 24)
    assert metrics.subject_similarity(MeanColour(), image, mask, image, mask).item() == pytest.approx(
        1, abs=1e-6
    )


class Words(MeanColour):
    def text(self, prompts):
        colours = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0)}
        return torch.tensor([colours[prompt] for prompt in prompts])


def test_clip_t_compares_every_picture_with_its_own_prompt():
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    scores = metrics.text_similarity(Words(), red, ["red", "green"])
    assert torch.allclose(scores, torch.tensor([1.0, 0.0]))


def test_background_ssim_sees_nothing_inside_the_hole():
    original = torch.rand(2, 3, 40, 48, generator=seeded(3))
    mask = fill_box(Box(5, 6, 25, 30), 40, 48).expand(2, -1, -1)
    changed = torch.where(mask[:, None] > 0.5, torch.rand(original.shape, generator=seeded(4)), original)
    assert torch.allclose(metrics.background_ssim(changed, original, mask), torch.ones(2), atol=1e-6)


def test_background_ssim_agrees_with_scikit_image():
    from skimage.metrics import structural_similarity

    original = torch.rand(1, 3, 40, 48, generator=seeded(5)).double()
    changed = (original + 0.1 * torch.rand(original.shape, generator=seeded(6)).double()).clamp(0, 1)
    mask = torch.zeros(1, 40, 48)
    mask[:, 30:, 35:] = 1
    filled = torch.where(mask[:, None] > 0.5, original, changed)
    arrays = [x[0].movedim(0, -1).numpy() for x in (filled, original)]
    local = structural_similarity(
        *arrays,
        channel_axis=-1,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )[1]
    # the two libraries mirror the border differently: compare where no window reaches it
    inner = np.zeros((40, 48), bool)
    inner[5:-5, 5:-5] = True
    outside = (mask[0] < 0.5).numpy() & inner
    border = mask.clone()
    border[:, ~torch.from_numpy(inner)] = 1
    assert math.isclose(local[outside].mean(), _ssim_where(changed, original, mask, border), rel_tol=1e-3)
    assert metrics.background_ssim(changed, original, mask).item() == pytest.approx(
        local[(mask[0] < 0.5).numpy()].mean(), abs=5e-3
    )


def _ssim_where(images, originals, masks, left_out):
    """The measure again with the picture's border left out: its hole's content never mattered."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    filled = torch.where(masks[:, None] > 0.5, originals, images)
    _, local = structural_similarity_index_measure(filled, originals, data_range=1.0, return_full_image=True)
    return local[(left_out[:, None] < 0.5).expand_as(local)].mean().item()


def test_lpips_without_weights_says_where_to_put_them(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    picture, mask = torch.rand(1, 3, 64, 64), torch.zeros(1, 64, 64)
    with pytest.raises(ValueError, match=r"LPIPS: .* put alexnet-.*\.pth into .*checkpoints"):
        metrics.background_lpips(picture, picture, mask)


def test_lpips_sees_the_background_and_nothing_inside_the_hole(tmp_path, monkeypatch):
    import torchvision

    with torch.device("meta"):
        shapes = {name: w.shape for name, w in torchvision.models.alexnet(weights=None).state_dict().items()}
    # Random: what is tested is ours. The classifier, 58 of the 61 million numbers, takes no part.
    weights = {
        name: 0.1 * torch.randn(shape, generator=seeded(8))
        if name.startswith("features")
        else torch.zeros(1).expand(shape)
        for name, shape in shapes.items()
    }
    (tmp_path / "checkpoints").mkdir()
    torch.save(weights, tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    original, noise = torch.rand(2, 2, 3, 64, 64, generator=seeded(7))
    mask = fill_box(Box(10, 10, 50, 50), 64, 64).expand(2, -1, -1)
    inside = torch.where(mask[:, None] > 0.5, noise, original)
    assert torch.equal(metrics.background_lpips(inside, original, mask), torch.zeros(2))
    assert (metrics.background_lpips(noise, original, mask) > 0).all()


@pytest.mark.parametrize(
    ("colour", "lab"),
    [
        ((1.0, 1.0, 1.0), (100, 0, 0)),
        ((1.0, 0.0, 0.0), (53.24, 80.09, 67.20)),
        ((0.0, 0.0, 1.0), (32.30, 79.19, -107.86)),
    ],
)
def test_colours_in_lab_have_their_published_values(colour, lab):
    image = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert torch.allclose(
        metrics.lab_colour(image, torch.ones(1, 4, 4))[0], torch.tensor(lab).double(), atol=0.03
    )


def test_colour_error_looks_under_the_masks_alone():
    truth = torch.tensor([0.8, 0.2, 0.2]).view(1, 3, 1, 1).expand(1, 3, 12, 12).clone()
    mask = fill_box(Box(3, 3, 9, 9), 12, 12)
    other = torch.where(mask[:, None] > 0.5, truth, 0.0)
    assert metrics.colour_error(other, mask, truth, mask).item() == pytest.approx(0, abs=1e-9)
    darker = truth * 0.5
    assert metrics.colour_error(darker, mask, truth, mask).item() > 10


def test_colour_error_of_white_and_black():
    """CIEDE2000 is 100: both lack a hue, and the lightness is weighted by 1 in the middle of its range."""
    white, black, mask = torch.ones(1, 3, 6, 6), torch.zeros(1, 3, 6, 6), torch.ones(1, 6, 6)
    assert metrics.colour_error(white, mask, black, mask).item() == pytest.approx(100, abs=1e-3)


def test_an_empty_mask_is_named():
    picture, empty = torch.rand(1, 3, 8, 8), torch.zeros(1, 8, 8)
    with pytest.raises(ValueError, match="mask: it is empty"):
        metrics.lab_colour(picture, empty)
    with pytest.raises(ValueError, match="mask: it is empty"):
        subject_crops(picture, empty, 16)
