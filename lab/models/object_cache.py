"""Examples for learning to insert an object from one picture: rendered, encoded and kept on disk.

    python -m inlay.lab.models.object_cache KIND --work DIR --shards 24

KIND is objects (on black, and nothing else), views (an object, and another look of it), compositions (an
object, and the hole it stands in), insertions (an object, a scene without it and with it) or same_view (as
compositions, but the object always comes from the very picture that holds it). Shards hold 512 examples
each, encoded by the shipped autoencoder; those that are there already are kept. Every example has its
caption, which no node ever sees.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...imaging.mask_levels import MASK_LEVELS, mask_level
from ...imaging.object_picture import subject_picture
from ...imaging.perturb import Perturbation, perturb
from .. import scenes
from ..scenes.render import Camera
from ..scenes.scene import row_of
from . import autoencoders
from .assemble import SD_SCALE
from .latents import encode, look, snapped
from .text_encoder import token_ids

SHARD = 512
SEEN = 84  # pixels a side of the object as the encoder sees it: 6 x 6 patches of 14
VIEW = 80  # pixels a side of a view that is asked for: things in it are as large as in scenes
MARGIN = 0.1
COVERED = 0.05  # of another thing, at most, where a place counts as free
DEPTH = (0.2, 0.05)  # of a thing in a gap: mean and standard deviation
SMALLEST, LARGEST = 0.35, 0.62  # scales of a thing in a gap, as shares of the picture
JITTER = 0.015  # standard deviation of its place, in shares of the picture
# object (84, 84, 3), pictures target and beside (S, S, 3); mask of the object in the target and hole (S, S)
Example = dict[str, Tensor]


def to_tensors(picture: scenes.Picture) -> tuple[Tensor, Tensor]:
    """Image (1, H, W, 3) in [0, 1] and mask of the subject (1, H, W)."""
    return torch.from_numpy(picture.image).float()[None] / 255, torch.from_numpy(picture.mask).float()[None]


def another_look(rng: np.random.Generator, thing: scenes.Thing) -> tuple[Tensor, Tensor]:
    """The thing large in a room of its own: another side, another light."""
    scene = scenes.sample_scene(rng, subject=thing, others=0, scale=(0.55, 0.72))
    return to_tensors(scenes.render(scene))


def shown(image: Tensor, mask: Tensor) -> Tensor:
    return subject_picture(image, mask, SEEN, "black", MARGIN)[0]


def objects(rng: np.random.Generator) -> Example:
    thing = scenes.sample_thing(rng)
    return {"object": shown(*another_look(rng, thing)), "caption": words_of(thing)}


def views(rng: np.random.Generator) -> Example:
    thing = scenes.sample_thing(rng)
    given, (image, mask) = another_look(rng, thing), another_look(rng, thing)
    white = torch.ones_like(image)
    target, outline = (subject_picture(x, mask, VIEW, "black", MARGIN)[0] for x in (image, white))
    return {"object": shown(*given), "target": target, "mask": outline[..., 0], "caption": words_of(thing)}


def compositions(rng: np.random.Generator) -> Example:
    """Half of the objects come from another picture, half from this one, turned and in another light."""
    return composition(rng, another=0.5)


def same_view(rng: np.random.Generator) -> Example:
    """All objects come from this picture, turned within it and in another light: nobody sees another side."""
    return composition(rng, another=0.0)


def composition(rng: np.random.Generator, another: float) -> Example:
    """An object in a hole, shown in `another` picture with that probability, else in this one."""
    scene = visible_scene(rng)
    assert scene.subject is not None
    image, mask = to_tensors(scenes.render(scene))
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    if rng.random() < another:
        given = another_look(rng, scene.subject)
    else:
        given = perturb(image, mask, generator, Perturbation(flip=0.0))
    hole = snapped(mask_level(mask, MASK_LEVELS[int(rng.integers(len(MASK_LEVELS)))])[None])[0]
    grey = (image - 0.5) * (1 - hole[..., None]) + 0.5
    return {
        "object": shown(*given), "target": image[0], "mask": mask[0], "beside": grey[0], "hole": hole[0],
        "caption": words_of(scene.subject),
    }  # fmt: skip


def insertions(rng: np.random.Generator) -> Example:
    """The subject stands in the middle of the widest gap, so that the picture shows where."""
    while (scene := in_gap(rng, visible_scene(rng))) is None or covered(scene) > COVERED:
        pass
    assert scene.subject is not None
    image, mask = to_tensors(scenes.render(scene))
    empty, _ = to_tensors(scenes.render(replace(scene, subject=None)))
    given = shown(*another_look(rng, scene.subject))
    words = words_of(scene.subject)
    return {"object": given, "target": image[0], "mask": mask[0], "beside": empty[0], "caption": words}


def words_of(thing: scenes.Thing) -> Tensor:
    """The ids (77,) of its caption."""
    return torch.tensor(token_ids(scenes.caption(thing)), dtype=torch.int32)


def outlines(scene: scenes.Scene) -> tuple[np.ndarray, np.ndarray]:
    """Where the subject is, and where the other things are, both (H, W) of booleans."""
    empty = np.zeros((scenes.SIZE, scenes.SIZE), bool)
    alone = scenes.render(replace(scene, others=())).mask > 0.5 if scene.subject else empty
    others = scenes.render(replace(scene, subject=None)).masks if scene.others else []
    return alone, np.any([empty, *(mask > 0.5 for mask in others)], 0)


def in_gap(rng: np.random.Generator, scene: scenes.Scene) -> scenes.Scene | None:
    """The scene with its subject in the middle of the widest gap, as large as fits; None for a narrow one.

    Nearer things hide others, so the subject stands before them, at about one depth.
    """
    subject, (_, others) = scene.subject, outlines(replace(scene, subject=None))
    if subject is None:
        return None
    free = np.flatnonzero(~others.any(0))
    left, right = max(_runs(free), key=lambda run: run[1] - run[0], default=(0, 0))
    z, share = float(rng.normal(*DEPTH)), min(LARGEST, 0.95 * (right - left) / scenes.SIZE)
    if share < SMALLEST:
        return None
    half, height = subject.extent
    camera = Camera(scene.room.camera_height, scenes.SIZE)
    near = camera.project((1.0, 0.0, z))[0] - 0.5  # share of the picture that a unit takes at that depth
    x = ((left + right) / 2 / scenes.SIZE + rng.normal(0, JITTER) - 0.5) / near
    size = share / near / max(height, 2 * half)
    while row_of(scene.room, height * size, z) < 0.02:
        size *= 0.95
    return replace(scene, subject=subject.posed(x=float(x), z=z, scale=float(size)))


def _runs(free: np.ndarray) -> list[tuple[int, int]]:
    """(first, past the last) of every run of neighbours in ascending numbers."""
    runs = np.split(free, np.flatnonzero(np.diff(free) > 1) + 1)
    return [(int(run[0]), int(run[-1]) + 1) for run in runs if len(run)]


def covered(scene: scenes.Scene) -> float:
    """The share of the other things that the subject's outline covers."""
    subject, others = outlines(scene)
    return float((subject & others).sum() / max(1, others.sum()))


def visible_scene(rng: np.random.Generator) -> scenes.Scene:
    """A scene whose subject is visible and large enough."""
    while True:
        scene = scenes.sample_scene(rng)
        box = scenes.render(scene).box
        if box and min(box[2] - box[0], box[3] - box[1]) >= 16:
            return scene


KINDS: dict[str, Callable[[np.random.Generator], Example]] = {
    "views": views, "compositions": compositions, "insertions": insertions, "objects": objects,
    "same_view": same_view,
}  # fmt: skip


@torch.no_grad()
def shard(kind: str, model, rng: np.random.Generator, count: int = SHARD) -> dict[str, Tensor]:
    """`object` (n, 84, 84, 3) bytes, `caption` (n, 77); but for objects `latent` (n, 4, h, w) and its `look`
    (n, 16, h, w); but for views `beside` (n, 4 or 5, h, w); h = w = 16, of views 10.

    beside is what the UNet reads next to the noisy latent: the hole and the latent around it, or the source's
    latent in InstructPix2Pix's scale, which is the autoencoder's without Stable Diffusion's factor.
    """
    examples = [KINDS[kind](rng) for _ in range(count)]

    def stack(name: str) -> Tensor:
        return torch.stack([example[name] for example in examples])

    tensors = {"object": (stack("object") * 255).round().byte(), "caption": stack("caption")}
    if kind != "objects":
        target = stack("target").movedim(-1, 1)
        seen = F.avg_pool2d(stack("mask")[:, None], 4)[:, 0]
        tensors |= {"latent": encode(model, target).half(), "look": look(target, seen).half()}
    if kind in ("compositions", "insertions", "same_view"):
        beside = encode(model, stack("beside").movedim(-1, 1))
        if kind == "insertions":
            beside = beside / SD_SCALE
        else:
            hole = F.interpolate(stack("hole")[:, None], beside.shape[-2:], mode="nearest-exact")
            beside = torch.cat([hole, beside], 1)
        tensors["beside"] = beside.half()
    return {name: value.contiguous() for name, value in tensors.items()}


class ObjectBank:
    """All shards of a kind in a folder, or their first `count` examples; batches are drawn evenly."""

    def __init__(self, folder: Path, kind: str, count: int | None = None):
        parts = [load_file(path) for path in sorted(folder.glob(f"{kind}-*.safetensors"))]
        if not parts:
            raise SystemExit(
                f"{folder} holds no {kind}; make them with"
                f" python -m inlay.lab.models.object_cache {kind} --work {folder.parent}."
            )
        self.tensors = {name: torch.cat([part[name] for part in parts])[:count] for name in parts[0]}

    def __len__(self) -> int:
        return len(self.tensors["object"])

    def batch(self, rng: np.random.Generator, count: int) -> dict[str, Tensor]:
        """Floating, objects in [0, 1]; captions as ids."""
        rows = torch.from_numpy(rng.integers(len(self), size=count))
        batch = {name: value[rows].float() for name, value in self.tensors.items()}
        return batch | {"object": batch["object"] / 255, "caption": self.tensors["caption"][rows].long()}


def fill(work: Path, kind: str, shards: int, seed: int) -> None:
    model, folder = autoencoders.trained_autoencoder(None, 4), work / "objects"
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(shards):
        path = folder / f"{kind}-{index:05d}.safetensors"
        if not path.exists():
            rng = np.random.default_rng([seed, index, list(KINDS).index(kind)])
            partial = path.with_suffix(".partial")
            save_file(shard(kind, model, rng), partial)
            os.replace(partial, path)
            print(path.name, flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    fill(arguments.work, arguments.kind, arguments.shards, arguments.seed)


if __name__ == "__main__":
    main()
