"""Train the TAESD-shaped autoencoder of the tiny world.

    python -m inlay.lab.models.train_autoencoder --work DIR --minutes 20 --seed 0

The modules are the host's own (`comfy.taesd`), so the keys are the ones it loads. Training sees crops around
the things, where the detail is. The state is saved every minute and taken up again by the same command.
With `--decoder-only` the encoder stays as it is, so that latents made with it stay valid.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .. import world
from . import files, host

CROP = 32


# brightness, red-green and blue-yellow of a cell's mean colour, each scaled to about unit variance
OPPONENT = torch.tensor([[1.7, 1.7, 1.7], [4.0, -4.0, 0.0], [-2.2, -2.2, 4.4]])


def new_autoencoder():
    """TAESD that starts as a blurred copy: three latent channels are a cell's colour, the fourth is free.

    A He initialisation of every layer lets the latents collapse at first and takes thousands of steps to find
    colour. Here the first three of the 64 channels carry RGB straight through (blocks start as the identity,
    the layers between them copy, averaging where they shrink), and only the detail is left to learn.
    """
    host.open_host()
    from comfy.taesd.taesd import TAESD, Block

    model = TAESD()
    encoder: Any = model.taesd_encoder
    decoder: Any = model.taesd_decoder
    with torch.no_grad():
        for layer in (m for m in model.modules() if isinstance(m, torch.nn.Conv2d)):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                layer.bias.zero_()
        for block in (m for m in model.modules() if isinstance(m, Block)):
            last: Any = block.conv[-1]
            last.weight.zero_()
        for layer in (m for half in (encoder, decoder) for m in half if isinstance(m, torch.nn.Conv2d)):
            if layer.in_channels == layer.out_channels:
                window = 2 if layer.stride[0] == 2 else 1
                layer.weight[range(64), range(64), 1 : 1 + window, 1 : 1 + window] += 1 / window**2
                layer.weight[:3] = 0
                layer.weight[range(3), range(3), 1 : 1 + window, 1 : 1 + window] = 1 / window**2
        first, last = encoder[0], encoder[-1]
        first.weight[:3] = 0
        first.weight[range(3), range(3), 1, 1] = 1
        last.weight.mul_(0.1)
        last.weight[:3, :, 1, 1] = 0
        last.weight[:3, :3, 1, 1] = OPPONENT
        last.bias[:3] = -0.5 * OPPONENT.sum(1)
        first, last = decoder[1], decoder[-1]
        first.weight[:3] = 0
        first.weight[:3, :3, 1, 1] = torch.linalg.inv(OPPONENT)
        first.bias[:3] = 0.5
        last.weight.mul_(0.02)
        last.weight[range(3), range(3), 1, 1] = 1
    # convolutions on a CPU are more than twice as fast in this memory layout
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def crops(rng: np.random.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` crops (count, 3, 32, 32) in [0, 1] and their subject masks (count, 1, 32, 32)."""
    images, masks = [], []
    while len(images) < count:
        picture = world.render(world.sample_scene(rng))
        top, left, bottom, right = picture.box or (0, 0, world.SIZE, world.SIZE)
        for _ in range(5):
            cy, cx = rng.integers(top, bottom), rng.integers(left, right)
            y, x = (
                int(np.clip(c - CROP // 2 + rng.integers(-12, 13), 0, world.SIZE - CROP)) for c in (cy, cx)
            )
            images.append(picture.image[y : y + CROP, x : x + CROP])
            masks.append(picture.mask[y : y + CROP, x : x + CROP])
    image = torch.from_numpy(np.stack(images[:count])).permute(0, 3, 1, 2).float() / 255
    return image, torch.from_numpy(np.stack(masks[:count])).float()[:, None]


def reconstruction_loss(output, image, mask):
    """L1 on colours and on their differences between neighbours (edges), the subject weighted three times."""
    weight = 1 + 2 * mask
    colour = ((output - image).abs() * weight).mean()
    across = ((output.diff(dim=-1) - image.diff(dim=-1)).abs() * weight[..., 1:]).mean()
    down = ((output.diff(dim=-2) - image.diff(dim=-2)).abs() * weight[..., 1:, :]).mean()
    return colour + across + down


def train(
    work: Path, minutes: float, seed: int, batch: int, rate: float, decoder_only: bool, log_every: int = 50
):
    torch.manual_seed(seed)
    model = new_autoencoder()
    encoder, decoder = model.taesd_encoder, model.taesd_decoder
    parameters = list(decoder.parameters()) + ([] if decoder_only else list(encoder.parameters()))
    optimiser = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)
    path = work / "autoencoder.pt"
    state = files.load(path) or {"step": 0, "seconds": 0.0, "log": []}
    if "model" in state:
        model.load_state_dict(state["model"])
        if len(state["optimiser"]["param_groups"][0]["params"]) == len(parameters):
            optimiser.load_state_dict(state["optimiser"])
    step, before, log = state["step"], state["seconds"], state["log"]
    rng = np.random.default_rng([seed, step])
    start = saved = time.time()
    total = []
    while (elapsed := time.time() - start) < minutes * 60:
        # warm up, then let the rate fall over the time that is given
        scale = min(1.0, (step + 1) / 100) * (1.0 - 0.95 * elapsed / (minutes * 60))
        for group in optimiser.param_groups:
            group["lr"] = rate * scale
        image, mask = (t.to(memory_format=torch.channels_last) for t in crops(rng, batch))
        with torch.set_grad_enabled(not decoder_only):
            latent = encoder(image)
        noisy = latent + 0.05 * torch.randn_like(latent)
        loss = reconstruction_loss(decoder(noisy), image, mask)
        # the diffusion model wants zero mean and unit variance per channel
        spread = latent.mean((0, 2, 3)).square().mean() + (latent.std((0, 2, 3)) - 1).square().mean()
        spread = spread + F.relu(latent.abs() - 2.8).square().mean()
        optimiser.zero_grad(set_to_none=True)
        (loss + 0.05 * spread).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        total.append(loss.item())
        if step % log_every == 0:
            log.append([step, before + time.time() - start, sum(total) / len(total)])
            print(
                json.dumps(
                    {"step": step, "minutes": round(log[-1][1] / 60, 2), "loss": round(log[-1][2], 5)}
                ),
                flush=True,
            )
            total = []
        if time.time() - saved > 60 or elapsed + 2 > minutes * 60:
            seconds = before + time.time() - start
            files.save(
                {
                    "model": model.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "step": step,
                    "seconds": seconds,
                    "log": log,
                },
                path,
            )
            saved = time.time()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the running state")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--decoder-only", action="store_true")
    arguments = vars(parser.parse_args())
    train(**arguments)


if __name__ == "__main__":
    main()
