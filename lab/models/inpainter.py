"""The tiny model in this process: many pictures, each with its own hole and its own words, in one batch."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...imaging.composite import paste_back
from ...imaging.latent_mask import inpaint_pictures
from . import host

# What the tiny model paints best with, chosen on prompts other than the held-out ones. On those, class and
# colour are right in .885; with --sampler dpmpp_2m --scheduler karras in .865 (lab quality). Fresh noise in
# every step mends what the steps before got wrong, and equal steps of time leave many to the noise that hides
# shapes.
STEPS, CFG, SAMPLER, SCHEDULER = 20, 4.0, "dpmpp_2m_sde", "sgm_uniform"


def add_sampling(parser: argparse.ArgumentParser, steps: str = "--sampling-steps") -> None:
    """The options that say how the tables' pictures are painted."""
    parser.add_argument(steps, type=int, default=STEPS)
    parser.add_argument("--cfg", type=float, default=CFG)
    parser.add_argument("--sampler", default=SAMPLER)
    parser.add_argument("--scheduler", default=SCHEDULER)


class Painter:
    """A checkpoint opened by the host's own loader: `model`, `clip` and `vae` as its nodes hand them on."""

    def __init__(self, checkpoint: Path):
        host.open_host()
        import comfy.sd

        loaded: Any = comfy.sd.load_checkpoint_guess_config(str(checkpoint))
        self.model, self.clip, self.vae = loaded[:3]

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Context rows (B, 77, 768), one prompt per picture."""
        return torch.cat([self.clip.encode_from_tokens(self.clip.tokenize(prompt)) for prompt in prompts])

    @torch.inference_mode()
    def paint(self, images: Tensor, masks: Tensor, prompts: Sequence[str], **sampling) -> Tensor:
        """Fill masks (B, H, W), 1 = hole, of images (B, H, W, 3) in [0, 1]; all else keeps its bits.

        `sampling` are `paint_rows`' options.
        """
        rows, nothing = self.encode(prompts), self.encode([""])
        return self.paint_rows(images, masks, rows, nothing, **sampling)

    @torch.inference_mode()
    def paint_rows(
        self,
        images: Tensor,
        masks: Tensor,
        rows: Tensor,
        nothing: Tensor,
        seed: int = 0,
        model=None,
        steps: int = STEPS,
        cfg: float = CFG,
        sampler: str = SAMPLER,
        scheduler: str = SCHEDULER,
    ) -> Tensor:
        """`paint` with context rows (B, M, 768) for words, and those (1, M, 768) that stand for none.

        `model` replaces the loaded MODEL (a patched or fine-tuned clone of it).
        """
        import comfy.sample

        image, masked, hole = inpaint_pictures(images, masks, 8)
        condition = {"concat_latent_image": self.vae.encode(masked), "concat_mask": hole[:, None]}
        latent = self.vae.encode(image)
        positive = [[rows, condition]]
        negative = [[nothing, condition]]
        noise = comfy.sample.prepare_noise(latent, seed)
        painted = comfy.sample.sample(
            model or self.model,
            noise,
            steps,
            cfg,
            sampler,
            scheduler,
            positive,
            negative,
            latent,
            noise_mask=hole[:, None],
            disable_pbar=True,
            seed=seed,
        )
        decoded = self.vae.decode(painted)[:, : images.shape[1], : images.shape[2]]
        return paste_back(images, decoded.clamp(0, 1), masks)
