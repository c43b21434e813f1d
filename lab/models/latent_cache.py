"""Latents of many scenes, made once: training the UNet then needs neither renderer nor autoencoder.

    python -m inlay.lab.models.latent_cache --work DIR --scenes 6144 --seed 1

Writes shards DIR/bank/00000.safetensors ...; an existing shard is kept, so a killed run goes on where it was.
The encoder is the one trained in DIR, else the shipped one.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from .. import world
from . import files
from .checkpoint import shipped_parts
from .train_autoencoder import new_autoencoder

SHARD = 512
SIZE = world.SIZE


def sample_hole(rng: np.random.Generator, picture: world.Picture) -> np.ndarray:
    """A mask (96, 96), 1 = to paint. Mostly the subject's box with some room; sometimes its blurred outline;
    sometimes a place where the subject is not: inpainting models are trained on such holes too, and learn
    that the words may speak of what is already there."""
    mask = np.zeros((SIZE, SIZE), np.float32)
    kind = rng.random()
    box = np.array(picture.box)  # top, left, bottom, right
    height, width = box[2:] - box[:2]
    if kind < 0.72:
        grow = (rng.uniform(0, 0.30, 4) * [height, width, height, width]).round().astype(int)
        top, left, bottom, right = box + grow * [-1, -1, 1, 1]
        mask[max(top, 0) : bottom, max(left, 0) : right] = 1
    elif kind < 0.82:
        reach = int(rng.integers(1, 7)) * 2 + 1
        grown = F.max_pool2d(torch.from_numpy(picture.mask)[None, None], reach, 1, reach // 2)
        mask[grown[0, 0].numpy() > 0.5] = 1
    elif kind < 0.90:
        mask[:] = 1
    else:
        height, width = rng.integers(30, 66, 2)
        top, left = rng.integers(0, SIZE - height + 1), rng.integers(0, SIZE - width + 1)
        mask[top : top + height, left : left + width] = 1
        if (mask * picture.mask).sum() > 0.25 * picture.mask.sum():
            mask[:] = 0
            mask[box[0] : box[2], box[1] : box[3]] = 1
    return mask


@torch.no_grad()
def shard(encoder, rng: np.random.Generator, holes: int = 2) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """512 scenes, each with `holes` masks, and the words for their subjects.

    `latent` (n,4,12,12), `look` (n,16,12,12), `hole` (n*holes,1,12,12) and `masked` (n*holes,4,12,12).
    """
    pictures, subjects = [], []
    while len(pictures) < SHARD:
        scene = world.sample_scene(rng)
        picture = world.render(scene)
        if picture.box:
            pictures.append(picture)
            subjects.append(scene.subject)
    image = torch.from_numpy(np.stack([p.image for p in pictures])).permute(0, 3, 1, 2).float() / 255
    hole = torch.from_numpy(np.stack([sample_hole(rng, p) for p in pictures for _ in range(holes)]))[:, None]
    repeated = image.repeat_interleave(holes, 0)
    masked = torch.where(hole > 0.5, 0.5, repeated)
    tensors = {
        "latent": encode(encoder, image).half(),
        "look": look(image, torch.from_numpy(np.stack([p.mask for p in pictures]))).half(),
        "masked": encode(encoder, masked).half(),
        "hole": F.interpolate(hole, size=(SIZE // 8, SIZE // 8), mode="nearest-exact").half(),
    }
    words = [{k: getattr(s, k) for k in ("kind", "colour", "pattern", "accessory")} for s in subjects]
    return {k: v.contiguous() for k, v in tensors.items()}, words


def look(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """What a latent cell shows, (n,16,H/8,W/8): colours in [-1, 1] and the subject's mask, each 2 x 2."""
    shown = torch.cat([images * 2 - 1, masks[:, None].float()], 1)
    return F.pixel_unshuffle(F.interpolate(shown, size=images.shape[-1] // 4, mode="area"), 2)


def encode(encoder, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([encoder(part.to(memory_format=torch.channels_last)) for part in images.split(64)])


def load_shard(path: Path) -> tuple[dict[str, torch.Tensor], list[dict]]:
    with safe_open(path, "pt") as file:
        return {k: file.get_tensor(k) for k in ("latent", "look", "masked", "hole")}, json.loads(
            file.metadata()["words"]
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=6144)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    model = new_autoencoder()
    state = files.load(arguments.work / "autoencoder.pt")
    model.load_state_dict(state["model"] if state else shipped_parts()["autoencoder"])
    folder = arguments.work / "bank"
    folder.mkdir(exist_ok=True)
    for index in range(-(-arguments.scenes // SHARD)):
        path = folder / f"{index:05d}.safetensors"
        if path.exists():
            continue
        tensors, words = shard(model.taesd_encoder, np.random.default_rng([arguments.seed, index]))
        partial = path.with_suffix(".partial")
        save_file(tensors, partial, metadata={"words": json.dumps(words)})
        os.replace(partial, path)
        print(path.name, flush=True)


if __name__ == "__main__":
    main()
