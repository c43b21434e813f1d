"""Pictures are read as the host's Load Image reads them, bit depth for bit depth."""

import importlib

import torch

from inlay.imaging.picture_files import read_picture
from inlay.imaging.references import read_reference
from inlay.tests.picture_modes import write_modes


def test_every_mode_is_read_as_load_image_reads_it(in_process_host):
    folder = in_process_host.input / "modes"
    folder.mkdir()
    load = importlib.import_module("nodes").LoadImage()
    compared = 0
    for name, made in write_modes(folder).items():
        ours = read_picture(made.file)
        if not made.like_host:
            continue
        image, mask = load.load_image(f"modes/{name}")
        opaque = (1 - mask)[..., None] if made.alpha else torch.ones(1)
        assert ((image - ours[..., :3]) * (opaque > 0.5)).abs().max() <= 2.1 / 255, name
        if made.alpha:
            assert (read_reference(made.file, None)[1] - opaque[..., 0]).abs().max() <= 1 / 255, name
        compared += 1
    assert compared >= 18
