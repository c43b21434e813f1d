"""Result folders and regular data: two processes, kill -9, folders that cannot be written."""

import errno
from pathlib import Path

import pytest
import torch

from inlay.common.files import atomic_write_folder, check_writable
from inlay.headless.client import NodeOutput
from inlay.headless.jobs import GraphJob
from inlay.headless.results import load_result, save_result
from inlay.training.finetune.regular_data import save_regular

GRAPH = {"1": {"class_type": "SaveImage", "_meta": {"title": "Save"}, "inputs": {}}}


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    job = GraphJob(GRAPH, ("cat",))
    for count in (2, 1):
        files = [(f"{number}.png", b"x") for number in range(count)]
        save_result(job, {"1": NodeOutput(files=files)}, 1.0, tmp_path)
        assert len(list((tmp_path / "cat").iterdir())) == count + 1

    def fail(partial: Path) -> None:
        (partial / "half").write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        atomic_write_folder(tmp_path / "cat", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["cat"]
    assert load_result(job, tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"key": 1}', "\u00e9"])
def test_a_damaged_result_is_none(tmp_path, text):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "result.json").write_text(text, encoding="latin-1")
    assert load_result(GraphJob(GRAPH, ("cat",)), tmp_path) is None
    (tmp_path / "dog").write_bytes(b"")
    assert load_result(GraphJob(GRAPH, ("dog",)), tmp_path) is None


def test_regular_data_that_cannot_be_written_are_a_sentence(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^category: .*file could not be written \(.*\); make it a folder"):
        save_regular(tmp_path / "file", [(torch.zeros(8, 8, 3), torch.ones(8, 8))], ["a cup"])
    with pytest.raises(OSError):  # noqa: PT011 - its kind depends on the system
        check_writable(tmp_path / "file")
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_a_folder_for_results_is_checked_before_the_first_job(tmp_path):
    from inlay.headless.errors import HostError
    from inlay.headless.run_cli import check_out

    (tmp_path / "file").write_bytes(b"")
    check_out(tmp_path / "new")
    with pytest.raises(HostError, match=r"^--out: .*file.* cannot be written \(.*\); give another folder"):
        check_out(tmp_path / "file" / "below")
