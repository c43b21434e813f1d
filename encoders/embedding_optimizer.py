"""The embedding optimizer: CLIP's tokens of an object to 77 rows in place of words (Tsach & Spira 2024)."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .content_adapter import CLIP, EncoderSpec

CLIP_L = EncoderSpec(
    encoder=CLIP, width=1024, registers=0, background="original", nothing="zeros", fit="crop"
)


@dataclass(frozen=True)
class OptimizerConfig:
    """An embedding optimizer by its numbers; the defaults are the published one's."""

    reading: EncoderSpec = field(default_factory=lambda: CLIP_L)
    context: int = 768
    tokens: int = 77
    heads: int = 8
    layers: int = 4  # of the final MLP; the first version had two


class EmbeddingOptimizer(nn.Module):
    """Tokens (B, N, E) -> context (B, M, C): linear, attention pooling by M queries, linears and ReLUs.

    The queries are learned, where the released code draws others at every call. No object is a context of
    zeros, in training and in use alike.
    """

    def __init__(self, config: OptimizerConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        made: dict[str, Any] = {"dtype": dtype, "device": device}
        width = config.context
        self.config = config
        self.projection_layer = operations.Linear(config.reading.width, width, **made)
        self.queries = nn.Parameter(torch.randn(config.tokens, width, **made))
        self.attention_pooling = AttentionPooling(width, config.heads, operations, made)
        self.mlp = nn.ModuleList(operations.Linear(width, width, **made) for _ in range(config.layers))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.projection_layer(tokens)
        x = self.attention_pooling(self.queries.to(x).expand(len(x), -1, -1), x)
        for i, layer in enumerate(self.mlp):
            x = layer(F.relu(x) if i else x)
        return x


class AttentionPooling(nn.Module):
    """Attention of queries (B, M, C) to tokens (B, N, C), the same as torch.nn.MultiheadAttention."""

    def __init__(self, width: int, heads: int, operations: Any, made: dict[str, Any]):
        super().__init__()
        self.heads = heads
        self.to_q = operations.Linear(width, width, **made)
        self.to_k = operations.Linear(width, width, **made)
        self.to_v = operations.Linear(width, width, **made)
        self.to_out = operations.Linear(width, width, **made)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(queries), self.to_k(tokens), self.to_v(tokens))
        )
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def seeded_queries(tokens: int, width: int, seed: int = 0) -> Tensor:
    """Queries (tokens, width) for published weights, which come without: N(0, 1), as they were trained."""
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))
