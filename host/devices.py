"""Seams to the host's devices: their memory, and the user's wish to stop."""

import comfy.model_management as management
import torch


def prefers_bfloat16(device: torch.device) -> bool:
    """Return whether half precision on this device is bfloat16 rather than float16."""
    return device.type == "cpu" or management.should_use_bf16(device)


def free_memory_for(model, needed: int) -> int:
    """Unload other models until `needed` bytes are free on a MODEL's device; return the bytes that are."""
    device = model.load_device
    if device.type != "cpu":
        management.free_memory(needed, device, keep_loaded=[management.LoadedModel(model)])
    free = management.get_free_memory(device)
    assert isinstance(free, int)
    return free


def raise_if_interrupted() -> None:
    """Raise the host's InterruptProcessingException when the user has asked to stop."""
    management.throw_exception_if_processing_interrupted()
