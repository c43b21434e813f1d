"""The tiny identity models as the host loads them, from the small files the repository ships.

    python -m inlay.lab.models.identity MODELS     MODELS is a folder like ComfyUI's models

Writes inlay_tiny_identity.safetensors into inlay (adapter and encoder) and into loras/inlay (what the
inpainting UNet learned with them), inlay/inlay_tiny_optimizer.safetensors (embedding optimizer and encoder)
and checkpoints/inlay_tiny_pix2pix.safetensors (its UNet and VAE). --ship DIR writes the small files first.
"""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...encoders.checkpoint_layouts import METADATA
from . import assemble, files, low_rank, quantised, runs
from .loss_curves import write_curves

IDENTITY, OPTIMIZER = "inlay_tiny_identity.safetensors", "inlay_tiny_optimizer.safetensors"
PIX2PIX = "inlay_tiny_pix2pix.safetensors"
# file of the repository -> the variant that is shipped, and the stages that made it
SHIPPED = {
    "identity": ("imprint", "two_stage", ("imprint_dino_words", "imprint_dino_views", "imprint_two_stage")),
    "insertion": (
        "pix2pix",
        "optimizer",
        ("imprint_dino_words", "pix2pix_optimizer_words", "pix2pix_optimizer"),
    ),
}


def places(models: Path) -> dict[str, Path]:
    """Where the host's files go."""
    return {
        "identity": models / "inlay" / IDENTITY,
        "lora": models / "loras" / IDENTITY,  # in no folder, whose separator would be the system's
        "optimizer": models / "inlay" / OPTIMIZER,
        "pix2pix": models / "checkpoints" / PIX2PIX,
    }


def install(models: Path, weights: Path = files.WEIGHTS) -> dict[str, Path]:
    """Write what is missing or older than the shipped files; returns the paths."""
    paths = places(models)
    newest = max(part.stat().st_mtime for part in weights.glob("*.safetensors"))
    if all(path.exists() and path.stat().st_mtime >= newest for path in paths.values()):
        return paths
    (identity, about), (insertion, its) = (unpacked(weights / f"{name}.safetensors") for name in SHIPPED)
    write(paths["identity"], {k: v for k, v in identity.items() if not _of_unet(k)}, about)
    write(paths["lora"], {k: v for k, v in identity.items() if _of_unet(k)}, {})
    write(paths["optimizer"], {k: v for k, v in insertion.items() if not _of_unet(k)}, its)
    change = {k: v for k, v in insertion.items() if _of_unet(k)}
    unet = low_rank.changed(quantised.load(weights / "unet.safetensors"), change)
    autoencoder = quantised.load(weights / "autoencoder4.safetensors")
    assemble.write_checkpoint(paths["pix2pix"], {"unet": unet, "autoencoder4": autoencoder})
    return paths


def unpacked(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A shipped file's tensors in float32, and its metadata that loaders read."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["record"])
    return quantised.load(path), {METADATA: about[METADATA]}


def write(path: Path, state: Mapping[str, Tensor], about: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({name: value.contiguous() for name, value in state.items()}, partial, about)
    os.replace(partial, path)


def _of_unet(name: str) -> bool:
    return name.startswith(low_rank.PREFIX)


def bits_of(name: str) -> int:
    """How many bits a weight is shipped in: the UNet's change fewer than what sees the object."""
    return 6 if _of_unet(name) else 7


def ship(work: Path, weights: Path = files.WEIGHTS) -> None:
    """The small files from what the trainings left in `work`, with how they were made, and their curves."""
    curves = {}
    for name, (kind, variant, stages) in SHIPPED.items():
        with safe_open(work / f"{kind}_{variant}.safetensors", "pt") as file:
            about = file.metadata()
        state = load_file(work / f"{kind}_{variant}.safetensors")
        states: dict[str, Any] = {stage: runs.load(work / f"{stage}.pt") for stage in stages}
        last = states[stages[-1]]["mean"]
        unet = {k.removeprefix("unet."): v for k, v in last.items() if k.startswith("unet.")}
        record = {METADATA: about[METADATA], "made_by": f"python -m inlay.lab.models.train_{kind}", "seed": 0}
        record |= {f"steps of {stage}": run["step"] for stage, run in states.items()}
        record |= {f"minutes of {stage}": round(run["seconds"] / 60, 1) for stage, run in states.items()}
        quantised.save(state | low_rank.change_of(unet), weights / f"{name}.safetensors", bits_of, record)
        curves |= {stage: run["log"] for stage, run in states.items()}
    write_curves(weights / "identity_curves", ["step", "seconds", "loss"], curves)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path)
    parser.add_argument("--ship", type=Path, metavar="DIR", help="the trainings' --work")
    chosen = parser.parse_args()
    if chosen.ship:
        ship(chosen.ship)
    for path in install(chosen.models).values():
        print(path)


if __name__ == "__main__":
    main()
