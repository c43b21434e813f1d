"""Seams to the host's process: the memory of devices, the user's wish to stop, SIGTERM."""

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout  # another class before Python 3.11

import comfy.model_management as management
import torch
from comfy.model_management import InterruptProcessingException


def prefers_bfloat16(device: torch.device) -> bool:
    """Return whether half precision on this device is bfloat16 rather than float16."""
    return device.type == "cpu" or management.should_use_bf16(device)


def free_memory_for(model, needed: int) -> int:
    """Unload other models until `needed` bytes are free on a MODEL's device; return the bytes that are."""
    device = model.load_device
    if device.type != "cpu":
        management.free_memory(needed, device, keep_loaded=[management.LoadedModel(model)])
    free = management.get_free_memory(device)
    assert isinstance(free, int)
    return free


def has_own_memory(device: torch.device) -> bool:
    """Return whether a device has memory of its own beside the computer's."""
    return device.type not in ("cpu", "mps", "meta")


def raise_if_interrupted() -> None:
    """Raise the host's InterruptProcessingException when the user has asked to stop."""
    management.throw_exception_if_processing_interrupted()


WAIT = 60.0  # seconds for the host's main thread to answer; a busy machine takes several


class DelayedTermination:
    """Holds SIGTERM back within a `with` block; at its end the signal ends the process.

    Only the main thread may set signal handlers and the host runs graphs in another, so this asks the
    host's event loop. Nothing is held back on Windows, without a main thread to ask, or where somebody else
    handles the signal.
    """

    def __init__(self):
        self.came = self.installed = False

    def __enter__(self) -> "DelayedTermination":
        if os.name != "nt":
            in_main_thread(self._install)
        return self

    def __exit__(self, *_) -> None:
        if self.installed:
            in_main_thread(self._restore)

    def check(self) -> None:
        """Raise the host's InterruptProcessingException when the signal has come."""
        if self.came:
            raise InterruptProcessingException

    def _install(self) -> None:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._note)
            self.installed = True

    def _note(self, *_) -> None:
        self.came = True

    def _restore(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.installed = False
        if self.came:
            os.kill(os.getpid(), signal.SIGTERM)


def in_main_thread(call: Callable[[], None]) -> bool:
    """Run `call` in the main thread and wait for it; return whether that was possible."""
    if threading.current_thread() is threading.main_thread():
        call()
        return True
    from server import PromptServer  # the host's; not there without it

    loop = getattr(getattr(PromptServer, "instance", None), "loop", None)
    if loop is None or not loop.is_running():
        return False
    done: Future[bool] = Future()

    def run() -> None:
        if done.set_running_or_notify_cancel():
            main = threading.current_thread() is threading.main_thread()
            if main:
                call()
            done.set_result(main)

    loop.call_soon_threadsafe(run)
    try:
        return done.result(WAIT)
    except FutureTimeout:
        return False if done.cancel() else done.result()
