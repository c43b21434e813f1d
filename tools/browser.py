"""The browser that tests and benchmarks drive: one that is installed already, never a download."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
READY = "() => window.app?.extensionManager && window.app?.graph"  # the front end stands


class NoBrowser(Exception):
    """There is none, or playwright is not installed; the message says which."""


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
