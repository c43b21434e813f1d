"""Write files atomically; read text and JSON in the encodings of any editor.

Files are written under a temporary name, synced to the disk and then renamed. Errors name the file.
"""

import codecs
import errno
import json
import os
import platform
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

ABANDONED = 24 * 3600  # seconds after which a temporary file of another machine counts as left behind
RETRIES, PAUSE = 20, 0.05  # Windows refuses to replace a file that another process is reading
_numbers = count()


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that readers see the old one or the new one, also when two processes write it.

    Args:
        path: the file's final name; its folder exists.
        write: writes the file at the path it is given.
    """
    remove_abandoned(path)
    partial = _partial_of(path)
    try:
        write(partial)
        atomic_replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def atomic_write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Write a folder so that readers see a whole one or none, also when two processes write it.

    Args:
        folder: its final name; its parent exists, and a folder that is there is replaced.
        write: writes the contents into the empty folder it is given.
    """
    hidden = folder.with_name(f".{folder.name}")
    remove_abandoned(hidden)
    partial = _partial_of(hidden)
    partial.mkdir()
    try:
        write(partial)
        _fsync_tree(partial)  # before the old folder goes: the two renames follow each other at once
        for left in reversed(range(RETRIES)):
            former = _partial_of(hidden)
            try:
                with suppress(FileNotFoundError):
                    _rename(folder, former)
                _rename(partial, folder)
                break
            except OSError as error:  # another process has just written it
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or not left:
                    raise
            finally:
                shutil.rmtree(former, ignore_errors=True)
        _fsync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial_of(path: Path) -> Path:
    """Return a temporary name beside `path` that no other process and no other call uses."""
    return path.with_name(f"{path.name}.{_owner()}.{threading.get_ident()}-{next(_numbers)}.partial")


def check_writable(folder: Path) -> None:
    """Create a folder and a temporary file in it. Raises OSError where that is not possible."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def remove_abandoned(path: Path) -> None:
    """Remove temporary files and folders of `path` whose process has ended."""
    machine, _, _ = _owner().rpartition("-")
    for left in path.parent.glob(f"{_literal(path.name)}.*.partial"):
        owner = left.name[len(path.name) + 1 :].split(".")[0]
        theirs, _, number = owner.rpartition("-")
        number = number if theirs else owner  # version 0.1.0 wrote the process' number alone
        with suppress(OSError):
            here = theirs in (machine, "") and number.isdigit()
            ended = here and not process_exists(int(number))
            if ended or time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def process_exists(number: int) -> bool:
    """Return whether a process with this id runs on this machine."""
    import psutil  # the host requires it

    return psutil.pid_exists(number)


def _owner() -> str:
    machine = re.sub(r"[^\w-]", "", platform.node())[:32] or "here"
    return f"{machine}-{os.getpid()}"


def _literal(name: str) -> str:
    """Return a file name as a glob pattern for itself."""
    return re.sub(r"([*?\[])", r"[\1]", name)


def atomic_replace(partial: Path, path: Path) -> None:
    """Rename a file, or a folder with its contents, after syncing it to the disk.

    A power cut leaves the old version or the new one, never a part.

    Args:
        partial: the temporary file or folder.
        path: the final name; an existing file is replaced.
    """
    _fsync_tree(partial)
    _rename(partial, path)
    _fsync(path.parent)


def _rename(old: Path, new: Path) -> None:
    """Rename a file or folder; on Windows wait for other processes that read the new one."""
    for left in reversed(range(RETRIES)):
        try:
            return os.replace(old, new)
        except PermissionError:
            if os.name != "nt" or not left:
                raise
            time.sleep(PAUSE)


def _fsync_tree(path: Path) -> None:
    inside = path.rglob("*") if path.is_dir() else ()
    for part in (*inside, path):
        _fsync(part)


def _fsync(path: Path) -> None:
    if not path.is_dir():
        with path.open("r+b") as file:  # Windows syncs only files opened for writing
            os.fsync(file.fileno())
    elif os.name != "nt":  # Windows cannot open a folder
        with suppress(OSError):  # some network file systems cannot sync a folder
            folder = os.open(path, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def read_text(path: Path, kind: str = "") -> str:
    """Return a text file in UTF-8, with or without a byte order mark, or in UTF-16 with one.

    `kind`: an input or an option, which errors start with. Raises ValueError for another encoding.
    """
    data = path.read_bytes()
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{_prefix(kind)}{path.name} is not written in UTF-8; save it again as UTF-8."
        ) from error


def read_json(path: Path, kind: str = "") -> Any:
    """Return what a JSON file holds. Raises ValueError, naming the file and the line, when it is none."""
    return parse_json(read_text(path, kind), f"{_prefix(kind)}{path.name}")


def parse_json(text: str, name: str) -> Any:
    """Return what a JSON text holds; `name` stands for it in errors. Raises ValueError."""
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is no JSON: line {error.lineno}, {error.msg}.") from error
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply to be read.") from error


def _prefix(kind: str) -> str:
    return f"{kind}: " if kind else ""


SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif"
}  # fmt: skip
