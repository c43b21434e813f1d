"""Read, write and make training records: WebDataset shards or a Hugging Face datasets folder, all by number.

A record is a dict of named fields: {"000.jpg": bytes, "000.mask.png": bytes}. In a shard (a tar file) the
adjacent files `cat7.000.jpg` and `cat7.000.mask.png` are the record `cat7`, which is WebDataset's rule. Only
the file offsets of a few shards are kept in memory, so memory does not grow with the number of records.
`pack_pictures` makes shards from a folder of images.
"""

import io
import json
import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ...common.files import SUFFIXES, atomic_write, read_json
from ...common.log import logger
from ...imaging.picture_files import BITS_16, open_picture_file, picture_array
from ...imaging.references import list_references, natural_order

INDEX = "inlay-shards.json"  # number of records of each shard in the folder
OPEN_SHARDS = 4  # open files, to bound memory
SAVED = ("dataset_info.json", "state.json", "dataset_dict.json")  # files that only a datasets folder has
ROWS_PER_BLOCK = 1024  # rows of a datasets folder that form one block of the shuffle
Record = dict[str, bytes]
FieldOffsets = dict[str, tuple[int, int]]  # field name -> (offset, size) in the shard


class Source(Protocol):
    """Records in blocks; the records of a block are stored together."""

    @property
    def sizes(self) -> list[int]:
        """The number of records of each block."""
        ...

    def read(self, block: int, row: int) -> Record:
        """Return a record of a block."""
        ...


def open_source(folder: Path) -> Source:
    """Return the records in a folder.

    Raises:
        ValueError: if it has neither shards nor a datasets folder, or splits without "train".
    """
    if sorted(folder.glob("*.tar")):
        return Shards(folder)
    if any((folder / name).is_file() for name in SAVED):
        return DatasetsFolder(folder)
    raise ValueError(
        f"--data: {folder} holds neither WebDataset shards (*.tar) nor a datasets folder; make shards with"
        " `python -m inlay train pack`."
    )


class Shards:
    """The tar files of a folder, in the order of their names."""

    def __init__(self, folder: Path):
        self.paths = sorted(folder.glob("*.tar"))
        self._open: OrderedDict[int, tuple[io.BufferedReader, list[FieldOffsets]]] = OrderedDict()
        self.sizes = _counts(folder, self.paths)

    def read(self, block: int, row: int) -> Record:
        """Return a record of a shard."""
        file, records = self._shard(block)
        fields = {}
        for name, (offset, size) in records[row].items():
            file.seek(offset)
            fields[name] = file.read(size)
        return fields

    def _shard(self, block: int):
        if block in self._open:
            self._open.move_to_end(block)
        else:
            self._open[block] = (self.paths[block].open("rb"), index_tar(self.paths[block]))
            if len(self._open) > OPEN_SHARDS:
                _, (file, _) = self._open.popitem(last=False)
                file.close()
        return self._open[block]

    def __getstate__(self) -> dict:
        return {"paths": self.paths, "sizes": self.sizes}  # open files cannot be pickled

    def __setstate__(self, state: dict) -> None:
        self.paths, self.sizes, self._open = state["paths"], state["sizes"], OrderedDict()


def index_tar(shard: Path) -> list[FieldOffsets]:
    """Return the (offset, size) of each field of each record in a shard; reads headers only.

    Raises:
        ValueError: if the file is not a complete tar file.
    """
    records: list[FieldOffsets] = []
    current = None
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in filter(tarfile.TarInfo.isfile, tar):
                folder, _, base = member.name.rpartition("/")
                stem, _, field = base.partition(".")
                if (folder, stem) != current:
                    current = (folder, stem)
                    records.append({})
                records[-1][field] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise ValueError(
            f"--data: {shard} is no whole tar file ({error}); download or make it again, or delete it."
        ) from error
    return records


def _counts(folder: Path, paths: list[Path]) -> list[int]:
    """Return the number of records of each shard: from the index file, or by counting."""
    index = folder / INDEX
    try:
        recorded = read_json(index, "--data") if index.is_file() else {}
        recorded = dict(recorded)
    except (ValueError, TypeError) as error:
        logger.warning(f"Inlay: {index} is damaged ({error}); the records are counted again.")
        recorded = {}
    sizes = [recorded.get(f"{path.name} {path.stat().st_size}") for path in paths]
    return [len(index_tar(path)) if size is None else size for path, size in zip(paths, sizes, strict=True)]


def write_shards(records: Iterable[tuple[str, Mapping[str, bytes]]], folder: Path, per_shard: int) -> int:
    """Write records as shards 000000.tar ... with their index file.

    A shard gets its name when it is complete. A record is written before the next one is requested.

    Args:
        records: (name, fields); names must not contain a dot, which ends the record's name in WebDataset.
        folder: created if missing.
        per_shard: maximum number of records of a shard.

    Returns:
        The number of records.

    Raises:
        ValueError: if the folder has shards already, because training would use those too.
    """
    if per_shard < 1:
        raise ValueError(f"--per-shard: {per_shard} is too few; give 1 or more.")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.tar")):
        raise ValueError(f"shards: {folder} holds shards already; delete them, or give a new folder.")
    counts: dict[str, int] = {}
    rest = iter(records)
    for first in rest:
        path = folder / f"{len(counts):06d}.tar"
        count = _write_shard(chain([first], islice(rest, per_shard - 1)), path)
        counts[f"{path.name} {path.stat().st_size}"] = count
    text = json.dumps(counts, indent=1)
    atomic_write(folder / INDEX, lambda partial: partial.write_text(text, encoding="utf-8"))
    return sum(counts.values())


def _write_shard(records: Iterable[tuple[str, Mapping[str, bytes]]], path: Path) -> int:
    """Write one shard and return its number of records; a failed one leaves no file."""
    count = 0

    def write(partial: Path) -> None:
        nonlocal count
        with tarfile.open(partial, "w") as tar:
            for name, fields in records:
                for field, data in fields.items():
                    member = tarfile.TarInfo(f"{name}.{field}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                count += 1

    atomic_write(path, write)
    return count


class DatasetsFolder:
    """A folder written by `datasets.Dataset.save_to_disk`; its tables stay on disk, images are encoded bytes.

    A column with a list of images gives the frames 000.png, 001.png ..., or their masks if its name contains
    "mask".
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._open()

    def _open(self) -> None:
        import datasets  # slow to import; needed for this kind of folder only

        table: Any = datasets.load_from_disk(str(self.folder))
        if isinstance(table, datasets.DatasetDict):
            if "train" not in table:
                splits = ", ".join(str(name) for name in table)
                raise ValueError(
                    f"--data: {self.folder} has no split 'train', only {splits}; give the folder of one of"
                    " them."
                )
            table = table["train"]
        encoded = datasets.Image(decode=False)
        self.pictures: list[str] = []
        for name, kind in dict(table.features).items():
            is_list = isinstance(getattr(kind, "feature", None), datasets.Image)
            if is_list or isinstance(kind, datasets.Image):
                list_type: Any = type(kind)
                table = table.cast_column(name, list_type(encoded) if is_list else encoded)
                self.pictures.append(name)
        self.table = table
        rows = len(table)
        self.sizes = [min(ROWS_PER_BLOCK, rows - start) for start in range(0, rows, ROWS_PER_BLOCK)]

    def read(self, block: int, row: int) -> Record:
        """Return a record."""
        values = self.table[block * ROWS_PER_BLOCK + row]
        fields = {}
        for name in self.pictures:
            value = values[name]
            if isinstance(value, list):
                kind = ".mask" if "mask" in name else ""
                fields |= {f"{i:03d}{kind}.png": _bytes(picture, name) for i, picture in enumerate(value)}
            else:
                fields[name] = _bytes(value, name)
        return fields

    def __getstate__(self) -> dict:
        return {"folder": self.folder}

    def __setstate__(self, state: dict) -> None:
        self.folder = state["folder"]
        self._open()


def _bytes(picture: dict | None, column: str) -> bytes:
    if picture is not None and picture["bytes"] is not None:
        return picture["bytes"]
    if picture is None or picture["path"] is None:
        raise ValueError(f"--data: a record holds no picture in its column '{column}'; add or remove it.")
    return Path(picture["path"]).read_bytes()


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
    """Return the picture as PNG, turned as the camera was held; more than 8 bits are kept as 16."""
    picture = open_picture_file(path, "--pictures")
    if picture.mode not in ("L", "RGB", "RGBA"):
        grey = picture_array(picture)[..., 0]
        picture = Image.fromarray((grey * BITS_16).round().astype(np.uint16))
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()
