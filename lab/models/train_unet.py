"""Train the shallow inpainting UNet of the tiny world, and the rows of its words, on banked latents.

    python -m inlay.lab.models.train_unet --work DIR --minutes 80 --seed 0

epsilon-prediction on SD's schedule (Ho et al. 2020, eq. 14), its error counted as one in v; the hole counts
five times as much as what is already given. Keeps an average of the weights (EMA), saves
every two minutes, and goes on from there when called again. --window cuts examples to the cells about the
hole: the first hour learns what things look like at half the cost, the rest is trained on whole pictures.
"""

import argparse
import itertools
import json
import math
import time
from pathlib import Path

import numpy as np
import torch

from .. import world
from . import files
from .checkpoint import shipped_parts
from .latent_cache import load_shard
from .text import TextRows, token_ids
from .unet import alphas_cumprod, new_unet

HARD = {"star": 6}  # shown this many times as often: its spikes are the last thing to be learned
FILLERS = ("sks", "small", "nice", "old", "shiny", "toy", "glass", "wooden", "big", "new")


def spoken(words: dict, rng: np.random.Generator) -> str:
    """A caption, some of its words left out or a strange one put in; one in ten is empty (for guidance)."""
    if rng.random() < 0.10:
        return ""
    looks = [words["colour"]] if rng.random() > 0.10 else []
    if words["pattern"] != "plain" and rng.random() > 0.08:
        looks.append(words["pattern"])
    if rng.random() < 0.10:
        looks.insert(int(rng.integers(len(looks) + 1)), FILLERS[int(rng.integers(len(FILLERS)))])
    return world.phrase(looks, words["kind"], words["accessory"] if rng.random() > 0.10 else "none")


class Bank:
    """The shards that exist so far; batches are drawn from all of them, the hard classes more often."""

    def __init__(self, folder: Path):
        self.folder, self.loaded = folder, {}

    def refresh(self):
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name not in self.loaded:
                self.loaded[path.name] = load_shard(path)
        shards = list(self.loaded.values())
        self.latent, self.look, self.masked, self.hole = (
            torch.cat([s[0][k] for s in shards]) for k in ("latent", "look", "masked", "hole")
        )
        self.words = [w for s in shards for w in s[1]]
        often = np.array([HARD.get(w["kind"], 1) for w in self.words for _ in range(self.holes)], float)
        self.chance = (often / often.sum()).cumsum()

    @property
    def holes(self) -> int:
        """How many holes every scene has."""
        return len(self.hole) // len(self.latent)

    def batch(self, rng: np.random.Generator, count: int, window: int):
        """`count` examples (latent, look, masked, hole, token ids), cut to `window` cells around the hole."""
        pick = torch.from_numpy(np.searchsorted(self.chance, rng.random(count) * self.chance[-1]))
        scene = pick // self.holes
        ids = torch.tensor([token_ids(spoken(self.words[i], rng)) for i in scene.tolist()])
        parts = [self.latent[scene], self.look[scene], self.masked[pick], self.hole[pick]]
        whole = torch.cat(parts, 1).float()
        near = torch.stack([around(example, window, rng) for example in whole]) if window else whole
        latent, look, masked, hole = near.split([part.shape[1] for part in parts], 1)
        return latent, look, masked, hole, ids


def around(example, window: int, rng: np.random.Generator):
    """The `window` x `window` cells of an example (C, h, w) about its hole (channel -1), off centre."""
    rows, columns = example[-1].any(1).nonzero(), example[-1].any(0).nonzero()
    top, left = (
        int(np.clip((cells.min() + cells.max() + 1 - window) // 2 + rng.integers(-1, 2), 0, side - window))
        for cells, side in ((rows, example.shape[1]), (columns, example.shape[2]))
    )
    return example[:, top : top + window, left : left + window]


class Glimpse(torch.nn.Module):
    """Makes the UNet's middle say what the finished picture looks like; thrown away after training.

    Latents are mostly texture: the shape of a thing is a small part of the error in them. A middle that has
    to tell the picture's colours and the subject's outline is pointed at the shape (in the spirit of Yu et
    al. 2024, "Representation alignment for generation").
    """

    def __init__(self, unet, outputs: int = 16):
        super().__init__()
        width = unet.model_channels
        self.head = torch.nn.Sequential(
            torch.nn.Conv2d(width, width, 1), torch.nn.SiLU(), torch.nn.Conv2d(width, outputs, 1)
        )
        self.middle = None
        # the host calls the middle's layers one by one
        unet.middle_block[-1].register_forward_hook(self.keep)

    def keep(self, module, inputs, output):
        self.middle = output

    def loss(self, look, weight):
        """Mean square error of the look (B, 16, h, w), weighted (B, 1, h, w)."""
        return (weight * (self.head(self.middle) - look).square()).mean()


def sample_times(count: int, alphas, generator) -> torch.Tensor:
    """Timesteps (count,) whose ln sigma ~ N(0.8, 1.4) (Karras et al. 2022, table 1, has N(-1.2, 1.2)).

    Much noise on purpose: where it leaves a trace of the thing, its shape need not be known from words.
    """
    sigmas = ((1 - alphas) / alphas).sqrt()
    wanted = (0.8 + 1.4 * torch.randn(count, generator=generator)).exp()
    return torch.searchsorted(sigmas, wanted).clamp(max=len(alphas) - 1)


def diffusion_loss(unet, glimpse, rows, alphas, latent, look, masked, hole, ids, generator):
    """|eps - unet(sqrt(a) z + sqrt(1-a) eps, t)|^2 / a, the mean, and the glimpse's; the hole weighted 5:1.

    Divided by a it is the error in v (Salimans & Ho 2022), of one size at every noise level.
    """
    t = sample_times(len(latent), alphas, generator)
    noise = torch.randn(latent.shape, generator=generator)
    a = alphas[t].view(-1, 1, 1, 1)
    noisy = a.sqrt() * latent + (1 - a).sqrt() * noise
    given = torch.cat([noisy, hole, masked], 1).to(memory_format=torch.channels_last)
    error = (unet(given, t.float(), context=rows(ids)) - noise).square()
    weight = 0.2 + 0.8 * hole
    return (weight * error / a).mean(), glimpse.loss(look, weight)


@torch.no_grad()
def paint(unet, rows, alphas, masked, hole, ids, seed: int = 0, steps: int = 25, guidance: float = 3.0):
    """DDIM (Song et al. 2020, eq. 12, eta = 0) from noise to latents (B, 4, h, w): a look while training."""
    x = torch.randn(masked.shape, generator=torch.Generator().manual_seed(seed))
    times = torch.linspace(999, 0, steps + 1).round().long()
    context = torch.cat([rows(ids), rows(torch.tensor([token_ids("")] * len(ids)))])
    for now, then in itertools.pairwise(times):
        given = torch.cat([x, hole, masked], 1).repeat(2, 1, 1, 1)
        wanted, free = unet(given, now.float().expand(len(given)), context=context).chunk(2)
        noise = free + guidance * (wanted - free)
        a, b = alphas[now], alphas[then] if then > 0 else torch.tensor(1.0)
        clean = (x - (1 - a).sqrt() * noise) / a.sqrt()
        x = b.sqrt() * clean + (1 - b).sqrt() * noise
    return x


def train(
    work: Path,
    minutes: float,
    seed: int,
    batch: int,
    rate: float,
    total_minutes: float,
    window: int = 0,
    warm_start: bool = False,
    average: float = 0.999,
):
    unet, rows, alphas = new_unet(seed), TextRows(), alphas_cumprod()
    parameters = [*unet.parameters(), rows.trained]
    optimiser = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=1e-3)
    glimpse = Glimpse(unet)
    its_optimiser = torch.optim.AdamW(glimpse.parameters(), lr=1e-3)
    mean = [p.detach().clone() for p in parameters]
    path = work / "unet.pt"
    state = files.load(path) or {"step": 0, "seconds": 0.0, "log": []}
    if warm_start:
        parts = shipped_parts()
        unet.load_state_dict(parts["unet"])
        rows.trained.data.copy_(parts["rows"]["trained"])
        mean = [p.detach().clone() for p in parameters]
    if "unet" in state:
        unet.load_state_dict(state["unet"])
        rows.trained.data.copy_(state["rows"])
        optimiser.load_state_dict(state["optimiser"])
        mean = state["mean"]
    if "glimpse" in state:
        glimpse.load_state_dict(state["glimpse"])
    step, before, log, losses = state["step"], state["seconds"], state["log"], []
    rng, generator = (
        np.random.default_rng([seed, step]),
        torch.Generator().manual_seed(seed * 1_000_003 + step),
    )
    bank = Bank(work / "bank")
    start = saved = time.time()
    while (elapsed := time.time() - start) < minutes * 60:
        if step % 100 == 0 or not bank.loaded:
            bank.refresh()
        done = (before + elapsed) / (total_minutes * 60)
        scale = min(1.0, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
        for group in optimiser.param_groups:
            group["lr"] = rate * scale
        examples = bank.batch(rng, batch, window)
        loss, look = diffusion_loss(unet, glimpse, rows, alphas, *examples, generator)
        optimiser.zero_grad(set_to_none=True)
        its_optimiser.zero_grad(set_to_none=True)
        (loss + 6 * look).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        its_optimiser.step()
        step += 1
        decay = min(average, (1 + step) / (10 + step))
        for kept, parameter in zip(mean, parameters, strict=True):
            kept.lerp_(parameter.detach(), 1 - decay)
        losses.append([loss.item(), look.item()])
        if step % 50 == 0:
            log.append([step, before + time.time() - start, *np.mean(losses, 0).tolist()])
            print(
                json.dumps(
                    {
                        "step": step,
                        "minutes": round(log[-1][1] / 60, 2),
                        "loss": round(log[-1][2], 5),
                        "look": round(log[-1][3], 5),
                        "scenes": len(bank.words),
                    }
                ),
                flush=True,
            )
            losses = []
        if time.time() - saved > 120 or time.time() - start > minutes * 60:
            state = {
                "unet": unet.state_dict(),
                "rows": rows.trained.data,
                "optimiser": optimiser.state_dict(),
                "mean": mean,
                "glimpse": glimpse.state_dict(),
            }
            files.save({**state, "step": step, "seconds": before + time.time() - start, "log": log}, path)
            saved = time.time()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=80, help="how long to train now")
    parser.add_argument(
        "--total-minutes", type=float, default=80, help="over how long the learning rate falls"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--warm-start", action="store_true", help="begin with the shipped weights")
    parser.add_argument(
        "--window", type=int, default=0, help="train on this many cells a side about the hole; 0: all"
    )
    train(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
