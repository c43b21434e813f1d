"""Seams for attention: the host's attention function and its wrappers."""

import comfy.ldm.modules.attention
from comfy.patcher_extension import WrappersMP

__all__ = ["APPLY_MODEL", "optimized_attention"]

APPLY_MODEL = WrappersMP.APPLY_MODEL  # wrappers around one call of the network


def optimized_attention(*args, **kwargs):
    """Call the attention backend that the host has chosen; looked up at every call, because it can change."""
    return comfy.ldm.modules.attention.optimized_attention(*args, **kwargs)
