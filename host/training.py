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
from .models import model_around, pytorch_attention


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
        chosen = {"optimized_attention_override": _differentiable} | dict(options or {})
        predicted = self.base.apply_model(x, sigma, transformer_options=chosen, **self.conditions(x, values))
        return predicted.squeeze(2) if self.time_axis else predicted

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


def _differentiable(chosen, *args, **kwargs) -> Tensor:
    return pytorch_attention(*args, **kwargs)  # SageAttention has no gradients


def text_values(conditioning: Sequence) -> dict[str, Any]:
    """Return the first entry of a CONDITIONING as keyword arguments of `extra_conds`."""
    text, extras = conditioning[0]
    return dict(extras) | {"cross_attn": text}
