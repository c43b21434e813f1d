"""Latents of the drawn scenes, made once for each autoencoder: trainings then need no autoencoder.

    python -m inlay.lab.models.latents --work DIR --channels 4

Writes DIR/latents4/00000.safetensors ... beside the shards of scenes: `latent` (n, C, 16, 16), `masked` (n,
2, C, 16, 16) of the picture with a grey hole, and for 16 channels `photo` (n, 2, 16, 8, 8), all float16;
`hole` (n, 2, 16, 16) uint8 on the latent grid, `pixels` (n, 2, 2048) uint8, the same hole in pixels, packed,
and `look` (n, 16, 16, 16) float16, what a latent cell shows: colours and the subject's mask, each 2 x 2.
"""

import argparse
import multiprocessing
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from .. import scenes
from . import autoencoders, runs, scene_data

SNAPPED = 0.6  # share of the holes that are grown to the latent grid, as the nodes do


@torch.no_grad()
def encode(model, images: Tensor) -> Tensor:
    """Latents (B, C, h, w) of pictures (B, 3, H, W) in [0, 1], in bfloat16 arithmetic."""
    with runs.half_precision():
        parts = [
            model.taesd_encoder(p.to(runs.device()).contiguous(memory_format=torch.channels_last)).cpu()
            for p in images.split(16)
        ]
    return torch.cat(parts).float()


def look(images: Tensor, seen: Tensor) -> Tensor:
    """What a latent cell shows, (n, 16, H / 8, W / 8): colours in [-1, 1] and the subject, each 2 x 2."""
    colours = F.interpolate(images * 2 - 1, size=seen.shape[-1], mode="area")
    return F.pixel_unshuffle(torch.cat([colours, seen[:, None]], 1), 2)


def snapped(hole: Tensor) -> Tensor:
    """A hole (..., 1, H, W) grown to whole latent cells."""
    return F.interpolate(F.max_pool2d(hole, 8), scale_factor=8, mode="nearest")


def shard(model, path: Path, channels: int, seed: int = 0) -> dict[str, Tensor]:
    """The latents of one shard of scenes."""
    data = scene_data.load(path, "image", "seen", "hole", "photo")
    image = data["image"].permute(0, 3, 1, 2).float() / 255
    holes = scene_data.unpacked(data["hole"])
    rng = np.random.default_rng([seed, int(path.stem)])
    grid = torch.from_numpy(rng.random(holes.shape[:2]) < SNAPPED)[..., None, None, None]
    holes = torch.where(grid, snapped(holes.flatten(0, 1)).view_as(holes), holes)
    masked = [encode(model, torch.where(holes[:, i] > 0.5, 0.5, image)) for i in range(scene_data.HOLES)]
    cells = F.interpolate(holes[:, :, 0], size=scenes.SIZE // 8, mode="nearest-exact")
    tensors = {
        "latent": encode(model, image).half(),
        "masked": torch.stack(masked, 1).half(),
        "hole": cells.to(torch.uint8),
        "pixels": torch.from_numpy(np.packbits(holes.numpy().astype(bool).reshape(*holes.shape[:2], -1), -1)),
        "look": look(image, data["seen"].float() / 255).half(),
    }
    if channels == 16:
        photos = data["photo"].permute(0, 1, 4, 2, 3).float() / 255
        tensors["photo"] = encode(model, photos.flatten(0, 1)).view(*photos.shape[:2], 16, 8, 8).half()
    return {name: value.contiguous() for name, value in tensors.items()}


def encode_shard(path: Path, work: Path, channels: int) -> None:
    """Encode one shard of scenes if it has no latents yet."""
    out = work / f"latents{channels}" / path.name
    if out.exists():
        return
    torch.set_num_threads(1)
    unfinished = out.with_suffix(".partial")
    model = autoencoders.trained_autoencoder(work, channels).to(runs.device())
    save_file(shard(model, path, channels), unfinished)
    os.replace(unfinished, out)
    print(out, flush=True)


def encode_all(work: Path, channels: int, limit: int | None = None, processes: int = 2) -> None:
    """Encode the first `limit` shards of scenes (None: all) that have no latents yet."""
    (work / f"latents{channels}").mkdir(exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        encode = partial(encode_shard, work=work, channels=channels)
        for _ in pool.imap_unordered(encode, scene_data.shards(work)[:limit], chunksize=1):
            pass


class Latents:
    """The latents that exist so far, with the captions of their scenes."""

    def __init__(self, work: Path, channels: int, least: int = 3):
        self.work, self.channels = work, channels
        self.loaded: dict[str, dict[str, Tensor]] = {}
        self.things: list[list[dict[str, str]]] = []
        while len(self.paths()) < least:
            time.sleep(10)
        self.refresh()

    def paths(self) -> list[Path]:
        return sorted((self.work / f"latents{self.channels}").glob("*.safetensors"))

    def refresh(self) -> None:
        """Load shards that were written since the last call."""
        names = ["latent", "masked", "hole", "pixels", "look"] + (["photo"] if self.channels == 16 else [])
        new = [path for path in self.paths() if path.name not in self.loaded]
        for path in new:
            scene = self.work / "scenes" / path.name
            self.loaded[path.name] = {**scene_data.load(path, *names), **scene_data.load(scene, "content")}
            self.things += scene_data.things(scene)
        if new:
            names.append("content")
            self.tensors = {n: torch.cat([part[n] for part in self.loaded.values()]) for n in names}

    def __len__(self) -> int:
        return len(self.things)

    def pick(self, rng: np.random.Generator, count: int, subject: float = 0.5) -> tuple[Tensor, Tensor]:
        """Indices of scenes and of their holes; `subject` is the share of holes about the subject."""
        scene = torch.from_numpy(rng.integers(len(self), size=count))
        hole = torch.from_numpy((rng.random(count) >= subject).astype(np.int64))
        return scene, hole


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--channels", type=int, choices=(4, 16), required=True)
    parser.add_argument("--limit", type=int, help="shards of scenes (default: all)")
    a = parser.parse_args()
    state = runs.load(a.work / f"autoencoder{a.channels}.pt")
    assert state, "Train the autoencoder first."
    encode_all(a.work, a.channels, a.limit)


if __name__ == "__main__":
    main()
