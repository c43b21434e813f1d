"""Map CLIP's tokens of an object to 77 context rows in place of the text (Tsach & Spira 2024)."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .content_adapter import CLIP, EncoderSpec

CLIP_L = EncoderSpec(encoder=CLIP, width=1024, registers=0, background="original", uncond="zeros", fit="crop")


@dataclass(frozen=True)
class OptimizerConfig:
    """Sizes of an embedding optimizer; the defaults are the published ones."""

    encoder_spec: EncoderSpec = field(default_factory=lambda: CLIP_L)
    context: int = 768
    tokens: int = 77
    heads: int = 8
    layers: int = 4  # of the final MLP; the first published version had two


class EmbeddingOptimizer(nn.Module):
    """Map tokens (B, N, E) to context (B, M, C): linear layer, attention pooling by M queries, MLP with ReLU.

    The queries are learned; the released code draws new ones at every call. The unconditional context is
    zeros, in training and in inference.
    """

    def __init__(self, config: OptimizerConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        factory_kwargs: dict[str, Any] = {"dtype": dtype, "device": device}
        width = config.context
        self.config = config
        self.projection_layer = operations.Linear(config.encoder_spec.width, width, **factory_kwargs)
        self.queries = nn.Parameter(torch.randn(config.tokens, width, **factory_kwargs))
        self.attention_pooling = AttentionPooling(width, config.heads, operations, factory_kwargs)
        self.mlp = nn.ModuleList(
            operations.Linear(width, width, **factory_kwargs) for _ in range(config.layers)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the context rows."""
        x = self.projection_layer(tokens)
        x = self.attention_pooling(self.queries.to(x).expand(len(x), -1, -1), x)
        for i, layer in enumerate(self.mlp):
            x = layer(F.relu(x) if i else x)
        return x


class AttentionPooling(nn.Module):
    """Attention of queries (B, M, C) to tokens (B, N, C); equal to torch.nn.MultiheadAttention."""

    def __init__(self, width: int, heads: int, operations: Any, factory_kwargs: dict[str, Any]):
        super().__init__()
        self.heads = heads
        self.to_q = operations.Linear(width, width, **factory_kwargs)
        self.to_k = operations.Linear(width, width, **factory_kwargs)
        self.to_v = operations.Linear(width, width, **factory_kwargs)
        self.to_out = operations.Linear(width, width, **factory_kwargs)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Return (B, M, C)."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(queries), self.to_k(tokens), self.to_v(tokens))
        )
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def seeded_queries(tokens: int, width: int, seed: int = 0) -> Tensor:
    """Return queries (tokens, width) from N(0, 1), as in the published training; its weights contain none."""
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))
