"""The lab's one door to ComfyUI's modules: found through COMFYUI_PATH, on the CPU without an accelerator."""

import os
import sys
from typing import Any

import torch


def compute_in_own_type(model: Any) -> None:
    """Let a MODEL compute in the number format of its weights; on a CPU the host takes float32."""
    model.model.manual_cast_dtype = None


def open_host():
    """Put the host on the import path and let it choose its device; call before any `import comfy`."""
    path = os.environ["COMFYUI_PATH"]
    if path not in sys.path:
        sys.path.insert(0, path)
    import comfy.cli_args

    if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        comfy.cli_args.args.cpu = True
