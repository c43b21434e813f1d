"""One checkpoint that the stock CheckpointLoaderSimple loads, from the small files the repository ships.

    python -m inlay.lab.models.checkpoint OUT.safetensors [--random SEED]

The UNet is shipped as int8 with one scale per output row; the text encoder is made from its seed.
"""

import argparse
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from . import text
from .files import WEIGHTS

# the host's SD 1.5 latents are the autoencoder's times this; the tiny UNet works on the encoder's own scale
LATENT_SCALE = 0.18215


def quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix or kernel to int8 and a float32 scale per output row: w = q * scale, |q| <= 127."""
    scale = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
    rows = weight / scale.view(-1, *[1] * (weight.ndim - 1))
    return rows.round().to(torch.int8), scale.float()


def pack(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A float state dict in its shipped form: single rows as float16, everything else quantised."""
    packed = {}
    for name, value in state.items():
        if value.ndim < 2 or len(value) == 1:
            packed[name] = value.half().contiguous()
        else:
            packed[name], packed[f"{name}.scale"] = quantise(value.float().contiguous())
    return packed


def unpack(packed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `pack`, in float32."""
    state = {}
    for name, value in packed.items():
        if name.endswith(".scale"):
            continue
        scale = packed.get(f"{name}.scale")
        value = value.float()
        state[name] = value if scale is None else value * scale.view(-1, *[1] * (value.ndim - 1))
    return state


def shipped_parts(weights: Path = WEIGHTS) -> dict[str, dict[str, torch.Tensor]]:
    """The trained parts: `unet`, `autoencoder` and `rows` (the trained text rows)."""
    return {
        "unet": unpack(load_file(weights / "unet.safetensors")),
        "autoencoder": {
            name: value.float() for name, value in load_file(weights / "autoencoder.safetensors").items()
        },
        "rows": load_file(weights / "text_rows.safetensors"),
    }


def random_parts(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    """The same parts untrained, for tests of shapes and plumbing; the UNet's outputs are not zero."""
    from .train_autoencoder import new_autoencoder
    from .unet import new_unet

    unet = new_unet(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in unet.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.02, generator=generator)
    autoencoder = new_autoencoder().state_dict()
    return {
        "unet": unet.state_dict(),
        "autoencoder": autoencoder,
        "rows": {"trained": text.TextRows().trained.detach()},
    }


def assemble(path: Path, parts: dict[str, dict[str, torch.Tensor]] | None = None) -> Path:
    """Write the checkpoint to `path` (through a temporary name) and return it.

    `parts` as from `shipped_parts`, which is the default, or `random_parts`; without `rows` there is no text
    encoder in it.
    """
    parts = parts or shipped_parts()
    state = {f"model.diffusion_model.{name}": value.contiguous() for name, value in parts["unet"].items()}
    for name, value in parts["autoencoder"].items():
        if name not in ("vae_scale", "vae_shift"):
            state[f"first_stage_model.{name}"] = value.contiguous()
    state["first_stage_model.vae_scale"] = torch.tensor(LATENT_SCALE)
    state["first_stage_model.vae_shift"] = torch.tensor(0.0)
    if "rows" in parts:
        state |= text.encoder_state(parts["rows"]["trained"])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(state, partial, metadata={"modelspec.title": "Inlay tiny world, SD 1.5-shaped"})
    os.replace(partial, path)
    return path


def is_current(path: Path, weights: Path = WEIGHTS) -> bool:
    """Whether `path` holds a readable checkpoint that is newer than every shipped part."""
    if not path.exists() or any(
        part.stat().st_mtime > path.stat().st_mtime for part in weights.glob("*.safetensors")
    ):
        return False
    with safe_open(path, "pt") as file:
        return "first_stage_model.vae_scale" in file.keys()  # noqa: SIM118 - not a dict


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument(
        "--random", type=int, metavar="SEED", help="untrained parts instead of the shipped ones"
    )
    arguments = parser.parse_args()
    parts = None if arguments.random is None else random_parts(arguments.random)
    print(assemble(arguments.path, parts))


if __name__ == "__main__":
    main()
