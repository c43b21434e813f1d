"""The tiny world's words: a CLIP-L-shaped text encoder whose layers do nothing but pass its embeddings on.

A row is LayerNorm(token embedding + position embedding). All embeddings are drawn from a seed, so they need
not be stored; the rows of the words of the captions are trained with the UNet and are.
"""

import itertools
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from .. import world
from . import host

VOCABULARY, WIDTH, LENGTH = 49408, 768, 77
SPOKEN = "a an photo of wearing with hat bow flag"


@lru_cache(maxsize=1)
def seeded_embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    """Token (49408, 768) and position (77, 768) embeddings; the legacy generator's stream never changes."""
    random = np.random.RandomState(1234)
    tokens = random.standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
    positions = 0.3 * random.standard_normal((LENGTH, WIDTH)).astype(np.float32)
    return torch.from_numpy(tokens), torch.from_numpy(positions)


@lru_cache(maxsize=1)
def _tokenizer():
    host.open_host()
    from comfy.sd1_clip import SDTokenizer

    return SDTokenizer()


@lru_cache(maxsize=65536)
def token_ids(prompt: str) -> tuple[int, ...]:
    """The 77 token ids of a prompt, as the host's tokenizer gives them."""
    return tuple(pair[0] for pair in _tokenizer().tokenize_with_weights(prompt)[0])


def caption_token_ids() -> list[int]:
    """The ids of every word a caption can hold, with start and end; sorted."""
    words = itertools.chain(SPOKEN.split(), world.COLOURS, world.CLASSES, world.PATTERNS)
    return sorted({i for word in ["", *words] for i in token_ids(word)})


class TextRows(torch.nn.Module):
    """Prompt ids (B, 77) to context rows (B, 77, 768); the captions' words have trained rows (n, 768)."""

    ids: torch.Tensor
    tokens: torch.Tensor
    positions: torch.Tensor
    slot: torch.Tensor

    def __init__(self):
        super().__init__()
        tokens, positions = seeded_embeddings()
        ids = torch.tensor(caption_token_ids())
        self.trained = torch.nn.Parameter(tokens[ids].clone())
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("positions", positions, persistent=False)
        slot = torch.full((VOCABULARY,), -1)
        slot[ids] = torch.arange(len(ids))
        self.register_buffer("slot", slot, persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        slot = self.slot[ids]
        rows = torch.where((slot >= 0)[..., None], self.trained[slot.clamp(min=0)], self.tokens[ids])
        return F.layer_norm(rows + self.positions, (WIDTH,))


def encoder_state(trained: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """The text encoder's state dict as an SD 1.5 checkpoint holds it; its layers are the identity.

    A residual layer whose output projections are zero adds nothing; it needs no trained weight.
    """
    tokens, positions = seeded_embeddings()
    if trained is not None:
        tokens = tokens.index_copy(0, torch.tensor(caption_token_ids()), trained.float())
    half, zeros, ones = torch.float16, torch.zeros, torch.ones
    model = "cond_stage_model.transformer.text_model."
    state = {
        model + "embeddings.token_embedding.weight": tokens.to(half),
        model + "embeddings.position_embedding.weight": positions.to(half),
        model + "embeddings.position_ids": torch.arange(LENGTH)[None],
        model + "final_layer_norm.weight": ones(WIDTH, dtype=half),
        model + "final_layer_norm.bias": zeros(WIDTH, dtype=half),
    }
    for layer in (f"{model}encoder.layers.{i}." for i in range(12)):
        for norm in ("layer_norm1", "layer_norm2"):
            state[f"{layer}{norm}.weight"] = ones(WIDTH, dtype=half)
            state[f"{layer}{norm}.bias"] = zeros(WIDTH, dtype=half)
        for name, out, width in [
            *((f"self_attn.{p}_proj", WIDTH, WIDTH) for p in ("q", "k", "v", "out")),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ]:
            state[f"{layer}{name}.weight"] = zeros(out, width, dtype=half)
            state[f"{layer}{name}.bias"] = zeros(out, dtype=half)
    return state
