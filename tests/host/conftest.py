"""Fixtures around a real ComfyUI: imported into this process, or running headless beside it."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """Everything in this folder needs the host, so nobody has to write the marker."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.host)


@pytest.fixture(scope="session")
def comfyui_path() -> Path:
    """The folder of the ComfyUI under test (`python dev.py test` sets COMFYUI_PATH)."""
    path = Path(os.environ.get("COMFYUI_PATH", ""))
    if not (path / "main.py").is_file():
        pytest.fail("COMFYUI_PATH names no ComfyUI; run `python dev.py test`, which finds or fetches one.")
    return path.resolve()


@pytest.fixture(scope="session")
def host_work(tmp_path_factory) -> Path:
    """Where every host of this session reads inputs and writes models, outputs and logs."""
    return tmp_path_factory.mktemp("host")


@pytest.fixture(scope="session")
def in_process_host(comfyui_path, host_work) -> SimpleNamespace:
    """ComfyUI importable here (`import comfy.sd` works), on the CPU, writing to a temporary folder.

    Returns its `folder_paths` module and the folders as `.models`, `.input`, `.output`.
    """
    sys.path.insert(0, str(comfyui_path))
    from comfy.cli_args import args  # before anything else of the host: model_management reads it once

    args.cpu = True
    # The host chooses its attention when this is imported. It must be the one of a host's own process, and
    # lab/models asks for PyTorch's when it makes a network.
    import comfy.ldm.modules.attention  # noqa: F401
    import folder_paths

    root = host_work / "in_process"
    for name in ("models", "input", "output", "temp", "user"):
        (root / name).mkdir(parents=True)
    folder_paths.set_input_directory(str(root / "input"))
    folder_paths.set_output_directory(str(root / "output"))
    folder_paths.set_temp_directory(str(root / "temp"))
    folder_paths.set_user_directory(str(root / "user"))
    for kind in ("checkpoints", "loras", "inlay"):
        (root / "models" / kind).mkdir()
        folder_paths.add_model_folder_path(kind, str(root / "models" / kind), is_default=True)
    return SimpleNamespace(
        folder_paths=folder_paths, models=root / "models", input=root / "input", output=root / "output"
    )


@pytest.fixture(scope="session")
def shared_host(comfyui_path, host_work):
    """One ComfyUI for all modules, on the accelerator if there is one; `server` starts it."""
    from inlay.headless import Server
    from inlay.tests.shared_host import end

    work = host_work / "server"
    kinds = ("checkpoints", "loras", "inlay", "diffusion_models", "text_encoders", "vae")
    host = Server(work, comfyui=comfyui_path, models={kind: work / "models" / kind for kind in kinds})
    yield host
    end(host)


@pytest.fixture(scope="module")
def server(shared_host, request):
    """The shared host; see its `.url`, `.work`, `.models`. Its history is empty when a module begins.

    A module that ends the host or leaves a job in its queue fails, and the next one gets a new process.
    """
    from inlay.tests.shared_host import is_running, unclean_state

    if not is_running(shared_host):
        shared_host.stop()
        shared_host.port = 0
        shared_host.start()
    yield shared_host
    if fault := unclean_state(shared_host):
        report = shared_host.log_tail(f"{request.node.nodeid} shares a host and {fault}")
        shared_host.stop()
        pytest.fail(report, pytrace=False)


@pytest.fixture
def client(server):
    """A connection to `server`: `.run(graph)`, `.upload(path)`, `.interrupt()`."""
    from inlay.headless import Client

    return Client(server.url)


@pytest.fixture(scope="session")
def tiny_checkpoint(host_work) -> str:
    """The tiny world's checkpoint, assembled where `server` looks; returns its name for the loader."""
    from inlay.lab.models import shipped

    paths = shipped.install(host_work / "server" / "models")
    return next(path.name for path in paths if path.parent.name == "checkpoints")


@pytest.fixture(scope="session")
def tiny_fill(host_work) -> None:
    """The tiny Fill model with its text encoder and VAE, assembled where `server` looks."""
    from inlay.lab.models import shipped

    shipped.install(host_work / "server" / "models")


@pytest.fixture(scope="module")
def memory_turn(tmp_path_factory):
    """Models of full size: only one of the processes that share out the tests holds some at a time."""
    import ctypes
    import gc

    from filelock import FileLock

    with FileLock(tmp_path_factory.getbasetemp().parent / "memory.lock"):
        yield
        import comfy.model_management

        comfy.model_management.unload_all_models()
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture(scope="session")
def random_tiny(in_process_host, host_work):
    """Opens (model, clip, vae) with that many input channels and random weights, here, once for each."""
    import comfy.sd
    import torch

    from inlay.lab.models.assemble import random_checkpoint, write_checkpoint

    kept = {}

    def load(channels: int):
        if channels not in kept:
            parts = random_checkpoint(1)
            first = parts["unet"]["input_blocks.0.0.weight"]
            parts["unet"]["input_blocks.0.0.weight"] = first[:, :channels].contiguous()
            file = write_checkpoint(host_work / "random" / f"{channels}.safetensors", parts)
            with torch.inference_mode():
                kept[channels] = comfy.sd.load_checkpoint_guess_config(str(file))[:3]
        return kept[channels]

    return load
