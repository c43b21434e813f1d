"""A real Chromium on the host's real front end. Screenshots stay in out/browser."""

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from inlay import dev
from inlay.headless import Server
from inlay.headless.server import find_comfyui
from inlay.lab.models.checkpoint import assemble
from inlay.tools import browser
from inlay.tools.demo_options import ASSETS

HERE = Path(__file__).parent
SHOTS = dev.PACK / "out" / "browser"
# The front end asks for a node's help in the user's language first and falls back to English.
TRANSLATED_HELP = re.compile(r"/docs/\w+/[\w-]+\.md Failed to load resource")
PATIENCE = 300_000  # milliseconds; a page of the front end takes minutes on a very busy machine


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.host)
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="module")
def chromium():
    """The browser; tests skip, with the reason, on a machine that has none."""
    with ExitStack() as opened:
        try:
            found = opened.enter_context(browser.chromium())
        except browser.NoBrowser as reason:
            pytest.skip(str(reason))
        yield found


@pytest.fixture(scope="module")
def host(chromium, tmp_path_factory) -> Iterator[Server]:
    """A ComfyUI with the tiny model and the templates' pictures."""
    work = tmp_path_factory.mktemp("browser")
    models = {kind: work / "models" / kind for kind in ("checkpoints", "loras", "inlay")}
    assemble(models["checkpoints"] / "inlay_tiny.safetensors")
    shutil.copytree(ASSETS, work / "input")
    with Server(work, comfyui=find_comfyui(), models=models) as server:
        yield server


@pytest.fixture(scope="module")
def complaints() -> list[str]:
    """What the pages' consoles said against this pack since the last test."""
    return []


@pytest.fixture(scope="module")
def open_page(chromium, host, complaints):
    """Opens the front end in another tab of one window."""
    ours = f"/extensions/{host.pack_folder().name}/"
    window = chromium.new_context(viewport={"width": 1400, "height": 900})
    window.set_default_timeout(PATIENCE)

    def hear(message) -> None:
        where = f"{message.location.get('url', '')} {message.text}"
        about_us = ours in where or "inlay" in message.text.lower()
        if message.type == "error" and about_us and not TRANSLATED_HELP.search(where):
            complaints.append(where)

    def crash(error) -> None:
        if ours in str(error.stack):
            complaints.append(str(error))

    def open_tab():
        page = window.new_page()
        page.on("console", hear)
        page.on("pageerror", crash)
        page.on("dialog", lambda dialog: dialog.accept())  # "leave this page?"
        page.goto(host.url)
        page.wait_for_function(browser.READY)
        return page

    yield open_tab
    window.close()


@pytest.fixture(scope="module")
def tab(open_page):
    """The first tab: a page of the front end takes long to load, so the tests go on with the same one."""
    return open_page()


@pytest.fixture
def page(tab, complaints, request):
    """The first tab; afterwards it has said nothing against us, and there is a picture of it."""
    complaints.clear()
    yield tab
    SHOTS.mkdir(parents=True, exist_ok=True)
    tab.screenshot(path=SHOTS / f"{re.sub(r'[^a-z0-9]+', '_', request.node.name.lower()).strip('_')}.png")
    assert complaints == []
