"""Seams to the host for training transformers: its conditions, its noise levels, switches for gradients."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..families.layout import TOKEN_ORDERS
from .models import model_around, outside_inference_mode, pytorch_attention, trainable_copy


@contextmanager
def training_switches(network: nn.Module) -> Iterator[None]:
    """Make a network of the host differentiable within the block; everything is restored at its end.

    The host's fused operations have no gradients; `in_training` turns them off. Several networks add to a
    tensor in place that a LayerNorm has kept for its gradient, so each LayerNorm gets a copy.
    """
    before = comfy.model_management.in_training
    norms = [layer for layer in network.modules() if isinstance(layer, nn.LayerNorm)]
    hooks = [layer.register_forward_pre_hook(_copied_input) for layer in norms]
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before
        for hook in hooks:
            hook.remove()


def _copied_input(layer: nn.Module, args: tuple) -> tuple:
    return (args[0].clone(), *args[1:])


PLAIN_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def is_quantised(layer: nn.Module) -> bool:
    """Return whether a layer is linear and its weight is one of fewer than 16 bits for each number."""
    weight = getattr(layer, "weight", None)
    if not (isinstance(weight, Tensor) and hasattr(layer, "in_features")):
        return False
    return is_special(weight) or weight.dtype not in PLAIN_TYPES


def stays_frozen(layer: nn.Module) -> bool:
    """Return whether a linear layer is one for `FrozenLinear`: quantised, or of a class that PEFT rejects.

    The host opens a file with quantised weights with linear layers of its own, the others in it as well.
    """
    weight = getattr(layer, "weight", None)
    own = hasattr(layer, "in_features") and isinstance(weight, Tensor) and not isinstance(layer, nn.Linear)
    return is_quantised(layer) or own


def is_special(weight: Tensor) -> bool:
    """Return whether a weight is of a tensor class of its own, the host's (scaled fp8, int8) or GGUF's."""
    return type(weight) not in (nn.Parameter, Tensor)


def has_special_weights(network: nn.Module) -> bool:
    """Return whether one of a network's weights is of a tensor class of its own."""
    return any(is_special(weight) for weight in network.parameters())


def unreadable_format(network: nn.Module) -> str:
    """Return the first format of weights that `plain_weight` cannot read, or ""."""
    for layer in network.modules():
        for weight in layer.parameters(recurse=False):
            if hasattr(layer, "get_weight"):
                continue
            if is_special(weight) and type(weight).dequantize is Tensor.dequantize:
                return type(weight).__name__
            if not weight.is_floating_point():
                return str(weight.dtype)
    return ""


def plain_weight(layer: Any, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight or a bias of a layer as an ordinary tensor of the type of the arithmetic.

    A class of the host has `dequantize`. Layers of ComfyUI-GGUF unpack a weight themselves and add the LoRAs
    that the user has put on it; its shape in memory is not that of the matrix.
    """
    if not is_special(weight):
        return weight.to(dtype)
    if not hasattr(layer, "get_weight"):
        return weight.dequantize().to(dtype)
    plain = layer.get_weight(weight, dtype)
    return outside_inference_mode(plain) if is_special(plain) else plain


class FrozenLinear(nn.Linear):
    """A linear layer of the host with a quantised weight, which is never trained and stays as it is.

    The weight is widened for each use, in the forward and in the backward pass, and dropped again. It is no
    parameter, because PEFT would give its adapters the weight's type. An offloaded one stays in the
    computer's memory and is copied to the device for each use.
    """

    def __init__(self, layer: Any, dtype: torch.dtype, device: torch.device | None = None):
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        # in tuples: not registered, not copied
        self.source = (layer,)
        self.frozen = tuple(_held(layer, part) for part in (layer.weight, layer.bias))
        self.dtype, self.offloaded = dtype, False
        # PEFT takes the type and the device of an adapter from `weight`.
        self.weight = nn.Parameter(
            torch.empty(0, dtype=dtype, device=device or layer.weight.device), requires_grad=False
        )
        self.register_parameter("bias", None)

    def widened(self) -> Tensor:
        """Return the weight (out, in) in the type of the arithmetic."""
        return plain_weight(self.source[0], self._on_device(self.frozen[0]), self.dtype)

    def _on_device(self, part: Any) -> Any:
        device = self.weight.device
        return part if part is None or part.device == device else part.to(device)

    def nbytes(self) -> int:
        """Return the bytes that the weight and the bias take."""
        return sum(bytes_of(part) for part in self.frozen if part is not None)

    def bytes_in_use(self) -> int:
        """Return the bytes that a use adds on the device: the widened weight, and an offloaded one's copy."""
        plain = not is_special(self.frozen[0]) and self.frozen[0].dtype == self.dtype
        widened = 0 if plain else self.in_features * self.out_features * self.dtype.itemsize
        return widened + self.nbytes() * self.offloaded

    def load(self) -> None:
        """Move an offloaded weight to the device, where it stays."""
        self.frozen = tuple(map(self._on_device, self.frozen))
        self.offloaded = False

    def forward(self, x: Tensor) -> Tensor:
        """Return x @ weight.T + bias (..., out) for x (..., in); only x receives a gradient."""
        bias = self.frozen[1]
        y: Any = _FrozenProduct.apply(x, self)
        return y if bias is None else y + plain_weight(self.source[0], self._on_device(bias), self.dtype)


def _held(layer: Any, weight: Any) -> Any:
    """Return a weight, of GGUF's layers one of its own over the same memory.

    Their loader empties a weight's list of LoRAs when it unloads the MODEL, which may be during a training.
    """
    if weight is None or not is_special(weight) or not hasattr(layer, "get_weight"):
        return weight
    held = outside_inference_mode(weight).as_subclass(type(weight))
    held.__dict__.update(weight.__dict__)
    return held


def bytes_of(weight: Tensor) -> int:
    """Return the bytes of a weight; of the host's quantised tensors without their few scales."""
    data = getattr(weight, "_qdata", weight)
    return data.numel() * data.element_size()


class _FrozenProduct(torch.autograd.Function):
    """x W^T with the gradient of x; only the quantised weight is kept for it."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: FrozenLinear) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.layer = layer
        return nn.functional.linear(x, layer.widened())

    @staticmethod
    def backward(ctx, gradient: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient @ ctx.layer.widened(), None


def frozen_copy(model: ModelPatcher, dtype: torch.dtype, offload: bool = False) -> nn.Module:
    """Return the MODEL's network as `trainable_copy` does, with its quantised linear layers as they are.

    The few weights of other layers that have a tensor class of their own are widened.

    `offload`: the linear layers of a transformer's blocks stay where they are, quantised or not, and go to
    the device for each use; `load_layers` moves some of them there for good.
    """
    network, linear, instead = model.model.diffusion_model, {}, {}
    inside = {id(layer) for block in blocks_of(network) for layer in block.modules()} if offload else set()
    for path, layer in network.named_modules():
        within = id(layer) in inside and hasattr(layer, "in_features")
        kept = within or stays_frozen(layer)
        if kept:
            linear[path] = (layer, within)
        for weight in layer.parameters(recurse=False):
            if kept:
                instead[id(weight)] = torch.empty(0, dtype=dtype, device=weight.device)
            elif is_special(weight):
                instead[id(weight)] = plain_weight(layer, weight, dtype)
    copied = trainable_copy(model, dtype, instead=instead)
    for path, (layer, within) in linear.items():
        frozen = FrozenLinear(layer, dtype, model.load_device)
        frozen.offloaded = within
        if not within:
            frozen.load()
        copied.set_submodule(path, frozen)
    return copied


def offloaded_layers(network: nn.Module) -> list[FrozenLinear]:
    """Return the layers whose weights are in the computer's memory."""
    return [layer for layer in network.modules() if isinstance(layer, FrozenLinear) and layer.offloaded]


def load_layers(network: nn.Module, room: int) -> tuple[int, int]:
    """Move offloaded layers to the device, the first ones first, as far as they fit into `room` bytes.

    Unless all of them fit, room for using the largest is left.

    Returns:
        The bytes that stay where they are, and those that using the largest of them takes on the device.
    """
    layers = offloaded_layers(network)
    if sum(layer.nbytes() for layer in layers) > room:
        room -= max(layer.bytes_in_use() for layer in layers)
    for layer in layers:
        room -= layer.nbytes()
        if room < 0:
            break
        layer.load()
    rest = offloaded_layers(network)
    return sum(layer.nbytes() for layer in rest), max((layer.bytes_in_use() for layer in rest), default=0)


def bytes_in_use(network: nn.Module) -> int:
    """Return the bytes that using the largest frozen layer adds on the device."""
    layers = (layer for layer in network.modules() if isinstance(layer, FrozenLinear))
    return max((layer.bytes_in_use() for layer in layers), default=0)


def weight_bytes(network: nn.Module) -> int:
    """Return the bytes of a network's weights, quantised layers included."""
    plain = sum(p.numel() * p.element_size() for p in network.parameters())
    return plain + sum(layer.nbytes() for layer in network.modules() if isinstance(layer, FrozenLinear))


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Return the blocks of a transformer that attend over its sequence; empty for an unknown class."""
    order = TOKEN_ORDERS.get(type(network).__name__)
    lists = [] if order is None else [getattr(network, attribute) for _, attribute in order.blocks]
    return [block for blocks in lists for block in blocks]


class HostPass:
    """A forward pass of a trainable network as the host makes it in sampling, up to the network's prediction.

    Conditions come from the model's own `extra_conds`; the input and the time from its `model_sampling`.

    Args:
        model: the MODEL.
        network: its network, as `models.trainable_copy` gives it.
        dtype: of the network's arithmetic.
        time_axis: whether the host's latents are (B, C, T, h, w).
    """

    def __init__(self, model: ModelPatcher, network: nn.Module, dtype: torch.dtype, time_axis: bool):
        self.model = model_around(model, network, dtype)
        self.base: Any = self.model.model
        self.device, self.dtype, self.time_axis = model.load_device, dtype, time_axis
        sampling = copy.copy(self.base.model_sampling)
        sampling.calculate_denoised = lambda sigma, output, x: output  # the prediction itself is wanted
        self.base._modules = self.base._modules | {"model_sampling": sampling}
        self.sampling = sampling
        self.attend = pytorch_attention  # SageAttention has no gradients

    def __call__(
        self,
        latent: Tensor,
        noise: Tensor,
        sigma: Tensor,
        values: Mapping[str, Any],
        options: Mapping | None = None,
    ) -> Tensor:
        """Return the network's prediction (B, C, h, w) for `latent` noised to `sigma` (B,).

        Args:
            latent, noise: (B, C, h, w), as the network sees them.
            values: entries of a CONDITIONING, and `cross_attn`, the text (1 or B, L, D).
            options: further transformer_options.
        """
        if self.time_axis:
            latent, noise = latent.unsqueeze(2), noise.unsqueeze(2)
        x = self.sampling.noise_scaling(sigma, noise, latent)
        chosen = {"optimized_attention_override": self._attention} | dict(options or {})
        predicted = self.base.apply_model(x, sigma, transformer_options=chosen, **self.conditions(x, values))
        return predicted.squeeze(2) if self.time_axis else predicted

    def _attention(self, chosen, *args, **kwargs) -> Tensor:
        return self.attend(*args, **kwargs)

    def conditions(self, x: Tensor, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what `apply_model` takes beside the noisy latents `x`, made by the model's `extra_conds`."""
        height, width = x.shape[-2:]
        made = self.base.extra_conds(
            **{"noise": x, "device": x.device, "height": height * 8, "width": width * 8,
               "prompt_type": "positive"} | dict(values)
        )  # fmt: skip
        return {
            name: condition.process_cond(batch_size=len(x), area=None, device=x.device).cond
            for name, condition in made.items()
        }

    def raw(self, latent: Tensor) -> Tensor:
        """Return latents (B, C, h, w) of the network's scale in that of the VAE and of CONDITIONING."""
        latent = latent.unsqueeze(2) if self.time_axis else latent
        return self.base.process_latent_out(latent)


def text_values(conditioning: Sequence) -> dict[str, Any]:
    """Return the first entry of a CONDITIONING as keyword arguments of `extra_conds`."""
    text, extras = conditioning[0]
    return dict(extras) | {"cross_attn": text}
