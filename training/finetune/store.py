"""Nothing is trained twice and nothing is lost: finished subjects and interrupted runs, found by content.

A finished subject is `<name>.safetensors` (the LoRA, which every LoRA loader lists), `<name>.png` (samples
from its training, which LoRA managers show) and `<name>.json` (the `Subject`, written last); an interrupted
run is `<name>.resume`. Each is written under a temporary name and renamed, so a crash or a power cut at any
moment leaves the old file or the new one.
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...common.files import atomic_write, check_writable
from ...common.log import logger
from .data import Concept
from .memory import GIGABYTE
from .recipes import Recipe
from .subject import VERSION, Subject
from .trainer import TrainingState

SAMPLES = 64
MEGABYTE = 2**20
LONGEST_NAME = 64  # characters of a stored name before its hash; file systems allow 255 bytes in all
KEPT_RESUMES = 20 * GIGABYTE  # of interrupted runs, in bytes; beyond it the oldest go
RESUME_AGE = 24 * 3600  # seconds; a younger file may belong to a run of another process
# Fields of a recipe since version 0.1.0.
ADDED_FIELDS = (
    "sample_posterior", "regular_chance", "hole_condition", "timesteps", "shift", "guidance", "min_snr",
    "caption_dropout", "preservation", "subject_references", "reference_dropout", "aspect_ratios",
)  # fmt: skip
ADDED_OPTIMISER_FIELDS = ("schedule", "warmup")
ADDED_ADAPTER_FIELDS = ("layers", "pattern", "lokr")


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return a short name for a set of tensors: each one's name, shape and 64 evenly spaced values, hashed.

    Takes milliseconds where hashing gigabytes would take seconds. Any training, merge or cast changes every
    tensor; a change of single values by hand can be missed.
    """
    digest, values = hashlib.sha256(), []
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().flatten()
        # Each on its own: the host may keep a model's weights in several places.
        values.append(flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES].float().cpu())
    digest.update(torch.cat(values).numpy().tobytes())
    return digest.hexdigest()[:16]


def rounded_samples(tensor: Tensor) -> Tensor:
    """Return 64 evenly spaced values of a computed tensor, rounded to 1/64 of their root mean square.

    The last bits of a computation depend on the number of threads. A relative error of 1e-6 changes the
    result in about one case of 250; a difference of 1 % nearly always does.
    """
    flat = tensor.detach().flatten()
    values = flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES].float().cpu().nan_to_num()
    scale = values.square().mean().sqrt().clamp(min=1e-12)
    return torch.cat([(values / scale * SAMPLES).round(), torch.tensor(tensor.shape, dtype=torch.float32)])


def content_key(concepts: Iterable[Concept], recipe: Recipe, size: int, seed: int, base: str) -> str:
    """Return the hash of all that decides a result; `base` is the fingerprint of model, VAE and encoded text.

    Recipe fields at their defaults are left out, so that a field added later changes no key, and so are its
    name and the soft values of masks, of which only the side of 0.5 counts.
    """
    changed = _changed(asdict(recipe), asdict(Recipe(recipe.name)))
    digest = hashlib.sha256(json.dumps([changed, size, seed, base, "2"], sort_keys=True).encode())
    for concept in concepts:
        digest.update(json.dumps(concept.caption).encode())
        for image, mask in concept.references:
            for tensor in (image.detach().float(), mask.detach() > 0.5):
                digest.update(f"{tuple(tensor.shape)}".encode())
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _changed(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the values that are not their defaults, also in tables within."""
    changed = {}
    for name, value in values.items():
        if isinstance(value, dict):
            value = _changed(value, defaults[name]) or defaults[name]
        if value != defaults[name]:
            changed[name] = value
    return changed


def released_key(concepts: Iterable[Concept], recipe: Recipe, size: int, seed: int, base: str) -> str | None:
    """Return the key that version 0.1.0 gave, or None for a recipe that it did not have."""
    facts, defaults = asdict(recipe), asdict(Recipe(recipe.name))
    if any(facts.pop(name) != defaults[name] for name in ADDED_FIELDS):
        return None
    for part, names in (("adapter", ADDED_ADAPTER_FIELDS), ("optimiser", ADDED_OPTIMISER_FIELDS)):
        if any(facts[part].pop(name) != defaults[part][name] for name in names):
            return None
    digest = hashlib.sha256(json.dumps([facts, size, seed, base, VERSION], sort_keys=True).encode())
    for concept in concepts:
        digest.update(json.dumps(concept.caption).encode())
        for tensor in (tensor for reference in concept.references for tensor in reference):
            digest.update(f"{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def read_lora(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a LoRA file, which is not kept open. Raises ValueError when it is damaged."""
    try:
        return {name: tensor.clone() for name, tensor in load_file(path).items()}  # load_file maps the file
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
        """Return the name of a result: class and recipe for the eye, and the key that identifies it."""
        words = re.sub(r"[^a-z0-9]+", "-", f"{class_name} {recipe.name}".lower()).strip("-")
        return f"{words[:LONGEST_NAME].strip('-')}-{key}"

    @staticmethod
    def released_name(class_name: str, recipe: Recipe, key: str) -> str:
        """Return the name that version 0.1.0 gave; a class of some 230 characters was too long for a file."""
        words = re.sub(r"[^a-z0-9]+", "-", f"{class_name} {recipe.name}".lower()).strip("-")
        return f"{words}-{key}"[:200]

    def lora_path(self, name: str) -> Path:
        """Return the path of a finished subject's weights."""
        return self.folder / f"{name}.safetensors"

    def resume_path(self, name: str) -> Path:
        """Return the path of an unfinished training's checkpoint."""
        return self.folder / f"{name}.resume"

    # Finished subjects

    def find(self, name: str) -> tuple[Subject, dict[str, Tensor]] | None:
        """Return the finished subject of that name, or None. Raises ValueError when its files are damaged."""
        path, facts = self.lora_path(name), self.folder / f"{name}.json"
        if not (path.exists() and facts.exists()):
            return None
        text = facts.read_text(encoding="utf-8", errors="replace")
        return Subject.from_json(text, f"The stored subject {facts.name}"), read_lora(path)

    def find_strip(self, name: str) -> Image.Image | None:
        """Return the samples from the training of a finished subject, where previews were on."""
        path = self.folder / f"{name}.png"
        if not path.exists():
            return None
        try:
            with Image.open(path) as strip:
                strip.load()
                return strip
        except (OSError, SyntaxError, ValueError) as error:
            logger.warning(f"Inlay: {path} is damaged ({error}); the samples of the training are not shown.")
            return None

    def save(
        self,
        name: str,
        subject: Subject,
        lora: dict[str, Tensor],
        metadata: dict[str, str],
        strip: Image.Image | None = None,
    ) -> None:
        """Keep a finished subject and remove what an interrupted run left."""
        self._write(self.lora_path(name), lambda path: save_file(lora, path, metadata))
        if strip:
            self._write(self.folder / f"{name}.png", lambda path: strip.save(path, "PNG"))
        self.describe(name, subject)
        self.drop_state(name)

    def save_for_diffusers(self, name: str, lora: dict[str, Tensor]) -> None:
        """Keep a finished subject's LoRA in diffusers' layout as well, beside its own file."""
        self._write(self._diffusers_path(name), lambda path: save_file(lora, path))

    def has_for_diffusers(self, name: str) -> bool:
        """Return whether a finished subject's LoRA is kept in diffusers' layout, too."""
        return self._diffusers_path(name).is_file()

    def _diffusers_path(self, name: str) -> Path:
        return self.folder / f"{name}_diffusers.safetensors"

    def describe(self, name: str, subject: Subject) -> None:
        """Keep a finished subject's facts."""
        self._write(
            self.folder / f"{name}.json", lambda path: path.write_text(subject.to_json(), encoding="utf-8")
        )

    # Interrupted runs

    def save_state(self, name: str, state: TrainingState) -> None:
        """Keep a run so far: masters, the optimizer's state, losses. Random numbers follow from the step."""
        metadata = {"step": str(state.step), "losses": json.dumps(state.losses)}
        self._write(self.resume_path(name), lambda path: save_file(state.tensors, path, metadata))

    def find_state(self, name: str) -> TrainingState | None:
        """Return the interrupted run of that name, or None; a damaged file is reported and passed over."""
        path = self.resume_path(name)
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                facts = file.metadata()
                # Copies: what stays mapped into memory cannot be replaced on Windows.
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - no dict
            state = TrainingState(int(facts["step"]), json.loads(facts["losses"]), tensors)
            if not isinstance(state.losses, list):
                raise ValueError("its losses are no list")
            return state
        except (SafetensorError, TypeError, KeyError, ValueError) as error:
            logger.warning(f"Inlay: {path.name} is damaged ({error}); training starts from the beginning.")
            return None

    def drop_state(self, name: str) -> None:
        """Remove the interrupted run of that name, if there is one."""
        with suppress(PermissionError):  # Windows, while another process reads it
            self.resume_path(name).unlink(missing_ok=True)

    def prune_states(self, name: str, limit: int = KEPT_RESUMES) -> None:
        """Remove the oldest interrupted runs while all have more than `limit` bytes, and log the rest.

        Those of the last day stay, for another process may be writing them, and so does that of `name`.
        """
        left = []
        for path in self.folder.glob("*.resume"):
            with suppress(OSError):  # another process may have finished its run
                if path != self.resume_path(name):
                    left.append((path.stat().st_mtime, path.stat().st_size, path))
        total = sum(size for _, size, _ in left)
        for changed, size, path in sorted(left):
            if total <= limit or time.time() - changed < RESUME_AGE:
                break
            with suppress(OSError):
                path.unlink()
                logger.info(f"Inlay: removed {path}, an interrupted training that nobody resumed.")
                total -= size
                left.remove((changed, size, path))
        if left:
            logger.info(
                f"Inlay: {len(left)} interrupted trainings ({total / MEGABYTE:.0f} MB) wait in {self.folder}"
                " as .resume files; delete those that you do not want to resume."
            )

    # Room

    def check_room(self, needed: int) -> None:
        """Raise ValueError for a folder that cannot be written, or a disk without `needed` bytes of room."""
        try:
            check_writable(self.folder)
        except OSError as error:
            raise ValueError(
                f"{self.folder}: the trained subject could not be stored there ({error.strerror or error});"
                " make it a folder that ComfyUI may write to, and queue again."
            ) from error
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise ValueError(
                f"{self.folder}: {free / MEGABYTE:.0f} MB are free on that disk but the subject and its"
                f" checkpoints need about {needed / MEGABYTE:.0f} MB; make room and queue again."
            )

    def _write(self, path: Path, write) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(path, write)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{path} could not be written ({error}); make room on that disk, or close what has the file"
                " open, and queue again."
            ) from error
