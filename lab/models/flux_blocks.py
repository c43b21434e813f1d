"""The host's Flux blocks without in-place additions, compiled: a training step takes about a fifth less time.

The host adds residuals in place, which `torch.compile` cannot differentiate. These functions compute the same
from the host's own layers (`comfy.ldm.flux.layers`); `compile_blocks` puts them into a model.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

SHORT = 32  # prompts longer than this are rare in a training, and not worth a compilation


def rotated(x: Tensor, pe: Tensor) -> Tensor:
    """Rotary position embedding of x (B, heads, L, D)."""
    pairs = x.float().reshape(*x.shape[:-1], -1, 1, 2)
    return (pe[..., 0] * pairs[..., 0] + pe[..., 1] * pairs[..., 1]).reshape(x.shape).to(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, pe: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v of (B, heads, L, D), as (B, L, heads * D)."""
    q, k = rotated(q, pe), rotated(k, pe)
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).float().softmax(-1).to(v.dtype)
    return (weights @ v).transpose(1, 2).flatten(2)


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Query, key and value (B, heads, L, D) of a projection (B, L, 3 * heads * D)."""
    return qkv.view(*qkv.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def double_block(block: Any, img: Tensor, txt: Tensor, vec: Tensor, pe: Tensor) -> tuple[Tensor, Tensor]:
    """`DoubleStreamBlock.forward`."""
    streams = ((txt, block.txt_attn, block.txt_norm1, block.txt_mod(vec)),)
    streams += ((img, block.img_attn, block.img_norm1, block.img_mod(vec)),)
    parts = []
    for x, own, norm, (first, _) in streams:
        q, k, v = split_heads(own.qkv((1 + first.scale) * norm(x) + first.shift), block.num_heads)
        parts.append((*own.norm(q, k, v), v))
    q, k, v = (torch.cat(both, 2) for both in zip(*parts, strict=True))
    mixed = attention(q, k, v, pe).split([txt.shape[1], img.shape[1]], 1)
    outputs = []
    ends = ((block.txt_norm2, block.txt_mlp), (block.img_norm2, block.img_mlp))
    for (x, own, _, (first, second)), seen, (norm, mlp) in zip(streams, mixed, ends, strict=True):
        x = x + first.gate * own.proj(seen)
        outputs.append(x + second.gate * mlp((1 + second.scale) * norm(x) + second.shift))
    return outputs[1], outputs[0]


def single_block(block: Any, x: Tensor, vec: Tensor, pe: Tensor) -> Tensor:
    """`SingleStreamBlock.forward`."""
    own, _ = block.modulation(vec)
    wide = block.linear1((1 + own.scale) * block.pre_norm(x) + own.shift)
    qkv, hidden = wide.split([3 * block.hidden_size, block.mlp_hidden_dim_first], -1)
    q, k, v = split_heads(qkv, block.num_heads)
    q, k = block.norm(q, k, v)
    return x + own.gate * block.linear2(torch.cat((attention(q, k, v, pe), block.mlp_act(hidden)), 2))


def compile_blocks(model: Any, backend: str = "inductor") -> None:
    """Let the blocks of a host's Flux compute with these functions, compiled for short prompts."""
    torch._dynamo.config.recompile_limit = 64  # one for each block and size
    fast_double: Any = torch.compile(double_block, dynamic=False, backend=backend)
    fast_single: Any = torch.compile(single_block, dynamic=False, backend=backend)

    def double(block, img, txt, vec, pe, attn_mask=None, transformer_options=None):
        return (fast_double if txt.shape[1] <= SHORT else double_block)(block, img, txt, vec, pe)

    def single(block, x, vec, pe, attn_mask=None, transformer_options=None):
        short = (transformer_options or {}).get("img_slice", (0,))[0] <= SHORT
        return (fast_single if short else single_block)(block, x, vec, pe)

    for block in model.double_blocks:
        block.forward = partial(double, block)
    for block in model.single_blocks:
        block.forward = partial(single, block)
