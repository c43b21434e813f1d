"""Reference folders: which files count, whose mask is whose, and what is said when something is wrong."""

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image, features

from inlay.imaging.references import is_whole_frame, list_references, read_reference, skipped_files


def save(path, mode="RGB", size=(5, 4), colour=None, **options):
    Image.new(mode, size, colour if colour is not None else 200).save(path, **options)
    return path


def names(pairs):
    return [(picture.name, mask and mask.name) for picture, mask in pairs]


def test_pictures_come_in_natural_order_each_with_its_mask(tmp_path):
    for name in ("10.png", "2.png", "1.jpg", "Cat.png", "2_mask.png", "Cat-Mask.PNG"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture", encoding="utf-8")
    (tmp_path / "._2.png").write_bytes(b"what a Mac leaves on a stick")
    (tmp_path / "more.png").mkdir()
    assert names(list_references(tmp_path)) == [
        ("1.jpg", None),
        ("2.png", "2_mask.png"),
        ("10.png", None),
        ("Cat.png", "Cat-Mask.PNG"),
    ]


def test_a_folder_without_pictures_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"'{tmp_path.name}' holds no picture"):
        list_references(tmp_path)


def test_a_mask_without_its_picture_is_named(tmp_path):
    save(tmp_path / "dog.png")
    save(tmp_path / "cat_mask.png")
    with pytest.raises(ValueError, match=r"'cat_mask.png' is a mask without a picture"):
        list_references(tmp_path)


def test_transparency_is_the_mask_and_comes_before_the_file(tmp_path):
    pixels = np.full((4, 5, 4), 90, np.uint8)
    pixels[..., 3] = 0
    pixels[1:3, 2:4, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    image, mask = read_reference(tmp_path / "cat.png", save(tmp_path / "cat_mask.png", "L"))
    assert image.shape == (1, 4, 5, 3)
    assert torch.equal(image, torch.full((1, 4, 5, 3), 90 / 255))
    assert torch.equal(mask[0], torch.from_numpy(pixels[..., 3] / 255).float())


def test_an_opaque_picture_takes_the_mask_file_else_the_whole_frame(tmp_path):
    picture = save(tmp_path / "cat.png", "RGBA", colour=(10, 20, 30, 255))
    _, from_file = read_reference(picture, save(tmp_path / "cat_mask.png", "L", colour=51))
    _, whole = read_reference(picture, None)
    assert torch.equal(from_file, torch.full((1, 4, 5), 0.2))
    assert torch.equal(whole, torch.ones(1, 4, 5))


def test_a_palette_with_a_transparent_colour_is_a_mask_too(tmp_path):
    picture = Image.new("P", (5, 4), 1)
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.putpixel((2, 1), 0)
    picture.save(tmp_path / "cat.png", transparency=1)
    _, mask = read_reference(tmp_path / "cat.png", None)
    assert mask.nonzero().tolist() == [[0, 1, 2]]


def test_the_cameras_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    picture = save(tmp_path / "cat.jpg", size=(16, 8), exif=exif)
    image, mask = read_reference(picture, save(tmp_path / "cat_mask.png", "L", size=(8, 16)))
    assert image.shape == (1, 16, 8, 3)
    assert mask.shape == (1, 16, 8)


def test_a_mask_of_another_size_is_named(tmp_path):
    mask = save(tmp_path / "cat_mask.png", "L", size=(4, 4))
    with pytest.raises(ValueError, match=r"mask of 'cat.png' is 4x4 pixels but the picture is 5x4"):
        read_reference(save(tmp_path / "cat.png"), mask)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_a_broken_picture_is_named(tmp_path, content):
    (tmp_path / "cat.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"'cat.png' is no readable picture"):
        read_reference(tmp_path / "cat.png", None)


def test_a_truncated_picture_is_named(tmp_path):
    whole = save(tmp_path / "cat.png", size=(64, 64)).read_bytes()
    (tmp_path / "cat.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"'cat.png' is no readable picture"):
        read_reference(tmp_path / "cat.png", None)


GREYS = [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_picture_of_16_bits_keeps_its_greys(tmp_path, suffix):
    """Pillow's own conversion to 8 bits turns everything above 255 of 65535 into white."""
    file = tmp_path / f"mask.{suffix}"
    Image.fromarray((np.array([GREYS]) * 65535).astype(np.uint16)).save(file)
    image, _ = read_reference(file, None)
    _, mask = read_reference(save(tmp_path / "cat.png", size=(5, 1)), file)
    expected = torch.tensor((np.array(GREYS) * 65535).astype(np.uint16) / 65535).float()
    assert torch.equal(mask[0, 0], expected)
    assert torch.equal(image[0, 0], expected[:, None].expand(5, 3))


def test_a_float_picture_is_read_in_its_own_range(tmp_path):
    Image.fromarray(np.array([GREYS], np.float32)).save(tmp_path / "cat.tif")
    Image.fromarray(np.array([GREYS], np.float32) * 255).save(tmp_path / "dog.tif")
    for name in ("cat", "dog"):
        assert read_reference(tmp_path / f"{name}.tif", None)[0][0, 0, :, 1].tolist() == pytest.approx(GREYS)


def test_a_mask_file_of_transparency_is_where_it_is_opaque(tmp_path):
    white, black = (np.zeros((96, 96, 4), np.uint8) for _ in range(2))
    white[..., :3] = 255
    for pixels in (white, black):
        pixels[20:70, 20:70, 3] = 255
    picture = save(tmp_path / "cat.png", size=(96, 96))
    for name, pixels in (("white", white), ("black", black)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        _, mask = read_reference(picture, tmp_path / f"{name}.png")
        assert mask.mean().item() == pytest.approx(50 * 50 / 96**2)


@pytest.mark.parametrize("suffix", ["jfif", "gif", "avif"])
def test_what_browsers_and_phones_save_is_read(tmp_path, suffix):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("Pillow was built without AVIF")
    frames = [Image.new("RGB", (16, 12), colour) for colour in ((200, 40, 40), (0, 0, 255))]
    kind = {"jfif": "JPEG"}.get(suffix, suffix.upper())
    more = {"save_all": True, "append_images": frames[1:]} if suffix == "gif" else {}
    frames[0].save(tmp_path / f"cat.{suffix}", kind, **more)
    [(picture, mask)] = list_references(tmp_path)
    image, subject = read_reference(picture, mask)
    assert image.shape == (1, 12, 16, 3)
    assert torch.allclose(image.mean((0, 1, 2)) * 255, torch.tensor([200.0, 40.0, 40.0]), atol=6)
    assert is_whole_frame(subject)


def test_heic_is_read_where_its_package_is_installed_and_else_named(tmp_path):
    save(tmp_path / "1.png")
    if importlib.util.find_spec("pillow_heif"):
        from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]  (optional)

        register_heif_opener()
        save(tmp_path / "2.heic", size=(64, 48))
        assert read_reference(tmp_path / "2.heic", None)[0].shape == (1, 48, 64, 3)
        assert [picture.name for picture, _ in list_references(tmp_path)] == ["1.png", "2.heic"]
    else:
        (tmp_path / "2.heic").write_bytes(b"anything")
        assert skipped_files(tmp_path) == [
            ("2.heic", "HEIC needs the Python package pillow-heif; or save it as JPEG")
        ]


def test_files_that_are_no_pictures_are_named_and_captions_are_not(tmp_path):
    save(tmp_path / "1.png")
    for name in ("1.txt", "film.mp4", "raw.cr2"):
        (tmp_path / name).write_bytes(b"")
    assert skipped_files(tmp_path) == [("film.mp4", "not a picture"), ("raw.cr2", "not a picture")]
    (tmp_path / "1.png").unlink()
    with pytest.raises(ValueError, match=r"holds no picture.*Skipped: film.mp4 \(not a picture\), raw.cr2"):
        list_references(tmp_path)


def test_an_empty_mask_and_a_full_one_tell_nothing():
    assert is_whole_frame(torch.ones(1, 4, 4))
    assert is_whole_frame(torch.zeros(1, 4, 4))
    assert not is_whole_frame(torch.tensor([[[0.0, 1.0]]]))


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "iterdir", refuse)
    with pytest.raises(ValueError, match=r"^references: the folder .* cannot be read \(Permission denied\)"):
        list_references(tmp_path)
