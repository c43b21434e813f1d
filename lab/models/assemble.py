"""Files that the stock nodes load, from the trainings of the tiny world.

    python -m inlay.lab.models.assemble --work DIR --out FOLDER [--random SEED]

Writes what is trained so far: checkpoints/inlay_tiny.safetensors (CheckpointLoaderSimple: UNet, text
encoder, autoencoder of 4 channels), diffusion_models/inlay_tiny_fill.safetensors and
inlay_tiny_edit.safetensors (UNETLoader), vae/inlay_tiny_16.safetensors (VAELoader) and
text_encoders/inlay_tiny_clip.safetensors (CLIPLoader, type stable_diffusion). With --random everything is
there, untrained: for tests of shapes. With --ship the parts go into FOLDER in few bits instead, as the
repository holds them, and --shipped FOLDER reads them from there.
"""

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from . import autoencoders, classifier, flux, inpainting_unet, low_rank, quantised, runs, text_encoder
from .files import WEIGHTS
from .loss_curves import write_curves

# the host's latents are the autoencoder's times this; the models work on the encoder's own scale
SD_SCALE, SD_SHIFT = 0.18215, 0.0

State = dict[str, Tensor]


def filled(module: nn.Module, seed: int = 0) -> State:
    """The state of an untrained module, with noise where it starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: value.detach().clone() for name, value in module.state_dict().items()}
    for value in state.values():
        if not value.any():
            value.normal_(0, 0.02, generator=generator)
    return state


def shipped_autoencoder(channels: int) -> State:
    """The state of an autoencoder of the repository."""
    return quantised.load(WEIGHTS / f"autoencoder{channels}.safetensors")


def random_checkpoint(seed: int = 0, channels: int = 9) -> dict[str, State]:
    """The parts of a checkpoint, untrained: a UNet of one level with that many input channels, and others.

    No output is zero. The autoencoder is the shipped one: the pictures of an untrained one hardly differ.
    """
    return {
        "unet": filled(inpainting_unet.new_unet(seed, **inpainting_unet.SHALLOW, in_channels=channels), seed),
        "text": filled(text_encoder.TextEncoder(seed), seed),
        "autoencoder4": shipped_autoencoder(4),
    }


def random_parts(seed: int = 0) -> dict[str, State]:
    """Every part untrained but the autoencoders; no output is zero."""
    return random_checkpoint(seed) | {
        "unet": filled(inpainting_unet.new_unet(seed), seed),
        "autoencoder16": shipped_autoencoder(16),
        "fill": filled(flux.new_flux("fill", seed), seed),
        "edit": filled(flux.new_flux("edit", seed), seed),
    }


def trained_parts(work: Path) -> dict[str, State]:
    """The parts that have been trained in `work`, finished or not; means of weights where there are means."""
    parts: dict[str, State] = {}
    for channels in (4, 16):
        if (work / f"autoencoder{channels}.pt").exists():
            parts[f"autoencoder{channels}"] = autoencoders.trained_autoencoder(work, channels).state_dict()
    if (work / "unet.pt").exists():
        training = inpainting_unet.Training(work)
        with runs.Averaged(training.fit):
            parts["unet"] = {name: value.cpu().clone() for name, value in training.unet.state_dict().items()}
    if (work / "text_encoder.pt").exists():
        parts["text"] = text_encoder.trained_text_encoder(work).state_dict()
    for task in ("fill", "edit"):
        if (work / f"{task}.pt").exists():
            fit = flux.Training(work, task)
            with runs.Averaged(fit.fit):
                state = {name: value.cpu().clone() for name, value in fit.model.state_dict().items()}
                parts[task] = low_rank.differences_of(state, flux.FIXED) if task == "edit" else state
    if (work / "classifier.pt").exists():
        parts["classifier"] = classifier.trained_classifier(work).state_dict()
    return parts


# The UNet's layers by how much the error grows when they have few bits; all others are of the coarse levels.
# So on 240 examples its error grows from 0.1974 by 0.0004 +- 0.0002; with 5 bits everywhere and 6 in these
# layers it is 37 instead of 27 MB and grows by 0.0013 +- 0.0003.
UNET_BITS = {
    ("input_blocks.0.", "input_blocks.1.0.", "out."): 8,
    (
        *(f"output_blocks.{block}.0.{side}_layers." for block in (4, 5) for side in ("in", "out")),
        "time_embed.",
    ): 4,
    ("input_blocks.1.", "output_blocks.4.", "output_blocks.5."): 6,
}
COARSE_BITS = 3


def bits_of(part: str) -> Callable[[str], int]:
    """How many bits the weights of a part are shipped in, by name."""
    if part == "unet":
        return lambda name: next((b for start, b in UNET_BITS.items() if name.startswith(start)), COARSE_BITS)
    bits = 8 if part == "classifier" or part.startswith("autoencoder") else {"edit": 5}.get(part, 6)
    return lambda name: bits


def ship(parts: dict[str, State], folder: Path, records: dict[str, dict]) -> list[Path]:
    """Write the parts in few bits as FOLDER/PART.safetensors, each with its record of the training."""
    written = []
    for part, state in parts.items():
        path = folder / f"{part}.safetensors"
        quantised.save(state, path, bits_of(part), records.get(part))
        written.append(path)
    return written


def shipped_parts(folder: Path) -> dict[str, State]:
    """The parts that `ship` wrote."""
    return {path.stem: quantised.load(path) for path in sorted(folder.glob("*.safetensors"))}


def training_records(work: Path, parts: Iterable[str]) -> dict[str, dict]:
    """Steps, minutes and the last losses of each part's training."""
    found = {}
    for part in parts:
        if state := runs.load(work / f"{part}.pt"):
            minutes = round(state["seconds"] / 60, 1)
            found[part] = {"steps": state["step"], "minutes": minutes, "log": state["log"][-1:]}
    return found


def losses(work: Path, parts: Iterable[str]) -> dict[str, list[list[float]]]:
    """Step, minutes and loss along each part's training."""
    found = {}
    for part in parts:
        if state := runs.load(work / f"{part}.pt"):
            rows = [row for row in state["log"] if "loss" in row]
            found[part] = [[row[name] for name in ("step", "minutes", "loss")] for row in rows]
    return found


def autoencoder_state(part: State, scale: float, shift: float) -> State:
    """An autoencoder's state for the host: latents of its own scale become the host's."""
    state = {name: value.contiguous() for name, value in part.items() if not name.startswith("vae_")}
    return {**state, "vae_scale": torch.tensor(scale), "vae_shift": torch.tensor(shift)}


def write(state: State, path: Path, title: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({n: v.contiguous() for n, v in state.items()}, partial, metadata={"modelspec.title": title})
    os.replace(partial, path)
    return path


def checkpoint_state(parts: dict[str, State]) -> State:
    """One SD 1.5-shaped checkpoint: UNet, autoencoder and, where there is one, text encoder."""
    state = {f"model.diffusion_model.{name}": value for name, value in parts["unet"].items()}
    own = autoencoder_state(parts["autoencoder4"], SD_SCALE, SD_SHIFT)
    state |= {f"first_stage_model.{name}": value for name, value in own.items()}
    return state | (text_encoder.host_state(parts["text"]) if "text" in parts else {})


def write_checkpoint(path: Path, parts: dict[str, State]) -> Path:
    """Write the checkpoint of these parts to `path` and return it."""
    return write(checkpoint_state(parts), path, "Inlay tiny world, SD 1.5-shaped")


def clip_state(parts: dict[str, State]) -> State:
    """The text encoder alone, as CLIPLoader expects a CLIP-L."""
    prefix = "cond_stage_model.transformer."
    return {n.removeprefix(prefix): v for n, v in text_encoder.host_state(parts["text"]).items()}


# file in a models folder -> the parts it is made of
FILES: dict[str, tuple[str, ...]] = {
    "checkpoints/inlay_tiny.safetensors": ("unet", "text", "autoencoder4"),
    "diffusion_models/inlay_tiny_fill.safetensors": ("fill",),
    "diffusion_models/inlay_tiny_edit.safetensors": ("fill", "edit"),
    "vae/inlay_tiny_16.safetensors": ("autoencoder16",),
    "text_encoders/inlay_tiny_clip.safetensors": ("text",),
}


def places(models: Path, parts: Iterable[str]) -> list[Path]:
    """The files in a models folder whose parts are there."""
    return [models / file for file, needed in FILES.items() if {*needed} <= {*parts}]


def assemble(parts: dict[str, State], out: Path) -> list[Path]:
    """Write every file whose parts are there into `out`; returns their paths."""
    state_of: dict[str, tuple[Callable[[], State], str]] = {
        "inlay_tiny": (lambda: checkpoint_state(parts), "SD 1.5-shaped"),
        "inlay_tiny_fill": (lambda: parts["fill"], "fill model of Flux.1's class"),
        "inlay_tiny_edit": (
            lambda: flux.edit_state(parts["fill"], parts["edit"]),
            "edit model of Flux.1's class",
        ),
        "inlay_tiny_16": (
            lambda: autoencoder_state(parts["autoencoder16"], flux.VAE_SCALE, flux.VAE_SHIFT),
            "autoencoder of 16 channels",
        ),
        "inlay_tiny_clip": (lambda: clip_state(parts), "text encoder"),
    }
    written = []
    for path in places(out, parts):
        state, title = state_of[path.stem]
        written.append(write(state(), path, f"Inlay tiny world, {title}"))
    return written


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="folder of the trainings")
    parser.add_argument("--out", type=Path, required=True, help="a models folder")
    parser.add_argument("--random", type=int, metavar="SEED", help="untrained parts instead")
    parser.add_argument("--shipped", type=Path, metavar="FOLDER", help="parts in few bits instead")
    parser.add_argument("--ship", action="store_true", help="write parts in few bits")
    a = parser.parse_args()
    if a.random is not None:
        parts = random_parts(a.random)
    elif a.shipped:
        parts = shipped_parts(a.shipped)
    elif a.work:
        parts = trained_parts(a.work)
    else:
        parser.error(
            "Name the folder of the trainings with --work, or give --shipped FOLDER or --random SEED."
        )
    if a.ship:
        written = ship(parts, a.out, training_records(a.work, parts) if a.work else {})
        if a.work:
            write_curves(a.out / "curves", ["step", "minutes", "loss"], losses(a.work, parts))
    else:
        written = assemble(parts, a.out)
    for path in written:
        print(f"{path}  {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
