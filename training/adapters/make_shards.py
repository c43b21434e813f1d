"""Pack a folder of images into shards: one record for every image, or for every subfolder of views."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ...common.picture_suffixes import SUFFIXES
from ...imaging.picture_files import BITS_16, open_picture_file, picture_array
from ...imaging.references import list_references, natural_order
from .shards import write_shards

STORED = {".png", ".jpg", ".jpeg", ".webp"}  # stored unchanged; other formats become PNG


def pack_pictures(folder: Path, shards: Path, per_shard: int = 1000) -> int:
    """Write the objects of a folder as shards.

    A subfolder is one object; its images are the views in natural order. Images in the folder itself are one
    object each and come after those. Masks are files beside them (cat_mask.png, cat-mask.png) or the alpha
    channel. A subfolder with images named source, target and object is a triplet.

    Returns:
        The number of records.

    Raises:
        ValueError: if there are no images, or if the target folder has shards already.
    """
    return write_shards(_records(folder), shards, per_shard)


def _records(folder: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    objects = sorted((path for path in visible if path.is_dir()), key=natural_order)
    loose = any(path.is_file() and path.suffix.lower() in SUFFIXES for path in visible)
    number = 0
    for number, path in enumerate(objects, 1):
        yield f"{number - 1:08d}", _triplet(path) or _views(list_references(path))
    if loose or not objects:
        for index, pair in enumerate(list_references(folder), number):
            yield f"{index:08d}", _views([pair])


def _triplet(folder: Path) -> dict[str, bytes] | None:
    pictures = {path.stem: path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES}
    if not {"source", "target"} <= pictures.keys():
        return None
    return {f"{name}{file.suffix.lower()}": file.read_bytes() for name, file in sorted(pictures.items())}


def _views(pairs: list[tuple[Path, Path | None]]) -> dict[str, bytes]:
    fields = {}
    for number, (picture, mask) in enumerate(pairs):
        kind, name = picture.suffix.lower(), f"{number:03d}"
        if kind in STORED:
            fields[f"{name}{kind}"] = picture.read_bytes()
        else:
            fields[f"{name}.png"] = _as_png(picture)
        if mask is not None:
            fields[f"{name}.mask.png"] = mask.read_bytes() if mask.suffix.lower() == ".png" else _as_png(mask)
    return fields


def _as_png(path: Path) -> bytes:
    """The picture as PNG, turned as the camera was held; more than 8 bits are kept as 16."""
    picture = open_picture_file(path, "--pictures")
    if picture.mode not in ("L", "RGB", "RGBA"):
        grey = picture_array(picture)[..., 0]
        picture = Image.fromarray((grey * BITS_16).round().astype(np.uint16))
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()
