"""Turn the lab's running states into the small files the repository ships.

    python -m inlay.lab.models.export_weights --work DIR

Writes lab/weights/{autoencoder,unet,text_rows}.safetensors (the averaged UNet as int8), with how they were
made in their metadata, and curves.json and curves.png: the loss over steps and seconds.
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from ...training.finetune.progress import draw_curve
from . import checkpoint, files
from .text import TextRows
from .unet import new_unet


def averaged_unet(state: dict) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The UNet and the text rows with the average of their weights over training (EMA)."""
    unet = new_unet()
    for parameter, mean in zip(unet.parameters(), state["mean"], strict=False):
        parameter.data.copy_(mean)
    return unet.state_dict(), state["mean"][-1]


def how(state: dict, module: str) -> dict[str, str]:
    minutes = state["seconds"] / 60
    return {
        "made_by": f"python -m inlay.lab.{module}",
        "seed": "0",
        "steps": str(state["step"]),
        "minutes": f"{minutes:.0f}",
    }


def ship(work: Path, weights: Path = files.WEIGHTS):
    weights.mkdir(exist_ok=True)
    autoencoder = files.load(work / "autoencoder.pt")
    if autoencoder is None:
        raise SystemExit(f"There is no autoencoder.pt in {work}; train one first.")
    half = {k: v.half().contiguous() for k, v in autoencoder["model"].items()}
    save_file(half, weights / "autoencoder.safetensors", how(autoencoder, "train_autoencoder"))
    curves = {"autoencoder": autoencoder["log"]}
    state = files.load(work / "unet.pt")
    if state is not None:
        unet, rows = averaged_unet(state)
        save_file(checkpoint.pack(unet), weights / "unet.safetensors", how(state, "train_unet"))
        assert rows.shape == TextRows().trained.shape
        save_file(
            {"trained": rows.half().contiguous()}, weights / "text_rows.safetensors", how(state, "train_unet")
        )
        curves["unet"] = state["log"]
    write_curves(weights / "curves", ["step", "seconds", "loss", "look"], curves)


def write_curves(path: Path, columns: list[str], curves: dict[str, list]) -> None:
    """The log of every training as <path>.json, their losses side by side as <path>.png."""
    text = json.dumps({"columns": columns, **curves}) + "\n"
    path.with_suffix(".json").write_text(text, encoding="utf-8")
    losses = {name: [entry[2] for entry in log] for name, log in curves.items()}
    drawn = [draw_curve(values, f"{name}, by {curves[name][0][0]} steps") for name, values in losses.items()]
    pixels = (torch.cat(drawn, 2)[0] * 255).round().byte().numpy()
    Image.fromarray(pixels).save(path.with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    ship(parser.parse_args().work)
