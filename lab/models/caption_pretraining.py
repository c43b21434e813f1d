"""An object's picture to the words that its caption has: what the tiny encoders and adapters learn first."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...encoders.content_adapter import ContentAdapter, EncoderSpec, as_pixels
from ...training.adapters.identity_stages import pixel_normalization, read_tokens
from .. import scenes
from .inpainting_unet import SHORT
from .object_cache import KINDS, ObjectBank
from .object_training import Run, fit
from .text_encoder import TextEncoder, ids_of, token_ids

SHIFT = 5  # pixels that an object is moved by at most; its margin is 7
REST = 0.2  # weight of the rows after the caption's
WARM_UP = 50


class Captions:
    """A caption's rows as the UNet reads them, and which word it has of each field.

    `nothing` (768,) is the mean of the rows that an empty caption goes on with.
    """

    FIELDS = {
        "kind": scenes.CLASSES,
        "colour": tuple(scenes.COLOURS),
        "pattern": ("", *scenes.PATTERNS[1:]),
        "accessory": ("", *scenes.ACCESSORIES[1:]),
    }

    def __init__(self, encoder: TextEncoder):
        self.encoder = encoder.requires_grad_(False)
        self.nothing = self.rows(ids_of([""]))[0, 1:].mean(0)
        self.ids = {f: [token_ids(w)[1] if w else -1 for w in words] for f, words in self.FIELDS.items()}

    @torch.no_grad()
    def rows(self, captions: Tensor) -> Tensor:
        """Captions (B, 77) of ids -> their first rows (B, SHORT, 768), which hold all of their words."""
        return self.encoder(captions[:, :SHORT])

    def word_indices(self, captions: Tensor) -> Tensor:
        """Captions (B, 77) of ids -> which of each field's words they hold (B, 4)."""
        found = torch.zeros(len(captions), len(self.ids), dtype=torch.long)
        for number, ids in enumerate(self.ids.values()):
            for word, i in enumerate(ids):
                found[(captions == i).any(1), number] = word
        return found


class CaptionPretraining(nn.Module):
    """Encoder and adapter that learn to give the rows of an object's caption, its last one on all others.

    Its loss is the rows' mean square error and, for these learn faster, the cross-entropy of the words that
    `heads`, thrown away after training, find in the rows.
    """

    def __init__(self, encoder: nn.Module, adapter: nn.Module, text: TextEncoder):
        super().__init__()
        self.encoder, self.adapter = encoder, adapter
        config: Any = adapter.config
        self.encoder_spec: EncoderSpec = config.encoder_spec
        self.captions = Captions(text)
        width = len(self.captions.nothing)
        self.heads = nn.ModuleDict(
            {field: nn.Linear(width, len(words)) for field, words in Captions.FIELDS.items()}
        )
        last: Any = adapter.proj_out if isinstance(adapter, ContentAdapter) else adapter.mlp[-1]  # pyright: ignore
        last.bias.data.copy_(self.captions.nothing)
        if self.encoder_spec.uncond == "learned":
            adapter.get_parameter("nothing").data.copy_(self.captions.nothing.expand(1, 1, -1))

    def forward(self, objects: Tensor, captions: Tensor) -> Tensor:
        """Objects (B, S, S, 3) in [0, 1], captions (B, 77) of ids -> the loss."""
        tokens = read_tokens(
            self.encoder, self.encoder_spec, as_pixels(objects, *pixel_normalization(self.encoder_spec))
        )
        rows, wanted, words = (
            self.adapter(tokens),
            self.captions.rows(captions),
            self.captions.word_indices(captions),
        )
        loss = F.mse_loss(rows[:, :SHORT], wanted)
        loss = loss + REST * F.mse_loss(rows[:, SHORT:], wanted[:, -1:].expand_as(rows[:, SHORT:]))
        seen = rows[:, :SHORT].mean(1)
        errors = [F.cross_entropy(head(seen), words[:, i]) for i, head in enumerate(self.heads.values())]
        return loss + torch.stack(errors).sum() / SHORT


def fit_words(words: CaptionPretraining, rate: float, bank: Any, run: Run) -> dict[str, Any]:
    """Train whatever of `words` learns on mirrored and shifted objects of every bank, at this peak rate."""

    def loss_of(step: int, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        batch = bank.batch(rng, run.batch)
        objects, mirrored = batch["object"], torch.from_numpy(rng.random(run.batch) < 0.5)
        objects = torch.where(mirrored.view(-1, 1, 1, 1), objects.flip(2), objects)
        objects = objects.roll(rng.integers(-SHIFT, SHIFT + 1, 2).tolist(), (1, 2))
        return words(objects, batch["caption"])

    learns = [p for p in words.parameters() if p.requires_grad]
    return fit(words, [(learns, lambda step: rate * min(1.0, (step + 1) / WARM_UP))], loss_of, run)


class AllObjects:
    """The objects of every bank that is there, with their captions."""

    def __init__(self, folder: Path):
        banks = [ObjectBank(folder, kind) for kind in KINDS if any(folder.glob(f"{kind}-*.safetensors"))]
        if not banks:
            raise SystemExit(
                f"There are no examples in {folder}; python -m inlay.lab.models.object_cache makes them."
            )
        self.tensors = {k: torch.cat([bank.tensors[k] for bank in banks]) for k in ("object", "caption")}

    def batch(self, rng: np.random.Generator, count: int) -> dict[str, Tensor]:
        rows = torch.from_numpy(rng.integers(len(self.tensors["object"]), size=count))
        batch = {name: value[rows] for name, value in self.tensors.items()}
        return {"object": batch["object"].float() / 255, "caption": batch["caption"].long()}
