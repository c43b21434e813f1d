"""Picture files of every mode, wherever the pack reads pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from inlay.evaluation.benchmark_datasets import Case
from inlay.evaluation.score import hole_of, load_picture
from inlay.headless.benchmark import box_of_mask
from inlay.imaging.boxes import Box
from inlay.imaging.picture_files import read_mask, read_picture
from inlay.imaging.references import list_references, read_reference
from inlay.tests.picture_modes import OPAQUE, RAMP, write_modes
from inlay.tools.demo_options import open_picture
from inlay.training.adapters.samples import frame_names, read_frame
from inlay.training.adapters.shards import open_source, pack_pictures


@pytest.fixture(scope="module")
def modes(tmp_path_factory):
    return write_modes(tmp_path_factory.mktemp("modes"))


def read_shard(file):
    """The picture as a shard's record gives it, with its own transparency or a white mask."""
    folder = file.parent / f"shard of {file.name}"
    folder.mkdir()
    (folder / file.name).write_bytes(file.read_bytes())
    Image.new("L", (RAMP.shape[1], RAMP.shape[0]), 255).save(folder / f"{file.stem}_mask.png")
    shards = folder.with_name(f"{folder.name} packed")
    pack_pictures(folder, shards)
    record = open_source(shards).read(0, 0)
    return read_frame(record, frame_names(record)[0])[0]


PLACES = {
    "picture": lambda file: read_picture(file)[..., :3],
    "bytes": lambda file: read_picture(file.read_bytes())[..., :3],
    "reference": lambda file: read_reference(file, None)[0],
    "evaluation": lambda file: load_picture(file).movedim(1, -1),
    "demo": lambda file: torch.from_numpy(np.array(open_picture(file)))[None] / 255,
    "shards": read_shard,
}


@pytest.mark.parametrize("place", PLACES)
def test_every_mode_is_read_with_its_whole_range(modes, place):
    for name, made in modes.items():
        seen = PLACES[place](made.file)
        assert seen.shape == (1, *RAMP.shape, 3), name
        shown = OPAQUE[..., None] > 0.5 if made.alpha else np.ones_like(RAMP[..., None], bool)
        error = (np.abs(seen[0].numpy() - RAMP[..., None]) * shown).max()
        assert error <= made.tolerance + 0.5 / 255, name


def test_every_byte_survives_reading_and_saving(tmp_path):
    """What the host's Save Image writes of a picture that was read: the bytes of the file."""
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "ramp.png")
    read = read_picture(tmp_path / "ramp.png")[0]
    saved = np.clip(255.0 * read.numpy(), 0, 255).astype(np.uint8)
    assert (saved == values[..., None]).all()


def test_as_a_mask_every_mode_is_its_brightness_times_its_alpha(modes):
    for name, made in modes.items():
        expected = RAMP * OPAQUE if made.alpha else RAMP
        for seen in (read_mask(made.file), read_reference(modes["rgb.png"].file, made.file)[1]):
            assert np.abs(seen[0].numpy() - expected).max() <= made.tolerance + 0.5 / 255, name
        hole = hole_of(Case("a", (), "cup", hole=made.file), RAMP.shape)
        assert hole is not None
        wrong = (hole[0].numpy() != (expected > 0.5)) & (np.abs(RAMP - 0.5) > 2 * made.tolerance)
        assert not wrong.any(), name


def test_a_16_bit_mask_is_no_white_picture(tmp_path):
    grey = np.array([[0, 0.25, 0.5, 0.75, 1]])
    Image.fromarray((grey * 65535).astype(np.uint16)).save(tmp_path / "deep.png")
    assert (255 * read_mask(tmp_path / "deep.png")).round().tolist() == [[[0, 64, 127, 191, 255]]]
    assert box_of_mask(tmp_path / "deep.png") == Box(0, 3, 1, 5)


def test_a_white_mask_file_counts_where_it_is_opaque(tmp_path):
    white = np.full((96, 96, 4), 255, np.uint8)
    white[..., 3] = 0
    white[20:70, 20:70, 3] = 255
    Image.fromarray(white).save(tmp_path / "cup_mask.png")
    Image.new("RGB", (96, 96)).save(tmp_path / "cup.png")
    ((picture, mask),) = list_references(tmp_path)
    assert round(float(read_reference(picture, mask)[1].mean()), 3) == 0.271


def test_a_black_shape_on_nothing_is_the_shape(tmp_path):
    shape = np.zeros((8, 8, 4), np.uint8)
    shape[2:5, 2:5, 3] = 255
    Image.fromarray(shape).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").sum() == 9


@pytest.mark.parametrize("mode", ["CMYK", "F", "I;16", "LA", "P", "1", "YCbCr"])
def test_shards_are_made_of_every_mode(tmp_path, mode):
    values = RAMP if mode == "F" else (RAMP * 65535).astype(np.uint16)
    deep = mode in ("F", "I;16")
    picture = Image.fromarray(values.astype(np.float32) if mode == "F" else values) if deep else None
    picture = picture or Image.fromarray((RAMP * 255).astype(np.uint8)).convert("RGB").convert(mode)
    (tmp_path / "cups").mkdir()
    picture.save(tmp_path / "cups" / "cup.tif")
    assert pack_pictures(tmp_path / "cups", tmp_path / "shards") == 1
    (data,) = open_source(tmp_path / "shards").read(0, 0).values()
    expected = RAMP if deep else np.array(picture.convert("RGB"))[..., 0] / 255
    assert np.abs(read_picture(data)[0, ..., 0].numpy() - expected).max() <= 0.5 / 255


def test_a_picture_beyond_pillows_limit_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.new("RGB", (8, 8)).save(tmp_path / "huge.png")
    with pytest.raises(ValueError, match=r"references: 'huge.png' has too many pixels"):
        read_picture(tmp_path / "huge.png")


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_picture_is_named(tmp_path, content):
    (tmp_path / "cup.png").write_bytes(content)
    for read in (read_picture, read_mask):
        with pytest.raises(ValueError, match=r"--data: 'cup.png' is no readable picture"):
            read(tmp_path / "cup.png", "--data")
        with pytest.raises(ValueError, match="--data: a record's picture is no readable picture"):
            read(content, "--data")
