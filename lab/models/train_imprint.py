"""Train the tiny world's identity encoder and adapter through IMPRINT's two stages.

    python -m inlay.lab.models.object_cache objects --work DIR --shards 40
    python -m inlay.lab.models.object_cache views --work DIR --shards 4
    python -m inlay.lab.models.object_cache compositions --work DIR --shards 6
    python -m inlay.lab.models.train_imprint --work DIR [--variant NAME]

Before them, `words`: DINOv2 and CLIP come pretrained to IMPRINT, and the tiny encoder from noise; so encoder
and adapter first learn to predict, from the object's picture, the rows of its caption (the linear
projection learns them on the encoder that learned with the adapter). Then `views` and `compose` as in the
paper, from the shipped UNet, which learns a low-rank difference. Text encoder and autoencoder are the shipped
ones, too. Every stage saves every two minutes and goes
on from there when called again; --minutes ends the call, not the stage. Leaves DIR/imprint_<variant>.pt and,
as the nodes load it, DIR/imprint_<variant>.safetensors; a seed other than 0 is in the names.
"""

import argparse
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

import torch
from safetensors.torch import save_file
from torch import nn

from ...encoders import checkpoint_layouts as layouts
from ...encoders.content_adapter import CLIP, AdapterConfig, ContentAdapter, EncoderSpec
from ...encoders.dinov2 import DinoConfig, DinoV2
from ...training.adapters.identity_stages import (
    COMPOSE,
    VIEWS_STAGE,
    LearningPhase,
    Part,
    Stage,
    denoise_with_host,
)
from ...training.objective import NoiseSchedule
from . import runs
from .caption_pretraining import AllObjects, CaptionPretraining, fit_words
from .object_cache import MARGIN, SEEN, ObjectBank
from .object_training import Run, TinyTrainee, fit_stage, part_of, shipped_unet, tiny_sigmas
from .text_encoder import trained_text_encoder

ENCODER = DinoConfig(width=192, depth=4, heads=3, hidden=768, gated=False, registers=4, grid=SEEN // 14)
ENCODER_SPEC = EncoderSpec(width=192, registers=4, size=SEEN, margin=MARGIN)
CLIP_ENCODER_SPEC = replace(ENCODER_SPEC, encoder=CLIP, registers=0)
# For so short a training; the papers' are for finetuning large models.
WORDS_RATE = 5e-4
RATES: dict[Part, float] = {"encoder": 1e-4, "adapter": 3e-4, "unet": 2e-4}
LOW = 0.1  # of a rate, where a part follows the other
WARM_UP = 50
STEPS = {"words": 3000, "views": 192, "compose": 480}
ON_FROZEN = 3  # so many times fewer steps for words where the encoder knows them already
BATCH = {"words": 48, "views": 16, "compose": 16}


# First the adapter at the high rate, then the UNet, as in the paper; both at it all the time; first the UNet.
Order = Literal["sequential", "joint", "reversed"]


@dataclass(frozen=True)
class Variant:
    """A way to train; those that share a `foundation` share the first stages."""

    foundation: str = "dino"  # dino, clip (the encoder's shape), or linear (a projection for an adapter)
    views: bool = True  # False: compose trains for as long as both stages together
    order: Order = "sequential"  # of the last stage


VARIANTS = {
    "two_stage": Variant(),
    "single_stage": Variant(views=False),
    "joint": Variant(order="joint"),
    "reversed": Variant(order="reversed"),
    "clip": Variant("clip"),
    "linear": Variant("linear"),
}


def new_encoder(foundation: str) -> nn.Module:
    if foundation == "clip":
        from transformers import CLIPVisionConfig, CLIPVisionModel  # slow to import

        config = CLIPVisionConfig(
            hidden_size=ENCODER.width, intermediate_size=ENCODER.hidden, num_hidden_layers=ENCODER.depth,
            num_attention_heads=ENCODER.heads, image_size=SEEN, patch_size=ENCODER.patch,
        )  # fmt: skip
        return CLIPVisionModel(config)
    encoder = DinoV2(ENCODER)
    for parameter in encoder.embeddings.parameters():
        if parameter.ndim == 3:  # tokens and positions, which a file would fill
            nn.init.trunc_normal_(parameter, std=0.02)
    return encoder


def new_adapter(foundation: str) -> ContentAdapter:
    encoder_spec = CLIP_ENCODER_SPEC if foundation == "clip" else ENCODER_SPEC
    depth = 0 if foundation == "linear" else 2
    return ContentAdapter(AdapterConfig(encoder_spec, width=encoder_spec.width, depth=depth, heads=3))


def stage_of(name: str, order: Order = "sequential") -> Stage:
    """The paper's stage at the tiny world's rates; the hole is all of a view that is asked for."""
    if name == "views":
        return replace(VIEWS_STAGE, channels=9, phases=(LearningPhase(1.0, RATES),), warm_up=WARM_UP)
    adapter, unet = RATES["adapter"], RATES["unet"]
    phases = (
        LearningPhase(0.5, {"adapter": adapter, "unet": unet * LOW}),
        LearningPhase(0.5, {"adapter": adapter * LOW, "unet": unet}),
    )
    if order == "joint":
        phases = (LearningPhase(1.0, {"adapter": adapter, "unet": unet}),)
    elif order == "reversed":
        phases = phases[::-1]
    return replace(COMPOSE, phases=phases, warm_up=WARM_UP)


def new_trainee(encoder: nn.Module, adapter: nn.Module, channels: int = 9) -> TinyTrainee:
    return TinyTrainee(
        encoder, adapter, shipped_unet(channels), NoiseSchedule(tiny_sigmas(), "epsilon"), denoise_with_host
    )


def state_file(work: Path, stage: str, name: str, tag: str = "") -> Path:
    """Of the first stages by foundation, of the last by variant; the shared words have no `tag`."""
    if stage == "words":
        return work / f"imprint_{name}_words.pt"
    return work / (f"imprint_{name}{tag}.pt" if stage == "compose" else f"imprint_{name}_{stage}{tag}.pt")


def is_finished(state: dict[str, Any] | None) -> TypeGuard[dict[str, Any]]:
    return state is not None and state["step"] >= state["steps"]


def load_parts(path: Path, **parts: nn.Module) -> None:
    """The parts' weights as a finished run left them, where it trained them. Raises SystemExit before."""
    if not is_finished(state := runs.load(path)):
        raise SystemExit(f"{path.name} is not finished; call the training again.")
    for name, module in parts.items():
        module.load_state_dict(part_of(state, name), strict=False)


class Trainer:
    """One variant's stages, each going on from where it was; all seeds share the words.

    With `pairs` the last stage sees so many examples of `same_view`, in which nothing is seen from another
    side; `half` computes in bfloat16.
    """

    def __init__(
        self, work: Path, name: str, seed: int = 0, steps: Mapping[str, int] = STEPS, pairs: int = 0,
        half: bool = False,
    ):  # fmt: skip
        self.work, self.name, self.variant, self.seed = work, name, VARIANTS[name], seed
        self.steps, self.bank, self.pairs, self.half = steps, work / "objects", pairs, half
        self.stages = ["words", *(["views"] if self.variant.views else []), "compose"]

    def file(self, stage: str) -> Path:
        """The state of a stage."""
        seed = f"_seed{self.seed}" if self.seed else ""
        if stage == "compose":
            return state_file(
                self.work, stage, self.name, (f"_{self.pairs}pairs" if self.pairs else "") + seed
            )
        return state_file(self.work, stage, self.variant.foundation, seed)

    def run(self, stage: str, minutes: float) -> dict[str, Any]:
        """Train a stage for so long at most. Raises SystemExit when the one before is not finished."""
        variant, foundation = self.variant, self.variant.foundation
        path = self.file(stage)
        if (done := runs.load(path)) and done["step"] >= self.length(stage):
            return done
        torch.manual_seed(self.seed)
        encoder, adapter = new_encoder(foundation), new_adapter(foundation)
        run = Run(path, self.length(stage), BATCH[stage], self.seed, minutes, half=self.half)
        parts = {"encoder": encoder, "adapter": adapter}
        if stage == "words":
            if foundation == "linear":
                load_parts(state_file(self.work, "words", "dino"), encoder=encoder.requires_grad_(False))
            words = CaptionPretraining(encoder, adapter, trained_text_encoder(None))
            return fit_words(words, WORDS_RATE, AllObjects(self.bank), run)
        if foundation == "linear":
            load_parts(state_file(self.work, "words", "dino"), encoder=encoder)
        load_parts(state_file(self.work, "words", foundation), **parts)
        if stage == "compose" and variant.views:
            load_parts(self.file("views"), **parts)  # its UNet stays behind (sec. 3.1)
        if stage == "compose" and self.pairs:
            bank = ObjectBank(self.bank, "same_view", self.pairs)
        else:
            bank = ObjectBank(self.bank, "views" if stage == "views" else "compositions")
        trainee = new_trainee(encoder, adapter)
        state = fit_stage(trainee, stage_of(stage, variant.order), bank, run)
        if stage == "compose" and state["step"] >= run.steps:
            write(path.with_suffix(".safetensors"), encoder, adapter, state)
        return state

    def length(self, stage: str) -> int:
        """A stage's steps; a training of one stage is as long as the other ones' two."""
        if stage == "words" and self.variant.foundation == "linear":
            return self.steps[stage] // ON_FROZEN
        extra = 0 if self.variant.views else self.steps["views"]
        return self.steps[stage] + (extra if stage == "compose" else 0)


def write(path: Path, encoder: nn.Module, adapter: Any, state: dict[str, Any]) -> None:
    """The file that the nodes load: the adapter as a finished run left it, and the encoder."""
    adapter.load_state_dict(part_of(state, "adapter"))
    weights = {f"adapter.{k}": v.contiguous() for k, v in adapter.state_dict().items()}
    weights |= {f"encoder.{k}": v.contiguous() for k, v in encoder.state_dict().items()}
    dino = encoder.config if isinstance(encoder, DinoV2) else None
    save_file(weights, path, {layouts.METADATA: layouts.describe_checkpoint(adapter.config, dino)})


def finish(trainer: Any, minutes: float = math.inf) -> bool:
    """Whatever is left of a trainer's stages, for so long at most; True when it is all done."""
    end = time.time() + 60 * minutes
    for stage in trainer.stages:
        print(f"{trainer.name}: {stage}", flush=True)
        state = trainer.run(stage, (end - time.time()) / 60)
        if state["step"] < state["steps"]:
            return False
    return True


def is_ready(trainer: Any, minutes: float) -> bool:
    """Whether all of a trainer's stages are finished, of whatever length; trains what is not, for so long."""
    return all(is_finished(runs.load(trainer.file(s))) for s in trainer.stages) or finish(trainer, minutes)


def choices(about: str | None, variants: Iterable[str], steps: Mapping[str, int]) -> argparse.Namespace:
    """The command line of a training of several variants and stages; `steps` become a dict of that name."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(variants)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--variant", choices=names, default=names[0])
    parser.add_argument("--minutes", type=float, default=math.inf, help="how long to train now")
    parser.add_argument("--seed", type=int, default=0)
    for stage, count in steps.items():
        parser.add_argument(
            f"--{stage}", type=int, default=count, metavar="STEPS", help="default: %(default)s"
        )
    chosen = parser.parse_args()
    chosen.steps = {stage: getattr(chosen, stage) for stage in steps}
    return chosen


def main():
    chosen = choices(__doc__, VARIANTS, STEPS)
    done = finish(Trainer(chosen.work, chosen.variant, chosen.seed, chosen.steps), chosen.minutes)
    print("done" if done else "not done yet; the same command goes on")


if __name__ == "__main__":
    main()
