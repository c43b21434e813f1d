"""What a table is made of, cell by cell on disk: an interrupted run goes on where it was."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

Pictures = Mapping[str, Tensor]  # what they show -> (B, H, W, 3) in [0, 1]


def cell(path: Path, choices: Any, make: Callable[[], tuple[Pictures, Any]]) -> Any:
    """A cell's numbers: those at `path` if the same choices made them, else of make().

    `choices` is a dataclass of all that decides them, and make() gives pictures and numbers, which are kept.
    """
    if (numbers := kept(path, choices)) is None:
        start = time.monotonic()
        pictures, numbers = make()
        keep(path, choices, pictures, numbers)
        print(f"{path.stem}: {time.monotonic() - start:.0f} s", flush=True)
    return numbers


def kept(path: Path, choices: Any) -> Any:
    """The numbers at `path` if there are any and the same choices made them, else None."""
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return stored["numbers"] if stored.get("choices") == vars(choices) else None


def keep(path: Path, choices: Any, pictures: Pictures, numbers: Any) -> None:
    """The pictures as bytes beside the numbers; the numbers last, whole or not at all."""
    small = {name: (images * 255).round().byte().contiguous() for name, images in pictures.items()}
    save_file(small, path.with_suffix(".safetensors"))
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"choices": vars(choices), "numbers": numbers}, indent=1), encoding="utf-8")
    os.replace(partial, path)


def pictures_of(path: Path) -> dict[str, Tensor]:
    """A cell's pictures as floats."""
    return {
        name: images.float() / 255 for name, images in load_file(path.with_suffix(".safetensors")).items()
    }


def fingerprint(path: Path) -> str:
    """Names a checkpoint by all of its bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
