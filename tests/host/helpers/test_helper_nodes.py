"""The helper nodes in a real host: stock-equal conditions, odd sizes, untouched pixels, folders."""

import importlib
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(scope="module")
def parts(in_process_host, host_work):
    """(model, clip, vae) of a shallow inpainting checkpoint with random weights, from the stock loader."""
    import comfy.sd

    from inlay.lab.models.assemble import random_checkpoint, write_checkpoint

    checkpoint = write_checkpoint(host_work / "helpers" / "tiny.safetensors", random_checkpoint(1))
    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3]


@pytest.fixture
def inference(in_process_host):
    """The mode in which the host runs every node."""
    with torch.inference_mode():
        yield


def execute(name, *arguments, **inputs):
    """A node of this pack, run as the host runs it."""
    from inlay import nodes

    node = getattr(nodes, name)
    return node.PREPARE_CLASS_CLONE(None).execute(*arguments, **inputs).result


def conditioning(words=2):
    return [
        [torch.full((1, 77, 768), 0.1 * i), {"pooled_output": None, "strength": 1.0}] for i in range(words)
    ]


def picture(batch, height, width, seed=0):
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(seed))


def box(batch, height, width, step=1):
    """Masks with the hole in the bottom right corner, touching the border, one smaller than the next."""
    mask = torch.zeros(batch, height, width)
    for i in range(batch):
        mask[i, height // 2 + step * i :, width // 2 :] = 1
    return mask


@pytest.mark.parametrize(("images", "masks"), [(1, 1), (3, 3), (3, 1)])
@pytest.mark.parametrize("noise_mask", [True, False])
def test_on_the_grid_the_conditions_are_the_stock_nodes_bit_for_bit(
    parts, inference, images, masks, noise_mask
):
    host_nodes = importlib.import_module("nodes")

    vae, image, mask = parts[2], picture(images, 48, 64), box(masks, 48, 64, step=8)
    stock = host_nodes.InpaintModelConditioning().encode(
        conditioning(), conditioning(1), image, vae, mask, noise_mask
    )
    ours = execute("InlayInpaintConditioning", conditioning(), conditioning(1), vae, image, mask, noise_mask)
    for expected, got in zip(stock[:2], ours[:2], strict=True):
        assert len(expected) == len(got)
        for (text, values), (our_text, our_values) in zip(expected, got, strict=True):
            assert torch.equal(text, our_text)
            assert values.keys() == our_values.keys()
            assert torch.equal(values["concat_latent_image"], our_values["concat_latent_image"])
            whole_batch = values["concat_mask"].expand_as(
                our_values["concat_mask"]
            )  # stock leaves one mask one
            assert torch.equal(whole_batch, our_values["concat_mask"])
    assert stock[2].keys() == ours[2].keys()
    assert torch.equal(stock[2]["samples"], ours[2]["samples"])
    if noise_mask:
        assert torch.equal(stock[2]["noise_mask"].expand_as(ours[2]["noise_mask"]), ours[2]["noise_mask"])


@pytest.mark.parametrize("size", [(48, 64), (45, 61)])
def test_a_hole_off_the_grid_is_snapped_once(parts, inference, size):
    from inlay.imaging.latent_mask import snap_hole

    mask = torch.zeros(1, *size)
    mask[:, 11:30, 13:43] = 1
    positive, _, latent = execute(
        "InlayInpaintConditioning", conditioning(), conditioning(1), parts[2], picture(1, *size), mask
    )
    grid = tuple(latent["samples"].shape[-2:])
    snapped = snap_hole(mask, grid)[:, None]
    for hole in (positive[0][1]["concat_mask"], latent["noise_mask"]):
        read = torch.nn.functional.interpolate(hole, grid, mode="bilinear")  # as the host does
        assert torch.equal(read, snapped)


def test_conditioning_inputs_stay_as_they_were(parts, inference):
    positive, image, mask = conditioning(), picture(1, 40, 30), box(1, 40, 30)
    before = image.clone(), mask.clone()
    execute("InlayInpaintConditioning", positive, conditioning(), parts[2], image, mask)
    assert all(set(values) == {"pooled_output", "strength"} for _, values in positive)
    assert torch.equal(image, before[0])
    assert torch.equal(mask, before[1])


@pytest.mark.parametrize(
    ("height", "width", "images", "masks"), [(300, 451, 1, 1), (3, 5, 1, 1), (33, 64, 1, 3), (33, 47, 2, 1)]
)
def test_any_size_is_sampled_and_pasted_back_with_its_own_pixels_around(
    parts, inference, height, width, images, masks
):
    host_nodes = importlib.import_module("nodes")

    model, _, vae = parts
    image, mask = picture(images, height, width), box(masks, height, width)
    batch = max(images, masks)
    positive, negative, latent = execute(
        "InlayInpaintConditioning", conditioning(1), conditioning(1), vae, image, mask
    )
    assert latent["samples"].shape == (batch, 4, -(-height // 8), -(-width // 8))
    sampled = host_nodes.KSampler().sample(model, 3, 2, 4.0, "euler", "normal", positive, negative, latent)[0]
    generated = host_nodes.VAEDecode().decode(vae, sampled)[0]
    assert generated.shape[1] >= height
    result, *_ = execute("InlayPasteBack", image, generated, mask, feather=0)

    assert result.shape == (batch, height, width, 3)
    hole = mask.expand(batch, -1, -1) > 0.5
    image = image.expand(batch, -1, -1, -1)
    assert torch.equal(result[~hole], image[~hole])
    assert torch.equal(result[hole], generated[:, :height, :width][hole])
    as_bytes = (255 * image).to(torch.uint8)
    bytes_back, *_ = execute("InlayPasteBack", as_bytes / 255, generated, mask, feather=0)
    assert torch.equal((255 * bytes_back).round().to(torch.uint8)[~hole], as_bytes[~hole])


def test_a_picture_of_a_batch_without_anything_new_comes_back_as_it_is(inference):
    original, generated, mask = picture(2, 32, 40), picture(2, 32, 40) * 0.5, box(2, 32, 40)
    mask[1] = 0
    result, *_ = execute("InlayPasteBack", original, generated, mask, feather=4)
    assert torch.equal(result[1], original[1])
    assert torch.equal(result[0][mask[0] > 0.5], generated[0][mask[0] > 0.5])


def test_a_soft_mask_is_a_hole_or_none(parts, inference):
    image, mask = picture(1, 32, 32), box(1, 32, 32)
    soft = mask * 0.96 + 0.02
    hard = execute("InlayInpaintConditioning", conditioning(1), conditioning(1), parts[2], image, mask)
    same = execute("InlayInpaintConditioning", conditioning(1), conditioning(1), parts[2], image, soft)
    assert torch.equal(hard[2]["noise_mask"], same[2]["noise_mask"])
    assert torch.equal(hard[0][0][1]["concat_latent_image"], same[0][0][1]["concat_latent_image"])


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (torch.zeros(1, 32, 40), "it is empty"),
        (torch.ones(1, 32, 40), "covers the whole image"),
        (torch.zeros(1, 64, 64), "64x64 pixels but the image is 40x32"),
        (torch.full((1, 32, 40), float("nan")), "NaN"),
        (box(2, 32, 40), "mask: there are 2 in the batch but 3 in image"),
    ],
)
def test_a_mask_that_cannot_be_inpainted_is_named(parts, inference, mask, says):
    with pytest.raises(ValueError, match=says):
        execute(
            "InlayInpaintConditioning", conditioning(), conditioning(), parts[2], picture(3, 32, 40), mask
        )


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"generated": picture(1, 32, 32)}, "generated: it is 32x32 pixels but the original is 40x32"),
        ({"generated": picture(2, 32, 40), "original": picture(3, 32, 40)}, "generated: there are 2"),
        ({"mask": torch.zeros(1, 32, 40)}, "mask: it is empty"),
        ({"original": torch.rand(1, 32, 40, 4)}, "original: .* transparency"),
    ],
)
def test_what_cannot_be_pasted_back_is_named(inference, inputs, says):
    given = {"original": picture(1, 32, 40), "generated": picture(1, 32, 40), "mask": box(1, 32, 40)} | inputs
    with pytest.raises(ValueError, match=says):
        execute("InlayPasteBack", **given, feather=4)


@pytest.mark.parametrize(
    ("place", "covered"),
    [
        ((10, 5, 8, 6), (5, 11, 10, 18)),
        ((-4, -4, 10, 10), (0, 6, 0, 6)),
        ((30, 20, 999, 999), (20, 32, 30, 40)),
    ],
)
def test_a_box_becomes_a_mask(inference, place, covered):
    mask, around = execute("InlayBoxMask", picture(2, 32, 40), *place)
    top, bottom, left, right = covered
    expected = torch.zeros(1, 32, 40)
    expected[:, top:bottom, left:right] = 1
    assert torch.equal(mask, expected)
    assert around == {"x": left, "y": top, "width": right - left, "height": bottom - top}


def test_a_box_outside_the_image_is_named(inference):
    with pytest.raises(ValueError, match=r"box at \(40, 0\) is outside the 40x32 image"):
        execute("InlayBoxMask", picture(1, 32, 40), 40, 0, 10, 10)


def outputs_and_page(name, **inputs):
    """A node's outputs, and what it sends to the page."""
    from inlay import nodes

    made = getattr(nodes, name).PREPARE_CLASS_CLONE(None).execute(**inputs)
    return made.result, made.ui


def test_a_painted_mask_comes_before_the_box_and_an_empty_one_does_not(inference):
    place = {"image": picture(1, 32, 40), "x": 4, "y": 4, "width": 8, "height": 8}
    painted = box(1, 32, 40)
    for mask in (painted, painted[0], painted[None]):
        assert torch.equal(outputs_and_page("InlayBoxMask", **place, mask=mask)[0][0], painted)
    # the host's Load Image gives 64 x 64 zeros for a picture without transparency
    for empty in (None, torch.zeros(1, 64, 64)):
        assert outputs_and_page("InlayBoxMask", **place, mask=empty)[0][0].sum() == 64
    with pytest.raises(ValueError, match="mask: it is 48x32 pixels but the image is 40x32"):
        outputs_and_page("InlayBoxMask", **place, mask=box(1, 32, 48))


def test_a_detectors_boxes_come_before_the_drawn_one(inference, in_process_host):
    place = {"image": picture(1, 32, 40), "x": 4, "y": 4, "width": 8, "height": 8}
    one = {"x": 1.6, "y": 2.0, "width": 3.0, "height": 4.0, "label": "cat", "score": 0.9}
    two = {"x": 30, "y": 20, "width": 99, "height": 5}
    expected = torch.zeros(1, 32, 40)
    expected[:, 2:6, 2:5] = 1
    assert all(
        torch.equal(outputs_and_page("InlayBoxMask", **place, bboxes=given)[0][0], expected)
        for given in (one, [one], [[one], [two]])
    )
    expected[:, 20:25, 30:] = 1
    (mask, around), page = outputs_and_page("InlayBoxMask", **place, bboxes=[one, two])
    assert torch.equal(mask, expected)
    assert around == {"x": 2, "y": 2, "width": 38, "height": 23}
    assert page["inlay_box"] == [around]
    painted = box(1, 32, 40)
    (mask, around), _ = outputs_and_page("InlayBoxMask", **place, mask=painted, bboxes=[one])
    assert torch.equal(mask, painted)
    assert around == {"x": 20, "y": 16, "width": 20, "height": 16}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "bboxes: there is no box; lower the detector's threshold"),
        ([[]], "bboxes: there is no box"),
        ([[], [{"x": 0, "y": 0, "width": 5, "height": 5}]], "bboxes: there is no box"),
        ({"x": 90, "y": 0, "width": 5, "height": 5}, "bboxes: every box is outside the image"),
        ({"x": 0, "y": 0}, "bboxes: these are no boxes with x, y, width and height"),
        ([{"x": float("nan"), "y": 0, "width": 5, "height": 5}], "bboxes: these are no boxes"),
        (torch.zeros(4), "bboxes: these are no boxes"),
        ("text", "bboxes: these are no boxes"),
    ],
)
def test_boxes_that_are_none_are_named(inference, in_process_host, given, says):
    place = {"image": picture(1, 32, 40), "x": 4, "y": 4, "width": 8, "height": 8}
    with pytest.raises(ValueError, match=says):
        outputs_and_page("InlayBoxMask", **place, bboxes=given)


def test_the_page_gets_the_picture_for_the_box_with_its_true_size(inference, in_process_host):
    place = {"x": 0, "y": 0, "width": 1, "height": 1}
    _, page = outputs_and_page("InlayBoxMask", image=picture(1, 1030, 2050), **place)
    [file] = page["inlay_picture"]
    assert (file["width"], file["height"], str(file["type"])) == (2050, 1030, "temp")


class Middle:
    """A background-removal model with the host's interface: the middle third of a picture is the subject."""

    def encode_image(self, image):
        mask = torch.zeros(image.shape[:3])
        rows, columns = (side // 3 for side in image.shape[1:3])
        mask[:, rows : 2 * rows, columns : 2 * columns] = 1
        return mask


def test_a_background_removal_model_cuts_out_photos_without_a_mask_alone(cats, inference):
    clear = Image.new("RGBA", (9, 9))
    clear.putpixel((2, 1), (9, 9, 9, 255))
    clear.save(cats / "3.png")
    try:
        (images, masks, _), page = outputs_and_page(
            "InlayLoadReferences", folder=["cats"], background_removal=[Middle()]
        )
    finally:
        (cats / "3.png").unlink()
    assert [image.shape[1:3] for image in images] == [(5, 6), (9, 9), (4, 7)]
    assert masks[0].nonzero().tolist() == [[0, 1, 2], [0, 1, 3]]
    assert masks[1].nonzero().tolist() == [[0, 1, 2]]
    assert masks[2].nonzero().tolist() == [[0, 1, 2], [0, 1, 3]]  # its file is white all over
    assert [file["label"] for file in page["inlay_references"]] == ["2.png", "3.png", "10.png"]
    assert page["inlay_notes"] == []


def test_photos_without_a_mask_are_whole_frames_with_a_warning(cats, inference):
    (cats / "film.mp4").touch()
    try:
        (_, masks, _), page = outputs_and_page("InlayLoadReferences", folder=["cats"])
    finally:
        (cats / "film.mp4").unlink()
    assert all((mask == 1).all() for mask in masks)
    skipped, whole = page["inlay_notes"]
    assert skipped == "Skipped: film.mp4 (not a picture)."
    assert whole.startswith("There is no mask for 2.png, 10.png: the whole picture is learned")


def test_connected_photos_replace_the_folder(cats, inference):
    from inlay.nodes import InlayLoadReferences

    images = [picture(2, 8, 9), picture(1, 6, 5)]
    masks = [box(1, 8, 9), torch.zeros(1, 64, 64), box(1, 6, 5)]
    (given, made, captions), page = outputs_and_page(
        "InlayLoadReferences", folder=["no such"], images=images, masks=masks
    )
    assert [tuple(image.shape) for image in given] == [(1, 8, 9, 3), (1, 8, 9, 3), (1, 6, 5, 3)]
    assert torch.equal(made[0], masks[0])
    assert torch.equal(made[2], masks[2])
    assert (made[1] == 1).all()
    assert captions == ["", "", ""]
    assert "picture 2" in page["inlay_notes"][0]
    assert InlayLoadReferences.validate_inputs(["no such"], images=(None,)) is True
    with pytest.raises(ValueError, match="masks: there are 1 masks for 3 images"):
        outputs_and_page("InlayLoadReferences", folder=["cats"], images=images, masks=masks[:1])


def test_a_picture_that_is_too_large_for_one_piece_has_a_warning():
    from inlay.nodes.inpaint_conditioning import large_picture_note

    assert large_picture_note(torch.zeros(1, 1, 1, 3).expand(1, 1024, 1536, 3)) == []
    [warning] = large_picture_note(torch.zeros(1, 1, 1, 3).expand(2, 3000, 4000, 3))
    assert warning.startswith("image: 4000x3000 pixels are more than such a model paints well")


def test_a_folder_is_described_for_the_page(cats):
    from inlay.nodes.references import describe_folder

    found = describe_folder("cats")
    assert [(p["name"], p["mask"]) for p in found["pictures"]] == [("2.png", ""), ("10.png", "file")]
    assert all(p["thumbnail"].startswith("data:image/jpeg;base64,") for p in found["pictures"])
    assert found["notes"] == []
    [warning] = found["no_mask"]
    assert warning.startswith("There is no mask for 2.png: the whole picture is learned")
    assert "no folder '../cats'" in describe_folder("../cats")["error"]


@pytest.fixture
def cats(in_process_host):
    """A folder of two references, one with a mask file, in the host's input folder."""
    folder = in_process_host.input / "cats"
    folder.mkdir(exist_ok=True)
    for name, size, colour in (("2.png", (6, 5), 40), ("10.png", (7, 4), 80)):
        Image.new("RGB", size, (colour, colour, colour)).save(folder / name)
    Image.new("L", (7, 4), 255).save(folder / "10_mask.png")
    return folder


def test_references_are_lists_in_one_order(cats, inference):
    images, masks, captions = execute("InlayLoadReferences", ["cats"])
    assert captions == ["", ""]
    assert [tuple(image.shape) for image in images] == [(1, 5, 6, 3), (1, 4, 7, 3)]
    assert [tuple(mask.shape) for mask in masks] == [(1, 5, 6), (1, 4, 7)]
    assert [round(255 * image.mean().item()) for image in images] == [40, 80]


def test_references_are_fingerprinted_by_what_is_in_the_files(cats):
    from inlay.nodes import InlayLoadReferences

    first = InlayLoadReferences.fingerprint_inputs(["cats"])
    (cats / "2.png").touch()
    assert InlayLoadReferences.fingerprint_inputs(["cats"]) == first
    Image.new("L", (7, 4), 254).save(cats / "10_mask.png")
    assert InlayLoadReferences.fingerprint_inputs(["cats"]) != first


def test_the_captions_of_references_stand_beside_them(cats, inference):
    from inlay.nodes import InlayLoadReferences

    first = InlayLoadReferences.fingerprint_inputs(["cats"])
    (cats / "10.txt").write_text("on a red chair\n", encoding="utf-8")
    try:
        (_, _, captions), page = outputs_and_page("InlayLoadReferences", folder=["cats"])
        assert captions == ["", "on a red chair"]
        assert not any("10.txt" in note for note in page["inlay_notes"])
        assert InlayLoadReferences.fingerprint_inputs(["cats"]) != first
    finally:
        (cats / "10.txt").unlink()


@pytest.mark.parametrize("folder", ["../outside", "..", ".", "", "/", "cats/../..", "nowhere", "cats\0"])
def test_references_come_only_from_a_folder_inside_the_input_folder(cats, in_process_host, folder):
    from inlay.nodes import InlayLoadReferences

    outside = in_process_host.input.parent / "outside"
    outside.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(outside / "secret.png")
    assert isinstance(InlayLoadReferences.validate_inputs([folder]), str)
    with pytest.raises(ValueError, match=r"folder|null"):
        InlayLoadReferences.execute([folder])


def test_box_and_paste_back_in_a_graph_change_only_the_box(client, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "room.png")
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": client.upload(tmp_path / "room.png")}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {
            "class_type": "InlayBoxMask",
            "inputs": {"image": ["1", 0], "x": 20, "y": 10, "width": 9, "height": 7},
        },
        "4": {
            "class_type": "InlayPasteBack",
            "inputs": {"original": ["1", 0], "generated": ["2", 0], "mask": ["3", 0], "feather": 0},
        },
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
    }
    outputs = client.run(graph)
    result = np.array(Image.open(BytesIO(outputs["5"].images[0])))
    expected = pixels.copy()
    expected[10:17, 20:29] = 255 - expected[10:17, 20:29]
    assert (np.abs(result.astype(int) - expected)[10:17, 20:29] <= 1).all()  # the preview truncates to bytes
    outside = np.ones(pixels.shape[:2], bool)
    outside[10:17, 20:29] = False
    assert (result[outside] == pixels[outside]).all()


def test_references_arrive_in_a_graph_and_a_bad_folder_is_refused(client, tmp_path):
    from inlay.headless.client import PromptRefused

    for name, side in (("1.png", 8), ("2.png", 12)):
        Image.new("RGB", (side, side), (200, 10, 10)).save(tmp_path / name)
        client.upload(tmp_path / name, subfolder="red")
    graph = {
        "1": {"class_type": "InlayLoadReferences", "inputs": {"folder": "red"}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        "3": {"class_type": "MaskPreview", "inputs": {"mask": ["1", 1]}},
    }
    outputs = client.run(graph)
    assert [Image.open(BytesIO(data)).size for data in outputs["2"].images] == [(8, 8), (12, 12)]
    assert len(outputs["3"].images) == 2
    graph["1"]["inputs"]["folder"] = "../red"
    with pytest.raises(PromptRefused, match=r"no folder .\.\./red"):
        client.run(graph)
