"""The browser that tests and benchmarks drive, installed already, and another version of the page."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NEWER_FRONT_END = "1.58.1"  # of comfyui-frontend-package, beside the one that the host pins
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
READY = "() => window.app?.extensionManager && window.app?.graph"  # the front end stands
# The page's own first workflow, which it opens late: it would replace what was opened before.
OPENED = "() => window.app?.extensionManager?.workflow?.activeWorkflow"


class NoBrowser(Exception):
    """There is none, or playwright is not installed; the message names which."""


@contextmanager
def chromium() -> Iterator:
    """A running browser (playwright's Browser): INLAY_BROWSER, or the first of the usual names on the path.

    Raises:
        NoBrowser
    """
    executable = os.environ.get("INLAY_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if not executable:
        raise NoBrowser(f"no browser was found ({', '.join(NAMES)}); INLAY_BROWSER names one")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        raise NoBrowser("playwright is not installed") from None
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def appears(locator: Any, seconds: float = 1) -> bool:
    """Return whether an element is visible, or becomes so within that time."""
    from playwright.sync_api import TimeoutError as NotYet

    try:
        locator.wait_for(state="visible", timeout=seconds * 1000)
    except NotYet:
        return False
    return True


def repeat_until(act: Callable[[], None], locator: Any, tries: int = 20) -> None:
    """Act until the element is visible, with longer and longer pauses; the last try may have failed."""
    for number in range(1, tries + 1):
        act()
        if appears(locator, number):
            return


def front_end(version: str, folder: Path) -> Path:
    """The page's files of a version of comfyui-frontend-package, for the host's --front-end-root.

    Downloads the package once into `folder`.

    Raises:
        NoBrowser: when it cannot be had.
    """
    root = folder / version
    if not (root / "index.html").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            wanted = f"comfyui-frontend-package=={version}"
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", work, wanted]
            if subprocess.run(command, capture_output=True).returncode:
                raise NoBrowser(f"{wanted} could not be downloaded")
            [wheel] = Path(work).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(Path(work) / "package")
            (Path(work) / "package" / "comfyui_frontend_package" / "static").rename(root)
    return root
