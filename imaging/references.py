"""Reference pictures on disk: which files of a folder are pictures, and where each one's subject mask is."""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
MASK_STEM = re.compile(r"(.+)[_-]mask", re.IGNORECASE)


def list_references(folder: Path) -> list[tuple[Path, Path | None]]:
    """(picture, its mask file or None) of the folder, in natural order: 2.png comes before 10.png.

    `cat_mask.png` or `cat-mask.png` is the mask of `cat.<any>`. Raises ValueError when there is no
    picture, or a mask without one.
    """
    visible = (file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    files = [file for file in visible if file.suffix.lower() in SUFFIXES]
    masks = {match[1]: file for file in files if (match := MASK_STEM.fullmatch(file.stem))}
    pictures = [file for file in files if not MASK_STEM.fullmatch(file.stem)]
    if orphans := masks.keys() - {file.stem for file in pictures}:
        orphan = masks[min(orphans)].name
        raise ValueError(f"references: '{orphan}' is a mask without a picture; add the picture or rename it.")
    if not pictures:
        raise ValueError(f"references: the folder '{folder.name}' holds no picture; put the subject's there.")
    return [(file, masks.get(file.stem)) for file in sorted(pictures, key=natural_order)]


def natural_order(file: Path) -> list[tuple[int, int | str]]:
    """Sort key that compares runs of digits as numbers and the rest without case."""
    parts = re.findall(r"(\d+)|(\D+)", file.name.casefold())
    return [(0, int(digits)) if digits else (1, text) for digits, text in parts]


def read_reference(picture: Path, mask: Path | None) -> tuple[torch.Tensor, torch.Tensor]:
    """IMAGE (1, H, W, 3) in [0, 1] and the subject's MASK (1, H, W).

    The mask is the picture's alpha (opaque = subject), else the mask file (white = subject), else the whole
    frame. The camera's orientation is applied. Raises ValueError for an unreadable file or sizes that differ.
    """
    opened = _open(picture)
    alpha = opened.convert("RGBA").getchannel("A") if opened.has_transparency_data else None
    if alpha is not None and alpha.getextrema() != (255, 255):
        subject = alpha
    elif mask is not None:
        subject = _open(mask).convert("L")
    else:
        subject = Image.new("L", opened.size, 255)
    if subject.size != opened.size:
        (width, height), (columns, rows) = opened.size, subject.size
        raise ValueError(
            f"references: the mask of '{picture.name}' is {columns}x{rows} pixels but the picture is"
            f" {width}x{height}; save the mask at the picture's size."
        )
    return _to_tensor(opened.convert("RGB")), _to_tensor(subject)


def _open(file: Path) -> Image.Image:
    try:
        with Image.open(file) as picture:
            return ImageOps.exif_transpose(picture)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"references: '{file.name}' is no readable picture; save it as PNG.") from error


def _to_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture).astype(np.float32) / 255)[None]
