"""Checks that MODEL, text encoder and VAE come from checkpoints of one kind."""

from collections.abc import Sequence

from torch import Tensor

from ..host.compatibility import latent_channels_of, reads_pooled_text, text_width, vae_channels
from ..host.families import config_name, family_of
from ..host.models import unet_of
from ..host.sampling import conditions_of

IDENTITY = "inlay_identity"  # marks a CONDITIONING of Identity Encoder
WIDTH_NAMES = {768: "SD 1.5", 1024: "SD 2", 1280: "the SDXL refiner", 2048: "SDXL", 4096: "FLUX.1 or SD 3"}


def check_vae_fits(model, vae) -> None:
    """Raise ValueError for a VAE whose latents have another number of channels than the MODEL's."""
    wanted, found = latent_channels_of(model), vae_channels(vae)
    known = family_of(model) is not None or unet_of(model) is not None
    if not known or wanted is None or found is None or wanted == found:
        return
    raise ValueError(
        f"vae: its latents have {found} channels, but this {config_name(model)} model reads {wanted}; wire"
        " the VAE of the model's checkpoint."
    )


def check_text_fits(model, context: Tensor | None, pooled: Tensor | None, name: str) -> None:
    """Raise ValueError, naming the input, for text that another family's text encoder encoded.

    Args:
        context: (B, L, D) of one prompt; None is not checked.
        pooled: (B, P), or None where there is none.
        name: of the input that errors name.
    """
    wanted = text_width(model)
    # Models of other packs may have text of another width than their UNet: theirs are no row.
    if not isinstance(context, Tensor) or wanted is None or family_of(model) is None:
        return
    found = context.shape[-1]
    if found != wanted:
        of = f", of {WIDTH_NAMES[found]}" if found in WIDTH_NAMES else ""
        raise ValueError(
            f"{name}: its text comes from an encoder of width {found}{of}, but this {config_name(model)}"
            f" model reads {wanted}; wire the text encoder of the model's checkpoint."
        )
    if reads_pooled_text(model) and pooled is None:
        raise ValueError(
            f"{name}: its text has no pooled vector, which this {config_name(model)} model reads; wire"
            " CLIP Text Encode with the text encoder of the model's checkpoint."
        )


def check_clip_fits(model, clip) -> None:
    """Raise ValueError for a text encoder of another family than the MODEL; it encodes an empty prompt."""
    context, pooled = clip.encode_from_tokens(clip.tokenize(""), return_pooled=True)
    check_text_fits(model, context, pooled, "clip")


def _check_identity(model, values: dict) -> None:
    """Raise ValueError for what Identity Encoder made when the MODEL is a transformer."""
    row = family_of(model)
    if row is not None and row.transformer and values.get(IDENTITY):
        raise ValueError(
            f"positive: Identity Encoder makes conditions for SD models, and this is {row.label}; use Edit"
            " Prompt with Subject Photos, which shows the photos to the model itself."
        )


def check_prompts_fit(model, **prompts: Sequence) -> None:
    """Raise ValueError, naming the input, for a CONDITIONING that was made for another family of models."""
    for name, conditioning in prompts.items():
        for context, values in conditioning:
            _check_identity(model, values)
            check_text_fits(model, context, _pooled_of(values), name)


def check_guider_fits(guider) -> None:
    """Raise ValueError for a GUIDER whose prompts were made for another family of models."""
    for conds in conditions_of(guider).values():
        for cond in conds:
            _check_identity(guider.model_patcher, cond)
            check_text_fits(guider.model_patcher, cond.get("cross_attn"), _pooled_of(cond), "guider")


def _pooled_of(values: dict):
    return values.get("pooled_output", values.get("unclip_conditioning"))
