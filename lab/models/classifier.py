"""The classifier that scores pictures of the tiny world: what is this, and is it the same object?

    python -m inlay.lab.models.classifier --work DIR

A small convolutional network, trained on renderings alone. Its unit-norm embedding is an image encoder (two
renderings of one thing lie close, whatever room, side and light); linear heads on it give class ("nothing"
for an empty crop), colour, pattern, accessory and trim, and which emblems are seen. The renderings it learns
from are drawn once, DIR/portraits. After the last step it is measured on fresh ones (DIR/classifier.json).
"""

import argparse
import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...imaging.boxes import Box
from ...imaging.object_picture import square_crop, subject_crops
from .. import scenes
from ..scenes import shapes
from . import quantised, runs
from .files import WEIGHTS

SIZE = 64  # pixels a side of the crop
MARGIN = 0.05
NOTHING = "nothing"
NAMES: dict[str, tuple[str, ...]] = {
    "kind": (*scenes.CLASSES, NOTHING),
    "colour": tuple(scenes.COLOURS),
    "pattern": scenes.PATTERNS,
    "accessory": scenes.ACCESSORIES,
    "trim": tuple(scenes.TRIMS),
}
POSE = ("x", "z", "scale", "yaw")
GROUP, VIEWS, SHARD = 4, 2, 32  # things that differ in one respect, pictures of each, groups in a file
GROUPS, BATCH, STEPS, RATE = 1280, 12, 4000, 3e-3
TEMPERATURE = 0.1


@dataclass(frozen=True)
class Verdict:
    """What is seen in one crop."""

    kind: str
    colour: str
    pattern: str
    accessory: str
    trim: str
    emblems: tuple[str, ...]


def _stage(channels: int, wider: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, wider, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(wider), nn.ReLU(inplace=True))


class SceneClassifier(nn.Module):
    """Crops (B, 3, 64, 64) in [0, 1] to unit-norm embeddings (B, 128); other sizes are resized."""

    name = "tiny world's classifier"
    size = SIZE
    WIDTH = 128

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            _stage(3, 24, 5, 2), _stage(24, 48, 3, 1), _stage(48, 96, 3, 2), _stage(96, 96, 3, 1),
            _stage(96, 128, 3, 2), _stage(128, 128, 3, 1), _stage(128, 160, 3, 2),
        )  # fmt: skip
        self.embed = nn.Linear(2 * 160, self.WIDTH)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(self.WIDTH, len(names)) for name, names in NAMES.items()}
            | {"emblems": nn.Linear(2 * 160, len(shapes.EMBLEMS))}
        )
        # a unit vector alone cannot give a head large logits
        self.scale = nn.Parameter(torch.tensor(10.0))

    def features(self, crops: Tensor) -> Tensor:
        if crops.shape[-2:] != (SIZE, SIZE):
            crops = F.interpolate(crops, (SIZE, SIZE), mode="bilinear", antialias=True)
        seen = self.trunk(((crops - 0.5) * 4).contiguous(memory_format=torch.channels_last)).float()
        return torch.cat([seen.mean((2, 3)), seen.amax((2, 3))], 1)

    def embedding(self, features: Tensor) -> Tensor:
        return F.normalize(self.embed(features), dim=1)

    def forward(self, crops: Tensor) -> Tensor:
        return self.embedding(self.features(crops))

    def logits(self, features: Tensor) -> dict[str, Tensor]:
        """Of the names, and one logit for each emblem."""
        wide = self.scale * self.embedding(features)
        own = {name: self.heads[name](wide) for name in NAMES}
        return {**own, "emblems": self.heads["emblems"](features)}

    @torch.no_grad()
    def describe(self, images: Tensor, masks: Tensor) -> list[Verdict]:
        """What images (B, 3, H, W) in [0, 1] show under masks (B, H, W), a filled box or an outline."""
        logits = self.logits(self.features(subject_crops(images, masks, SIZE, MARGIN)))
        seen = logits.pop("emblems").sigmoid()
        best = {name: values.argmax(1).tolist() for name, values in logits.items()}
        return [
            Verdict(
                **{name: NAMES[name][indices[i]] for name, indices in best.items()},
                emblems=tuple(e for e, p in zip(shapes.EMBLEMS, seen[i].tolist(), strict=True) if p > 0.5),
            )
            for i in range(len(images))
        ]


def trained_classifier(work: Path | None) -> SceneClassifier:
    """The classifier trained in `work`, its running mean, without gradients; else the shipped one."""
    classifier = SceneClassifier()
    if work and (work / "classifier.pt").exists():
        fit = runs.Fit(work / "classifier.pt", {"classifier": classifier}, STEPS, RATE, average=0.99)
        with runs.Averaged(fit):
            state = {name: value.clone() for name, value in classifier.state_dict().items()}
    else:
        state = quantised.load(WEIGHTS / "classifier.safetensors")
    classifier.load_state_dict(state)
    return classifier.cpu().eval().requires_grad_(False)


def sample_group(rng: np.random.Generator) -> list[scenes.Thing]:
    """A thing and relatives of it, each with one field drawn anew."""
    base = scenes.sample_thing(rng)
    names = [f.name for f in fields(base) if f.name not in (*POSE, "emblem_colour")]
    relatives = [base]
    while len(relatives) < GROUP:
        name = names[int(rng.integers(len(names)))]
        keep = {other: getattr(base, other) for other in names if other != name}
        if name in ("kind", "colour", "pattern"):  # what else has to change with it is drawn anew too
            for other in ("emblems", "trim"):
                keep.pop(other)
        relatives.append(scenes.sample_thing(rng, **keep))
    return relatives


def visible_emblems(thing: scenes.Thing) -> list[float]:
    """1 for each emblem on a side that is turned towards the camera, else 0."""
    seen = [0.0] * len(shapes.EMBLEMS)
    towards = np.arctan2(-thing.x, 4.0 - thing.z) - thing.yaw
    for side, name in enumerate(thing.emblems):
        facing = np.cos(2 * np.pi * side / len(thing.emblems) - towards) > 0.4
        if facing and name and side != shapes.BARE.get(thing.kind):
            seen[shapes.EMBLEMS.index(name)] = 1.0
    return seen


def portrait(rng: np.random.Generator, thing: scenes.Thing) -> tuple[scenes.Picture, scenes.Thing]:
    """The thing in a scene of its own, and the thing with its pose; at least some pixels of it show."""
    while True:
        scene = scenes.sample_scene(rng, subject=thing, scale=(0.30, 0.72))
        picture = scenes.render(scene)
        if picture.box and scene.subject:
            return picture, scene.subject


def draw_portraits(folder: Path, groups: int, seed: int) -> None:
    """Write shards of SHARD groups of GROUP things with VIEWS pictures each; the ones that exist are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(-(-groups // SHARD)):
        path = folder / f"{index:04d}.npz"
        if path.exists():
            continue
        rng = np.random.default_rng([seed, 77, index])
        things = [thing for _ in range(SHARD) for thing in sample_group(rng)]
        drawn = [portrait(rng, thing) for thing in things for _ in range(VIEWS)]
        partial = path.with_suffix(".partial.npz")
        np.savez(
            partial,
            image=np.stack([p.image for p, _ in drawn]),
            mask=np.stack([p.mask > 0.5 for p, _ in drawn]),
            anything=np.stack([np.maximum.reduce(p.masks) > 0.02 for p, _ in drawn]),
            box=np.array([p.box for p, _ in drawn]),
            label=np.array([[NAMES[name].index(getattr(t, name)) for name in NAMES] for _, t in drawn]),
            emblems=np.array([visible_emblems(t) for _, t in drawn], np.float32),
        )
        os.replace(partial, path)
        print(path.name, flush=True)


def load_portraits(folder: Path) -> dict[str, np.ndarray]:
    files = [path for path in sorted(folder.glob("[0-9]*.npz")) if ".partial" not in path.name]
    shards = [dict(np.load(path)) for path in files]
    return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}


def jittered_crop(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, box: np.ndarray) -> Tensor:
    """A subject as it is shown to the classifier: in the box that it and its shadow take, or its outline.

    Of 120 drawn scenes, that box reaches 0 to .5 of the subject's height below it, and on the lit side 0 to
    .2 and on the other 0 to 2.3 of its width beside it.
    """
    picture = torch.from_numpy(image).permute(2, 0, 1) / 255
    if rng.random() < 0.3:
        near, shown = Box(*box.tolist()), torch.from_numpy(mask)
    else:
        size = np.tile(box[2:] - box[:2], 2)
        shadow = 2.3 * rng.random() ** 2
        beside = rng.permutation([shadow, rng.uniform(-0.03, 0.2)])
        grow = np.array([rng.uniform(-0.03, 0.1), beside[0], rng.uniform(-0.03, 0.55), beside[1]])
        grown = box + (grow * size * [-1, -1, 1, 1]).round().astype(int)
        near = Box(*grown.tolist()).clamp(*mask.shape)
        shown = torch.zeros(mask.shape, dtype=torch.bool)
        rows, columns = near.slices
        shown[rows, columns] = True
    return square_crop(torch.where(shown, picture, 0.5), near, SIZE, MARGIN)


def empty_crop(rng: np.random.Generator, image: np.ndarray, anything: np.ndarray) -> Tensor | None:
    """A box that holds no thing; None if none was found."""
    for _ in range(20):
        height, width = rng.integers(28, 80, 2)
        top, left = rng.integers(0, scenes.SIZE - height), rng.integers(0, scenes.SIZE - width)
        if not anything[top : top + height, left : left + width].any():
            box = np.array([top, left, top + height, left + width])
            shown = np.zeros(anything.shape, bool)
            shown[top : top + height, left : left + width] = True
            picture = torch.where(
                torch.from_numpy(shown), torch.from_numpy(image).permute(2, 0, 1) / 255, 0.5
            )
            return square_crop(picture, Box(*box.tolist()), SIZE, MARGIN)
    return None


def softened(crops: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the crops blurred to as little as a quarter of the resolution, all with a little noise."""
    count = len(crops)
    coarse = int(torch.randint(SIZE // 4, SIZE, (), generator=generator))
    small = F.interpolate(crops, (coarse, coarse), mode="bilinear", antialias=True)
    soft = F.interpolate(small, (SIZE, SIZE), mode="bicubic")
    share = (2 * torch.rand(count, 1, 1, 1, generator=generator) - 1).clamp(min=0)
    strength = 0.04 * torch.rand(count, 1, 1, 1, generator=generator)
    return (torch.lerp(crops, soft, share) + strength * torch.randn(crops.shape, generator=generator)).clamp(
        0, 1
    )


def contrast(embedding: Tensor) -> Tensor:
    """InfoNCE (van den Oord et al. 2018, eq. 4), both ways; rows 2k and 2k + 1 of (2n, D) show one thing."""
    first, second = embedding[0::2], embedding[1::2]
    likeness = first @ second.T / TEMPERATURE
    same = torch.arange(len(first), device=first.device)
    return (F.cross_entropy(likeness, same) + F.cross_entropy(likeness.T, same)) / 2


class Training:
    """The classifier, its portraits and its loss at any step."""

    def __init__(self, work: Path, steps: int = STEPS, seed: int = 0):
        self.seed = seed
        self.classifier: Any = SceneClassifier()
        self.classifier.to(memory_format=torch.channels_last)
        modules = {"classifier": self.classifier}
        self.fit = runs.Fit(work / "classifier.pt", modules, steps, RATE, average=0.99, decay=0.02)
        self.data: dict[str, np.ndarray] = load_portraits(work / "portraits")

    def loss_at(self, step: int) -> tuple[Tensor, dict[str, float]]:
        rng, generator = runs.draws(self.seed, step)
        self.classifier.train()
        data, each = self.data, GROUP * VIEWS
        picked = rng.choice(len(data["image"]) // each, BATCH, replace=False)
        rows = (picked[:, None] * each + np.arange(each)).ravel()
        crops = [jittered_crop(rng, data["image"][i], data["mask"][i], data["box"][i]) for i in rows]
        empty = [empty_crop(rng, data["image"][i], data["anything"][i]) for i in rows[::8]]
        nothing = [crop for crop in empty if crop is not None]
        given = softened(torch.stack([*crops, *nothing]), generator).to(runs.device())
        with runs.half_precision():
            features = self.classifier.features(given)
        logits, count = self.classifier.logits(features), len(crops)
        wanted = torch.from_numpy(data["label"][rows]).to(given.device)
        kind = torch.cat([wanted[:, 0], wanted.new_full((len(nothing),), len(scenes.CLASSES))])
        losses = {"kind": F.cross_entropy(logits["kind"], kind)}
        for column, name in enumerate(NAMES):
            if name != "kind":
                losses[name] = F.cross_entropy(logits[name][:count], wanted[:, column])
        seen = torch.from_numpy(data["emblems"][rows]).to(given.device)
        losses["emblems"] = 3 * F.binary_cross_entropy_with_logits(logits["emblems"][:count], seen)
        losses["contrast"] = 0.5 * contrast(self.classifier.embedding(features[:count]))
        return torch.stack(list(losses.values())).sum(), {name: v.item() for name, v in losses.items()}


@torch.no_grad()
def measure(classifier: SceneClassifier, things: int = 600, seed: int = 10_000) -> dict[str, float]:
    """Share of right names on 2 * `things` fresh renderings, cropped as in training.

    `same` is the mean cosine of two pictures of one thing, `other` of two of different things, and `found`
    the share of pictures whose nearest among all the second pictures is of the same thing.
    """
    rng = np.random.default_rng([seed, 99])
    drawn = [
        portrait(rng, t) for t in (scenes.sample_thing(rng) for _ in range(things)) for _ in range(VIEWS)
    ]
    crops = torch.stack([jittered_crop(rng, p.image, p.mask > 0.5, np.array(p.box)) for p, _ in drawn])
    features = torch.cat([classifier.features(part) for part in crops.split(256)])
    logits = classifier.logits(features)
    numbers: dict[str, float] = {"pictures": len(drawn)}
    for name in NAMES:
        wanted = torch.tensor([NAMES[name].index(getattr(thing, name)) for _, thing in drawn])
        numbers[name] = float((logits[name].argmax(1) == wanted).float().mean())
    seen = torch.tensor([visible_emblems(thing) for _, thing in drawn])
    told = (logits["emblems"] > 0).float()
    numbers["emblems recall"] = float((told * seen).sum() / seen.sum())
    numbers["emblems precision"] = float((told * seen).sum() / told.sum().clamp(min=1))
    embedding = classifier.embedding(features)
    likeness = embedding[0::2] @ embedding[1::2].T
    same = likeness.diagonal()
    numbers["same"] = float(same.mean())
    numbers["other"] = float((likeness.sum() - same.sum()) / (things * (things - 1)))
    numbers["found"] = float((likeness.argmax(1) == torch.arange(things)).float().mean())
    return {name: round(value, 4) for name, value in numbers.items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--groups", type=int, default=GROUPS)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    draw_portraits(a.work / "portraits", a.groups, a.seed)
    training = Training(a.work, a.steps, a.seed)
    training.fit.run(training.loss_at)
    numbers = measure(trained_classifier(a.work))
    (a.work / "classifier.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
