"""The shallow SD 1.5-shaped inpainting UNet: one level, 26 M parameters, the host's own class."""

from typing import Any

import torch

from . import host

# The host recognises SD 1.5 by its width (320) and context (768) alone; the depth it reads off the file.
SHAPE = {
    "image_size": 32,
    "in_channels": 9,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1],
    "channel_mult": (1,),
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "legacy": False,
}


def new_unet(seed: int = 0, **changes) -> torch.nn.Module:
    """A fresh float32 UNet; `changes` override SHAPE. Residual outputs start at zero, as in the original."""
    host.open_host()
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, SpatialTransformer, UNetModel

    torch.manual_seed(seed)
    unet = UNetModel(**{**SHAPE, **changes}, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    # the host's layers skip initialisation (they expect a file); call torch's own
    for layer in unet.modules():
        for kind in (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm):
            if isinstance(layer, kind):
                initialise: Any = kind.reset_parameters
                initialise(layer)
    for block in unet.modules():
        if isinstance(block, ResBlock):
            _zero(block.out_layers[-1])
        if isinstance(block, SpatialTransformer):
            _zero(block.proj_out)
    _zero(unet.out[-1])
    return unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _zero(layer):
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)


def alphas_cumprod() -> torch.Tensor:
    """SD's scaled-linear schedule, (1000,) float32: prod(1 - beta), beta from 0.00085 to 0.012."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()
