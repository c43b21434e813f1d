"""How a step's pictures are shared among processes."""

from dataclasses import replace

import pytest

from inlay.training.finetune.recipes import DREAMMIX
from inlay.training.finetune.trainer import SINGLE_PROCESS, open_group, split_batch


def test_without_a_launcher_a_process_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert open_group() is SINGLE_PROCESS


def test_a_steps_pictures_are_laid_out_so_that_every_process_has_its_share():
    assert split_batch(DREAMMIX, 1) is DREAMMIX
    assert split_batch(DREAMMIX, 2) == replace(DREAMMIX, batch_size=2, accumulation=2)
    assert split_batch(DREAMMIX, 4) == replace(DREAMMIX, batch_size=4, accumulation=1)
    wide = replace(DREAMMIX, batch_size=6)
    assert split_batch(wide, 3) is wide
    with pytest.raises(ValueError, match="the 4 pictures of a step cannot be shared by 3 processes"):
        split_batch(DREAMMIX, 3)
