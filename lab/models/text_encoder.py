"""The text encoder: CLIP-L's shape, of which two causal layers and the captions' words are trained.

The other ten layers are the identity (their output projections are zero). All embeddings are drawn from a
seed, so only those of the captions' words are stored. The two layers use 4 of the 12 heads and 512 of the
3072 hidden units; the rest of their weights is zero and not stored either.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import quantised, runs
from .captions import VOCABULARY
from .files import WEIGHTS
from .host import open_host

SIZE, WIDTH, LENGTH = 49408, 768, 77
LAYERS, HEADS, HEAD, HIDDEN = 2, 4, 64, 512
PREFIX = "cond_stage_model.transformer.text_model."


@lru_cache(maxsize=1)
def seeded_embeddings() -> tuple[Tensor, Tensor]:
    """Token (49408, 768) and position (77, 768) embeddings; the legacy generator's stream never changes."""
    random = np.random.RandomState(1234)
    tokens = random.standard_normal((SIZE, WIDTH)).astype(np.float32)
    positions = 0.3 * random.standard_normal((LENGTH, WIDTH)).astype(np.float32)
    return torch.from_numpy(tokens), torch.from_numpy(positions)


@lru_cache(maxsize=1)
def _tokenizer():
    open_host()
    from comfy.sd1_clip import SDTokenizer

    return SDTokenizer()


@lru_cache(maxsize=262144)
def token_ids(prompt: str) -> tuple[int, ...]:
    """The 77 token ids of a prompt, as the host's tokenizer gives them."""
    return tuple(pair[0] for pair in _tokenizer().tokenize_with_weights(prompt)[0])


def ids_of(prompts: list[str]) -> Tensor:
    """Token ids (B, 77) of prompts."""
    return torch.tensor([token_ids(prompt) for prompt in prompts])


def trained_ids() -> list[int]:
    """The ids of every word of the captions, with start and end; sorted."""
    return sorted({i for word in ("", *VOCABULARY) for i in token_ids(word)})


class Layer(nn.Module):
    """One causal layer with the host's structure, without the heads and hidden units that are zero."""

    def __init__(self):
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * HEADS * HEAD)
        self.out = nn.Linear(HEADS * HEAD, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        for layer in (self.out, self.fc2):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        count, length, _ = x.shape
        qkv = self.qkv(self.layer_norm1(x)).view(count, length, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(0), is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(count, length, -1))
        hidden = self.fc1(self.layer_norm2(x))
        return x + self.fc2(hidden * torch.sigmoid(1.702 * hidden))


class TextEncoder(nn.Module):
    """Token ids (B, L <= 77) to the context (B, L, 768)."""

    tokens: Tensor
    positions: Tensor
    slot: Tensor

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        tokens, positions = seeded_embeddings()
        ids = torch.tensor(trained_ids())
        self.words = nn.Parameter(tokens[ids].clone())
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.final_layer_norm = nn.LayerNorm(WIDTH)
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("positions", positions, persistent=False)
        slot = torch.full((SIZE,), -1)
        slot[ids] = torch.arange(len(ids))
        self.register_buffer("slot", slot, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        slot = self.slot[ids]
        x = torch.where((slot >= 0)[..., None], self.words[slot.clamp(min=0)], self.tokens[ids])
        x = x + self.positions[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.final_layer_norm(x)


def trained_text_encoder(work: Path | None) -> TextEncoder:
    """The text encoder of `work`, as Fill's training left it; without one, the shipped one."""
    encoder, state = TextEncoder(), runs.load(work / "text_encoder.pt") if work else None
    encoder.load_state_dict(state or quantised.load(WEIGHTS / "text.safetensors"))
    return encoder.eval().requires_grad_(False)


def host_state(trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of an SD 1.5 checkpoint's text encoder, float16, from that of a `TextEncoder`."""
    tokens, positions = seeded_embeddings()
    tokens = tokens.index_copy(0, torch.tensor(trained_ids()), trained["words"].float())
    state = {
        "embeddings.token_embedding.weight": tokens,
        "embeddings.position_embedding.weight": positions,
        "final_layer_norm.weight": trained["final_layer_norm.weight"],
        "final_layer_norm.bias": trained["final_layer_norm.bias"],
    }
    wide, used = 3072, HEADS * HEAD
    for index in range(12):
        layer = f"encoder.layers.{index}."
        own = {
            k.removeprefix(f"layers.{index}."): v
            for k, v in trained.items()
            if k.startswith(f"layers.{index}.")
        }
        for norm in ("layer_norm1", "layer_norm2"):
            state[f"{layer}{norm}.weight"] = own.get(f"{norm}.weight", torch.ones(WIDTH))
            state[f"{layer}{norm}.bias"] = own.get(f"{norm}.bias", torch.zeros(WIDTH))
        for number, name in enumerate("qkv"):
            weight, bias = torch.zeros(WIDTH, WIDTH), torch.zeros(WIDTH)
            if own:
                rows = slice(number * used, (number + 1) * used)
                weight[:used], bias[:used] = own["qkv.weight"][rows], own["qkv.bias"][rows]
            state[f"{layer}self_attn.{name}_proj.weight"] = weight
            state[f"{layer}self_attn.{name}_proj.bias"] = bias
        out, fc1, fc2 = torch.zeros(WIDTH, WIDTH), torch.zeros(wide, WIDTH), torch.zeros(WIDTH, wide)
        fc1_bias = torch.zeros(wide)
        if own:
            out[:, :used], fc1[:HIDDEN], fc2[:, :HIDDEN] = (
                own["out.weight"],
                own["fc1.weight"],
                own["fc2.weight"],
            )
            fc1_bias[:HIDDEN] = own["fc1.bias"]
        state[f"{layer}self_attn.out_proj.weight"] = out
        state[f"{layer}self_attn.out_proj.bias"] = own.get("out.bias", torch.zeros(WIDTH))
        state[f"{layer}mlp.fc1.weight"], state[f"{layer}mlp.fc1.bias"] = fc1, fc1_bias
        state[f"{layer}mlp.fc2.weight"] = fc2
        state[f"{layer}mlp.fc2.bias"] = own.get("fc2.bias", torch.zeros(WIDTH))
    half = {PREFIX + name: value.half().contiguous() for name, value in state.items()}
    return {**half, f"{PREFIX}embeddings.position_ids": torch.arange(LENGTH)[None]}
