"""Regular data (DreamMix, sec. 3.3) as files: the folders of DreamMix's released code, one for each prompt.

regular_teapot/a_sks_brown_teapot/1234-image.png
regular_teapot/a_sks_brown_teapot/1234-mask.png
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

IMAGE = re.compile(r"(.+)-image\.png")
UNFIT = re.compile(r'[<>:"/\\|?*_\x00-\x1f]|^\s|[\s.]$')  # in a folder's name, on one system or another
LONGEST = 120  # characters of a prompt: some systems allow 260 for a whole path


class RegularFile(NamedTuple):
    prompt: str
    image: Path
    mask: Path


def list_regular(folder: Path) -> list[RegularFile]:
    """Everything in a `regular_<category>` folder, by prompt and name.

    Raises ValueError when there is nothing, or a picture without its mask.
    """
    found = []
    for path in sorted(folder.glob("*/*-image.png")):
        match = IMAGE.fullmatch(path.name)
        mask = path.with_name(f"{match[1]}-mask.png") if match else path
        if not mask.is_file():
            raise ValueError(f"regular data: '{path.parent.name}/{path.name}' has no mask; add {mask.name}.")
        found.append(RegularFile(path.parent.name.replace("_", " "), path, mask))
    if not found:
        raise ValueError(
            f"regular data: '{folder.name}' holds no <prompt>/<seed>-image.png; choose a folder in"
            " DreamMix's layout."
        )
    return found


def write_regular(folder: Path, prompt: str, name: str, image: Tensor, mask: Tensor) -> Path:
    """Keep a picture (H,W,3) in [0,1] and its mask (H,W) as `<folder>/<prompt>/<name>-image.png`.

    The mask comes first, so a picture that is there is complete. Raises ValueError for a prompt that cannot
    be a folder's name.
    """
    check_prompt(prompt)
    place = folder / prompt.replace(" ", "_")
    place.mkdir(parents=True, exist_ok=True)
    _save(mask.gt(0.5).float(), place / f"{name}-mask.png")
    _save(image[..., :3], place / f"{name}-image.png")
    return place / f"{name}-image.png"


def check_prompt(prompt: str) -> None:
    """Raises ValueError for a prompt that would not come back from a folder's name."""
    if not prompt or UNFIT.search(prompt) or len(prompt) > LONGEST:
        raise ValueError(
            f"prompts: '{prompt}' cannot be a folder's name; use letters, digits, spaces, commas and hyphens,"
            f" at most {LONGEST} characters."
        )


def _save(pixels: Tensor, path: Path) -> None:
    """Eight bits, under a temporary name first."""
    array = pixels.clamp(0, 1).mul(255).round().byte().cpu().numpy()
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        Image.fromarray(array).save(partial, "PNG")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
