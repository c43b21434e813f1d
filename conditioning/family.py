"""Which family of models the host took a checkpoint for, and the picture size that family was trained on."""


def family(model) -> str:
    """The host's name for a MODEL's family, e.g. "SD15", "SDXL", "Flux"."""
    return type(model.model.model_config).__name__


def working_side(model) -> int:
    """The side, in pixels, of the square pictures that the MODEL's family was trained on.

    SD 1.5: 512. SD 2: 768 where it predicts v, 512 where it predicts noise, as its inpainting model does.
    All others: 1024.
    """
    if family(model) == "SD20":
        return 768 if model.model.model_type.name == "V_PREDICTION" else 512
    return 512 if family(model) == "SD15" else 1024
