"""Train the tiny world's mask-free insertion: an 8-channel UNet, and an embedding optimizer on its encoder.

    python -m inlay.lab.models.object_cache insertions --work DIR --shards 8
    python -m inlay.lab.models.train_pix2pix --work DIR [--variant NAME]

The encoder has learned to predict the rows of captions (the stage `words` of train_imprint), as CLIP learned
from captions, and is frozen. The optimizer learns to predict them too, for the tiny UNet was trained with
nothing else. Then `insert` trains optimizer and UNet with both dropouts, the first half of it on windows. The
UNet starts from the shipped one: its new channels read the source as the old ones read the surroundings of a
hole. Saves every two minutes and goes on from there when called again. Leaves DIR/pix2pix_<variant>.pt and,
as the nodes load it, DIR/pix2pix_<variant>.safetensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...encoders.content_adapter import AdapterConfig, ContentAdapter
from ...encoders.embedding_optimizer import EmbeddingOptimizer, OptimizerConfig
from ...training.adapters.identity_stages import CROSS_ATTENTION, INSERT, LearningPhase, Part
from . import runs
from .caption_pretraining import AllObjects, CaptionPretraining, fit_words
from .object_cache import ObjectBank
from .object_training import Run, fit_stage
from .text_encoder import trained_text_encoder
from .train_imprint import (
    ENCODER_SPEC,
    WARM_UP,
    choices,
    finish,
    load_parts,
    new_encoder,
    new_trainee,
    state_file,
    write,
)

WORDS_RATE = 5e-4
RATES: dict[Part, float] = {"adapter": 2e-4, "unet": 1e-3}
TOKENS = 41  # class, registers and 36 patches go in; as many rows come out
STEPS = {"words": 500, "insert": 1900}
BATCH = {"words": 32, "insert": 16}
WHOLE = 0.5


@dataclass(frozen=True)
class Variant:
    projection: bool = False  # one linear layer in the optimizer's place
    without: str = ""  # layers of the UNet that learn nothing


VARIANTS = {
    "optimizer": Variant(),
    "projection": Variant(projection=True),
    "no_cross_attention": Variant(without=CROSS_ATTENTION),
}


def new_adapter(projection: bool) -> nn.Module:
    encoder_spec = replace(ENCODER_SPEC, uncond="zeros")
    if projection:
        return ContentAdapter(AdapterConfig(encoder_spec, width=encoder_spec.width, depth=0, norm=False))
    return EmbeddingOptimizer(OptimizerConfig(encoder_spec, tokens=TOKENS))


class Trainer:
    """One variant's two stages, each going on from where it was."""

    stages = tuple(STEPS)

    def __init__(self, work: Path, name: str, seed: int = 0, steps: Mapping[str, int] = STEPS):
        self.work, self.name, self.variant, self.seed = work, name, VARIANTS[name], seed
        self.steps, self.bank = steps, work / "objects"

    def file(self, stage: str) -> Path:
        kind = "projection" if self.variant.projection else "optimizer"
        return self.work / (f"pix2pix_{self.name}.pt" if stage == "insert" else f"pix2pix_{kind}_words.pt")

    def run(self, stage: str, minutes: float) -> dict[str, Any]:
        """Train a stage for so long at most. Raises SystemExit when what it stands on is not finished."""
        path = self.file(stage)
        if (done := runs.load(path)) and done["step"] >= self.steps[stage]:
            return done
        torch.manual_seed(self.seed)
        encoder, adapter = new_encoder("dino"), new_adapter(self.variant.projection)
        load_parts(state_file(self.work, "words", "dino"), encoder=encoder)
        run = Run(path, self.steps[stage], BATCH[stage], self.seed, minutes, WHOLE)
        if stage == "words":
            words = CaptionPretraining(encoder.requires_grad_(False), adapter, trained_text_encoder(None))
            return fit_words(words, WORDS_RATE, AllObjects(self.bank), run)
        load_parts(self.file("words"), adapter=adapter)
        what = replace(
            INSERT,
            trains={"adapter": "all", "unet": "all"},
            phases=(LearningPhase(1.0, RATES),),
            warm_up=WARM_UP,
        )
        trainee = new_trainee(encoder, adapter, 8)
        state = fit_stage(trainee, what, ObjectBank(self.bank, "insertions"), run, self.variant.without)
        if state["step"] >= run.steps:
            write(self.work / f"pix2pix_{self.name}.safetensors", encoder, adapter, state)
        return state


def main():
    chosen = choices(__doc__, VARIANTS, STEPS)
    done = finish(Trainer(chosen.work, chosen.variant, chosen.seed, chosen.steps), chosen.minutes)
    print("done" if done else "not done yet; the same command goes on")


if __name__ == "__main__":
    main()
