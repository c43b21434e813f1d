"""Picture files of every bit depth and mode, for tests: a ramp from black to white, and what it should be."""

import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 32, 64  # a width of 32 n: the host's decoder smears the last columns of others
RAMP = np.tile(np.linspace(0, 1, WIDTH), (HEIGHT, 1))
OPAQUE = np.ones((HEIGHT, WIDTH))
OPAQUE[4:20, 8:40] = 0  # in files with transparency
LOSSY = 3 / 255


class Made(NamedTuple):
    """A file, the values that it shows, and how exactly; `like_host` False where the host is wrong."""

    file: Path
    alpha: bool = False
    tolerance: float = 0.5 / 255 + 1e-6
    like_host: bool = True


def write_modes(folder: Path) -> dict[str, Made]:
    """Write a grey ramp as every kind of file that Pillow writes, by its name."""
    ramp_8 = (RAMP * 255).round().astype(np.uint8)
    ramp_16 = (RAMP * 65535).round().astype(np.uint16)
    alpha_8 = (OPAQUE * 255).astype(np.uint8)
    grey, grey_16 = Image.fromarray(ramp_8), Image.fromarray(ramp_16)
    cut = Image.merge("LA", [grey, Image.fromarray(alpha_8)])
    made: dict[str, Made] = {}

    def keep(name: str, picture: Image.Image, alpha=False, tolerance=Made._field_defaults["tolerance"],
             like_host=True, **options) -> None:  # fmt: skip
        picture.save(folder / name, **options)
        made[name] = Made(folder / name, alpha, tolerance, like_host)

    keep("grey.png", grey)
    keep("rgb.png", grey.convert("RGB"))
    keep("palette.png", grey.convert("P"))
    keep("grey_alpha.png", cut, alpha=True)
    keep("rgba.png", cut.convert("RGBA"), alpha=True)
    keep("grey_16.png", grey_16)
    keep("grey_16.tif", grey_16)
    keep("grey_32.tif", Image.fromarray(ramp_16.astype(np.int32)), like_host=False)
    keep("float.tif", Image.fromarray(RAMP.astype(np.float32)), like_host=False)
    keep("float_255.tif", Image.fromarray((RAMP * 255).astype(np.float32)), tolerance=1 / 255)
    keep("cmyk.tif", grey.convert("RGB").convert("CMYK"), tolerance=LOSSY)
    keep("ycbcr.tif", grey.convert("RGB").convert("YCbCr"), tolerance=LOSSY, like_host=False)
    keep("grey.jpg", grey, tolerance=LOSSY, quality=100)
    keep("rgb.jfif", grey.convert("RGB"), tolerance=LOSSY, format="JPEG", quality=100)
    keep("cmyk.jpg", grey.convert("RGB").convert("CMYK"), tolerance=LOSSY, quality=100)
    keep("rgb.bmp", grey.convert("RGB"))
    keep("grey.gif", grey)
    keep("rgb.webp", grey.convert("RGB"), lossless=True)
    keep("rgba.webp", cut.convert("RGBA"), alpha=True, lossless=True, exact=True)
    keep("rgba.tif", cut.convert("RGBA"), alpha=True)
    for colour, name in ((2, "rgb_16.png"), (4, "grey_alpha_16.png"), (6, "rgba_16.png")):
        alpha = bool(colour & 4)
        planes = [ramp_16] * (3 if colour & 2 else 1) + [(OPAQUE * 65535).astype(np.uint16)] * alpha
        (folder / name).write_bytes(_png_16(np.stack(planes, -1), colour))
        made[name] = Made(folder / name, alpha, 1 / 255)
    return made


def _png_16(pixels: np.ndarray, colour: int) -> bytes:
    """A 16-bit PNG of (H, W, C), which Pillow does not write for more than one channel."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
