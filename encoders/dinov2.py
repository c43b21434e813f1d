"""DINOv2 (Oquab et al. 2023), with and without registers (Darcet et al. 2023), in transformers' keys.

The host's own knows two sizes and no registers; this one is every size, for training and for the graph.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD = 64  # width of an attention head in every published size
SIZES = {384: "S", 768: "B", 1024: "L", 1536: "g"}


@dataclass(frozen=True)
class DinoConfig:
    """A DINOv2 by its numbers; the defaults are ViT-g/14 with registers, IMPRINT's encoder."""

    width: int = 1536
    depth: int = 40
    heads: int = 24
    hidden: int = 4096  # of the feed-forward layer; with SwiGLU the width of either half
    gated: bool = True  # SwiGLU, in ViT-g only
    registers: int = 4
    patch: int = 14
    grid: int = 37  # patches along a side of the pictures it was trained on (518 pixels)
    antialias: bool = True  # how positions are stretched to other sizes: the models with registers smooth ...
    offset: float = 0.0  # ... and the original code of those without adds 0.1 patches


class DinoV2(nn.Module):
    """Pictures (B, 3, H, W), normalised, H and W multiples of the patch -> tokens (B, 1 + R + N, D).

    Class token, R registers, N patches row by row, after the last layer norm: transformers'
    `last_hidden_state`.
    """

    encoder: Any

    def __init__(self, config: DinoConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        made: dict[str, Any] = {"dtype": dtype, "device": device}
        self.config = config
        self.embeddings = Embeddings(config, operations, made)
        layers = [DinoBlock(config, operations, made) for _ in range(config.depth)]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})
        self.layernorm = operations.LayerNorm(config.width, eps=1e-6, **made)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.hidden_states(pixels)[0]

    def hidden_states(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The normed tokens after the last layer, and the raw ones before it."""
        x = before = self.embeddings(pixels)
        for layer in self.encoder["layer"]:
            before, x = x, layer(x)
        return self.layernorm(x), before


class Embeddings(nn.Module):
    patch_embeddings: Any

    def __init__(self, config: DinoConfig, operations: Any, made: dict[str, Any]):
        super().__init__()
        self.config = config
        width = config.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width, **made))
        self.mask_token = nn.Parameter(torch.zeros(1, width, **made))  # only pretraining uses it
        if config.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, width, **made))
        self.position_embeddings = nn.Parameter(torch.zeros(1, config.grid**2 + 1, width, **made))
        projection = operations.Conv2d(3, width, config.patch, config.patch, **made)
        self.patch_embeddings = nn.ModuleDict({"projection": projection})

    def forward(self, pixels: Tensor) -> Tensor:
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
    """x + ls1 * attention(norm1(x)), then x + ls2 * mlp(norm2(x))."""

    attention: Any

    def __init__(self, config: DinoConfig, operations: Any, made: dict[str, Any]):
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm1 = operations.LayerNorm(width, eps=1e-6, **made)
        names = ("query", "key", "value")
        self.attention = nn.ModuleDict(
            {
                "attention": nn.ModuleDict({n: operations.Linear(width, width, **made) for n in names}),
                "output": nn.ModuleDict({"dense": operations.Linear(width, width, **made)}),
            }
        )
        self.layer_scale1 = Scale(width, made)
        self.norm2 = operations.LayerNorm(width, eps=1e-6, **made)
        self.mlp = (SwiGLU if config.gated else DinoMlp)(width, config.hidden, operations, made)
        self.layer_scale2 = Scale(width, made)

    def forward(self, x: Tensor) -> Tensor:
        normed, project = self.norm1(x), self.attention["attention"]
        q, k, v = (
            project[name](normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.layer_scale1(self.attention["output"]["dense"](seen))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))


class Scale(nn.Module):
    def __init__(self, width: int, made: dict[str, Any]):
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(width, **made))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.lambda1.to(x)


class DinoMlp(nn.Module):
    def __init__(self, width: int, hidden: int, operations: Any, made: dict[str, Any]):
        super().__init__()
        self.fc1 = operations.Linear(width, hidden, **made)
        self.fc2 = operations.Linear(hidden, width, **made)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """silu(a) * b, a and b the halves of one projection (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int, operations: Any, made: dict[str, Any]):
        super().__init__()
        self.weights_in = operations.Linear(width, 2 * hidden, **made)
        self.weights_out = operations.Linear(hidden, width, **made)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.weights_in(x).chunk(2, dim=-1)
        return self.weights_out(F.silu(a) * b)


def read_dino_config(state: Mapping[str, Tensor], heads: int = 0) -> DinoConfig:
    """The numbers of a DINOv2 from its weights in transformers' files; `heads` 0: as many as are 64 wide."""
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
    return "embeddings.position_embeddings" in state and "encoder.layer.0.layer_scale1.lambda1" in state


def is_facebook(state: Mapping[str, Tensor]) -> bool:
    return "pos_embed" in state and any(key.endswith("ls1.gamma") for key in state)


RENAMED = (
    (r"^(cls_token|mask_token|register_tokens)$", r"embeddings.\1"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.(?:\d+\.)?(\d+)\.", r"encoder.layer.\1."),  # the published code may put blocks into chunks
    (r"\.ls(\d)\.gamma$", r".layer_scale\1.lambda1"),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.w12\.", ".mlp.weights_in."),
    (r"\.mlp\.w3\.", ".mlp.weights_out."),
)


def from_facebook(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published layout (`blocks.0.attn.qkv.weight`) in transformers'; query, key and value are split."""
    renamed = {}
    for key, value in state.items():
        for pattern, ours in RENAMED:
            key = re.sub(pattern, ours, key)
        if ".attn.qkv." in key:
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[key.replace(".attn.qkv.", f".attention.attention.{name}.")] = part
        else:
            renamed[key] = value
    return renamed
