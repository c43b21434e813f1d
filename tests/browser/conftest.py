"""A real Chromium on the host's real front end. Screenshots stay in out/browser."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from PIL import Image

from inlay import dev
from inlay.headless import Server
from inlay.headless.server import find_comfyui
from inlay.lab.models import shipped
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


def end_first_visit(work: Path) -> None:
    """Set what the page stores after a first visit: else it covers itself with its list of templates."""
    settings = work / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"Comfy.TutorialCompleted": true}', encoding="utf-8")


@pytest.fixture(scope="module")
def host(chromium, tmp_path_factory) -> Iterator[Server]:
    """A ComfyUI with the tiny model and the templates' pictures."""
    work = tmp_path_factory.mktemp("browser")
    kinds = ("checkpoints", "loras", "inlay", "diffusion_models", "text_encoders", "vae")
    models = {kind: work / "models" / kind for kind in kinds}
    shipped.install(work / "models")
    shutil.copytree(ASSETS, work / "input")
    end_first_visit(work)
    with Server(work, comfyui=find_comfyui(), models=models) as server:
        yield server


class Published(Server):
    """A ComfyUI in a folder of its own with the pack as the registry publishes it, and another small pack."""

    def __init__(self, base: Path, **options):
        super().__init__(base / "work", **options)
        self.base = base
        self.extra = (*self.extra, "--base-directory", str(base))

    def pack_folder(self) -> Path:
        return self.base / "custom_nodes" / "inlay"

    def command(self) -> list[str]:
        command = super().command()
        place = command.index("--whitelist-custom-nodes") + 1
        return [*command[:place], "stand_in", *command[place:]]


def published_files() -> list[Path]:
    """What the registry's archive holds: the tracked files without those that .comfyignore names."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=dev.PACK, capture_output=True, text=True, check=True
    )
    lines = (dev.PACK / ".comfyignore").read_text(encoding="utf-8").splitlines()
    ignored = tuple(line[1:] for line in lines if line.startswith("/"))
    files = [Path(name) for name in listed.stdout.split("\0") if name and not name.startswith(ignored)]
    return [file for file in files if (dev.PACK / file).is_file()]


GREEN, HOLE = (120, 140, 90, 255), (40, 40, 80, 86)  # a picture with a painted mask; left, top, right, bottom
# A pack with an object that has the interface of the host's background-removal models.
BACKGROUND_REMOVAL_PACK = dev.PACK / "tests" / "programs" / "background_removal_pack.py"


@pytest.fixture(scope="module", params=["own", browser.NEWER_FRONT_END])
def published(chromium, request, tmp_path_factory) -> Iterator[Server]:
    """A fresh ComfyUI with the published pack and the tiny model, with either version of the page."""
    extra: tuple[str, ...] = ()
    if request.param != "own":
        try:
            root = browser.front_end(request.param, dev.HOME / "front_ends")
        except browser.NoBrowser as reason:
            pytest.skip(str(reason))
        extra = ("--front-end-root", str(root))
    base = tmp_path_factory.mktemp("published")
    for file in published_files():
        copy = base / "custom_nodes" / "inlay" / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(dev.PACK / file, copy)
    (base / "custom_nodes" / "stand_in").mkdir()
    shutil.copyfile(BACKGROUND_REMOVAL_PACK, base / "custom_nodes" / "stand_in" / "__init__.py")
    shipped.install(base / "models")
    (base / "work" / "input").mkdir(parents=True)
    shutil.copyfile(ASSETS / "inlay_background.png", base / "work" / "input" / "tiny_background.png")
    painted = Image.new("RGBA", (96, 96), GREEN)
    painted.paste((*GREEN[:3], 0), HOLE)  # the mask editor saves what was painted as a hole
    painted.save(base / "work" / "input" / "painted.png")
    end_first_visit(base / "work")
    with Published(base, comfyui=find_comfyui(), extra=extra) as server:
        yield server


@pytest.fixture(scope="module")
def visitor(chromium, published):
    """A page on `published`, as large as a laptop's screen."""
    window = chromium.new_context(viewport={"width": 1600, "height": 1000})
    window.set_default_timeout(PATIENCE)
    page = window.new_page()
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(published.url)
    page.wait_for_function(browser.OPENED)
    yield page
    window.close()


@pytest.fixture(params=["classic", "nodes2"])
def screen(visitor, published, request):
    """The page with one of the two node renderers and an empty graph; afterwards there is a picture of it."""
    nodes2 = request.param == "nodes2"
    visitor.evaluate("on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", nodes2)
    visitor.evaluate("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    visitor.wait_for_function("() => app.graph._nodes.length === 0")
    yield visitor
    SHOTS.mkdir(parents=True, exist_ok=True)
    visitor.screenshot(
        path=SHOTS / f"{re.sub(r'[^a-z0-9.]+', '_', request.node.name.lower()).strip('_')}.png"
    )


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
        page.wait_for_function(browser.OPENED)
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
