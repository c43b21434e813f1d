"""Regular data (DreamMix, sec. 3.3): images of the subject's kind, each with its own prompt and mask.

`generation.py` makes them. As files they have the layout of DreamMix's released code, one folder for each
prompt:

    regular_teapot/a_sks_brown_teapot/1234-image.png
    regular_teapot/a_sks_brown_teapot/1234-mask.png

A prompt that is too long for a folder's name, or has characters that such a name cannot have, is in
`prompt.txt` inside a folder of another name.
"""

import hashlib
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor

from ...common.files import atomic_write
from ...imaging.boxes import Box
from ...imaging.masks import check_mask, fill_box
from ..objective import generator_at
from .data import Concept, Reference

BOX_SIDES = (0.55, 0.85)  # ours: of the picture's sides, so that the subject is large and its place varies
STRONG = 0.2  # ours: colours that changed more than this count alike, so that pale parts are not lost
DARKEST = 0.5  # ours: shadows leave at least this share of a colour
KEPT = 0.5  # ours: of the outline with its shadow; where less is left, the thing itself was taken for one
PLAUSIBLE = (0.05, 0.95)  # ours: the share of the hole that a subject's outline can fill


def group_by_prompt(references: Sequence[Reference], prompts: Sequence[str]) -> list[Concept]:
    """Return one `Concept` for each different prompt. `prompts`: one for all pictures, or one for each.

    Raises ValueError when there are as many of neither.
    """
    if len(prompts) not in (1, len(references)):
        raise ValueError(
            f"regular_prompt: there are {len(prompts)} prompts for {len(references)} pictures; give one for"
            " all of them, or one for each."
        )
    groups: dict[str, list[Reference]] = {}
    for number, reference in enumerate(references):
        groups.setdefault(prompts[number if len(prompts) > 1 else 0], []).append(reference)
    return [Concept(prompt, group) for prompt, group in groups.items()]


def random_box(height: int, width: int, seed: int) -> Tensor:
    """Return a mask (1,H,W) with a large box of random size and place."""
    low, high = BOX_SIDES
    tall, wide, down, right = torch.rand(4, generator=generator_at(seed, 0, 2)).tolist()
    rows, columns = round(height * (low + (high - low) * tall)), round(width * (low + (high - low) * wide))
    top, left = round((height - rows) * down), round((width - columns) * right)
    return fill_box(Box(top, left, top + rows, left + columns), height, width)


def changed_mask(image: Tensor, background: Tensor, hole: Tensor) -> Tensor:
    """Return the outline (H,W) of what was painted into the hole, by its difference to the background.

    `image`, `background` (H,W,3) in [0,1]; `hole` (H,W), 1 = was painted. The pixels in the hole whose colour
    changed more than Otsu's threshold, smoothed; of these the largest connected part, its own holes filled.
    The background's own colour, as dark as DARKEST of it, is no change, for it lies in a shadow; unless less
    than KEPT of the outline is left then, for the thing may be grey before a grey wall. Where the outline is
    next to nothing or nearly all of the hole, the hole itself: no outline was found.
    """
    inside = hole > 0.5
    light = (image * background).sum(-1) / background.square().sum(-1).clamp(min=1e-6)
    lit = light.clamp(DARKEST, 1)[..., None] * background
    with_shadow, without = (_largest_change(image, plain, inside) for plain in (background, lit))
    kept = (without & with_shadow).sum() >= KEPT * with_shadow.sum()
    outline = without if kept else with_shadow
    share = float(outline.sum() / inside.sum())
    return (outline if PLAUSIBLE[0] <= share <= PLAUSIBLE[1] else inside).to(image)


def _largest_change(image: Tensor, background: Tensor, inside: Tensor) -> Tensor:
    """Return where (H,W) an image differs from its background inside, as one part without holes."""
    change = ((image - background).abs().amax(-1) / STRONG).clamp(max=1)
    reach = 2 * (min(change.shape) // 128) + 1
    change = F.avg_pool2d(change[None], reach, 1, reach // 2, count_include_pad=False)[0]
    changed = inside & (change > otsu(change[inside]))
    parts, count = ndimage.label(changed.cpu().numpy())  # pyright: ignore[reportGeneralTypeIssues]
    if not count:
        return torch.zeros_like(inside)
    sizes = np.bincount(parts.ravel())[1:]
    return torch.from_numpy(ndimage.binary_fill_holes(parts == sizes.argmax() + 1)).to(inside.device)


def otsu(values: Tensor) -> float:
    """Return the threshold between the two classes of values in [0,1] that differ most (Otsu 1979)."""
    counts = torch.histc(values.float(), 256, 0, 1)
    levels = (torch.arange(256) + 0.5) / 256
    below, mass = counts.cumsum(0), (counts * levels.to(counts)).cumsum(0)
    apart = (mass[-1] * below - mass * below[-1]).square() / (below * (below[-1] - below)).clamp(min=1)
    return float((apart.argmax() + 1) / 256)


ENDING = "-image.png"
# In a folder's name, on one system or another: not as it is, and not at all.
UNFIT = re.compile(r'[<>:"/\\|?*_\x00-\x1f]|^\s|[\s.]$')
FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]')
LONGEST = 120  # bytes of a folder's name: some systems allow 255, some 260 for a whole path
PROMPT_FILE = "prompt.txt"


class RegularFile(NamedTuple):
    """One regular picture's files, and its prompt."""

    prompt: str
    image: Path
    mask: Path


def list_regular(folder: Path) -> list[RegularFile]:
    """Return everything in a `regular_<category>` folder, by prompt and name.

    Raises ValueError when there is nothing, or a picture without its mask.
    """
    found = []
    for path in sorted(folder.glob(f"*/*{ENDING}")):
        # by its length: Windows finds "1-Image.PNG", too
        mask = path.with_name(path.name[: -len(ENDING)] + "-mask.png")
        if not mask.is_file():
            raise ValueError(f"regular data: '{path.parent.name}/{path.name}' has no mask; add {mask.name}.")
        found.append(RegularFile(_prompt_of(path.parent), path, mask))
    if not found:
        raise ValueError(
            f"regular data: '{folder.name}' holds no <prompt>/<seed>-image.png; choose a folder in"
            " DreamMix's layout."
        )
    return found


def _prompt_of(folder: Path) -> str:
    file = folder / PROMPT_FILE
    if file.is_file():
        return file.read_text(encoding="utf-8-sig", errors="replace").strip()
    return folder.name.replace("_", " ")


def save_regular(
    folder: Path, references: Sequence[tuple[Tensor, Tensor]], prompts: Sequence[str]
) -> list[Path]:
    """Write pictures (H, W, 3) in [0, 1] with their masks (H, W), one prompt for all or one for each.

    Files are named by content: what is there already is not written again, and nothing is replaced.

    Raises:
        ValueError: before anything is written, for what could not be read again; for a folder that cannot be
            written.
    """
    if len(prompts) not in (1, len(references)):
        raise ValueError(
            f"prompts: there are {len(prompts)} for {len(references)} pictures; give one for all or each."
        )
    if not all(prompt.strip() for prompt in prompts):
        raise ValueError("prompts: one of them is empty; write what its pictures show.")
    for number, (image, mask) in enumerate(references, 1):
        check_mask(image[None], mask[None], f"masks: mask {number}")
        if not (mask > 0.5).any():
            raise ValueError(f"masks: mask {number} is empty; leave out its picture, or mask the thing.")
    paths = []
    try:
        for number, (image, mask) in enumerate(references):
            prompt = prompts[number % len(prompts)]
            name = _content_name(folder / folder_name(prompt), image, mask)
            paths.append(write_regular(folder, prompt, name, image, mask))
    except OSError as error:
        raise ValueError(
            f"category: {folder} could not be written ({error.strerror or error}); make it a folder with room"
            " that ComfyUI may write to, and queue again."
        ) from error
    return paths


def _content_name(place: Path, image: Tensor, mask: Tensor) -> str:
    """Return a name that no other picture and no other mask of the same picture has in this folder."""
    content = image[..., :3].cpu().contiguous().numpy().tobytes()
    short = str(zlib.crc32(image.cpu().contiguous().numpy().tobytes()))
    if _holds(place / f"{short}-image.png", image[..., :3], place / f"{short}-mask.png", mask):
        return short
    return hashlib.sha256(content + _bytes(mask.gt(0.5).float()).tobytes()).hexdigest()[:16]


def _holds(image_file: Path, image: Tensor, mask_file: Path, mask: Tensor) -> bool:
    """Return whether the files hold this picture and mask, or are not there."""
    for path, pixels in ((image_file, image), (mask_file, mask.gt(0.5).float())):
        if path.is_file():
            try:
                with Image.open(path) as opened:
                    there = np.asarray(opened)
            except OSError:
                return False
            if not np.array_equal(there, _bytes(pixels)):
                return False
    return True


def write_regular(folder: Path, prompt: str, name: str, image: Tensor, mask: Tensor) -> Path:
    """Write a picture (H, W, 3) in [0, 1] and its mask (H, W) as `<folder>/<prompt>/<name>-image.png`.

    The mask comes first, so a picture that is there is complete.
    """
    place = folder / folder_name(prompt)
    place.mkdir(parents=True, exist_ok=True)
    if place.name != prompt.replace(" ", "_"):
        atomic_write(place / PROMPT_FILE, lambda path: path.write_text(prompt, encoding="utf-8"))
    _save(mask.gt(0.5).float(), place / f"{name}-mask.png")
    _save(image[..., :3], place / f"{name}-image.png")
    return place / f"{name}-image.png"


def folder_name(prompt: str) -> str:
    """Return the name of a prompt's folder: its words, or a part of them and a hash where they do not fit."""
    name = prompt.replace(" ", "_")
    if len(name.encode()) <= LONGEST and not UNFIT.search(prompt):
        return name
    words = FORBIDDEN.sub("", name).encode()[: LONGEST - 17].decode(errors="ignore").strip("_. ")
    return f"{words or 'prompt'}-{hashlib.sha256(prompt.encode()).hexdigest()[:16]}"


def _bytes(pixels: Tensor) -> np.ndarray:
    return pixels.clamp(0, 1).mul(255).round().byte().cpu().numpy()


def _save(pixels: Tensor, path: Path) -> None:
    atomic_write(path, lambda partial: Image.fromarray(_bytes(pixels)).save(partial, "PNG"))
