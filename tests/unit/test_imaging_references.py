"""Reference folders: which files count, whose mask is whose, and what is said when something is wrong."""

import numpy as np
import pytest
import torch
from PIL import Image

from inlay.imaging.references import list_references, read_reference


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
