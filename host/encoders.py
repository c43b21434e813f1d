"""Seams for encoders and small networks: text encoders that read pictures, CLIP_VISION, devices, layers."""

from collections.abc import Sequence
from typing import Any

import comfy.clip_vision
import comfy.conds
import comfy.model_management
import comfy.ops
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

__all__ = [
    "ClipVisionModel",
    "casting_layers",
    "constant",
    "encode_prompt",
    "encoder_devices",
    "intermediate_device",
    "load_clip_vision",
    "load_on_device",
    "managed_module",
    "negative_reads_pictures",
    "network_devices",
    "reads_pictures",
    "reference_method",
]


def casting_layers() -> Any:
    """Return the host's layer classes that cast their weights to the input's type: pass as `operations`."""
    return comfy.ops.manual_cast


def encoder_devices() -> tuple[torch.device, torch.device]:
    """Return (device to run on, device to keep on) of text and image encoders."""
    return comfy.model_management.text_encoder_device(), comfy.model_management.text_encoder_offload_device()


def network_devices() -> tuple[torch.device, torch.device]:
    """Return (device to run on, device to keep on) of diffusion networks."""
    return comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()


def intermediate_device() -> torch.device:
    """Return the device on which the host expects the results of a node."""
    return comfy.model_management.intermediate_device()


def managed_module(
    module: nn.Module, load_device: torch.device, offload_device: torch.device
) -> ModelPatcher:
    """Wrap a module so that the host moves it to its device when needed, and away when memory is short."""
    return ModelPatcher(module, load_device=load_device, offload_device=offload_device)


def load_on_device(patcher: ModelPatcher) -> None:
    """Move a managed module to its load device."""
    comfy.model_management.load_model_gpu(patcher)


def load_clip_vision(state: dict[str, Tensor]) -> Any:
    """Return the host's CLIP_VISION of a state dict, None if the host does not recognise the weights.

    A CLIP without its last projection gives the embedding before the projection: the host would leave
    `visual_projection` uninitialised.
    """
    if "pre_layrnorm.weight" in state:  # transformers 5 saves a CLIPVisionModel without the prefix
        state = {f"vision_model.{key}": value for key, value in state.items()}
    openai_layout = "visual.transformer.resblocks.0.attn.in_proj_weight" in state
    # Test before loading: the host removes weights from `state`.
    has_projection = "visual.proj" in state or "visual_projection.weight" in state
    prefix = "visual." if openai_layout else ""
    vision = comfy.clip_vision.load_clipvision_from_sd(state, prefix, convert_keys=openai_layout)
    if vision is not None and not has_projection and hasattr(vision.model, "visual_projection"):
        vision.model.visual_projection = nn.Identity()
    return vision


# Tokenizer classes that take pictures beside the text. Only Qwen-Image numbers them in the prompt.
QWEN, BOOGU = "QwenImageTokenizer", "BooguTokenizer"
PICTURE_READERS = (QWEN, BOOGU)
KREA = "Krea2Tokenizer"
QWEN_TEMPLATE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects,"
    " background), then explain how the user's text instruction should alter or modify the image. Generate a"
    " new image that meets the user's requirements while maintaining consistency with the original input"
    " where appropriate.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)  # of the host's TextEncodeQwenImageEditPlus
QWEN_PICTURE = "Picture {}: <|vision_start|><|image_pad|><|vision_end|>"


def _tokenizers(clip) -> set[str]:
    return {cls.__name__ for cls in type(clip.tokenizer).__mro__}


def reads_pictures(clip) -> bool:
    """Whether a CLIP's tokenizer takes pictures."""
    return bool(_tokenizers(clip) & set(PICTURE_READERS))


def negative_reads_pictures(clip) -> bool:
    """Whether the negative prompt is shown them too: in Qwen-Image-Edit, not in Boogu."""
    return QWEN in _tokenizers(clip)


def reference_method(clip) -> str:
    """Return the reference method that the CONDITIONING must set, "" where the model has one.

    Krea 2 has none.
    """
    return "index_timestep_zero" if KREA in _tokenizers(clip) else ""


def encode_prompt(clip, prompt: str, pictures: Sequence[Tensor] = ()) -> list:
    """Return the CONDITIONING of a prompt; pictures (1, h, w, 3) are shown to encoders that read them."""
    if not pictures or not reads_pictures(clip):
        return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    if QWEN in _tokenizers(clip):
        text = "".join(QWEN_PICTURE.format(number) for number in range(1, len(pictures) + 1)) + prompt
        tokens = clip.tokenize(text, images=list(pictures), llama_template=QWEN_TEMPLATE)
    else:
        tokens = clip.tokenize(prompt, images=list(pictures))
    return clip.encode_from_tokens_scheduled(tokens)


def constant(value) -> comfy.conds.CONDConstant:
    """Return a value that is handed to the network as it is.

    Prompts with other values run in other batches.
    """
    return comfy.conds.CONDConstant(value)
