"""Workers that read data, in a pack whose folder has a name of its own."""

import os
import shutil
import subprocess
import sys

import pytest

from inlay import dev

pytestmark = pytest.mark.slow
PROGRAMS = dev.PACK / "tests" / "programs"


def alone():
    """The environment, without this checkout on the import path."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_spawned_workers_load_data_whatever_the_folder_is_called(tmp_path):
    pack = tmp_path / "inlay-main"
    for name in ("training", "encoders", "imaging", "headless", "common"):
        shutil.copytree(dev.PACK / name, pack / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "__main__.py"):
        shutil.copy(dev.PACK / name, pack)
    shutil.copy(PROGRAMS / "command_with_loader.py", pack / "headless" / "train_cli.py")
    command = [sys.executable, pack, "train", tmp_path / "shards"]
    done = subprocess.run(command, capture_output=True, text=True, env=alone(), cwd=tmp_path)
    assert done.stdout.split() == ["0", "1", "2", "3"], done.stderr
