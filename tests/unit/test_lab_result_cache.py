"""What a table's run has finished is read back until something that decided it changes."""

import json
from dataclasses import dataclass

import pytest
import torch

from inlay.lab.studies import result_cache as cells


@dataclass(frozen=True)
class Choices:
    steps: int
    sampler: str = "euler"


@pytest.fixture
def made(tmp_path):
    """Runs a cell at a path of its own; `count` is how often it was made."""

    class Made:
        path, count = tmp_path / "cell.json", 0

        def run(self, choices):
            return cells.cell(self.path, choices, self.make)

        def make(self):
            self.count += 1
            return {"left": torch.full((2, 4, 4, 3), 0.5)}, [{"there": float(self.count)}]

    return Made()


def test_a_cell_is_made_once_and_anew_for_other_choices(made):
    assert made.run(Choices(1)) == made.run(Choices(1)) == [{"there": 1.0}]
    assert made.run(Choices(2)) == [{"there": 2.0}]
    assert made.run(Choices(2, "heun")) == [{"there": 3.0}]
    assert json.loads(made.path.read_text(encoding="utf-8"))["choices"] == {"steps": 2, "sampler": "heun"}


def test_its_pictures_come_back_as_bytes_keep_them(made):
    made.run(Choices(1))
    [(name, pictures)] = cells.pictures_of(made.path).items()
    assert (name, pictures.shape) == ("left", (2, 4, 4, 3))
    assert torch.allclose(pictures, torch.tensor(0.5), atol=1 / 255)
    assert not list(made.path.parent.glob("*.partial"))


def test_a_run_that_was_stopped_in_a_cell_makes_it_again(made):
    class Stopped(Exception):
        pass

    def stop():
        raise Stopped

    with pytest.raises(Stopped):
        cells.cell(made.path, Choices(1), stop)
    assert made.run(Choices(1)) == [{"there": 1.0}]


def test_a_fingerprint_follows_every_byte(tmp_path):
    """Also one in the middle of a large file, where a checkpoint keeps its UNet."""
    paths = [tmp_path / "one", tmp_path / "two"]
    for path, middle in zip(paths, (b"a", b"b"), strict=True):
        path.write_bytes(bytes(5 << 20) + middle + bytes(5 << 20))
    one, two = map(cells.fingerprint, paths)
    assert one != two
    assert cells.fingerprint(paths[0]) == one
