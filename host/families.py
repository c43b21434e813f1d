"""Which family a MODEL belongs to, and what its network reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

import torch

from ..families.layout import TOKEN_ORDERS, Span, TokenOrder, token_layout
from ..families.table import FAMILIES, Family, Settings, find_family

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


def config_name(model: ModelPatcher) -> str:
    """Return the host's name for a MODEL's architecture, such as "SD15" or "Flux2"."""
    return type(model.model.model_config).__name__


def family_of(model: ModelPatcher) -> Family | None:
    """Return the row of a MODEL's family, or None for a model without one."""
    return find_family(config_name(model), getattr(model.model.model_config, "unet_config", {}))


def family_name(model: ModelPatcher) -> str:
    """Our own name of a MODEL's family, which is stored in files; the host's for a model without a row."""
    row = family_of(model)
    return config_name(model) if row is None else row.name


def is_transformer(model: ModelPatcher) -> bool:
    """Whether a MODEL is a diffusion transformer of a family with a row."""
    row = family_of(model)
    return row is not None and row.transformer


def require_family(model: ModelPatcher) -> Family:
    """Return the row of a MODEL's family.

    Raises:
        ValueError: For a model without a row, with what works and what does not.
    """
    row = family_of(model)
    if row is None:
        labels = ", ".join(row.label for row in FAMILIES)
        raise ValueError(
            f"model: Inlay has no settings for {config_name(model)} models; blending and pasting back work,"
            f" but masked attention, references and automatic settings need one of: {labels}."
        )
    return row


def file_name(model: ModelPatcher) -> str:
    """Return the name of the file that a MODEL was loaded from, "" if the host keeps none."""
    source = getattr(model, "cached_patcher_init", None)
    paths = source[1] if source else ()
    return PurePath(paths[0]).name if paths and isinstance(paths[0], str) else ""


def settings_of(model: ModelPatcher) -> Settings | None:
    """Return the sampler settings for a MODEL, by its family and by words of its file name.

    None without a row.
    """
    row = family_of(model)
    return None if row is None else row.settings_for(file_name(model))


def working_side(model: ModelPatcher) -> int:
    """Return the side in pixels of the square pictures that a MODEL was trained on; 1024 without a row.

    SD 2 models that predict v were trained on 768, the others on 512.
    """
    row = family_of(model)
    if row is not None and row.name == "sd2" and model.model.model_type.name == "V_PREDICTION":
        return 768
    return 1024 if row is None else row.side


def token_order(network: torch.nn.Module) -> TokenOrder | None:
    """Return the token order of a network, None for a UNet or an unknown class."""
    return TOKEN_ORDERS.get(type(network).__name__)


def patch_of(network: torch.nn.Module, order: TokenOrder) -> int:
    """Latent cells per side of a token."""
    patch = getattr(network, order.patch) if isinstance(order.patch, str) else order.patch
    return patch if isinstance(patch, int) else patch[-1]


def layout_of(
    network: torch.nn.Module, latent: Sequence[int], text: int, references: Sequence[Sequence[int]] = ()
) -> list[Span] | None:
    """Return the spans of a network's attention sequence, None for a class without a known order.

    Args:
        network: the host's `diffusion_model`.
        latent: shape of the noisy latent (B, C, ..., h, w).
        text: number of text tokens.
        references: shapes of the reference latents, as the network gets them.
    """
    order = token_order(network)
    if order is None:
        return None
    multiple = getattr(network, order.pad_multiple, 0) or 0 if order.pad_multiple else 0
    sizes = [(shape[-2], shape[-1]) for shape in references]
    return token_layout(order, patch_of(network, order), (latent[-2], latent[-1]), text, sizes, multiple)
