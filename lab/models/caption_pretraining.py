"""An object's picture to the words that its caption has: what the tiny encoders and adapters learn first."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...encoders.content_adapter import ContentAdapter, EncoderSpec, as_pixels
from ...training.adapters.identity_stages import pixel_normalization, read_tokens
from .. import world
from .checkpoint import shipped_parts
from .object_cache import KINDS, ObjectBank
from .object_training import Run, fit
from .text import TextRows, token_ids

SHIFT = 5  # pixels that an object is moved by at most; its margin is 7
REST = 0.2  # weight of the rows that say nothing
WARM_UP = 50


class Captions:
    """What a caption says of a thing, as the rows that the UNet knows its words by; positions left out.

    `rows` are, field by field, those of its words (n, 768), `start` and `nothing` (768,) a caption's first
    row and the mean of what an empty one goes on with.
    """

    FIELDS = {
        "kind": world.CLASSES,
        "colour": tuple(world.COLOURS),
        "pattern": ("", *world.PATTERNS[1:]),
        "accessory": ("", *world.ACCESSORIES[1:]),
    }

    def __init__(self):
        text = TextRows()
        text.trained.data.copy_(shipped_parts()["rows"]["trained"])
        with torch.no_grad():
            empty = text(torch.tensor([token_ids("")]))[0]
        self.start, self.nothing = empty[0], empty[1:].mean(0)
        self.ids = {f: [token_ids(w)[1] if w else -1 for w in words] for f, words in self.FIELDS.items()}
        self.rows = {field: self._rows(text, ids) for field, ids in self.ids.items()}

    def _rows(self, text: TextRows, ids: list[int]) -> Tensor:
        known = F.layer_norm(text.trained.detach(), text.trained.shape[1:])
        return torch.stack([known[text.slot[i]] if i >= 0 else self.nothing for i in ids])

    def said(self, captions: Tensor) -> Tensor:
        """Captions (B, 77) of ids -> which of each field's words they hold (B, 4)."""
        found = torch.zeros(len(captions), len(self.ids), dtype=torch.long)
        for number, ids in enumerate(self.ids.values()):
            for word, i in enumerate(ids):
                found[(captions == i).any(1), number] = word
        return found


class Words(nn.Module):
    """Encoder and adapter that learn what a caption says: a row each for class, colour, pattern and
    accessory, the row that captions start with, and nothing on all others.

    Its loss is the rows' mean square error and, for these learn faster, the cross-entropy of the words.
    """

    def __init__(self, encoder: nn.Module, adapter: nn.Module):
        super().__init__()
        self.encoder, self.adapter = encoder, adapter
        config: Any = adapter.config
        self.encoder_spec: EncoderSpec = config.encoder_spec
        self.captions = Captions()
        last: Any = adapter.proj_out if isinstance(adapter, ContentAdapter) else adapter.mlp[-1]  # pyright: ignore
        last.bias.data.copy_(self.captions.nothing)
        if self.encoder_spec.uncond == "learned":
            adapter.get_parameter("nothing").data.copy_(self.captions.nothing.expand(1, 1, -1))

    def forward(self, objects: Tensor, captions: Tensor) -> Tensor:
        """Objects (B, S, S, 3) in [0, 1], captions (B, 77) of ids -> the loss."""
        tokens = read_tokens(
            self.encoder, self.encoder_spec, as_pixels(objects, *pixel_normalization(self.encoder_spec))
        )
        rows, known = self.adapter(tokens), self.captions
        words = known.said(captions)
        wanted = [table[words[:, i]] for i, table in enumerate(known.rows.values())]
        wanted.append(known.start.expand_as(rows[:, 0]))
        count = len(wanted)
        loss = F.mse_loss(rows[:, :count], torch.stack(wanted, 1))
        loss = loss + REST * F.mse_loss(rows[:, count:], known.nothing.expand_as(rows[:, count:]))
        for i, table in enumerate(known.rows.values()):
            loss = loss + F.cross_entropy(rows[:, i] @ table.T / table.shape[1] ** 0.5, words[:, i]) / count
        return loss


def fit_words(words: Words, groups, bank: Any, run: Run) -> dict[str, Any]:
    """Train on mirrored and shifted objects of every bank; `groups` as in `fit`, of peak rates."""

    def loss_of(step: int, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        batch = bank.batch(rng, run.batch)
        objects, mirrored = batch["object"], torch.from_numpy(rng.random(run.batch) < 0.5)
        objects = torch.where(mirrored.view(-1, 1, 1, 1), objects.flip(2), objects)
        objects = objects.roll(rng.integers(-SHIFT, SHIFT + 1, 2).tolist(), (1, 2))
        return words(objects, batch["caption"])

    warm = [(own, lambda step, rate=rate: rate * min(1.0, (step + 1) / WARM_UP)) for own, rate in groups]
    return fit(words, warm, loss_of, run)


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
