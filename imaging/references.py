"""Reference pictures on disk: which files of a folder are pictures, and where each one's subject mask is."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..common.files import SUFFIXES, read_text
from .inputs import check_finite
from .masks import check_finite_mask, check_mask
from .picture_files import (
    alpha_array,
    mask_array,
    missing_decoder,
    open_picture_file,
    picture_array,
)

NOT_PICTURES = {".txt", ".json", ".caption", ".md", ".csv", ".ini", ".db"}  # captions and folder settings
MASK_STEM = re.compile(r"(.+)[_-]mask", re.IGNORECASE)


def list_references(folder: Path) -> list[tuple[Path, Path | None]]:
    """(picture, its mask file or None) of the folder, in natural order: 2.png comes before 10.png.

    `cat_mask.png` or `cat-mask.png` is the mask of `cat.<any>`. Files that cannot be read on this machine
    are left out, see `skipped_files`. Raises ValueError when there is no picture, or a mask without one.
    """
    files = [file for file in _visible(folder) if _unreadable(file) is None]
    masks = {match[1]: file for file in files if (match := MASK_STEM.fullmatch(file.stem))}
    pictures = [file for file in files if not MASK_STEM.fullmatch(file.stem)]
    known = {file.stem for file in _visible(folder) if file.suffix.lower() in SUFFIXES}
    if orphans := masks.keys() - known:
        orphan = masks[min(orphans)].name
        raise ValueError(f"references: '{orphan}' is a mask without a picture; add the picture or rename it.")
    if not pictures:
        skipped = [f"{name} ({reason})" for name, reason in skipped_files(folder)[:3]]
        left_out = f" Skipped: {', '.join(skipped)}." if skipped else ""
        raise ValueError(
            f"references: the folder '{folder.name}' holds no picture; put the subject's photos there."
            f"{left_out}"
        )
    return [(file, masks.get(file.stem)) for file in sorted(pictures, key=natural_order)]


def read_captions(folder: Path, kind: str = "") -> list[str]:
    """Return the text of `photo.txt` beside each picture `photo.jpg` of a folder, "" where there is none.

    `kind`: an input, which errors start with.
    """
    files = [picture.with_suffix(".txt") for picture, _ in list_references(folder)]
    return [read_text(file, kind).strip() if file.is_file() else "" for file in files]


def skipped_files(folder: Path) -> list[tuple[str, str]]:
    """(name, reason) of the files of a folder that `list_references` leaves out, in natural order."""
    files = sorted(_visible(folder), key=natural_order)
    return [(file.name, reason) for file in files if (reason := _unreadable(file))]


def _visible(folder: Path) -> list[Path]:
    try:
        return [file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")]
    except OSError as error:
        raise ValueError(
            f"references: the folder '{folder.name}' cannot be read ({error.strerror or error}); let ComfyUI"
            " read it."
        ) from error


def _unreadable(file: Path) -> str | None:
    """Why a file cannot be read here: None for a picture, empty for files that need no mention."""
    suffix = file.suffix.lower()
    if suffix in NOT_PICTURES:
        return ""
    if suffix not in SUFFIXES:
        return "not a picture"
    return missing_decoder(file)


def natural_order(file: Path) -> list[tuple[int, int | str]]:
    """Sort key that compares runs of digits as numbers and the rest without case."""
    parts = re.findall(r"(\d+)|(\D+)", file.name.casefold())
    return [(0, int(digits)) if digits else (1, text) for digits, text in parts]


def read_reference(
    picture: Path, mask: Path | None, kind: str = "references"
) -> tuple[torch.Tensor, torch.Tensor]:
    """IMAGE (1, H, W, 3) in [0, 1] and the subject's MASK (1, H, W).

    The mask is the picture's alpha (opaque = subject), else the mask file (white = subject), else the whole
    frame. The camera's orientation is applied; of an animation the first frame is read; 16-bit and float
    pictures keep their range. Raises ValueError for an unreadable file or sizes that differ.
    """
    opened = open_picture_file(picture, kind)
    colours, subject = picture_array(opened)[..., :3], alpha_array(opened)
    if subject is None:
        subject = (
            np.ones(colours.shape[:2], np.float32)
            if mask is None
            else mask_array(open_picture_file(mask, kind))
        )
    if subject.shape != (opened.height, opened.width):
        rows, columns = len(subject), len(subject[0])
        raise ValueError(
            f"{kind}: the mask of '{picture.name}' is {columns}x{rows} pixels but the picture is"
            f" {opened.width}x{opened.height}; save the mask at the picture's size."
        )
    return torch.from_numpy(colours)[None], torch.from_numpy(subject)[None]


def is_whole_frame(mask: torch.Tensor) -> bool:
    """Return whether a mask gives no place of the subject: it is empty, or the whole picture."""
    inside = mask > 0.5
    return bool(inside.all() or not inside.any())


def collect_wired(
    images: Sequence[torch.Tensor], masks: Sequence[torch.Tensor] | None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return connected pictures (B, H, W, C) and masks of any rank as references like those of a folder.

    A fourth channel is the mask where no other is connected. Such a mask may have any size: the
    host's Load Image gives 64 x 64 zeros for a picture without transparency. Raises ValueError otherwise.
    """
    pictures = [picture[None] for batch in images for picture in batch]
    for picture in pictures:
        check_finite(picture, "images")
    if masks is None:
        return [(p[..., :3], p[..., 3] if p.shape[-1] == 4 else p.new_ones(p.shape[:3])) for p in pictures]
    shapes = [mask[None] for batch in masks for mask in batch.reshape(-1, *batch.shape[-2:])]
    if len(shapes) != len(pictures):
        raise ValueError(
            f"masks: there are {len(shapes)} masks for {len(pictures)} images; give one mask for every image."
        )
    references = []
    for picture, mask in zip(pictures, shapes, strict=True):
        check_finite_mask(mask, "masks")
        if is_whole_frame(mask):
            mask = mask.new_ones(picture.shape[:3])
        check_mask(picture, mask, "masks")
        references.append((picture[..., :3], mask))
    return references


def cut_out_subject(model: Any, image: torch.Tensor) -> torch.Tensor:
    """Return the MASK (1, H, W) in [0, 1] that a background-removal model finds in an IMAGE (1, H, W, 3)."""
    found = model.encode_image(image)
    mask = torch.as_tensor(found).detach().float().cpu().reshape(-1, *found.shape[-2:])[:1]
    check_mask(image, mask, "background_removal")
    return mask.clamp(0, 1)


def preview_cut_out(image: torch.Tensor, mask: torch.Tensor, side: int) -> torch.Tensor:
    """Return a reference as a small IMAGE (1, h, w, 3), at most `side` pixels, dark outside of its mask."""
    step = max(1, max(image.shape[1:3]) // side)
    colours = darken_outside(image[0, ::step, ::step].cpu().numpy(), mask[0, ::step, ::step].cpu().numpy())
    return torch.from_numpy(colours)[None]


def thumbnail(picture: Path, mask: Path | None, side: int) -> tuple[Image.Image, str]:
    """Return a small RGB picture, dark outside of its mask, and what the mask is.

    "alpha", "file" or "" for none.

    Raises ValueError for an unreadable file.
    """
    small = _open_small(picture, side)
    colours, subject = picture_array(small)[..., :3], alpha_array(small)
    kind = "" if subject is None else "alpha"
    if subject is None and mask is not None:
        kind, subject = "file", mask_array(_open_small(mask, side).resize(small.size))
    if subject is not None:
        colours = darken_outside(colours, subject)
    return Image.fromarray((colours * 255).round().astype(np.uint8)), kind


def darken_outside(colours: np.ndarray, subject: np.ndarray) -> np.ndarray:
    """(H, W, 3) in [0, 1] with a quarter of its brightness where the mask (H, W) is 0."""
    return colours * (0.25 + 0.75 * subject[..., None])


def _open_small(file: Path, side: int) -> Image.Image:
    """Return a picture, at most `side` pixels on its longer side.

    JPEGs are decoded at a fraction of their size.
    """
    opened = open_picture_file(file, draft=(side, side))
    opened.thumbnail((side, side))
    return opened
