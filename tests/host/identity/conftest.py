"""Small encoders, adapters and checkpoints with random weights, written as users find them on disk."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

DINO: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 70, "patch_size": 14,
}  # fmt: skip
CLIP = DINO | {"intermediate_size": 64, "projection_dim": 16, "hidden_act": "quick_gelu", "num_channels": 3}


def randomise(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def dino(registers=4, seed=0):
    import transformers

    if registers:
        config = transformers.Dinov2WithRegistersConfig(**DINO, num_register_tokens=registers)
        return randomise(transformers.Dinov2WithRegistersModel(config), seed)
    return randomise(transformers.Dinov2Model(transformers.Dinov2Config(**DINO)), seed)


def clip(seed=0):
    import transformers

    return randomise(transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**CLIP)), seed)


def write_adapter(path: Path, config, dino_config=None, encoder=None, seed=0):
    """One of Inlay's own adapter files; returns the module whose weights it holds."""
    from inlay.encoders import checkpoint_layouts as layouts

    module = randomise(layouts.build_adapter(config), seed)
    state = {f"adapter.{key}": value for key, value in module.state_dict().items()}
    state |= {f"encoder.{key}": value for key, value in (encoder or {}).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, {layouts.METADATA: layouts.describe_checkpoint(config, dino_config)})
    return module


def execute(name, *arguments, **inputs):
    """A node of this pack, run as the host runs it."""
    from inlay import nodes

    return getattr(nodes, name).PREPARE_CLASS_CLONE(None).execute(*arguments, **inputs).result


def object_picture(height=60, width=50, seed=0):
    """A picture (1, H, W, 3) and the mask (1, H, W) of the object in it."""
    image = torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(1, height, width)
    mask[:, 10:42, 12:40] = 1
    return image, mask


def picture(side, seed=0, batch=1):
    return torch.rand(batch, side, side, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def kit():
    """The functions above."""
    return SimpleNamespace(
        CLIP=CLIP, clip=clip, dino=dino, randomise=randomise, write_adapter=write_adapter, execute=execute,
        object_picture=object_picture, picture=picture, unet_state=unet_state,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def inference(in_process_host):
    """The mode in which the host runs every node."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def load_checkpoint(in_process_host, host_work):
    """Loads (model, clip, vae) of a shallow checkpoint with that many channels and random weights, once."""
    import comfy.sd

    from inlay.lab.models.assemble import random_checkpoint, write_checkpoint

    loaded = {}

    def load(channels):
        if channels not in loaded:
            parts = random_checkpoint(1, channels)
            file = write_checkpoint(host_work / "identity" / f"{channels}.safetensors", parts)
            with torch.inference_mode():
                loaded[channels] = comfy.sd.load_checkpoint_guess_config(str(file))[:3]
        return loaded[channels]

    return load


def unet_state(channels):
    """The weights of a fresh tiny UNet, with noise where they start at zero: it predicts something."""
    from inlay.lab.models.assemble import filled
    from inlay.lab.models.inpainting_unet import SHALLOW, new_unet

    return filled(new_unet(1, **SHALLOW, in_channels=channels), 1)
