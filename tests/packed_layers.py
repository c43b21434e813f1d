"""Layers with packed weights, with the attributes and methods that ComfyUI-GGUF's have.

Linear weights are in its format Q8_0: for each 32 numbers a float16 scale and 32 signed bytes. Weights of
convolutions are the bytes of bfloat16 numbers; biases are float32 of the same tensor class.
"""

from typing import Any

import comfy.lora
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch
from torch import Tensor, nn

BLOCK = 32


class PackedTensor(Tensor):
    """Bytes of a weight; `shape` is that of the matrix, `patches` the LoRAs that are added in each use."""

    tensor_type: str
    tensor_shape: torch.Size
    patches: list

    def to(self, *args, **kwargs):
        return packed(super().to(*args, **kwargs), self.tensor_type, self.tensor_shape, list(self.patches))

    def clone(self, *args, **kwargs):
        return self

    def detach(self):
        return self

    @property
    def shape(self):
        return getattr(self, "tensor_shape", self.size())


def packed(data: Tensor, kind: str, shape: torch.Size, patches: list | None = None) -> PackedTensor:
    tensor: Any = data.as_subclass(PackedTensor)
    tensor.tensor_type, tensor.tensor_shape, tensor.patches = kind, shape, patches or []
    return tensor


def pack(weight: Tensor) -> tuple[PackedTensor, Tensor]:
    """Return a weight packed, and the numbers in float64 that it stands for."""
    if weight.ndim == 1:
        return packed(weight.float().clone(), "F32", weight.shape), weight.float().double()
    if weight.ndim > 2:
        rounded = weight.bfloat16().contiguous()
        return packed(rounded.view(torch.uint8), "BF16", weight.shape), rounded.double()
    blocks = weight.double().reshape(-1, BLOCK)
    scale = (blocks.abs().amax(1, keepdim=True) / 127).half()
    numbers = (blocks / scale.double()).round().clamp(-127, 127).to(torch.int8)
    data = torch.cat([scale.view(torch.uint8), numbers.view(torch.uint8)], dim=1)
    rows = data.reshape(len(weight), -1)
    return packed(rows, "Q8_0", weight.shape), (scale.double() * numbers.double()).reshape(weight.shape)


def unpack(tensor: Any, dtype: torch.dtype) -> Tensor:
    data = tensor.data.as_subclass(Tensor)
    if tensor.tensor_type == "BF16":
        return data.view(torch.bfloat16).reshape(tensor.tensor_shape).to(dtype)
    blocks = data.reshape(-1, BLOCK + 2)
    scale, numbers = blocks[:, :2].view(torch.float16), blocks[:, 2:].view(torch.int8)
    return (scale.to(dtype) * numbers).reshape(tensor.tensor_shape)


def is_packed(tensor: Any) -> bool:
    return getattr(tensor, "tensor_type", "F32") != "F32"


class PackedLayer(nn.Module):
    comfy_cast_weights = True
    weight: Any
    bias: Any

    def get_weight(self, tensor, dtype):
        if not is_packed(tensor):
            return tensor.to(dtype)  # which keeps the tensor class
        weight = unpack(tensor, dtype)
        for patches, key in tensor.patches:
            weight = comfy.lora.calculate_weight(patches, weight, key)
        return weight

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name in ("weight", "bias"):
            if prefix + name in state_dict:
                setattr(self, name, nn.Parameter(state_dict[prefix + name], requires_grad=False))

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        for name in ("weight", "bias"):
            if getattr(self, name) is not None:
                destination[prefix + name] = torch.zeros(getattr(self, name).shape, device="meta")
        destination[prefix + "temp.weight"] = torch.zeros(1, device="meta")

    def parts(self, x: Tensor) -> list[Tensor | None]:
        held = (self.weight, self.bias)
        return [None if part is None else self.get_weight(part, x.dtype).as_subclass(Tensor) for part in held]


class PackedOperations(comfy.ops.manual_cast):
    class Linear(PackedLayer, comfy.ops.manual_cast.Linear):
        def __init__(self, in_features, out_features, bias=True, device=None, dtype=None):
            nn.Module.__init__(self)
            self.in_features, self.out_features = in_features, out_features
            self.weight = self.bias = None

        def forward_comfy_cast_weights(self, x):
            weight, bias = self.parts(x)
            assert weight is not None
            return nn.functional.linear(x, weight, bias)

    class Conv2d(PackedLayer, comfy.ops.manual_cast.Conv2d):
        def forward_comfy_cast_weights(self, x):
            weight, bias = self.parts(x)
            assert weight is not None
            return self._conv_forward(x, weight, bias)


class PackedPatcher(comfy.model_patcher.ModelPatcher):
    """Leaves packed weights as they are and hangs patches on them, until the model is unloaded."""

    def patch_weight_to_device(self, key, device_to=None, inplace_update=False, **rest):
        weight: Any = comfy.utils.get_attr(self.model, key)
        if not is_packed(weight):
            return super().patch_weight_to_device(key, device_to, inplace_update, **rest)
        if key in self.patches:
            weight.patches = [(self.patches[key], key)]
        return None

    def load(self, *args, force_patch_weights=False, **kwargs):
        super().load(*args, force_patch_weights=True, **kwargs)

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        if unpatch_weights:
            for weight in self.model.parameters():
                if is_packed(weight):
                    weight.patches = []
        return super().unpatch_model(device_to, unpatch_weights)


def pack_state(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a network's weights packed where `PackedOperations` has layers for them, and their numbers."""
    stored, numbers = {}, {}
    for key, weight in state.items():
        whole = weight.ndim == 2 and weight.shape[-1] % BLOCK == 0
        if key.endswith(".bias") or (key.endswith(".weight") and (whole or weight.ndim == 4)):
            stored[key], numbers[key] = pack(weight)
        else:
            stored[key], numbers[key] = weight.clone(), weight.double()
    return stored, numbers
