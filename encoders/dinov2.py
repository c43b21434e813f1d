"""Define DINOv2 (Oquab et al. 2023), with and without registers (Darcet et al. 2023).

Weights have the keys of transformers. The host has two sizes without registers; this module has every size,
for training and for inference.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD = 64  # width of an attention head in all published sizes
SIZES = {384: "S", 768: "B", 1024: "L", 1536: "g"}


@dataclass(frozen=True)
class DinoConfig:
    """Sizes of a DINOv2; the defaults are ViT-g/14 with registers, IMPRINT's encoder."""

    width: int = 1536
    depth: int = 40
    heads: int = 24
    hidden: int = 4096  # width of the feed-forward layer; with SwiGLU of each half
    gated: bool = True  # SwiGLU; only ViT-g has it
    registers: int = 4
    patch: int = 14
    grid: int = 37  # patches along a side of the training images (518 pixels)
    antialias: bool = True  # of the interpolated positions; true for the models with registers
    offset: float = 0.0  # patches added to the size; 0.1 in the original code of models without registers


class DinoV2(nn.Module):
    """Map normalised images (B, 3, H, W), H and W multiples of the patch, to tokens (B, 1 + R + N, D).

    The tokens are the class token, R registers and N patches row by row, after the last layer norm:
    `last_hidden_state` of transformers.
    """

    encoder: Any

    def __init__(self, config: DinoConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        factory_kwargs: dict[str, Any] = {"dtype": dtype, "device": device}
        self.config = config
        self.embeddings = Embeddings(config, operations, factory_kwargs)
        layers = [DinoBlock(config, operations, factory_kwargs) for _ in range(config.depth)]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})
        self.layernorm = operations.LayerNorm(config.width, eps=1e-6, **factory_kwargs)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the tokens after the last layer norm."""
        return self.hidden_states(pixels)[0]

    def hidden_states(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens after the last layer norm, and the tokens after the layer before the last."""
        x = penultimate = self.embeddings(pixels)
        for layer in self.encoder["layer"]:
            penultimate, x = x, layer(x)
        return self.layernorm(x), penultimate


class Embeddings(nn.Module):
    """Patch projection, class token, registers and position embeddings."""

    patch_embeddings: Any

    def __init__(self, config: DinoConfig, operations: Any, factory_kwargs: dict[str, Any]):
        super().__init__()
        self.config = config
        width = config.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width, **factory_kwargs))
        self.mask_token = nn.Parameter(torch.zeros(1, width, **factory_kwargs))  # used in pretraining only
        if config.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, width, **factory_kwargs))
        self.position_embeddings = nn.Parameter(torch.zeros(1, config.grid**2 + 1, width, **factory_kwargs))
        projection = operations.Conv2d(3, width, config.patch, config.patch, **factory_kwargs)
        self.patch_embeddings = nn.ModuleDict({"projection": projection})

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the tokens (B, 1 + R + N, D) of normalised images (B, 3, H, W)."""
        patches = self.patch_embeddings["projection"](pixels)
        grid = patches.shape[-2:]
        x = torch.cat([self._row(self.cls_token, patches), patches.flatten(2).transpose(1, 2)], 1)
        x = x + self._positions(x, *grid)
        if self.config.registers:
            x = torch.cat([x[:, :1], self._row(self.register_tokens, patches), x[:, 1:]], 1)
        return x

    def _row(self, token: Tensor, like: Tensor) -> Tensor:
        return token.to(like).expand(len(like), -1, -1)

    def _positions(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """Return position embeddings (1, 1 + rows * columns, D), resized bicubically to the patch grid."""
        positions = self.position_embeddings.to(device=x.device, dtype=torch.float32)
        side = self.config.grid
        if (rows, columns) == (side, side):
            return positions.to(x.dtype)
        plane = positions[:, 1:].unflatten(1, (side, side)).movedim(-1, 1)
        offset = self.config.offset
        if offset:
            scale = ((rows + offset) / side, (columns + offset) / side)
            plane = F.interpolate(plane, scale_factor=scale, mode="bicubic", antialias=self.config.antialias)
        else:
            plane = F.interpolate(plane, (rows, columns), mode="bicubic", antialias=self.config.antialias)
        return torch.cat([positions[:, :1], plane.flatten(2).transpose(1, 2)], 1).to(x.dtype)


class DinoBlock(nn.Module):
    """Transformer block: x + ls1 * attention(norm1(x)), then x + ls2 * mlp(norm2(x))."""

    attention: Any

    def __init__(self, config: DinoConfig, operations: Any, factory_kwargs: dict[str, Any]):
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm1 = operations.LayerNorm(width, eps=1e-6, **factory_kwargs)
        names = ("query", "key", "value")
        self.attention = nn.ModuleDict(
            {
                "attention": nn.ModuleDict(
                    {n: operations.Linear(width, width, **factory_kwargs) for n in names}
                ),
                "output": nn.ModuleDict({"dense": operations.Linear(width, width, **factory_kwargs)}),
            }
        )
        self.layer_scale1 = Scale(width, factory_kwargs)
        self.norm2 = operations.LayerNorm(width, eps=1e-6, **factory_kwargs)
        self.mlp = (SwiGLU if config.gated else DinoMlp)(width, config.hidden, operations, factory_kwargs)
        self.layer_scale2 = Scale(width, factory_kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, D) for x (B, N, D)."""
        normed, project = self.norm1(x), self.attention["attention"]
        q, k, v = (
            project[name](normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.layer_scale1(self.attention["output"]["dense"](attended))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))


class Scale(nn.Module):
    """Layer scale: multiply each channel by a learned factor."""

    def __init__(self, width: int, factory_kwargs: dict[str, Any]):
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(width, **factory_kwargs))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, D) for x (B, N, D)."""
        return x * self.lambda1.to(x)


class DinoMlp(nn.Module):
    """Feed-forward layer with GELU."""

    def __init__(self, width: int, hidden: int, operations: Any, factory_kwargs: dict[str, Any]):
        super().__init__()
        self.fc1 = operations.Linear(width, hidden, **factory_kwargs)
        self.fc2 = operations.Linear(hidden, width, **factory_kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, D) for x (B, N, D)."""
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """Feed-forward layer silu(a) * b; a and b are the halves of one projection (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int, operations: Any, factory_kwargs: dict[str, Any]):
        super().__init__()
        self.weights_in = operations.Linear(width, 2 * hidden, **factory_kwargs)
        self.weights_out = operations.Linear(hidden, width, **factory_kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, D) for x (B, N, D)."""
        a, b = self.weights_in(x).chunk(2, dim=-1)
        return self.weights_out(F.silu(a) * b)


def read_dino_config(state: Mapping[str, Tensor], heads: int = 0) -> DinoConfig:
    """Return the sizes of a DINOv2 from its weights under transformers' keys.

    Args:
        state: the weights.
        heads: number of attention heads; 0: width / 64.
    """
    positions = state["embeddings.position_embeddings"].shape[1] - 1
    projection = state["embeddings.patch_embeddings.projection.weight"]
    registers = state.get("embeddings.register_tokens")
    gated = "encoder.layer.0.mlp.weights_out.weight" in state
    out = state[f"encoder.layer.0.mlp.{'weights_out' if gated else 'fc2'}.weight"]
    count = 0 if registers is None else registers.shape[1]
    return DinoConfig(
        width=projection.shape[0],
        depth=len({key.split(".")[2] for key in state if key.startswith("encoder.layer.")}),
        heads=heads or projection.shape[0] // HEAD,
        hidden=out.shape[1],
        gated=gated,
        registers=count,
        patch=projection.shape[-1],
        grid=round(positions**0.5),
        antialias=bool(count),
    )


def is_transformers(state: Mapping[str, Tensor]) -> bool:
    """Return whether the weights are a DINOv2 under transformers' keys."""
    return "embeddings.position_embeddings" in state and "encoder.layer.0.layer_scale1.lambda1" in state


def is_facebook(state: Mapping[str, Tensor]) -> bool:
    """Return whether the weights are a DINOv2 under the keys of the published files."""
    return "pos_embed" in state and any(key.endswith("ls1.gamma") for key in state)


RENAMED = (
    (r"^(cls_token|mask_token|register_tokens)$", r"embeddings.\1"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.(?:\d+\.)?(\d+)\.", r"encoder.layer.\1."),  # the published code may group blocks in chunks
    (r"\.ls(\d)\.gamma$", r".layer_scale\1.lambda1"),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.w12\.", ".mlp.weights_in."),
    (r"\.mlp\.w3\.", ".mlp.weights_out."),
)


def from_facebook(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights from the published keys (`blocks.0.attn.qkv.weight`) to those of transformers.

    The joint projection is split into query, key and value.
    """
    renamed = {}
    for key, value in state.items():
        for pattern, new_name in RENAMED:
            key = re.sub(pattern, new_name, key)
        if ".attn.qkv." in key:
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[key.replace(".attn.qkv.", f".attention.attention.{name}.")] = part
        else:
            renamed[key] = value
    return renamed
