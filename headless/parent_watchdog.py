"""Run ComfyUI's main.py in this process, and end the process when its parent ends.

A parent that is killed cannot clean up, and a host without a parent would keep the accelerator's memory. So
the host itself watches its parent, on every platform.

    python parent_watchdog.py PARENT_PID /path/to/ComfyUI/main.py --port 8188 ...
"""

import os
import runpy
import sys
import threading
from pathlib import Path

import psutil  # required by the host


def exit_with_parent(parent: psutil.Process) -> None:
    """Wait for the end of the parent and end this process."""
    parent.wait()
    os._exit(1)


if __name__ == "__main__":
    pid, main_py = int(sys.argv[1]), Path(sys.argv[2])
    if not psutil.pid_exists(pid):
        sys.exit("The process that started this host has ended.")
    threading.Thread(target=exit_with_parent, args=(psutil.Process(pid),), daemon=True).start()

    # Import the host's modules beside main.py, not those beside this file (both have a server.py).
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(main_py.parent), *(entry for entry in sys.path if Path(entry).resolve() != here)]
    sys.argv[:] = sys.argv[2:]
    runpy.run_path(str(main_py), run_name="__main__")
