"""Pictures of many scenes, drawn once: every training then reads them from disk.

    python -m inlay.lab.models.scene_data --work DIR --scenes 16384 --seed 1

Writes shards DIR/scenes/00000.safetensors ...; a shard that exists is kept, so a run that was stopped goes
on. A shard of n scenes holds `image` (n, 128, 128, 3) uint8, `seen` (n, 32, 32) uint8 (share of the subject,
255 = all), `hole` (n, 2, 2048) uint8 (two masks of 128 x 128 bits), `content` (n, 2) int64 and `photo` (n,
2, 64, 64, 3) uint8 (the subject alone in other rooms, from other sides). The metadata `things` has the words
of each scene's things as JSON.
"""

import argparse
import json
import multiprocessing
import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from .. import scenes

SHARD = 512
HOLES = 2
PHOTO = 64  # pixels a side of a photo of the subject
EMPTY, UNCLEAR = -1, -2  # contents of a hole that are not the index of a thing
WORDS = ("kind", "colour", "pattern", "accessory")


def grown(rng: np.random.Generator, box, share: float) -> tuple[int, int, int, int]:
    """A box with each side moved outwards by up to `share` of its length, within the picture."""
    top, left, bottom, right = box
    more = rng.uniform(0, share, 4) * [bottom - top, right - left, bottom - top, right - left]
    top, left = max(int(top - more[0]), 0), max(int(left - more[1]), 0)
    return (
        top,
        left,
        min(int(bottom + more[2] + 0.99), scenes.SIZE),
        min(int(right + more[3] + 0.99), scenes.SIZE),
    )


def filled(box) -> np.ndarray:
    mask = np.zeros((scenes.SIZE, scenes.SIZE), bool)
    mask[box[0] : box[2], box[1] : box[3]] = True
    return mask


def dilated(mask: np.ndarray, reach: int) -> np.ndarray:
    """A mask grown by `reach` pixels in all directions (a square)."""
    pooled = torch.nn.functional.max_pool2d(torch.from_numpy(mask)[None].float(), 2 * reach + 1, 1, reach)
    return pooled[0].numpy() > 0.5


def object_hole(rng: np.random.Generator, picture: scenes.Picture, index: int) -> np.ndarray:
    """A hole about one thing: its box with its shadow (most often), its tight box, or its outline."""
    kind, mask = rng.random(), picture.masks[index]
    if kind < 0.72:
        return filled(grown(rng, picture.reach(index), 0.20))
    if kind < 0.88:
        return filled(grown(rng, scenes.bounds(mask > 0.5), 0.30))
    return dilated(mask > 0.5, int(rng.integers(1, 8)))


def random_hole(rng: np.random.Generator, picture: scenes.Picture) -> tuple[np.ndarray, int]:
    """A rectangle anywhere, and its content: four of ten hold nothing, some others a whole thing."""
    empty = rng.random() < 0.40
    areas = [max(float(mask.sum()), 1.0) for mask in picture.masks]
    for _ in range(60):
        height, width = rng.integers(24, 72, 2) if empty else rng.integers(36, 92, 2)
        top, left = rng.integers(0, scenes.SIZE - height + 1), rng.integers(0, scenes.SIZE - width + 1)
        hole = filled((top, left, top + height, left + width))
        shares = [float((mask * hole).sum()) / area for mask, area in zip(picture.masks, areas, strict=True)]
        if empty and max(shares) < 0.02:
            return hole, EMPTY
        if not empty and max(shares) > 0.10:
            whole = [i for i, share in enumerate(shares) if share > 0.75]
            partly = [i for i, share in enumerate(shares) if 0.10 < share <= 0.75]
            return hole, whole[0] if len(whole) == 1 and not partly else UNCLEAR
    return object_hole(rng, picture, 0), 0


def sample_holes(rng: np.random.Generator, picture: scenes.Picture) -> tuple[list[np.ndarray], list[int]]:
    """Two holes: one about the subject; one anywhere, about another thing, or the whole picture."""
    kind, others = (
        rng.random(),
        [i for i in range(1, len(picture.masks)) if (picture.masks[i] > 0.5).sum() > 150],
    )
    if kind < 0.55:
        hole, content = random_hole(rng, picture)
    elif kind < 0.85:
        content = others[int(rng.integers(len(others)))] if others else 0
        hole = object_hole(rng, picture, content)
    else:
        hole, content = np.ones((scenes.SIZE, scenes.SIZE), bool), 0
    return [object_hole(rng, picture, 0), hole], [0, content]


def photo(rng: np.random.Generator, thing: scenes.Thing, size: int = PHOTO) -> np.ndarray:
    """The thing alone in a room of its own, from any side, filling the picture: (size, size, 3) uint8."""
    scene = scenes.sample_scene(rng, subject=thing, others=0, scale=(0.62, 0.72))
    return scenes.render(scene, size).image


def draw_shard(index: int, seed: int) -> tuple[dict[str, np.ndarray], list]:
    """The arrays of a shard, and the words of its scenes' things."""
    rng = np.random.default_rng([seed, index])
    rows: dict[str, list] = {name: [] for name in ("image", "seen", "hole", "content", "photo")}
    words = []
    while len(words) < SHARD:
        scene = scenes.sample_scene(rng)
        picture = scenes.render(scene)
        if picture.box is None:
            continue
        holes, content = sample_holes(rng, picture)
        assert scene.subject
        side = scenes.SIZE // 32
        seen = picture.mask.reshape(32, side, 32, side).mean((1, 3))
        rows["image"].append(picture.image)
        rows["seen"].append((seen * 255 + 0.5).astype(np.uint8))
        rows["hole"].append(np.stack([np.packbits(hole) for hole in holes]))
        rows["content"].append(np.array(content))
        rows["photo"].append(np.stack([photo(rng, scene.subject) for _ in range(2)]))
        words.append([{name: getattr(thing, name) for name in WORDS} for thing in scene.things])
    return {name: np.stack(values) for name, values in rows.items()}, words


def write_shard(index: int, folder: Path, seed: int) -> None:
    path = folder / f"{index:05d}.safetensors"
    if path.exists():
        return
    arrays, words = draw_shard(index, seed)
    partial_path = path.with_suffix(".partial")
    save_file(arrays, partial_path, metadata={"things": json.dumps(words)})
    os.replace(partial_path, path)
    print(path.name, flush=True)


def draw(work: Path, count: int, seed: int, processes: int | None = None) -> None:
    """Draw all shards of `count` scenes that do not exist yet; by default with a process for each core."""
    folder = work / "scenes"
    folder.mkdir(parents=True, exist_ok=True)
    indices = [i for i in range(-(-count // SHARD)) if not (folder / f"{i:05d}.safetensors").exists()]
    if indices:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            for _ in pool.imap_unordered(
                partial(write_shard, folder=folder, seed=seed), indices, chunksize=1
            ):
                pass


def unpacked(holes: torch.Tensor) -> torch.Tensor:
    """Packed masks (..., 2048) uint8 as float (..., 1, 128, 128)."""
    bits = np.unpackbits(holes.numpy(), axis=-1)
    return torch.from_numpy(bits).view(*holes.shape[:-1], 1, scenes.SIZE, scenes.SIZE).float()


def load(path: Path, *names: str) -> dict[str, torch.Tensor]:
    """The named arrays of a shard."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in names}


def things(path: Path) -> list[list[dict[str, str]]]:
    """The words of every scene's things, the subject first."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["things"])


def shards(work: Path) -> list[Path]:
    return sorted((work / "scenes").glob("*.safetensors"))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=16384)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    draw(a.work, a.scenes, a.seed)


if __name__ == "__main__":
    main()
