"""The ComfyUI that modules of tests share: whether one of them left it in order, and its end."""

import os
import signal
import subprocess
import time
from contextlib import suppress

from inlay.headless import Client, HostError, Server

PATIENCE = 60  # seconds for a job that was interrupted to end; the longest node of a tiny model takes a few


def is_running(host: Server) -> bool:
    """Return whether the process was started and has not ended."""
    return host.process is not None and host.process.poll() is None


def unclean_state(host: Server, patience: float = PATIENCE) -> str:
    """Return what a module did to the host that the next one must not find; empty if it did nothing.

    Clears the host's history, too.

    Args:
        host: the shared host.
        patience: seconds to wait for jobs that are about to end.
    """
    if not is_running(host):
        return "ended it"
    client, deadline = Client(host.url), time.monotonic() + patience
    try:
        while left := client.queued():
            if time.monotonic() >= deadline:
                return f"left jobs in its queue ({len(left)})"
            time.sleep(0.05)
        cleared = client.session.post(f"{host.url}/history", json={"clear": True}, timeout=60)
    except (HostError, OSError):  # those of requests are OSErrors
        return "left it without an answer"
    return "" if cleared.ok else "left a history that it does not clear"


def end(host: Server) -> None:
    """Stop the host; while coverage is measured, with Ctrl-C, at which its process writes its data."""
    if is_running(host) and "COVERAGE_PROCESS_CONFIG" in os.environ and os.name != "nt":
        assert host.process is not None
        host.process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            host.process.wait(PATIENCE)
    host.stop()
