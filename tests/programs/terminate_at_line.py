"""Run a program, and send a signal to this process when it writes a line with a given text on stderr."""

import os
import runpy
import signal
import sys
from typing import Any

name, text, *sys.argv = sys.argv[1:]


class Watched:
    """stderr, with the signal after the line."""

    def __init__(self, stream: Any):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, written: str) -> int:
        count = self.stream.write(written)
        if text in written:
            os.kill(os.getpid(), getattr(signal, name))
        return count


sys.stderr = Watched(sys.stderr)
sys.path.pop(0)  # this folder
runpy.run_path(sys.argv[0], run_name="__main__")
