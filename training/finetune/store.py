"""Nothing is trained twice and nothing is lost: finished subjects and interrupted runs, found by content.

A finished subject is `<name>.safetensors` (the LoRA, which every LoRA loader lists), `<name>.png` (samples
from its training, which LoRA managers show) and `<name>.json` (the `Subject`, written last); an interrupted
run is `<name>.resume`. Each is written under a temporary name and renamed, so a crash or a power cut at any
moment leaves the old file or the new one.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...common.atomic_io import atomic_replace
from .data import Concept
from .recipes import Recipe
from .subject import VERSION, Subject
from .training_loop import TrainingState

SAMPLES = 64
MEGABYTE = 2**20


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A short name for a set of weights: every tensor's name, shape and 64 evenly spaced values, hashed.

    Takes milliseconds where hashing gigabytes would take seconds. Any training, merge or cast moves every
    tensor; what it cannot see is a change to single values by hand.
    """
    digest, values = hashlib.sha256(), []
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().flatten()
        # Each on its own: the host may keep a model's weights in several places.
        values.append(flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES].float().cpu())
    digest.update(torch.cat(values).numpy().tobytes())
    return digest.hexdigest()[:16]


def content_key(material: Iterable[Concept], recipe: Recipe, size: int, seed: int, base: str) -> str:
    """The hash of all that decides the result; `base` is the fingerprint of model, text encoder and VAE."""
    facts = [asdict(recipe), size, seed, base, VERSION]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for part in material:
        digest.update(json.dumps(part.caption).encode())
        for tensor in (tensor for reference in part.references for tensor in reference):
            digest.update(f"{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def read_lora(path: Path) -> dict[str, Tensor]:
    """The tensors of a LoRA file; raises ValueError when it is damaged."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"The stored subject {path.name} is damaged ({error}); delete it to train again."
        ) from error


class Store:
    """The folder of subjects, `models/loras/inlay`."""

    def __init__(self, folder: Path):
        self.folder = folder

    @staticmethod
    def name(class_name: str, recipe: Recipe, key: str) -> str:
        words = re.sub(r"[^a-z0-9]+", "-", f"{class_name} {recipe.name}".lower()).strip("-")
        return f"{words}-{key}"

    def lora_path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def find(self, name: str) -> tuple[Subject, dict[str, Tensor]] | None:
        """The finished subject of that name, or None. Raises ValueError when its files are damaged."""
        path, facts = self.lora_path(name), self.folder / f"{name}.json"
        if not (path.exists() and facts.exists()):
            return None
        text = facts.read_text(encoding="utf-8", errors="replace")
        return Subject.from_json(text, f"The stored subject {facts.name}"), read_lora(path)

    def find_strip(self, name: str) -> Image.Image | None:
        """The samples from the training of a finished subject, where previews were on."""
        path = self.folder / f"{name}.png"
        return Image.open(path) if path.exists() else None

    def save(
        self,
        name: str,
        subject: Subject,
        lora: dict[str, Tensor],
        metadata: dict[str, str],
        strip: Image.Image | None = None,
    ) -> None:
        """Keep a finished subject and drop what an interrupted run left."""
        self._write(self.lora_path(name), lambda path: save_file(lora, path, metadata))
        if strip:
            self._write(self.folder / f"{name}.png", lambda path: strip.save(path, "PNG"))
        self.describe(name, subject)
        (self.folder / f"{name}.resume").unlink(missing_ok=True)

    def describe(self, name: str, subject: Subject) -> None:
        """Keep a finished subject's facts."""
        self._write(
            self.folder / f"{name}.json", lambda path: path.write_text(subject.to_json(), encoding="utf-8")
        )

    def save_state(self, name: str, state: TrainingState) -> None:
        """Keep a run so far: masters, the optimiser's state, losses. Random numbers follow from the step."""
        metadata = {"step": str(state.step), "losses": json.dumps(state.losses)}
        self._write(self.folder / f"{name}.resume", lambda path: save_file(state.tensors, path, metadata))

    def find_state(self, name: str) -> TrainingState | None:
        """The interrupted run of that name, or None; a damaged file is reported and passed over."""
        path = self.folder / f"{name}.resume"
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                facts = file.metadata()
                # Copies: what stays mapped into memory cannot be replaced on Windows.
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - no dict
            return TrainingState(int(facts["step"]), json.loads(facts["losses"]), tensors)
        except (SafetensorError, TypeError, KeyError, ValueError) as error:
            logging.warning(f"Inlay: {path.name} is damaged ({error}); training starts from the beginning.")
            return None

    def check_room(self, needed: int) -> None:
        """Raises ValueError when the disk has less room than `needed` bytes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise ValueError(
                f"{self.folder}: {free / MEGABYTE:.0f} MB are free on that disk but the subject and its"
                f" checkpoints need about {needed / MEGABYTE:.0f} MB; make room and queue again."
            )

    def _write(self, path: Path, write) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(f"{path.name}.*.partial"):  # by a process that was killed
            left.unlink(missing_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            write(partial)
            atomic_replace(partial, path)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{path} could not be written ({error}); make room on that disk and queue again."
            ) from error
        finally:
            partial.unlink(missing_ok=True)
