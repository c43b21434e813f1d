"""What the registry is told and given: complete facts, pictures that exist, nothing lost on the way."""

import multiprocessing
import os
import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from inlay import dev

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib


@pytest.fixture
def facts():
    return tomllib.loads((dev.PACK / "pyproject.toml").read_text(encoding="utf-8"))


def test_only_whole_rooms_are_left_out_of_the_published_pack():
    """A pattern without a leading slash would also take web/docs with docs."""
    lines = (dev.PACK / ".comfyignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert all(pattern.startswith("/") for pattern in patterns)
    left_out = {pattern.strip("/") for pattern in patterns}
    needed = {"web", "workflows", "subgraphs", "locales", "__init__.py", "__main__.py", "pyproject.toml",
              "requirements.txt", "README.md", "CHANGELOG.md", "LICENSE"}  # fmt: skip
    assert not (needed | product_folders()) & left_out


def product_folders() -> set[str]:
    """The folders of Python modules that are published."""
    return {path.parent.name for path in dev.PACK.glob("*/*.py")} - {"lab", "tests", "tools"}


def test_the_pages_code_stays_small():
    """What every page of the front end loads, and the sentences it loads when the language is Chinese."""
    files = [*(dev.PACK / "web").rglob("*.js"), *(dev.PACK / "web").rglob("*.json")]
    assert 0 < sum(path.stat().st_size for path in files) <= 45_000


def alone():
    """The environment, without this checkout on the import path."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


PROGRAMS = dev.PACK / "tests" / "programs"
METHODS = sorted({"spawn", "forkserver"} & set(multiprocessing.get_all_start_methods()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("folder", "form"), [("inlay", ["-m", "inlay"]), ("inlay", ["inlay"]), ("inlay-main", ["inlay-main"])]
)
def test_workers_find_the_package_in_every_form_of_the_command(tmp_path, folder, form, method):
    """`train` reads data in workers, which Windows and macOS spawn; a ZIP's folder has a name of its own."""
    pack = tmp_path / folder
    (pack / "headless").mkdir(parents=True)
    shutil.copy(dev.PACK / "__main__.py", pack)
    (pack / "__init__.py").touch()
    (pack / "headless" / "__init__.py").touch()
    shutil.copy(dev.PACK / "headless" / "errors.py", pack / "headless")
    shutil.copy(PROGRAMS / "command_with_worker.py", pack / "headless" / "train_cli.py")
    command = [sys.executable, "-S", *form, "train", method]  # -S: without the package that is being tested
    done = subprocess.run(command, capture_output=True, text=True, env=alone(), cwd=tmp_path)
    assert done.stdout.strip() == "worked in another process", done.stderr


@pytest.mark.parametrize(("name", "size"), [("Icon", (400, 400)), ("Banner", (1260, 540))])
def test_the_registrys_pictures_are_there(facts, name, size):
    repository = facts["project"]["urls"]["Repository"].removeprefix("https://github.com/")
    address = facts["tool"]["comfy"][name]
    path = address.removeprefix(f"https://raw.githubusercontent.com/{repository}/main/")
    assert Image.open(dev.PACK / path).size == size
    assert (dev.PACK / path).stat().st_size < 100_000


def test_the_name_and_version_are_ones_the_registry_takes(facts):
    assert re.fullmatch(r"[a-z][a-z0-9]*([-_.][a-z0-9]+)*", facts["project"]["name"])
    assert "comfyui" not in facts["project"]["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", facts["project"]["version"])
    assert f"## {facts['project']['version']}" in (dev.PACK / "CHANGELOG.md").read_text(encoding="utf-8")


def test_what_the_pack_needs_has_lower_bounds_alone(facts):
    for requirement in facts["project"]["dependencies"]:
        assert re.fullmatch(r"[\w-]+>=[\d.]+(; python_version < '[\d.]+')?", requirement)


def test_what_comfyui_manager_installs_is_what_the_registry_does(facts):
    lines = (dev.PACK / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line.replace('"', "'") for line in lines] == facts["project"]["dependencies"]


def test_coverage_is_measured_in_every_folder_of_the_product(facts):
    assert set(facts["tool"]["coverage"]["run"]["source"]) == {f"./{folder}" for folder in product_folders()}
