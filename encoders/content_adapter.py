"""The content adapter: an encoder's tokens to the context that replaces the words (ObjectStitch, IMPRINT)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean, deviation: DINOv2
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # CLIP


def as_pixels(pictures: Tensor, mean: Sequence[float], std: Sequence[float], raw: bool = False) -> Tensor:
    """Pictures (B, H, W, 3) in [0, 1] to (B, 3, H, W): (x - mean) / std, `raw` (255 x - mean) / std."""
    if raw:
        pictures = 255 * pictures
    return ((pictures - pictures.new_tensor(mean)) / pictures.new_tensor(std)).movedim(-1, 1)


DINOV2, CLIP = "dinov2", "clip"


@dataclass(frozen=True)
class EncoderSpec:
    """What an adapter reads: whose tokens, which of them, and how the object was shown to the encoder."""

    encoder: str = DINOV2
    width: int = 1536  # of a token
    registers: int = 4
    size: int = 224  # side of the square picture, in pixels
    # last: the encoder's last_hidden_state; normed: after CLIP's post_layernorm; pooled: its first token only
    tokens: Literal["last", "normed", "pooled"] = "last"
    background: Literal["black", "white", "original"] = "black"
    margin: float = 0.1  # room around the object, in shares of its longer side
    # what stands for no object: a learned row, a picture of zeros, or context rows of zeros
    nothing: Literal["learned", "picture", "zeros"] = "learned"
    # a picture that is no square: with its border repeated, its middle alone, or stretched
    fit: Literal["pad", "crop", "squash"] = "pad"

    @property
    def leading(self) -> int:
        """Tokens before those of the patches."""
        return 1 + self.registers


@dataclass(frozen=True)
class AdapterConfig:
    """A content adapter by its numbers; the defaults are ObjectStitch's on IMPRINT's encoder."""

    reading: EncoderSpec = field(default_factory=EncoderSpec)
    width: int = 1024
    depth: int = 5
    heads: int = 1
    context: int = 768  # width of the UNet's context
    tokens: int = 0  # 0: one for each of the encoder's; else so many learned queries beside them
    norm: bool = True  # a layer norm before the projection


class ContentAdapter(nn.Module):
    """Tokens (B, N, E) -> context (B, M, C): pre-norm transformer blocks, layer norm, linear.

    M is N, or `config.tokens`: then learned queries go through the blocks beside the tokens and only they
    come out. `nothing` (1, 1, C) is the row that stands for no object, where it is a learned one.
    """

    def __init__(self, config: AdapterConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        made: dict[str, Any] = {"dtype": dtype, "device": device}
        width, reads = config.width, config.reading
        self.config = config
        if reads.width != width:
            self.proj_in = operations.Linear(reads.width, width, **made)
        if config.tokens:
            self.queries = nn.Parameter(torch.randn(1, config.tokens, width, **made) * width**-0.5)
        self.resblocks = nn.ModuleList(
            AdapterBlock(width, config.heads, operations, made) for _ in range(config.depth)
        )
        if config.norm:
            self.final_ln = operations.LayerNorm(width, **made)
        self.proj_out = operations.Linear(width, config.context, **made)
        if reads.nothing == "learned":
            self.nothing = nn.Parameter(torch.randn(1, 1, config.context, **made))

    def forward(self, tokens: Tensor) -> Tensor:
        config = self.config
        x = self.proj_in(tokens) if config.reading.width != config.width else tokens
        if config.tokens:
            x = torch.cat([self.queries.to(x).expand(len(x), -1, -1), x], 1)
        for block in self.resblocks:
            x = block(x)
        x = x[:, : config.tokens or None]
        return self.proj_out(self.final_ln(x) if config.norm else x)


class AdapterBlock(nn.Module):
    """x + attn(ln_1(x)), then x + mlp(ln_2(x))."""

    def __init__(self, width: int, heads: int, operations: Any, made: dict[str, Any]):
        super().__init__()
        self.ln_1 = operations.LayerNorm(width, **made)
        self.attn = SelfAttention(width, heads, operations, made)
        self.ln_2 = operations.LayerNorm(width, **made)
        self.mlp = AdapterMlp(width, operations, made)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class SelfAttention(nn.Module):
    """One projection holds query, key and value of head after head, as in the published weights."""

    def __init__(self, width: int, heads: int, operations: Any, made: dict[str, Any]):
        super().__init__()
        self.heads = heads
        self.c_qkv = operations.Linear(width, 3 * width, **made)
        self.c_proj = operations.Linear(width, width, **made)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.c_qkv(x).unflatten(-1, (self.heads, -1)).transpose(1, 2).chunk(3, dim=-1)
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class AdapterMlp(nn.Module):
    def __init__(self, width: int, operations: Any, made: dict[str, Any]):
        super().__init__()
        self.c_fc = operations.Linear(width, 4 * width, **made)
        self.c_proj = operations.Linear(4 * width, width, **made)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


def downsample_tokens(context: Tensor, count: int, leading: int | None) -> Tensor:
    """At most `count` of the tokens (B, N, C): the leading ones, and the patches averaged to a coarser grid.

    Learned queries (`leading` None), and patches that are no square grid, are cut off instead. 0 keeps all.
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


def scale_context(context: Tensor, nothing: Tensor, strength: float) -> Tensor:
    """nothing + strength * (context - nothing), both (B, N, C): 0 is no object, 1 the object."""
    return context if strength == 1 else torch.lerp(nothing, context, strength)
