"""Seams for changes to a MODEL: the patcher, weight patches, object patches."""

from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import WeightAdapterBase

__all__ = ["CONCAT_KEYS", "SCALE_KNOWN_LATENT", "ModelPatcher", "WeightAdapterBase", "with_object_patch"]

# Attributes of the host's BaseModel that an object patch replaces.
CONCAT_KEYS = "concat_keys"  # which conditions the network reads beside the noisy latent, in their order
SCALE_KNOWN_LATENT = "scale_latent_inpaint"  # (sigma, latent_image) -> the sampler's x of the known latent


def with_object_patch(model: ModelPatcher, name: str, value) -> ModelPatcher:
    """Return a clone of MODEL with one attribute of its BaseModel replaced; None removes such a patch."""
    model = model.clone()
    model.object_patches.pop(name, None)
    if value is not None:
        model.add_object_patch(name, value)
    return model
