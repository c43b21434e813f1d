"""The losses of trainings, as numbers and as pictures."""

import json
from pathlib import Path

import torch
from PIL import Image

from ...training.finetune.progress import draw_curve


def write_curves(path: Path, columns: list[str], curves: dict[str, list]) -> None:
    """The log of every training as <path>.json, their losses side by side as <path>.png."""
    text = json.dumps({"columns": columns, **curves}) + "\n"
    path.with_suffix(".json").write_text(text, encoding="utf-8")
    losses = {name: [entry[2] for entry in log] for name, log in curves.items()}
    drawn = [draw_curve(values, f"{name}, by {curves[name][0][0]} steps") for name, values in losses.items()]
    pixels = (torch.cat(drawn, 2)[0] * 255).round().byte().numpy()
    Image.fromarray(pixels).save(path.with_suffix(".png"), optimize=True)
