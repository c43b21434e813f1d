"""Training records on disk: WebDataset shards or a Hugging Face datasets folder, both read by number.

A record is a dict of named fields: {"000.jpg": bytes, "000.mask.png": bytes}. In a shard (a tar file) the
files `cat7.000.jpg` and `cat7.000.mask.png` that stand together are the record `cat7`, WebDataset's own rule.
Of a shard only the places of its files are kept in memory, and only of a few shards at a time, so memory does
not grow with the number of records.
"""

import io
import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

INDEX = "inlay-shards.json"  # how many records each shard of a folder holds
OPEN_SHARDS = 4
SAVED = ("dataset_info.json", "state.json", "dataset_dict.json")  # what marks a datasets folder
ROWS_PER_BLOCK = 1024  # of a datasets folder, that are shuffled among themselves
Record = dict[str, bytes]
Places = dict[str, tuple[int, int]]  # field name -> (offset, size) in the shard


class Source(Protocol):
    """Records in blocks that lie together on disk."""

    @property
    def sizes(self) -> list[int]:
        """How many records each block holds."""
        ...

    def read(self, block: int, row: int) -> Record: ...


def open_source(folder: Path) -> Source:
    """The records in a folder.

    Raises ValueError when it holds neither shards nor a datasets folder, or splits without "train".
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
        self._open: OrderedDict[int, tuple[io.BufferedReader, list[Places]]] = OrderedDict()
        self.sizes = _counts(folder, self.paths)

    def read(self, block: int, row: int) -> Record:
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
        return {"paths": self.paths, "sizes": self.sizes}  # open files do not go to other processes

    def __setstate__(self, state: dict) -> None:
        self.paths, self.sizes, self._open = state["paths"], state["sizes"], OrderedDict()


def index_tar(shard: Path) -> list[Places]:
    """Where the fields of each record of a shard lie; reads headers only.

    Raises ValueError for a file that is no whole tar file.
    """
    records: list[Places] = []
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
            f"--data: {shard} is no whole tar file ({error}); fetch or make it again, or delete it."
        ) from error
    return records


def _counts(folder: Path, paths: list[Path]) -> list[int]:
    """Records of each shard: from the index beside them where it knows the shard, else counted once."""
    index = folder / INDEX
    known = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    sizes = [known.get(f"{path.name} {path.stat().st_size}") for path in paths]
    return [len(index_tar(path)) if size is None else size for path, size in zip(paths, sizes, strict=True)]


def write_shards(records: Iterable[tuple[str, Mapping[str, bytes]]], folder: Path, per_shard: int) -> int:
    """Write (name, fields) records as shards 000000.tar ... with their index; returns how many records.

    Names may hold no dot, which ends a record's name in WebDataset. A shard appears when it is complete, and
    a record is written before the next is asked for.
    Raises ValueError for a folder that holds shards already: those beyond ours would be trained on as well.
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
    (folder / INDEX).write_text(json.dumps(counts, indent=1), encoding="utf-8")
    return sum(counts.values())


def _write_shard(records: Iterable[tuple[str, Mapping[str, bytes]]], path: Path) -> int:
    """Write one shard and return how many records it holds; nothing is left of one that fails."""
    partial = path.with_suffix(".partial")
    count = 0
    try:
        with tarfile.open(partial, "w") as tar:
            for name, fields in records:
                for field, data in fields.items():
                    member = tarfile.TarInfo(f"{name}.{field}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                count += 1
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return count


class DatasetsFolder:
    """What `datasets.Dataset.save_to_disk` wrote; its tables stay on disk. Pictures come as encoded bytes.

    A column of lists of pictures is frames 000.png, 001.png ..., or their masks where its name says so.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._open()

    def _open(self) -> None:
        import datasets  # large, and only needed for this kind of folder

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
            several = isinstance(getattr(kind, "feature", None), datasets.Image)
            if several or isinstance(kind, datasets.Image):
                listed: Any = type(kind)
                table = table.cast_column(name, listed(encoded) if several else encoded)
                self.pictures.append(name)
        self.table = table
        rows = len(table)
        self.sizes = [min(ROWS_PER_BLOCK, rows - start) for start in range(0, rows, ROWS_PER_BLOCK)]

    def read(self, block: int, row: int) -> Record:
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
        raise ValueError(f"--data: a record holds no picture in its column '{column}'; fill or remove it.")
    return Path(picture["path"]).read_bytes()
