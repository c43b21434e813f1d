"""Which family of models the host took a checkpoint for, and the picture size that family was trained on."""

from ..host.families import working_side

__all__ = ["family", "working_side"]


def family(model) -> str:
    """The host's name for a MODEL's family, e.g. "SD15", "SDXL", "Flux"."""
    return type(model.model.model_config).__name__
