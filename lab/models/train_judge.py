"""Train the judge of the tiny world on renderings alone, and measure it on fresh ones.

    python -m inlay.lab.models.train_judge --work DIR --steps 2500 --seed 0 [--minutes 6] [--out FILE]

Renders a bank of pictures once (DIR/judge_bank, kept between runs), trains on jittered crops of them, saves
the state every minute and goes on from there when called again. After the last step it measures itself on
2400 fresh pictures and writes the weights as float16 with that record. Six minutes on two free cores.
"""

import argparse
import json
import math
import os
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ...imaging.boxes import Box
from ...imaging.object_picture import square_crop
from .. import world
from . import files
from .classifier import MARGIN, NAMES, SIZE, Judge, load_judge

GROUP = 4  # a thing and three that differ from it in one respect: what makes 'the same one' hard to tell
VIEWS = 2
SHARD = 64  # groups a file
TEMPERATURE = 0.1


def sample_group(rng: np.random.Generator) -> list[world.Thing]:
    """A thing and relatives of it, each with one field drawn anew."""
    base = world.sample_thing(rng)
    names = [f.name for f in fields(base) if f.name not in ("x", "y", "scale", "tilt", "mirrored")]
    relatives = [base]
    while len(relatives) < GROUP:
        name = names[int(rng.integers(len(names)))]
        # through sample_thing, which knows the trims that would hide in the new colour
        fresh = getattr(
            world.sample_thing(rng, colour=base.colour) if name == "trim" else world.sample_thing(rng), name
        )
        relatives.append(replace(base, **{name: fresh}))
    return relatives


def portrait(rng: np.random.Generator, thing: world.Thing) -> world.Picture:
    """The thing in a scene of its own, anywhere, lit anyhow; at least a few pixels of it show."""
    while True:
        picture = world.render(world.sample_scene(rng, subject=thing))
        if picture.box:
            return picture


def build_bank(folder: Path, groups: int, seed: int) -> None:
    """Write shards of SHARD groups x GROUP things x VIEWS pictures; the ones that exist are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(-(-groups // SHARD)):
        path = folder / f"{index:04d}.npz"
        if path.exists():
            continue
        rng = np.random.default_rng([seed, 77, index])
        things = [thing for _ in range(SHARD) for thing in sample_group(rng)]
        pictures = [portrait(rng, thing) for thing in things for _ in range(VIEWS)]
        partial = path.with_suffix(".partial.npz")
        np.savez(
            partial,
            image=np.stack([p.image for p in pictures]),
            mask=np.stack([p.mask > 0.5 for p in pictures]),
            box=np.array([p.box for p in pictures]),
            label=labels(things),
        )
        os.replace(partial, path)
        print(path.name, flush=True)


def labels(things: list[world.Thing]) -> np.ndarray:
    """(n, 5) indices into NAMES."""
    return np.array([[NAMES[field].index(getattr(t, field)) for field in NAMES] for t in things])


def load_bank(folder: Path) -> dict[str, np.ndarray]:
    shards = [np.load(path) for path in sorted(folder.glob("[0-9]*.npz")) if ".partial" not in path.name]
    return {
        name: np.concatenate([shard[name] for shard in shards]) for name in ("image", "mask", "box", "label")
    }


def jittered_crop(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, box: np.ndarray) -> Tensor:
    """The subject as the judge will meet it: the box up to a fifth too wide on each side, or its outline."""
    picture = torch.from_numpy(image).permute(2, 0, 1) / 255
    if rng.random() < 0.3:
        near, shown = Box(*box.tolist()), torch.from_numpy(mask)
    else:
        size = np.tile(box[2:] - box[:2], 2)
        near = Box(
            *(box + (rng.uniform(-0.03, 0.20, 4) * size * [-1, -1, 1, 1]).round().astype(int)).tolist()
        )
        shown = torch.zeros(mask.shape, dtype=torch.bool)
        rows, columns = near.clamp(*mask.shape).slices
        shown[rows, columns] = True
    return square_crop(torch.where(shown, picture, 0.5), near, SIZE, MARGIN)


def softened(crops: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored half the time, blurred, a little noisy: a soft autoencoder is not another world.

    Half of the crops are left sharp; the others lose detail down to a quarter of the resolution.
    """
    count = len(crops)
    flip = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    crops = torch.where(flip, crops.flip(-1), crops)
    coarse = int(torch.randint(SIZE // 4, SIZE, (), generator=generator))
    small = F.interpolate(crops, (coarse, coarse), mode="bilinear", antialias=True)
    soft = F.interpolate(small, (SIZE, SIZE), mode="bicubic")
    share = (2 * torch.rand(count, 1, 1, 1, generator=generator) - 1).clamp(min=0)
    noise = (
        torch.randn(crops.shape, generator=generator) * 0.04 * torch.rand(count, 1, 1, 1, generator=generator)
    )
    return (torch.lerp(crops, soft, share) + noise).clamp(0, 1)


def contrast(embedding: Tensor) -> Tensor:
    """InfoNCE (van den Oord et al. 2018, eq. 4), both ways; rows 2k and 2k + 1 of (2n, D) show one thing."""
    first, second = embedding[0::2], embedding[1::2]
    likeness = first @ second.T / TEMPERATURE
    same = torch.arange(len(first))
    return (F.cross_entropy(likeness, same) + F.cross_entropy(likeness.T, same)) / 2


def batch(bank: dict[str, np.ndarray], rng: np.random.Generator, groups: int) -> tuple[Tensor, Tensor]:
    """Crops (groups * 8, 3, 40, 40) and labels (groups * 8, 5); two views of a thing are neighbours."""
    each = GROUP * VIEWS
    picked = rng.choice(len(bank["image"]) // each, groups, replace=False)
    rows = (picked[:, None] * each + np.arange(each)).ravel()
    crops = torch.stack([jittered_crop(rng, bank["image"][i], bank["mask"][i], bank["box"][i]) for i in rows])
    return crops, torch.from_numpy(bank["label"][rows // VIEWS])


def train(work: Path, steps: int, minutes: float, seed: int, groups: int, rate: float) -> dict:
    """Train up to `steps` in all, for at most `minutes` now; returns the state, which is also saved."""
    torch.manual_seed(seed)
    judge = Judge().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    decayed = [p for p in judge.parameters() if p.ndim > 1]
    rest = [p for p in judge.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.02}, {"params": rest, "weight_decay": 0.0}], lr=rate
    )
    path = work / "judge.pt"
    state = files.load(path) or {"step": 0, "seconds": 0.0, "log": []}
    if "judge" in state:
        judge.load_state_dict(state["judge"])
        optimiser.load_state_dict(state["optimiser"])
    step, before, log, losses = state["step"], state["seconds"], state["log"], []
    rng, generator = (
        np.random.default_rng([seed, step]),
        torch.Generator().manual_seed(seed * 1_000_003 + step),
    )
    bank = load_bank(work / "judge_bank")
    start = saved = time.time()
    judge.train()
    while True:
        elapsed = time.time() - start
        over = step >= steps or elapsed > minutes * 60
        if over or time.time() - saved > 60:
            state = {"judge": judge.state_dict(), "optimiser": optimiser.state_dict()}
            state |= {"step": step, "seconds": before + elapsed, "log": log}
            files.save(state, path)
            saved = time.time()
        if over:
            return state
        for group in optimiser.param_groups:
            group["lr"] = (
                rate
                * min(1.0, (step + 1) / 50)
                * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
            )
        crops, wanted = batch(bank, rng, groups)
        embedding = judge(softened(crops, generator))
        named = [F.cross_entropy(v, wanted[:, i]) for i, v in enumerate(judge.logits(embedding).values())]
        loss = torch.stack(named).sum() + 0.5 * contrast(embedding)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        step += 1
        losses.append([*(n.item() for n in named), loss.item()])
        if step % 50 == 0:
            log.append([step, before + time.time() - start, *np.mean(losses, 0).round(4).tolist()])
            print(
                json.dumps({"step": step, "minutes": round(log[-1][1] / 60, 2), "losses": log[-1][2:]}),
                flush=True,
            )
            losses = []


@torch.no_grad()
def measure(judge: Judge, things: int = 1200, seed: int = 10_000) -> dict[str, float]:
    """How often the judge is right on 2 * `things` fresh renderings, its crops jittered as in training.

    `same` is the mean cosine of two pictures of one thing, `other` of two of different things, and `found`
    how often a picture's nearest among all the second pictures is its own thing's.
    """
    rng = np.random.default_rng([seed, 99])
    chosen = [world.sample_thing(rng) for _ in range(things)]
    pictures = [portrait(rng, thing) for thing in chosen for _ in range(VIEWS)]
    crops = torch.stack([jittered_crop(rng, p.image, p.mask > 0.5, np.array(p.box)) for p in pictures])
    embedding = torch.cat([judge(part) for part in crops.split(256)])
    wanted = torch.from_numpy(labels(chosen)).repeat_interleave(VIEWS, 0)
    right = {
        f: (v.argmax(1) == wanted[:, i]).float().mean()
        for i, (f, v) in enumerate(judge.logits(embedding).items())
    }
    likeness = embedding[0::2] @ embedding[1::2].T
    same = likeness.diagonal()
    other = (likeness.sum() - same.sum()) / (things * (things - 1))
    found = (likeness.argmax(1) == torch.arange(things)).float().mean()
    numbers = {**right, "same": same.mean(), "other": other, "found": found}
    return {"pictures": len(pictures), **{name: round(float(value), 4) for name, value in numbers.items()}}


def ship(state: dict, out: Path, record: dict) -> dict[str, float]:
    """Write the weights as float16, read them back, measure those, and write them again with the record."""
    half = {
        name: value.half().contiguous() for name, value in state["judge"].items() if value.is_floating_point()
    }
    counters = {name: value for name, value in state["judge"].items() if not value.is_floating_point()}
    partial = out.with_suffix(".partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({**half, **counters}, partial)
    accuracy = measure(load_judge(partial))
    save_file(
        {**half, **counters}, partial, metadata={"record": json.dumps({**record, "accuracy": accuracy})}
    )
    os.replace(partial, out)
    return accuracy


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2500, help="over which the learning rate falls")
    parser.add_argument("--minutes", type=float, default=60, help="at most, in this run; call again to go on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bank", type=int, default=1152, help="groups of eight pictures in the bank")
    parser.add_argument("--groups", type=int, default=16, help="groups of eight pictures in a batch")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--out", type=Path, default=files.WEIGHTS / "judge.safetensors")
    a = parser.parse_args()
    build_bank(a.work / "judge_bank", a.bank, a.seed)
    state = train(a.work, a.steps, a.minutes, a.seed, a.groups, a.rate)
    if state["step"] < a.steps:
        print(f"{state['step']} of {a.steps} steps done; call again to go on.")
        return
    command = f"python -m inlay.lab.models.train_judge --steps {a.steps} --bank {a.bank} --seed {a.seed}"
    record = {
        "command": command,
        "seed": a.seed,
        "steps": a.steps,
        "minutes": round(state["seconds"] / 60, 1),
    }
    print(json.dumps(ship(state, a.out, {**record, "losses": state["log"][-1:]})))


if __name__ == "__main__":
    main()
