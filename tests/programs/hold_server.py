"""Start a host, print its process id, and hold it until this process is ended."""

import signal
import sys
import time
from pathlib import Path

from inlay.headless import Server

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
with Server(Path(sys.argv[2]), comfyui=Path(sys.argv[1])) as server:
    print(server.pid, flush=True)
    time.sleep(600)
