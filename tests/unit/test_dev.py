"""dev.py: what it downloads is checked, what it unpacks stays inside, what is there is not made again."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from inlay import dev


def archive(path: Path, *members: tuple[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def symlink(name: str, target: str) -> tuple[str, tarfile.TarInfo]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return name, info


def test_only_the_folder_asked_for_is_unpacked(tmp_path):
    members = ("p/host/main.py", b"print()"), ("p/host/comfy/sd.py", b"# sd"), ("p/setup.py", b"evil")
    dev.unpack(archive(tmp_path / "a.tar.gz", *members), "p/host/", tmp_path / "host")
    host = tmp_path / "host"
    assert {p.relative_to(host).as_posix() for p in host.rglob("*.py")} == {"main.py", "comfy/sd.py"}
    assert (host / "main.py").read_bytes() == b"print()"


@pytest.mark.parametrize(
    "bad",
    [
        ("p/host/../../../evil.py", b"evil"),
        ("p/host/comfy/../../evil.py", b"evil"),
        ("p/host//evil.py", b"evil"),
        ("p/host/", b"evil"),
        symlink("p/host/link", "/etc/passwd"),
    ],
    ids=["parent", "deep parent", "absolute", "the folder itself", "symlink"],
)
def test_an_unsafe_member_is_refused_and_nothing_stays(tmp_path, bad):
    path = archive(tmp_path / "a.tar.gz", ("p/host/main.py", b"print()"), bad)
    with pytest.raises(dev.Stop, match="unsafe member"):
        dev.unpack(path, "p/host/", tmp_path / "host")
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar.gz"]


def test_an_archive_with_another_hash_is_refused(tmp_path):
    path = archive(tmp_path / "a.tar.gz", ("p/host/main.py", b"print()"))
    with pytest.raises(dev.Stop, match=r"a\.tar\.gz is not the archive we know"):
        dev.check_archive(path, dev.HOST_SHA256)


def test_a_stamp_holds_only_for_what_was_asked(tmp_path):
    stamp, wanted = tmp_path / "stamp", {"torch": dev.TORCH, "inlay": "peft"}
    assert not dev.is_stamped(stamp, wanted)
    stamp.write_text(dev.digest(wanted), encoding="utf-8")
    assert dev.is_stamped(stamp, wanted)
    assert not dev.is_stamped(stamp, {**wanted, "inlay": "peft, more"})


def test_our_requirements_are_those_of_pyproject_and_pin_nothing():
    ours = dev.our_requirements(Path(sys.executable))
    assert any(line.startswith("pytest") for line in ours)
    assert any(line.startswith("peft") for line in ours)
    wanted = [line.split(";")[0] for line in ours]  # what follows says for which Python
    assert not [line for line in wanted if "==" in line or "<" in line]


class TestLink:
    def test_leads_to_the_target_and_may_be_made_twice(self, tmp_path):
        (tmp_path / "pack").mkdir()
        for _ in range(2):
            dev.link(tmp_path / "custom_nodes" / "inlay", tmp_path / "pack")
        assert (tmp_path / "custom_nodes" / "inlay").resolve() == (tmp_path / "pack").resolve()

    def test_a_dangling_one_is_made_anew(self, tmp_path):
        (tmp_path / "old").mkdir()
        dev.link(tmp_path / "inlay", tmp_path / "old")
        (tmp_path / "old").rename(tmp_path / "new")
        dev.link(tmp_path / "inlay", tmp_path / "new")
        assert (tmp_path / "inlay").resolve() == (tmp_path / "new").resolve()

    def test_another_checkout_is_left_alone(self, tmp_path):
        for name in ("mine", "theirs", "copied"):
            (tmp_path / name).mkdir()
        dev.link(tmp_path / "linked", tmp_path / "theirs")
        for place in ("linked", "copied"):
            with pytest.raises(dev.Stop, match=f"{place} is in the way"):
                dev.link(tmp_path / place, tmp_path / "mine")
        assert (tmp_path / "linked").resolve() == (tmp_path / "theirs").resolve()


def call(
    *arguments: str, script: Path = dev.PACK / "dev.py", **environment: str
) -> subprocess.CompletedProcess:
    """dev.py as a user calls it who has set nothing else."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("COMFYUI")}
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        env=bare | environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def test_help_names_every_command():
    done = call("--help")
    assert done.returncode == 0
    for command in ("demo", "serve", "test", "bench", "lab", "setup"):
        assert f"python dev.py {command}" in done.stdout


@pytest.mark.parametrize("command", ["demo", "serve"])
def test_help_comes_without_the_environment(command, tmp_path):
    (tmp_path / "tools").mkdir()
    for file in ("dev.py", f"tools/{command}.py"):
        shutil.copyfile(dev.PACK / file, tmp_path / file)
    done = call(command, "--help", script=tmp_path / "dev.py")
    assert done.returncode == 0
    assert f"python dev.py {command}" in done.stdout
    assert not (tmp_path / ".inlay").exists()


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["dance"], {}, "There is no command dance"),
        (["lab", "nothing"], {}, "There is no lab called nothing"),
        (["setup"], {"COMFYUI_PATH": "/no/such"}, "COMFYUI_PATH is /no/such, but there is no main.py"),
        (["setup"], {"COMFYUI_PYTHON": "/no/such"}, "COMFYUI_PYTHON goes with COMFYUI_PATH"),
    ],
)
def test_a_wrong_call_is_one_line_and_fails(arguments, environment, said):
    done = call(*arguments, **environment)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_module_is_started_without_the_current_folder_on_the_path(tmp_path):
    (tmp_path / "nodes").mkdir()
    (tmp_path / "which.py").write_text("import sys; print('' in sys.path, sys.argv[1:])", encoding="utf-8")
    command = [sys.executable, *dev.module("which", "one", "-m", "two")]
    findable = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path / "nodes", env=findable, capture_output=True, text=True)
    assert done.stdout.strip() == "False ['one', '-m', 'two']", done.stderr


def test_set_up_prints_the_megabytes_that_pip_names(tmp_path, capsys):
    log = tmp_path / "setup.log"
    with dev.step("torch", log):
        log.write_text(
            "Collecting torch\n  Downloading torch-2.11.0-cp312.whl.metadata (28 kB)\n"
            "Downloading torch-2.11.0-cp312.whl (190.5 MB)\nDownloading https://a/b.whl (1.2 GB)\n"
            "Using cached numpy.whl (16 MB)\n",
            encoding="utf-8",
        )
    assert capsys.readouterr().out.endswith("s, 1391 MB downloaded\n")
    with dev.step("virtual environment"):
        pass
    assert "MB" not in capsys.readouterr().out
