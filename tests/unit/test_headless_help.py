"""The command lines print their help without torch, whose import takes seconds."""

import subprocess
import sys

import pytest

from inlay.__main__ import COMMANDS

PARSE = """
import argparse, importlib, sys
module = importlib.import_module("inlay." + sys.argv[1])
parser = argparse.ArgumentParser()
module.add_arguments(parser)
assert "--help" in parser.format_help()
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_torch(command):
    done = subprocess.run(
        [sys.executable, "-c", PARSE, COMMANDS[command][0]], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert not {"torch", "numpy", "transformers", "comfy"} & set(done.stdout.split())
