"""CONDITIONING of context rows, and the order of the channels that an inpainting MODEL reads."""

from torch import Tensor

from ..host.patches import CONCAT_KEYS, ModelPatcher, with_object_patch

# background's latent, 1 - mask: ObjectStitch and Paint-by-Example; the host's own order is mask, background
OBJECT_FIRST = ("masked_image", "mask_inverted")


IDENTITY = "inlay_identity"  # marks a CONDITIONING of Identity Encoder


def as_conditioning(context: Tensor, identity: bool = False) -> list:
    """Context rows (B, N, C) as the host's CONDITIONING; identity: they come from Identity Encoder."""
    return [[context, {"pooled_output": None} | ({IDENTITY: True} if identity else {})]]


def read_object_first(model: ModelPatcher) -> ModelPatcher:
    """A clone of an inpainting MODEL that reads (noisy latent, background's latent, 1 - mask).

    Raises ValueError for a model of other than 9 channels.
    """
    channels = model.model.model_config.unet_config.get("in_channels")
    if channels != 9:
        raise ValueError(
            f"model: it reads {channels} channels; load the checkpoint of ObjectStitch or Paint-by-Example"
            " (9 channels)."
        )
    return with_object_patch(model, CONCAT_KEYS, OBJECT_FIRST)
