"""The host's side of conditions: CONDITIONING, and which channels a MODEL reads in which order."""

from comfy.model_patcher import ModelPatcher
from torch import Tensor

CHANNELS = "concat_keys"  # the host's list of what a model reads beside the noisy latent
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
    model = model.clone()
    model.add_object_patch(CHANNELS, OBJECT_FIRST)
    return model
