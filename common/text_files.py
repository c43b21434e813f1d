"""Text files of users: any editor's UTF-8 or UTF-16, and JSON, with errors that name the file."""

import codecs
import json
from pathlib import Path
from typing import Any


def read_text(path: Path, kind: str = "") -> str:
    """A text file in UTF-8, with or without a byte order mark, or in UTF-16 with one.

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
    """What a JSON file holds. Raises ValueError, naming the file and the line, when it is none."""
    return parse_json(read_text(path, kind), f"{_prefix(kind)}{path.name}")


def parse_json(text: str, name: str) -> Any:
    """What a JSON text holds; `name` stands for it in errors. Raises ValueError."""
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is no JSON: line {error.lineno}, {error.msg}.") from error
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply to be read.") from error


def _prefix(kind: str) -> str:
    return f"{kind}: " if kind else ""
