"""Map an encoder's tokens to the context that replaces the text (ObjectStitch, IMPRINT)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean, standard deviation: DINOv2
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # CLIP


def as_pixels(pictures: Tensor, mean: Sequence[float], std: Sequence[float], raw: bool = False) -> Tensor:
    """Normalise images (B, H, W, 3) in [0, 1] to pixels (B, 3, H, W).

    Args:
        pictures: the images.
        mean: per channel.
        std: standard deviation per channel.
        raw: return (255 x - mean) / std instead of (x - mean) / std.
    """
    if raw:
        pictures = 255 * pictures
    return ((pictures - pictures.new_tensor(mean)) / pictures.new_tensor(std)).movedim(-1, 1)


DINOV2, CLIP = "dinov2", "clip"


@dataclass(frozen=True)
class EncoderSpec:
    """The encoder of an adapter, the tokens taken from it, and how its image of the object is made."""

    encoder: str = DINOV2
    width: int = 1536  # of a token vector
    registers: int = 4
    size: int = 224  # side of the square image, in pixels
    # last: the encoder's last_hidden_state; normed: after CLIP's post_layernorm; pooled: its first token only
    tokens: Literal["last", "normed", "pooled"] = "last"
    background: Literal["black", "white", "original"] = "black"
    margin: float = 0.1  # around the object, relative to its longer side
    # the unconditional context: a learned row, the context of a black image, or zeros
    uncond: Literal["learned", "picture", "zeros"] = "learned"
    # an image that is not square: its border repeated, its middle alone, or stretched
    fit: Literal["pad", "crop", "squash"] = "pad"

    @property
    def leading(self) -> int:
        """The number of tokens before the patch tokens."""
        return 1 + self.registers


@dataclass(frozen=True)
class AdapterConfig:
    """Sizes of a content adapter; the defaults are ObjectStitch's with IMPRINT's encoder."""

    encoder_spec: EncoderSpec = field(default_factory=EncoderSpec)
    width: int = 1024
    depth: int = 5
    heads: int = 1
    context: int = 768  # width of the UNet's context
    tokens: int = 0  # number of learned queries; 0: one context row per encoder token
    norm: bool = True  # layer norm before the projection


class ContentAdapter(nn.Module):
    """Map tokens (B, N, E) to context (B, M, C): pre-norm transformer blocks, layer norm, linear layer.

    M is N, or `config.tokens`: then learned queries pass through the blocks with the tokens, and only the
    queries are returned. `nothing` (1, 1, C) is the unconditional context row, if it is a learned one.
    """

    def __init__(self, config: AdapterConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        factory_kwargs: dict[str, Any] = {"dtype": dtype, "device": device}
        width, spec = config.width, config.encoder_spec
        self.config = config
        if spec.width != width:
            self.proj_in = operations.Linear(spec.width, width, **factory_kwargs)
        if config.tokens:
            self.queries = nn.Parameter(torch.randn(1, config.tokens, width, **factory_kwargs) * width**-0.5)
        self.resblocks = nn.ModuleList(
            AdapterBlock(width, config.heads, operations, factory_kwargs) for _ in range(config.depth)
        )
        if config.norm:
            self.final_ln = operations.LayerNorm(width, **factory_kwargs)
        self.proj_out = operations.Linear(width, config.context, **factory_kwargs)
        if spec.uncond == "learned":
            # the published name of this weight
            self.nothing = nn.Parameter(torch.randn(1, 1, config.context, **factory_kwargs))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the context rows."""
        config = self.config
        x = self.proj_in(tokens) if config.encoder_spec.width != config.width else tokens
        if config.tokens:
            x = torch.cat([self.queries.to(x).expand(len(x), -1, -1), x], 1)
        for block in self.resblocks:
            x = block(x)
        x = x[:, : config.tokens or None]
        return self.proj_out(self.final_ln(x) if config.norm else x)


class AdapterBlock(nn.Module):
    """Transformer block: x + attn(ln_1(x)), then x + mlp(ln_2(x))."""

    def __init__(self, width: int, heads: int, operations: Any, factory_kwargs: dict[str, Any]):
        super().__init__()
        self.ln_1 = operations.LayerNorm(width, **factory_kwargs)
        self.attn = SelfAttention(width, heads, operations, factory_kwargs)
        self.ln_2 = operations.LayerNorm(width, **factory_kwargs)
        self.mlp = AdapterMlp(width, operations, factory_kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, C) for x (B, N, C)."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class SelfAttention(nn.Module):
    """Self-attention; one projection holds query, key and value head by head, as in the published weights."""

    def __init__(self, width: int, heads: int, operations: Any, factory_kwargs: dict[str, Any]):
        super().__init__()
        self.heads = heads
        self.c_qkv = operations.Linear(width, 3 * width, **factory_kwargs)
        self.c_proj = operations.Linear(width, width, **factory_kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, C) for x (B, N, C)."""
        q, k, v = self.c_qkv(x).unflatten(-1, (self.heads, -1)).transpose(1, 2).chunk(3, dim=-1)
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class AdapterMlp(nn.Module):
    """Feed-forward layer with GELU and four times the width."""

    def __init__(self, width: int, operations: Any, factory_kwargs: dict[str, Any]):
        super().__init__()
        self.c_fc = operations.Linear(width, 4 * width, **factory_kwargs)
        self.c_proj = operations.Linear(4 * width, width, **factory_kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, C) for x (B, N, C)."""
        return self.c_proj(F.gelu(self.c_fc(x)))


def downsample_tokens(context: Tensor, count: int, leading: int | None) -> Tensor:
    """Reduce context (B, N, C) to at most `count` tokens.

    The leading tokens stay, and the patch tokens are averaged to a coarser grid. Learned queries, and patches
    that form no square grid, are truncated instead.

    Args:
        context: the tokens.
        count: maximum number of tokens; 0 keeps all.
        leading: number of tokens before the patches; None for learned queries.
    """
    total = context.shape[1]
    if not count or count >= total:
        return context
    if leading is None:
        return context[:, :count]
    side = round(max(total - leading, 0) ** 0.5)
    coarse = int(max(count - leading, 0) ** 0.5)
    if side**2 + leading != total or not coarse:
        return context[:, :count]
    plane = context[:, leading:].unflatten(1, (side, side)).movedim(-1, 1)
    patches = F.adaptive_avg_pool2d(plane, coarse).flatten(2).transpose(1, 2)
    return torch.cat([context[:, :leading], patches], 1)


def scale_context(context: Tensor, uncond: Tensor, strength: float) -> Tensor:
    """Return uncond + strength * (context - uncond), all (B, N, C); 0 is no object, 1 the object."""
    return context if strength == 1 else torch.lerp(uncond, context, strength)
