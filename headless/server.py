"""Start a ComfyUI process: headless, on 127.0.0.1, with its own folders; stop it on exit."""

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
    """Make `import comfy` possible and let the host choose its device.

    Call it before any `import comfy`. It also registers the model folders of extra_model_paths.yaml.

    Args:
        comfyui: the host's folder; found by `find_comfyui` if None.
        cpu: do not use an accelerator.

    Returns:
        The host's folder.

    Raises:
        HostError: if there is no ComfyUI.
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
    """The host did not start, or ended during its use; the message has the end of its log."""


def find_comfyui() -> Path:
    """Return the ComfyUI that COMFYUI_PATH names, or the one that this pack is installed in.

    Raises:
        HostError: if there is none.
    """
    configured = os.environ.get("COMFYUI_PATH")
    path = Path(configured).expanduser() if configured else Path(__file__).absolute().parents[3]
    if (path / "main.py").is_file():
        return path.resolve()
    if configured:
        raise HostError("COMFYUI_PATH names no ComfyUI; it must be the folder with its main.py.")
    raise HostError("No ComfyUI was found; set COMFYUI_PATH to the folder with its main.py.")


def accelerator() -> bool:
    """Return whether torch finds a GPU of any make; without one the host needs `--cpu`."""
    import torch

    return (
        torch.cuda.is_available()
        or torch.backends.mps.is_available()
        or (hasattr(torch, "xpu") and torch.xpu.is_available())
    )


def loopback_port(requested: int = 0) -> int:
    """Return the requested port, or any free port for 0.

    Raises:
        HostError: if another program uses it.
    """
    with socket.socket() as probe:
        if os.name != "nt":  # on Windows this option lets two programs share a port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", requested))
        except OSError as error:
            raise HostError(f"Port {requested} is taken by another program; choose another.") from error
        return probe.getsockname()[1]


class Server:
    """Start ComfyUI on entry, wait until it answers, and stop it with all its children on exit.

    Args:
        work: folder for its `input`, `output`, `temp` and `user` folders and `host.log`; if None, a temporary
            folder that is removed afterwards.
        comfyui: the host's folder; found by `find_comfyui` if None.
        port: on 127.0.0.1; 0 for any free one.
        models: folders that precede the host's own, for reading and writing, by kind: `{"loras": Path}`.
        other_packs: also load the other custom nodes of that ComfyUI.
        extra: further arguments of the host's command line.
        startup_timeout: seconds to wait for the host's first answer.

    Attributes:
        url: such as `http://127.0.0.1:49152`.
        log: the file with the host's output.
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
        startup_timeout: float = 300,
    ):
        self.comfyui = comfyui or find_comfyui()
        self.temporary = work is None
        self.work = Path(work or tempfile.mkdtemp(prefix="inlay-host-")).resolve()
        self.log = self.work / "host.log"
        self.port, self.models, self.other_packs = port, models, other_packs
        self.extra, self.startup_timeout = extra, startup_timeout
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        """The host's address."""
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
            raise HostDied(self.log_tail("The host ended by itself")) from error
        if self.temporary and error is None:
            shutil.rmtree(self.work, ignore_errors=True)

    def start(self) -> None:
        """Start the process and return when it answers. Prefer `with Server(...)`, which also stops it."""
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
                # A separate process group: Ctrl-C reaches this process only, which then stops the host.
                start_new_session=os.name != "nt",
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        self.wait_until_ready()
        self.check_pack()

    def wait(self) -> None:
        """Wait for the end of the host.

        Raises:
            HostDied: when it ends.
        """
        assert self.process is not None
        self.process.wait()
        raise HostDied("The host ended.")

    def command(self) -> list[str]:
        """Return the command line of the host, run by parent_watchdog.py, which ends it with this process."""
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
        """Return the environment variables of the host."""
        # With PYTHONSAFEPATH the host would not find its own modules.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        return environment | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}

    def pack_folder(self) -> Path:
        """Return the folder of this pack in the host's `custom_nodes`.

        Raises:
            HostError: if it is not there.
        """
        for entry in (self.comfyui / "custom_nodes").iterdir():
            if entry.resolve() == PACK:
                return entry
        folder = self.comfyui / "custom_nodes"
        raise HostError(f"This pack is not in {folder}; clone or link it there.")

    def models_config(self, models: dict[str, Path]) -> Path:
        """Write the file for the host's `--extra-model-paths-config`; JSON is valid YAML."""
        for folder in models.values():
            folder.mkdir(parents=True, exist_ok=True)
        folders = {kind: folder.resolve().as_posix() for kind, folder in models.items()}
        config = self.work / "models.yaml"
        config.write_text(json.dumps({"inlay": {"is_default": True, **folders}}), encoding="utf-8")
        return config

    def wait_until_ready(self) -> None:
        """Wait until the host answers.

        Raises:
            HostDied: if it ends, or does not answer in time.
        """
        assert self.process is not None
        session = requests.Session()
        session.trust_env = False  # a loopback address needs no proxy
        deadline = time.monotonic() + self.startup_timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise HostDied(self.log_tail("The host ended while it was starting"))
            try:
                if session.get(f"{self.url}/system_stats", timeout=5).ok:
                    return
            except requests.RequestException:
                time.sleep(0.1)
        raise HostDied(self.log_tail(f"The host did not answer within {self.startup_timeout:.0f} seconds"))

    def check_pack(self) -> None:
        """Check that the host loaded this pack; a failed import is only a line in the host's log.

        Raises:
            HostError: if it did not.
        """
        log = self.log.read_text(encoding="utf-8", errors="replace")
        folder = re.escape(str(self.pack_folder()))
        failed = re.search(rf"(?:Cannot import|calling comfy_entrypoint in) {folder}\b.*?: (.+)", log)
        if failed:
            raise HostError(f"The host could not load Inlay: {failed[1]} (log: {self.log}).")

    def log_tail(self, what: str, lines: int = 12) -> str:
        """Return a message with the log's path and its last lines."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
        tail = "\n".join("    " + line for line in text.rstrip().splitlines()[-lines:])
        return f"{what}; its log is {self.log} and ends with:\n{tail}"

    def stop(self) -> None:
        """Terminate the host and its children; kill those that still run after five seconds."""
        if self.process is None:
            return
        try:
            root = psutil.Process(self.process.pid)
            processes = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            processes = []
        for member in processes:
            with suppress(psutil.NoSuchProcess):
                member.terminate()
        _, alive = psutil.wait_procs(processes, timeout=5)
        for member in alive:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(alive, timeout=5)
        self.process.wait()
        self.process = None
