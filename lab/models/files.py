"""Where the lab keeps its running state, and how it writes it: to a temporary name, then renamed."""

import os
from pathlib import Path

import torch

WEIGHTS = Path(__file__).parents[1] / "weights"
SCENES = WEIGHTS / "scenes"  # the models of the world of `scenes`, in few bits


def save(state, path: Path):
    """Write a training state so that a kill at any moment leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load(path: Path):
    """The state at `path`, or None when there is none yet."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None
