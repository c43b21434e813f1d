"""The command lines print their help without torch, whose import takes seconds."""

import subprocess
import sys

import pytest

from inlay import dev
from inlay.__main__ import COMMANDS

PARSE = (dev.PACK / "tests" / "programs" / "print_help.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_torch(command):
    done = subprocess.run(
        [sys.executable, "-c", PARSE, COMMANDS[command][0]], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert not {"torch", "numpy", "transformers", "comfy"} & set(done.stdout.split())
