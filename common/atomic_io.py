"""Files that outlast a power cut: what is written reaches the disk before it gets its name."""

import os
from contextlib import suppress
from pathlib import Path


def atomic_replace(partial: Path, path: Path) -> None:
    """`os.replace` of a file, or of a folder with all in it, that a power cut does not leave half done."""
    inside = partial.rglob("*") if partial.is_dir() else ()
    for part in (*inside, partial):
        _fsync(part)
    os.replace(partial, path)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    if not path.is_dir():
        with path.open("r+b") as file:  # Windows settles no file that was opened for reading
            os.fsync(file.fileno())
    elif os.name != "nt":  # which opens no folders
        with suppress(OSError):  # some network file systems settle none
            folder = os.open(path, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
