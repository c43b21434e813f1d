"""Which published or trained weights a file holds, recognised by its keys, and their form in memory.

Paint-by-Example and ObjectStitch have the same keys and shapes; what differs is which of CLIP's tokens they
were trained with. Where the user does not choose, the file's name decides: ObjectStitch if "stitch" is in it.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import ANYDOOR, AUTO_LAYOUT, INLAY_LAYOUT, OBJECT_STITCH, OPTIMIZER, PAINT, dinov2
from .content_adapter import CLIP, AdapterConfig, ContentAdapter, EncoderSpec
from .embedding_optimizer import EmbeddingOptimizer, OptimizerConfig, seeded_queries

METADATA = "inlay.adapter"  # the key of the description in our files, as JSON
# the keys of EncoderSpec and its field `uncond` in that JSON, as version 0.1 wrote them
SPEC_KEY, UNCOND_KEY = "reading", "nothing"
StateDict = Mapping[str, Tensor]


@dataclass(frozen=True)
class AdapterCheckpoint:
    """Weights of an adapter, and of the encoder it was trained with where the file has it."""

    layout: str
    config: AdapterConfig | OptimizerConfig
    adapter: dict[str, Tensor]
    encoder: dict[str, Tensor] | None = None  # DINOv2 or CLIP in transformers' layout
    dino: dinov2.DinoConfig | None = None  # None: the encoder is a CLIP


def recognise_checkpoint(
    state: StateDict, metadata: Mapping[str, str], name: str, choice: str = AUTO_LAYOUT
) -> AdapterCheckpoint:
    """Return what the file `name` holds.

    Raises ValueError that lists what was found and what would be accepted.
    """
    if METADATA in metadata:
        return _inlay(state, json.loads(metadata[METADATA]))
    for layout, (keys, read) in LAYOUTS.items():
        if keys <= state.keys():
            return read(state, _told(layout, name, choice))
    raise ValueError(f"file: {name} holds {_summary(state)}; accepted are {_accepted()}.")


def _told(layout: str, name: str, choice: str) -> str:
    if layout != OBJECT_STITCH:
        return layout
    if choice != AUTO_LAYOUT:
        return choice
    return OBJECT_STITCH if "stitch" in name.casefold() else PAINT


def _inlay(state: StateDict, facts: dict[str, Any]) -> AdapterCheckpoint:
    encoder = _under(state, "encoder.")
    dino = facts.pop("dino", None)
    return AdapterCheckpoint(
        INLAY_LAYOUT,
        read_adapter_config(facts),
        _under(state, "adapter."),
        encoder or None,
        None if dino is None else dinov2.DinoConfig(**dino),
    )


def _object_stitch(state: StateDict, layout: str) -> AdapterCheckpoint:
    """CLIP ViT-L/14, transformer blocks with one head, a layer norm, a linear, and a vector for nothing."""
    blocks = "cond_stage_model.mapper.resblocks."
    width = state[f"{blocks}0.ln_1.weight"].shape[0]
    reads = EncoderSpec(
        encoder=CLIP,
        width=width,
        registers=0,
        tokens="normed" if layout == OBJECT_STITCH else "pooled",
        background="black" if layout == OBJECT_STITCH else "original",
        fit="pad" if layout == OBJECT_STITCH else "squash",  # Paint-by-Example resizes both sides to 224
    )
    adapter = {
        **_under(state, blocks, "resblocks."),
        **_under(state, "cond_stage_model.final_ln.", "final_ln."),
        **_under(state, "proj_out.", "proj_out."),
        "nothing": state["learnable_vector"],
    }
    config = AdapterConfig(
        reads, width, depth=_count(adapter, "resblocks."), context=state["proj_out.weight"].shape[0]
    )
    return AdapterCheckpoint(layout, config, adapter, _under(state, "cond_stage_model.transformer.") or None)


def _anydoor(state: StateDict, layout: str) -> AdapterCheckpoint:
    """DINOv2 ViT-g/14 without registers and one linear layer; nothing is a picture of zeros."""
    context, width = state["cond_stage_model.projector.weight"].shape
    reads = EncoderSpec(width=width, registers=0, background="white", uncond="picture")
    config = AdapterConfig(reads, width, depth=0, context=context, norm=False)
    adapter = _under(state, "cond_stage_model.projector.", "proj_out.")
    encoder = _under(state, "cond_stage_model.model.")
    if not dinov2.is_facebook(encoder):
        return AdapterCheckpoint(layout, config, adapter)
    return AdapterCheckpoint(layout, config, adapter, *from_published(encoder))


def _optimizer(state: StateDict, layout: str) -> AdapterCheckpoint:
    """Its queries were never saved: a seeded draw stands for them. NaN is 0, as in the released code."""
    width, reads_width = state["projection_layer.weight"].shape
    reads = replace(OptimizerConfig().encoder_spec, width=reads_width)
    config = OptimizerConfig(reads, width, layers=_count(state, "mlp_fc"))
    adapter = {
        re.sub(r"^mlp_fc(\d+)", lambda m: f"mlp.{int(m[1]) - 1}", key): torch.nan_to_num(value, nan=0.0)
        for key, value in state.items()
        if key.startswith(("projection_layer.", "mlp_fc"))
    }
    for kind in ("weight", "bias"):
        parts = torch.nan_to_num(state[f"attention_pooling.in_proj_{kind}"], nan=0.0).chunk(3)
        for name, part in zip(("to_q", "to_k", "to_v"), parts, strict=True):
            adapter[f"attention_pooling.{name}.{kind}"] = part
        out = torch.nan_to_num(state[f"attention_pooling.out_proj.{kind}"], nan=0.0)
        adapter[f"attention_pooling.to_out.{kind}"] = out
    adapter["queries"] = state.get("queries", seeded_queries(config.tokens, width))
    return AdapterCheckpoint(layout, config, adapter)


LAYOUTS: dict[str, tuple[frozenset[str], Callable[[StateDict, str], AdapterCheckpoint]]] = {
    OBJECT_STITCH: (
        frozenset(
            ("cond_stage_model.mapper.resblocks.0.attn.c_qkv.weight", "proj_out.weight", "learnable_vector")
        ),
        _object_stitch,
    ),
    ANYDOOR: (frozenset(("cond_stage_model.projector.weight", "cond_stage_model.projector.bias")), _anydoor),
    OPTIMIZER: (
        frozenset(("projection_layer.weight", "attention_pooling.in_proj_weight", "mlp_fc1.weight")),
        _optimizer,
    ),
}


def from_published(state: StateDict) -> tuple[dict[str, Tensor], dinov2.DinoConfig]:
    """Return a DINOv2 in the published layout, in transformers', and its numbers."""
    converted = dinov2.from_facebook(state)
    config = dinov2.read_dino_config(converted)
    return converted, config if config.registers else replace(config, offset=0.1)


def build_adapter(
    config: AdapterConfig | OptimizerConfig, dtype=None, device=None, operations: Any = torch.nn
):
    """Return the module of a config, with fresh weights."""
    kind = ContentAdapter if isinstance(config, AdapterConfig) else EmbeddingOptimizer
    return kind(config, dtype, device, operations)  # type: ignore[arg-type]


def describe_checkpoint(
    config: AdapterConfig | OptimizerConfig, dino: dinov2.DinoConfig | None = None
) -> str:
    """Return the JSON that stands under `METADATA` in our files.

    `dino` where the file holds the encoder as well.
    """
    kind = "content" if isinstance(config, AdapterConfig) else "optimizer"
    values = asdict(config)
    spec = values.pop("encoder_spec")
    values[SPEC_KEY] = {UNCOND_KEY if name == "uncond" else name: value for name, value in spec.items()}
    facts = {"kind": kind, **values} | ({} if dino is None else {"dino": asdict(dino)})
    return json.dumps(facts, sort_keys=True)


def read_adapter_config(facts: dict[str, Any]) -> AdapterConfig | OptimizerConfig:
    """Return the inverse of `describe_preset`. Raises ValueError for facts of another version."""
    kinds = {"content": AdapterConfig, "optimizer": OptimizerConfig}
    try:
        rest = {key: value for key, value in facts.items() if key not in ("kind", "dino", SPEC_KEY)}
        spec = {"uncond" if key == UNCOND_KEY else key: value for key, value in facts[SPEC_KEY].items()}
        return kinds[facts["kind"]](**rest, encoder_spec=EncoderSpec(**spec))
    except (KeyError, TypeError) as error:
        raise ValueError(f"file: this adapter says what no Inlay of this version knows ({error}).") from error


def _under(state: StateDict, prefix: str, ours: str = "") -> dict[str, Tensor]:
    """Return the tensors whose keys start with the prefix, which is exchanged for ours."""
    return {ours + key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _count(state: StateDict, prefix: str) -> int:
    """How many numbers follow the prefix in the keys."""
    return len({re.split(r"\D", key.removeprefix(prefix))[0] for key in state if key.startswith(prefix)})


def _summary(state: StateDict) -> str:
    """Return the first parts of the keys and how many tensors stand under each, the most first."""
    groups: dict[str, int] = {}
    for key in state:
        group = ".".join(key.split(".")[:2])
        groups[group] = groups.get(group, 0) + 1
    most = sorted(groups, key=lambda group: -groups[group])
    named = ", ".join(f"{group} ({groups[group]})" for group in most[:6]) or "no tensors"
    return named + (f" and {len(most) - 6} other groups of tensors" if len(most) > 6 else "")


def _accepted() -> str:
    names = {OBJECT_STITCH: f"{OBJECT_STITCH} and {PAINT}"}
    known = [f"{names.get(layout, layout)} ({min(keys)})" for layout, (keys, _) in LAYOUTS.items()]
    return f"{', '.join(known)}, and what Inlay has trained"
