"""The host's own inpainting nodes, given the hole as the latent grid knows it."""

import importlib
from typing import Any

from inlay.imaging.latent_mask import snap_hole, to_pixels


def stock_conditions(positive, negative, image, vae, mask) -> tuple[list, list, dict[str, Any]]:
    """InpaintModelConditioning with a noise mask; its mask channel and noise mask are the snapped hole."""
    encode = importlib.import_module("nodes").InpaintModelConditioning().encode
    positive, negative, latent = encode(positive, negative, image, vae, mask, True)
    snapped = snap_hole(mask, tuple(latent["samples"].shape[-2:]))
    hole = to_pixels(snapped, *latent["noise_mask"].shape[-2:])[:, None]
    for _, values in (*positive, *negative):
        values["concat_mask"] = hole
    latent["noise_mask"] = hole
    return positive, negative, latent
