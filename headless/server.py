"""A ComfyUI process of our own: headless, on the loopback, in its own folders, and gone afterwards."""

import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import requests

from .errors import HostError


def open_host(comfyui: Path | None = None, cpu: bool = False) -> Path:
    """Make `import comfy` work and let it choose its device; returns the host's folder.

    Call it before any `import comfy`. Model folders named in its extra_model_paths.yaml are known afterwards.
    `cpu`: leave the accelerator alone. Raises HostError when there is no ComfyUI.
    """
    path = (comfyui or find_comfyui()).resolve()
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    options = importlib.import_module("comfy.cli_args").args
    options.cpu = options.cpu or cpu or not accelerator()
    extra = path / "extra_model_paths.yaml"
    if extra.is_file():
        importlib.import_module("utils.extra_config").load_extra_path_config(os.fspath(extra))
    return path


PACK = Path(__file__).resolve().parent.parent
FOLDERS = ("input", "output", "temp", "user")


class HostDied(HostError):
    """The host did not start, or ended while we needed it; the message has its last words and its log."""


def find_comfyui() -> Path:
    """The ComfyUI that COMFYUI_PATH names; without it, the one that this pack stands in.

    Raises:
        HostError: when there is none.
    """
    named = os.environ.get("COMFYUI_PATH")
    path = Path(named).expanduser() if named else Path(__file__).absolute().parents[3]
    if (path / "main.py").is_file():
        return path.resolve()
    if named:
        raise HostError("COMFYUI_PATH names no ComfyUI; it must be the folder with its main.py.")
    raise HostError("No ComfyUI was found; set COMFYUI_PATH to the folder with its main.py.")


def accelerator() -> bool:
    """Whether torch sees a GPU of any make; without one the host must be told `--cpu`."""
    import torch

    return (
        torch.cuda.is_available()
        or torch.backends.mps.is_available()
        or (hasattr(torch, "xpu") and torch.xpu.is_available())
    )


def loopback_port(wanted: int = 0) -> int:
    """`wanted`, or any free port for 0.

    Raises:
        HostError: when another program listens there.
    """
    with socket.socket() as probe:
        if os.name != "nt":  # there the option would let two programs share a port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            raise HostError(f"Port {wanted} is taken by another program; choose another.") from error
        return probe.getsockname()[1]


class Server:
    """Starts ComfyUI on entry, waits until it answers, and stops it with all its children on exit.

    Args:
        work: where its `input`, `output`, `temp` and `user` folders and `host.log` go; a temporary folder,
            removed afterwards, when left out.
        comfyui: the host's folder; from COMFYUI_PATH when left out.
        port: on 127.0.0.1; any free one for 0.
        models: folders that come before the host's own, for reading and writing, by kind: `{"loras": Path}`.
        other_packs: load the other custom nodes of that ComfyUI too.
        extra: further arguments of the host's command line.
        patience: seconds to wait for the host to answer.

    Attributes:
        url: such as `http://127.0.0.1:49152`.
        log: the file with everything the host prints.
    """

    def __init__(
        self,
        work: Path | None = None,
        *,
        comfyui: Path | None = None,
        port: int = 0,
        models: dict[str, Path] | None = None,
        other_packs: bool = False,
        extra: tuple[str, ...] = (),
        patience: float = 300,
    ):
        self.comfyui = comfyui or find_comfyui()
        self.temporary = work is None
        self.work = Path(work or tempfile.mkdtemp(prefix="inlay-host-")).resolve()
        self.log = self.work / "host.log"
        self.port, self.models, self.other_packs = port, models, other_packs
        self.extra, self.patience = extra, patience
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the running host."""
        assert self.process is not None, "the host is not running"
        return self.process.pid

    def __enter__(self) -> "Server":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind, error, trace) -> None:
        died = self.process is not None and self.process.poll() is not None
        self.stop()
        if died and error is not None:
            raise HostDied(self.last_words("The host ended by itself")) from error
        if self.temporary and error is None:
            shutil.rmtree(self.work, ignore_errors=True)

    def start(self) -> None:
        """Starts the process and returns when it answers. Prefer `with Server(...)`, which also stops it."""
        self.port = loopback_port(self.port)
        for name in FOLDERS:
            (self.work / name).mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.comfyui,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Its own process group: Ctrl-C reaches us alone, and we stop the host in order.
                start_new_session=os.name != "nt",
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        self.wait_until_ready()
        self.check_pack()

    def wait(self) -> None:
        """Watches the host for as long as it runs.

        Raises:
            HostDied: when it ends.
        """
        assert self.process is not None
        self.process.wait()
        raise HostDied("The host ended.")

    def command(self) -> list[str]:
        """The host's command line, behind the keeper that ends it with us."""
        command = [sys.executable, str(PACK / "headless" / "parent_watchdog.py"), str(os.getpid())]
        command += [str(self.comfyui / "main.py"), "--listen", "127.0.0.1", "--port", str(self.port)]
        for name in FOLDERS:
            command += [f"--{name}-directory", str(self.work / name)]
        command += ["--database-url", "sqlite:///:memory:", "--disable-auto-launch", "--disable-api-nodes"]
        if not self.other_packs:
            command += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", self.pack_folder().name]
        if self.models:
            command += ["--extra-model-paths-config", str(self.models_config(self.models))]
        if not accelerator():
            command.append("--cpu")
        return [*command, *self.extra]

    def environment(self) -> dict[str, str]:
        # The host needs its own folder on sys.path, whatever is asked of the Python that starts it.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        return environment | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}

    def pack_folder(self) -> Path:
        """Where this checkout stands in the host's `custom_nodes`."""
        for entry in (self.comfyui / "custom_nodes").iterdir():
            if entry.resolve() == PACK:
                return entry
        folder = self.comfyui / "custom_nodes"
        raise HostError(f"This pack is not in {folder}; clone or link it there.")

    def models_config(self, models: dict[str, Path]) -> Path:
        """The host's `--extra-model-paths-config` that puts `models` first; it is YAML, so JSON will do."""
        for folder in models.values():
            folder.mkdir(parents=True, exist_ok=True)
        folders = {kind: folder.resolve().as_posix() for kind, folder in models.items()}
        config = self.work / "models.yaml"
        config.write_text(json.dumps({"inlay": {"is_default": True, **folders}}), encoding="utf-8")
        return config

    def wait_until_ready(self) -> None:
        assert self.process is not None
        session = requests.Session()
        session.trust_env = False  # no proxy stands between us and the loopback
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise HostDied(self.last_words("The host ended while it was starting"))
            try:
                if session.get(f"{self.url}/system_stats", timeout=5).ok:
                    return
            except requests.RequestException:
                time.sleep(0.1)
        raise HostDied(self.last_words(f"The host did not answer within {self.patience:.0f} seconds"))

    def check_pack(self) -> None:
        """A pack that fails to import is only a line in the host's log; here it is an error."""
        log = self.log.read_text(encoding="utf-8", errors="replace")
        folder = re.escape(str(self.pack_folder()))
        failed = re.search(rf"(?:Cannot import|calling comfy_entrypoint in) {folder}\b.*?: (.+)", log)
        if failed:
            raise HostError(f"The host could not load Inlay: {failed[1]} (log: {self.log}).")

    def last_words(self, what: str, lines: int = 12) -> str:
        """`what`, the log's path and its last lines."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
        tail = "\n".join("    " + line for line in text.rstrip().splitlines()[-lines:])
        return f"{what}; its log is {self.log} and ends with:\n{tail}"

    def stop(self) -> None:
        """Stops the host and its children; first kindly, after five seconds for certain."""
        if self.process is None:
            return
        try:
            root = psutil.Process(self.process.pid)
            family = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            family = []
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.terminate()
        _, alive = psutil.wait_procs(family, timeout=5)
        for member in alive:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(alive, timeout=5)
        self.process.wait()
        self.process = None
