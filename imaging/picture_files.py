"""Picture files: one way to read them, with the values that the host's Load Image gives.

Pillow shows 16-bit and float pictures as they are stored, and `convert("RGB")` cuts them at 255. Here every
mode is scaled to [0, 1] first. Two kinds differ from the host on purpose: float pictures in [0, 1], which the
host shows black, and 32-bit integers in the range of 16 bits, which it shows white.
"""

import importlib.util
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, features

HEIF_SUFFIXES = {".heic", ".heif"}
BITS_16, BITS_31 = 2**16 - 1, 2**31 - 1


def missing_decoder(file: Path) -> str | None:
    """Why a file with one of the `SUFFIXES` cannot be read on this machine; None for one that can."""
    suffix = file.suffix.lower()
    if suffix in HEIF_SUFFIXES and not importlib.util.find_spec("pillow_heif"):
        return "HEIC needs the Python package pillow-heif; or save it as JPEG"
    if suffix == ".avif" and not features.check("avif"):
        return "AVIF needs Pillow 11.3 or newer; or save it as JPEG"
    return None


def read_picture(source: Path | bytes, kind: str = "references", name: str = "") -> torch.Tensor:
    """Return the first frame of a picture (1, H, W, 3), or (1, H, W, 4) with transparency, in [0, 1].

    The camera's orientation is applied. `kind` (an input or an option) and `name` (by default the file's own)
    are for errors. Raises ValueError for what is no readable picture.
    """
    return torch.from_numpy(picture_array(open_picture_file(source, kind, name)))[None]


def read_mask(source: Path | bytes, kind: str = "references", name: str = "") -> torch.Tensor:
    """Return the mask (1, H, W) in [0, 1] that a picture file shows, see `mask_array`.

    Raises as `read_picture`.
    """
    return torch.from_numpy(mask_array(open_picture_file(source, kind, name)))[None]


def open_picture_file(
    source: Path | bytes, kind: str = "references", name: str = "", draft: tuple[int, int] | None = None
) -> Image.Image:
    """Return a picture, loaded, turned as the camera was held, in a mode that the functions below read.

    `draft`: a JPEG may be decoded at a fraction of its size, but no smaller. Raises as `read_picture`.
    """
    name = name or (f"'{source.name}'" if isinstance(source, Path) else "a record's picture")
    if isinstance(source, Path) and source.suffix.lower() in HEIF_SUFFIXES and not missing_decoder(source):
        from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]  (optional)

        register_heif_opener()
    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as picture:
            if draft:
                picture.draft(None, draft)
            turned = ImageOps.exif_transpose(picture)
            if _is_deep(turned) or turned.mode in ("L", "RGB", "RGBA"):
                return turned
            return turned.convert("RGBA" if turned.has_transparency_data else "RGB")
    except FileNotFoundError as error:
        raise ValueError(f"{kind}: there is no picture {source}.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{kind}: {name} has too many pixels ({error}); make it smaller.") from error
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError) as error:
        raise ValueError(f"{kind}: {name} is no readable picture; save it as PNG.") from error


def picture_array(picture: Image.Image) -> np.ndarray:
    """(H, W, 3), or (H, W, 4) with transparency, float32 in [0, 1], of what `open_picture_file` returned."""
    if _is_deep(picture):
        return np.repeat(_to_array(picture)[..., None], 3, axis=2)
    return _to_array(picture.convert("RGBA" if picture.has_transparency_data else "RGB"))


def mask_array(picture: Image.Image) -> np.ndarray:
    """(H, W) in [0, 1]: a picture's brightness times its alpha, or the alpha of a black shape."""
    if _is_deep(picture):
        return _to_array(picture)
    brightness = _to_array(picture.convert("RGBA").convert("RGB").convert("L"))
    alpha = alpha_array(picture)
    if alpha is None:
        return brightness
    seen = brightness * alpha
    return seen if seen.any() else alpha


def alpha_array(picture: Image.Image) -> np.ndarray | None:
    """(H, W) in [0, 1], or None for a picture that is opaque everywhere."""
    if not picture.has_transparency_data:
        return None
    alpha = picture.convert("RGBA").getchannel("A")
    return None if alpha.getextrema() == (255, 255) else _to_array(alpha)


def to_8_bits(picture: Image.Image) -> Image.Image:
    """Return the picture in RGB, 8 bits per channel, without its alpha; 16-bit and float ones are scaled."""
    if not _is_deep(picture):
        return picture.convert("RGB")
    return Image.fromarray((picture_array(picture) * 255).round().astype(np.uint8))


def _is_deep(picture: Image.Image) -> bool:
    """Whether a pixel is one number of more than 8 bits."""
    return picture.mode == "F" or picture.mode.startswith("I")


def _to_array(picture: Image.Image) -> np.ndarray:
    """Return a picture of one channel, or of 8 bits, as float32 in [0, 1]."""
    values = np.array(picture)
    if not _is_deep(picture):
        return values.astype(np.float32) / 255
    values = np.nan_to_num(values.astype(np.float64))
    most = values.max(initial=0)
    if picture.mode == "F":  # in [0, 1], or in the units of 8 or 16 bits
        values /= 1 if most <= 1 else 255 if most <= 255 else BITS_16
    else:  # 16-bit PNG and TIFF are "I;16" or, in older versions of Pillow, "I"
        values /= BITS_16 if most <= BITS_16 else BITS_31
    return values.clip(0, 1).astype(np.float32)
