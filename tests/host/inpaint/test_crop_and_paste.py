"""Crop for Painting and Paste Back through the host: sizes, several masks, alignment, old workflows."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage


@pytest.fixture
def inference(in_process_host):
    """The mode in which the host runs every node."""
    with torch.inference_mode():
        yield


def execute(name, *arguments, **inputs):
    """A node of this pack, run as the host runs it."""
    from inlay import nodes

    return getattr(nodes, name).PREPARE_CLASS_CLONE(None).execute(*arguments, **inputs).result


def scene(height=160, width=200, seed=0):
    """A textured picture (1, H, W, 3) whose values are bytes, and a mask (1, H, W)."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    image = ndimage.gaussian_filter(noise, (2, 2, 0))
    image = (255 * (image - image.min()) / np.ptp(image)).round() / 255
    mask = torch.zeros(1, height, width)
    mask[:, 60:100, 80:130] = 1
    return torch.from_numpy(image).float()[None], mask


def test_what_a_model_moved_and_tinted_is_undone(inference):
    image, mask = scene()
    picture, crop_mask, crop = execute("InlayCropForPainting", image, mask, size="original size", context=2.5)
    assert picture.shape == (1, 128, 128, 3)
    assert crop_mask.shape == (1, 128, 128)
    content = torch.where(crop_mask[..., None] > 0.5, torch.tensor([0.9, 0.2, 0.1]), picture)
    moved = ndimage.shift(content.numpy(), (0, 2.5, -3.25, 0), order=3, mode="mirror")
    painted = torch.from_numpy(0.85 * moved.clip(0, 1) + 0.05)
    result, report, check = execute("InlayPasteBack", generated=painted, crop=crop, feather=2)
    assert result.shape == image.shape
    assert "3.2" in report
    assert "2.5" in report
    assert check.ndim == 4
    assert (result[0, 65:95, 85:125] - torch.tensor([0.9, 0.2, 0.1])).abs().mean() < 0.05
    far = torch.from_numpy(np.asarray(ndimage.distance_transform_edt(mask[0].numpy() < 0.5)) > 2)
    assert torch.equal(result[0][far], image[0][far])
    plain, plain_report, _ = execute(
        "InlayPasteBack", generated=painted, crop=crop, feather=2, align="none", colour="none"
    )
    assert "aligned" not in plain_report
    assert not torch.equal(plain, result)


def test_a_crop_of_another_size_goes_through_the_hosts_scaling_and_back(inference):
    import comfy.utils

    image, mask = scene()
    picture, _, crop = execute("InlayCropForPainting", image, mask, megapixels=0.25, outpaint_right=24)
    assert picture.shape == (1, 512, 512, 3)
    painted = comfy.utils.common_upscale(picture.movedim(-1, 1), 768, 640, "bicubic", "disabled").movedim(
        1, -1
    )
    result, report, _ = execute("InlayPasteBack", generated=painted, crop=crop)
    assert result.shape == (1, 160, 224, 3)
    assert "left in place" in report
    assert torch.equal(result[:, :50, :190], image[:, :50, :190])


def test_one_picture_takes_several_crops_one_after_another(inference):
    image, mask = scene()
    other = torch.zeros_like(mask)
    other[:, 5:20, 10:40] = 1
    for number, own in enumerate((mask, other)):
        picture, _, crop = execute("InlayCropForPainting", image, own, size="original size")
        painted = torch.full_like(picture, float(number))
        start = image if number == 0 else result  # noqa: F821
        result, *_ = execute(
            "InlayPasteBack", start, painted, crop=crop, feather=0, align="none", colour="none"
        )
    assert not result[:, 60:100, 80:130].any()
    assert (result[:, 5:20, 10:40] == 1).all()
    rest = (mask + other)[0] < 0.5
    assert torch.equal(result[0][rest], image[0][rest])


@pytest.mark.parametrize(
    ("node", "inputs", "says"),
    [
        ("InlayCropForPainting", {"mask": None}, "mask: none is connected"),
        ("InlayCropForPainting", {"mask": torch.zeros(1, 160, 200)}, "mask: nothing is left to paint"),
        ("InlayCropForPainting", {"mask": torch.zeros(1, 16, 20)}, "mask: it is 20x16 pixels"),
        (
            "InlayCropForPainting",
            {"smallest_scale": 2.0, "largest_scale": 1.0},
            "smallest_scale: it is above",
        ),
        ("InlayPasteBack", {"generated": torch.rand(1, 160, 200, 3)}, "original: nothing is connected"),
        (
            "InlayPasteBack",
            {"original": torch.rand(1, 8, 8, 3), "generated": torch.rand(1, 8, 8, 3)},
            "mask: none",
        ),
    ],
)
def test_what_is_missing_or_wrong_is_named(inference, node, inputs, says):
    image, mask = scene()
    given = {"image": image, "mask": mask} | inputs if node == "InlayCropForPainting" else inputs
    with pytest.raises(ValueError, match=says):
        execute(node, **given)


def test_an_original_that_is_not_the_crops_is_named(inference):
    image, mask = scene()
    picture, _, crop = execute("InlayCropForPainting", image, mask)
    with pytest.raises(ValueError, match="original: it is 8x8 pixels but the crop was cut from 200x160"):
        execute("InlayPasteBack", torch.rand(1, 8, 8, 3), picture, crop=crop)


def test_around_a_host_node_in_a_graph_only_the_box_changes(client, tmp_path):
    pixels = (255 * scene()[0][0].numpy()).round().astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "textured.png")
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": client.upload(tmp_path / "textured.png")}},
        "2": {
            "class_type": "InlayBoxMask",
            "inputs": {"image": ["1", 0], "x": 80, "y": 60, "width": 50, "height": 40},
        },
        "3": {
            "class_type": "InlayCropForPainting",
            "inputs": {"image": ["1", 0], "mask": ["2", 0], "context": 2.0, "size": "megapixels",
                       "megapixels": 0.05, "width": 512, "height": 512, "shape": "square", "grow": 0,
                       "fill_holes": True, "multiple": 32, "context_pixels": 0, "smallest_scale": 0.0,
                       "largest_scale": 8.0, "blur": 0, "threshold": 0.5, "invert": False, "specks": 0,
                       "outpaint_left": 0, "outpaint_top": 0, "outpaint_right": 0, "outpaint_bottom": 0,
                       "outpaint_fill": "edge", "crops": "one for all"},
        },
        "4": {"class_type": "ImageInvert", "inputs": {"image": ["3", 0]}},
        "5": {
            "class_type": "InlayPasteBack",
            "inputs": {"generated": ["4", 0], "crop": ["3", 2], "feather": 0, "align": "none",
                       "colour": "none"},
        },
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
    }  # fmt: skip
    outputs = client.run(graph)
    result = np.array(Image.open(BytesIO(outputs["6"].images[0])))
    outside = np.ones(pixels.shape[:2], bool)
    outside[60:100, 80:130] = False
    assert (result[outside] == pixels[outside]).all()
    assert np.abs(result[~outside].astype(int) - (255 - pixels[~outside])).mean() < 4
    assert outputs["5"].images  # the check picture
