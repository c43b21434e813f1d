"""Runs a ComfyUI's main.py in this process, and ends it as soon as the process that asked for it is gone.

A parent that is killed outright cannot clean up after itself, and a host left behind keeps the memory of the
accelerator. So the host itself watches its parent; this needs no help from the platform.

    python parent_watchdog.py PARENT_PID /path/to/ComfyUI/main.py --port 8188 ...
"""

import os
import runpy
import sys
import threading
from pathlib import Path

import psutil  # a requirement of the host


def end_with(parent: psutil.Process) -> None:
    parent.wait()
    os._exit(1)


if __name__ == "__main__":
    pid, main_py = int(sys.argv[1]), Path(sys.argv[2])
    if not psutil.pid_exists(pid):
        sys.exit("The process that asked for this host is gone.")
    threading.Thread(target=end_with, args=(psutil.Process(pid),), daemon=True).start()

    # The host finds its own modules beside main.py, not ours beside this file (there is a server.py in both).
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(main_py.parent), *(entry for entry in sys.path if Path(entry).resolve() != here)]
    sys.argv[:] = sys.argv[2:]
    runpy.run_path(str(main_py), run_name="__main__")
