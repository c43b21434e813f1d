"""Libraries that are slow to import: one function for each, called where the library is first needed.

The pack is imported whenever ComfyUI starts, so no module may import these at its head.
"""

from typing import Any


def accelerate():
    """Return accelerate (processes that train together, mixed precision, checkpoints of a run)."""
    import accelerate
    import accelerate.utils

    return accelerate


def diffusers() -> Any:  # type checkers do not see its lazy names
    """Return diffusers (its VAE and UNet classes, for adapters that are trained outside of ComfyUI)."""
    import diffusers

    return diffusers


def peft():
    """Return PEFT (LoRA, DoRA and LoKr layers)."""
    import peft
    import peft.tuners.lokr.layer

    return peft


def skimage_color():
    """Return scikit-image's colour spaces and colour differences."""
    import skimage.color

    return skimage.color


def torchmetrics():
    """Return torchmetrics with its metrics of images."""
    import torchmetrics
    import torchmetrics.functional.image
    import torchmetrics.image.fid

    return torchmetrics


def torchvision():
    """Return torchvision (the backbones of LPIPS)."""
    import torchvision

    return torchvision


def transformers():
    """Return transformers (image, text and vision-language models in a folder)."""
    import transformers

    return transformers
