"""Train the inpainting UNet of three levels on latents of the drawn scenes.

    python -m inlay.lab.models.inpainting_unet --work DIR

The network is the host's own class in SD 1.5's shape: width 320, context 768, nine input channels, three
levels with attention at each. It predicts epsilon on SD's schedule (Ho et al. 2020, eq. 14); its square
error counts 1 / sqrt(alpha bar), and more inside the hole. The text encoder is the one that was trained with
Fill (`flux`), and stays as it is. For the first WINDOWED share of the steps examples are windows of 10 x 10
cells about the hole, at two fifths of the cost.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import captions, runs
from .host import open_host
from .latents import Latents
from .text_encoder import ids_of, trained_text_encoder

SHAPE = {
    "image_size": 32,
    "in_channels": 9,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": (1, 1, 1),
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 0, 0],
    # from the highest level to the deepest, in the host's order
    "transformer_depth_output": [1, 1, 1, 0, 1, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "legacy": False,
}
# changes of SHAPE for one level alone, for tests: the host takes it for an SD 1.5 too
SHALLOW: dict[str, Any] = {
    "num_res_blocks": [1],
    "channel_mult": (1,),
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
}
STEPS, BATCH, WINDOWED, WINDOW = 4000, 24, 0.75, 10
RATE, MUON_RATE = 3e-4, 1e-3  # the second is that of the transformers' matrices
SUBJECT = 0.7  # share of holes about the subject
SHORT, LONG, EVERY = 16, 77, 8  # text tokens of most batches, and of one in EVERY


def new_unet(seed: int = 0, **changes) -> Any:
    """A fresh float32 UNet; `changes` override SHAPE. Residual outputs start at zero, as in the original."""
    open_host()
    import comfy.cli_args

    comfy.cli_args.args.use_pytorch_cross_attention = True
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, SpatialTransformer, UNetModel

    torch.manual_seed(seed)
    shape = {name: list(value) if isinstance(value, list) else value for name, value in SHAPE.items()}
    build: Any = UNetModel
    unet = build(**{**shape, **changes}, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    # the host's layers skip initialisation (they expect a file); call torch's own
    for layer in unet.modules():
        for kind in (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm):
            if isinstance(layer, kind):
                initialise: Any = kind.reset_parameters
                initialise(layer)
    ends = [b.out_layers[-1] for b in unet.modules() if isinstance(b, ResBlock)]
    ends += [b.proj_out for b in unet.modules() if isinstance(b, SpatialTransformer)]
    for layer in (*ends, unet.out[-1]):
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    return unet.to(memory_format=torch.channels_last)


def alphas_cumprod() -> Tensor:
    """SD's scaled-linear schedule, (1000,) float32: prod(1 - beta), beta from 0.00085 to 0.012."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


class LookHead(nn.Module):
    """Predicts what a cell shows from inner features: an auxiliary loss, thrown away after training.

    In the spirit of Yu et al. 2024, "Representation alignment for generation": latents are mostly
    texture, and this points the network at shapes and colours.
    """

    def __init__(self, width: int, outputs: int = 16):
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(width, width, 1), nn.SiLU(), nn.Conv2d(width, outputs, 1))
        self.features: Any = None

    def keep(self, module, inputs, output) -> None:
        """A forward hook."""
        self.features = output

    def forward(self, look: Tensor, weight: Tensor) -> Tensor:
        """Weighted mean square error of the look (B, 16, h, w)."""
        return (weight * (self.head(self.features.float()) - look).square()).mean()


def sample_times(count: int, alphas: Tensor, generator: torch.Generator) -> Tensor:
    """Timesteps (count,) whose ln sigma ~ N(0.8, 1.4) (Karras et al. 2022, table 1, has N(-1.2, 1.2)).

    Much noise: where it leaves a trace of the thing, its shape need not be inferred from words.
    """
    sigmas = ((1 - alphas) / alphas).sqrt()
    wanted = (0.8 + 1.4 * torch.randn(count, generator=generator)).exp()
    return torch.searchsorted(sigmas, wanted).clamp(max=len(alphas) - 1)


def window_of(rng: np.random.Generator, example: Tensor, window: int, hole: int = -1) -> Tensor:
    """The `window` x `window` cells of an example (C, h, w) about the hole in its channel `hole`."""
    rows, columns = example[hole].any(1).nonzero(), example[hole].any(0).nonzero()
    if len(rows) == 0:
        rows = columns = torch.tensor([[example.shape[1] // 2]])
    top, left = (
        int(
            np.clip(
                (int(cells.min() + cells.max()) + 1 - window) // 2 + rng.integers(-2, 3), 0, side - window
            )
        )
        for cells, side in ((rows, example.shape[1]), (columns, example.shape[2]))
    )
    return example[:, top : top + window, left : left + window]


class Training:
    """The modules of the training and its loss at any step."""

    def __init__(self, work: Path, steps: int = STEPS, seed: int = 0):
        self.seed, self.work = seed, work
        self.unet, self.alphas = new_unet(seed), alphas_cumprod()
        self.encoder = trained_text_encoder(work).to(runs.device())
        self.look = LookHead(self.unet.model_channels)
        self.unet.output_blocks[3][-1].register_forward_hook(self.look.keep)
        modules = {"unet": self.unet, "look": self.look}
        named = self.unet.named_parameters()
        self.fit = runs.Fit(
            work / "unet.pt", modules, steps, RATE, average=0.998, decay=1e-2,
            hidden=[p for name, p in named if "transformer_blocks" in name and p.ndim == 2],
            hidden_rate=MUON_RATE,
        )  # fmt: skip
        self.data: Latents | None = None

    def batch(self, rng: np.random.Generator, long: bool, window: int) -> tuple[list[Tensor], list[str]]:
        """Latent, look, masked latent and hole, each (B, C, h, w), and the prompts."""
        assert self.data
        scene, hole = self.data.pick(rng, BATCH, SUBJECT)
        tensors = self.data.tensors
        masked, holes = tensors["masked"][scene, hole], tensors["hole"][scene, hole][:, None]
        content = tensors["content"][scene, hole].tolist()
        prompts = [
            captions.batch_prompt(rng, self.data.things[s], c, long)
            for s, c in zip(scene.tolist(), content, strict=True)
        ]
        parts = [tensors["latent"][scene], tensors["look"][scene], masked, holes]
        whole = torch.cat([part.float() for part in parts], 1)
        if window < whole.shape[-1]:
            whole = torch.stack([window_of(rng, example, window) for example in whole])
        return list(whole.split([part.shape[1] for part in parts], 1)), prompts

    def loss_at(self, step: int) -> tuple[Tensor, dict[str, float]]:
        rng, generator = runs.draws(self.seed, step)
        if step % 100 == 0 or self.data is None:
            self.data = self.data or Latents(self.work, 4)
            self.data.refresh()
        window = WINDOW if step < WINDOWED * self.fit.total else 16
        long = step % EVERY == EVERY - 1
        (latent, look, masked, hole), prompts = self.batch(rng, long, window)
        t = sample_times(len(latent), self.alphas, generator)
        noise = torch.randn(latent.shape, generator=generator)
        a = self.alphas[t].view(-1, 1, 1, 1)
        latent, look, masked, hole, t, noise, a = (
            x.to(runs.device()) for x in (latent, look, masked, hole, t, noise, a)
        )
        given = torch.cat([a.sqrt() * latent + (1 - a).sqrt() * noise, hole, masked], 1)
        weight = 0.2 + 0.8 * hole
        with runs.half_precision():
            with torch.no_grad():
                ids = ids_of(prompts)[:, : LONG if long else SHORT]
                context = self.encoder(ids.to(runs.device()))
            output = self.unet(given.to(memory_format=torch.channels_last), t.float(), context=context)
        error = weight * (output.float() - noise).square() / a
        aside = self.look(look, weight)
        # an error in v counts sqrt(a): so every noise level has a gradient of about the same size
        loss = (a.sqrt() * error).mean() + 3 * aside
        return loss, {"error": error.mean().item(), "look": aside.item()}

    def run(self) -> None:
        with runs.training_attention():
            self.fit.run(self.loss_at, save_every=400)  # a state takes 0.8 GB


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS, help="over which the learning rate falls")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    Training(a.work, a.steps, a.seed).run()


if __name__ == "__main__":
    main()
