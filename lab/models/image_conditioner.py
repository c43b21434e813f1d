"""What the tables of the identity models share: what sees an object, and a changed UNet."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...encoders.content_adapter import as_pixels
from ...training.adapters.identity_stages import pixel_normalization, read_tokens

Numbers = list[dict[str, float]]
PICTURES = "pictures"  # what a cell keeps beside them


@dataclass(frozen=True)
class ImageConditioner:
    """Encoder and adapter: objects (B, S, S, 3) in [0, 1] to context rows, and the row of nothing."""

    encoder: nn.Module
    adapter: nn.Module

    @torch.no_grad()
    def rows(self, objects: Tensor) -> tuple[Tensor, Tensor]:
        config: Any = self.adapter.config
        encoder_spec = config.encoder_spec
        tokens = read_tokens(
            self.encoder, encoder_spec, as_pixels(objects, *pixel_normalization(encoder_spec))
        )
        rows = self.adapter(tokens)
        if encoder_spec.uncond == "zeros":
            return rows, torch.zeros_like(rows[:1])
        return rows, self.adapter.get_parameter("nothing").detach().expand_as(rows[:1])


def loaded(file: Path, encoder: nn.Module, adapter: nn.Module) -> None:
    """Fill both from a file as the nodes load it."""
    state = load_file(file)
    for prefix, module in (("encoder.", encoder), ("adapter.", adapter)):
        own = {k.removeprefix(prefix): v.float() for k, v in state.items() if k.startswith(prefix)}
        module.load_state_dict(own)


def with_change(model, change: dict[str, Tensor]):
    """A MODEL with a change of its UNet, through the host's own LoRA loader."""
    import comfy.sd

    return comfy.sd.load_lora_for_models(model, None, change, 1.0, 0)[0] if change else model
