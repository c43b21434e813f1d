"""ComfyUI's own modules in this process: its model loading without its server."""

import importlib
import os
import sys
from pathlib import Path

from .server import accelerator, find_comfyui


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
