"""The two autoencoders: TAESD's shape with 4 latent channels (SD 1.5) and with 16 (Flux.1).

    python -m inlay.lab.models.autoencoders --work DIR --channels 4

The modules are the host's own (`comfy.taesd`), so the stock loaders load them. The one with 16 channels
learns its two halves apart at first: the encoder has to give the first 16 principal components of 8 x 8
patches, and the decoder paints from these (started from one with 4 channels, it hardly used the other 12).
The latents get zero mean and unit variance.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import scenes
from . import quantised, runs, scene_data
from .files import WEIGHTS
from .host import open_host

CROP, BATCH = 48, 12
STEPS = {"autoencoder4": 3200, "autoencoder16": 3200, "decoder4": 8000, "decoder16": 3000}
RATE = {"autoencoder4": 3e-4, "autoencoder16": 1e-3, "decoder4": 3e-4, "decoder16": 3e-4}
APART = 0.5  # share of the steps in which the halves of the one with 16 channels learn apart
HELD_OUT = 424_242  # no training draws from this seed


def new_autoencoder(channels: int, seed: int = 0) -> Any:
    """The host's TAESD with `channels` latent channels."""
    open_host()
    from comfy.taesd.taesd import TAESD

    torch.manual_seed(seed)
    model: Any = TAESD(latent_channels=channels)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            layer.weight.data.mul_(0.5)
            if layer.bias is not None:
                torch.nn.init.zeros_(layer.bias)
    return model.to(memory_format=torch.channels_last)


def trained_autoencoder(work: Path | None, channels: int) -> Any:
    """The autoencoder trained in `work`, without gradients, with its later decoder if that is finished.

    Without a training in `work` it is the shipped one.
    """
    model = new_autoencoder(channels)
    state = None
    if work:
        later = runs.finished(work / f"decoder{channels}.pt")
        state = runs.load(work / f"{'decoder' if later else 'autoencoder'}{channels}.pt")
    model.load_state_dict(
        state["modules"]["autoencoder"]
        if state
        else quantised.load(WEIGHTS / f"autoencoder{channels}.safetensors")
    )
    return model.eval().requires_grad_(False)


class Crops:
    """Crops of the drawn scenes, mostly about the subjects; some with a grey hole."""

    def __init__(self, work: Path, limit: int = 4):
        while len(scene_data.shards(work)) < limit:  # they may still be drawn by another process
            time.sleep(5)
        loaded = [scene_data.load(path, "image", "seen") for path in scene_data.shards(work)[:limit]]
        self.image = torch.cat([shard["image"] for shard in loaded])
        self.seen = torch.cat([shard["seen"] for shard in loaded])

    def batch(self, rng: np.random.Generator, count: int, size: int = CROP) -> Tensor:
        """Pictures (count, 3, size, size) in [0, 1]."""
        crops = []
        for index in rng.integers(len(self.image), size=count):
            if rng.random() < 0.65:
                cells = (self.seen[index] > 100).nonzero()
                row, column = (cells[int(rng.integers(len(cells)))] * 4).tolist() if len(cells) else (64, 64)
                top, left = (int(v - size // 2 + rng.integers(-12, 13)) for v in (row, column))
            else:
                top, left = (int(v) for v in rng.integers(0, scenes.SIZE - size + 1, 2))
            top, left = (int(np.clip(v, 0, scenes.SIZE - size)) for v in (top, left))
            crop = self.image[index, top : top + size, left : left + size].permute(2, 0, 1).float() / 255
            if rng.random() < 0.12:
                a, b = rng.integers(0, size, 2)
                crop[:, max(a - 16, 0) : a + 16, max(b - 16, 0) : b + 16] = 0.5
            if rng.random() < 0.5:
                crop = crop.flip(-1)
            crops.append(crop)
        return torch.stack(crops).contiguous(memory_format=torch.channels_last)


def reconstruction_loss(output: Tensor, image: Tensor) -> Tensor:
    """L1 and squared error of colours, L1 of neighbours' differences and of the local sum of these.

    The last term counts edges that are too soft or too hard without asking for their exact place.
    """
    error = output - image
    loss = error.abs().mean() + 2 * error.square().mean()
    for axis in (-1, -2):
        mine, true = output.diff(dim=axis), image.diff(dim=axis)
        loss = loss + (mine - true).abs().mean()
        energy = F.avg_pool2d(mine.abs(), 4, 2) - F.avg_pool2d(true.abs(), 4, 2)
        loss = loss + 0.7 * energy.abs().mean()
    return loss


def spread_loss(latent: Tensor) -> Tensor:
    """Distance of the latents' channels (B, C, h, w) from zero mean, unit variance and a range of 2.8."""
    mean, deviation = latent.mean((0, 2, 3)), latent.std((0, 2, 3))
    return mean.square().mean() + (deviation - 1).square().mean() + F.relu(latent.abs() - 2.8).square().mean()


class PatchComponents:
    """The first principal components of 8 x 8 patches of pictures (B, 3, H, W)."""

    def __init__(self, images: Tensor, count: int = 16):
        patches = self.patches(images).flatten(0, 2).double()
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh((patches - mean).T.cov())
        order = values.argsort(descending=True)[:count]
        self.mean, self.basis = mean.float(), vectors[:, order].float()
        self.deviation = values[order].sqrt().float()

    @staticmethod
    def patches(images: Tensor) -> Tensor:
        """(B, H / 8, W / 8, 192) of pictures (B, 3, H, W)."""
        return F.pixel_unshuffle(images, 8).movedim(1, -1)

    def __call__(self, images: Tensor) -> Tensor:
        """The components (B, count, H / 8, W / 8) of pictures, of unit variance, softly bounded to 3."""
        own = (self.patches(images) - self.mean.to(images.device)) @ self.basis.to(images.device)
        return 3 * (own / self.deviation.to(images.device) / 3).tanh().movedim(-1, 1)


@torch.no_grad()
def standardise(model: Any, images: Tensor) -> None:
    """Scale and shift the encoder's last layer so that latents of `images` have mean 0 and deviation 1."""
    last = model.taesd_encoder[-1]
    latent = model.taesd_encoder(images)
    mean, deviation = latent.mean((0, 2, 3)), latent.std((0, 2, 3))
    last.weight.div_(deviation[:, None, None, None])
    last.bias.sub_(mean).div_(deviation)


def held_out(count: int, size: int = scenes.SIZE) -> tuple[Tensor, list[tuple[int, int, int, int]]]:
    """Pictures (count, 3, H, W) in [0, 1] that no training has seen, and the boxes of their subjects."""
    images, boxes = [], []
    for index in range(count):
        picture = scenes.render(scenes.sample_scene(np.random.default_rng([HELD_OUT, index])), size)
        images.append(torch.from_numpy(picture.image).permute(2, 0, 1).float() / 255)
        boxes.append(picture.box or (0, 0, size, size))
    return torch.stack(images), boxes


def gradient(images: Tensor) -> Tensor:
    """Mean absolute difference between neighbours, of a picture (..., H, W)."""
    return (images.diff(dim=-1).abs().mean() + images.diff(dim=-2).abs().mean()) / 2


@torch.no_grad()
def fidelity(model: Any, images: Tensor, boxes) -> dict[str, float]:
    """PSNR (dB) of pictures (B, 3, H, W) through the model, and the gradient kept; whole and in boxes."""
    through = torch.cat([
        model.taesd_decoder(model.taesd_encoder(part.contiguous(memory_format=torch.channels_last)))
        for part in images.split(8)
    ]).clamp(0, 1)  # fmt: skip
    squares, kept = {"": [], "box_": []}, {"": [], "box_": []}
    for mine, true, (top, left, bottom, right) in zip(through, images, boxes, strict=True):
        for name, area in (("", ...), ("box_", (..., slice(top, bottom), slice(left, right)))):
            squares[name].append((mine[area] - true[area]).square().mean())
            kept[name].append(gradient(mine[area]) / gradient(true[area]))
    numbers = {}
    for name in squares:
        numbers[name + "psnr"] = float((-10 * torch.stack(squares[name]).log10()).mean())
        numbers[name + "kept"] = float(torch.stack(kept[name]).mean())
    return numbers


def train(
    work: Path, channels: int, steps: int = 0, seed: int = 0, rate: float = 0.0, decoder_only: bool = False
) -> None:
    """Train the autoencoder of `channels` latent channels in `work` to its last step.

    With `decoder_only` its decoder goes on alone, so that latents made with the encoder stay valid.
    """
    model = new_autoencoder(channels, seed)
    model.vae_scale.requires_grad_(False)
    model.vae_shift.requires_grad_(False)
    name = f"{'decoder' if decoder_only else 'autoencoder'}{channels}"
    if decoder_only:
        model.load_state_dict(trained_autoencoder(work, channels).state_dict())
        model.taesd_encoder.requires_grad_(False)
    crops = Crops(work)
    if not decoder_only:
        standardise(model, crops.batch(np.random.default_rng(seed), 32))
    fit = runs.Fit(work / f"{name}.pt", {"autoencoder": model}, steps or STEPS[name], rate or RATE[name])
    if fit.done:
        return
    components = None
    if name == "autoencoder16":
        components = PatchComponents(crops.batch(np.random.default_rng(seed), 800))
    images, boxes = held_out(16)
    images = images.to(runs.device())

    def loss_at(step: int):
        rng, generator = runs.draws(seed + decoder_only, step)
        image = crops.batch(rng, BATCH).to(runs.device())
        apart = components(image) if components and step < APART * fit.total else None
        with runs.half_precision():
            latent = model.taesd_encoder(image).float()
            noise = 0.03 * torch.randn(latent.shape, generator=generator).to(latent.device)
            output = model.taesd_decoder((latent if apart is None else apart) + noise).float()
        spread = spread_loss(latent)
        loss = reconstruction_loss(output, image)
        if apart is not None:
            missed = (latent - apart).square().mean()
            mse = (output.detach() - image).square().mean().item()
            shown = {"missed": missed.item(), "psnr_crop": -10 * float(np.log10(mse))}
            return loss + missed, shown
        if decoder_only:
            spread = spread.detach()
        mse = (output.detach() - image).square().mean().item()
        return loss + 0.02 * spread, {"spread": spread.item(), "psnr_crop": -10 * float(np.log10(mse))}

    fit.run(loss_at, lambda: fidelity(model, images, boxes), measure_every=500)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--channels", type=int, choices=(4, 16), default=4)
    parser.add_argument("--steps", type=int, default=0, help="0: the default")
    parser.add_argument(
        "--decoder-only", action="store_true", help="after the rest: only the decoder goes on"
    )
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    train(a.work, a.channels, a.steps, a.seed, decoder_only=a.decoder_only)


if __name__ == "__main__":
    main()
