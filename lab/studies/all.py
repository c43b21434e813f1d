"""Make the figures of all pages in parts of at most an hour, and list the ones that are stale.

    python dev.py lab all [LAB ...] --list
    python dev.py lab all [LAB ...] [--minutes 60] [--write] [--out DIR]

A figure is stale when the code or the weights of its lab are not those that made it: docs/figures.json keeps
for each command a digest of them and the seconds of its last run. The code of a lab is the module and what it
imports from the pack. --list prints one line for each command on the pages (see `reproduce_figures`).
Otherwise the stale commands are run, one after another, until the minutes are over; then the running one is
stopped, and the next call goes on: labs keep what they have finished in DIR (out/ without --out). A command
that is done is compared with its pages; with --write its figures are put there.
"""

import argparse
import ast
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ... import dev
from .reproduce_figures import Figure, figures, run, update

RECORDS = Path("docs") / "figures.json"
ASSETS = ("lab/weights/**/*.safetensors", "tools/assets/**/*.png", "workflows/api/*.json")
Command = tuple[str, ...]


def imported(file: Path, root: Path) -> set[Path]:
    """The modules of the pack at `root` that the module `file` imports, at its head or later."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        for path in (base, *(base / alias.name for alias in node.names)):
            found |= {f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()}
    return {path for path in found if root in path.parents}


def sources(file: Path, root: Path) -> list[Path]:
    """The module `file` and every module of the pack that it imports, directly or not; sorted."""
    known, waiting = {file}, [file]
    while waiting:
        new = imported(waiting.pop(), root) - known
        known |= new
        waiting += new
    return sorted(known)


def digest(lab: str, root: Path) -> str:
    """Names the code of a lab and the weights and pictures of the repository by their bytes."""
    script = {**dev.scripts("tool"), **dev.scripts("lab")}[lab]
    files = sources(root / f"{script}.py", root)
    files += [path for pattern in ASSETS for path in sorted(root.glob(pattern))]
    total = hashlib.sha256()
    for path in files:
        total.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


def read_records(root: Path) -> dict[str, dict]:
    path = root / RECORDS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def keep_record(root: Path, command: Command, name: str, seconds: float) -> None:
    """Note that `command` was run to its end with the code `name`."""
    records = read_records(root) | {shlex.join(command): {"digest": name, "seconds": round(seconds)}}
    partial = root / RECORDS.with_suffix(".partial")
    partial.write_text(json.dumps(dict(sorted(records.items())), indent=1) + "\n", encoding="utf-8")
    os.replace(partial, root / RECORDS)


def state(command: Command, records: dict[str, dict], name: str) -> str:
    """'current', 'stale' or 'unknown' (no record of what made it), with the seconds of the last run.

    A run is short where the lab has kept its results.
    """
    record = records.get(shlex.join(command))
    if record is None:
        return "unknown"
    return f"{'current' if record['digest'] == name else 'stale'}, the last run took {record['seconds']} s"


def make(command: Command, shown: Sequence[Figure], chosen: argparse.Namespace, seconds: float) -> str:
    """Run one command within `seconds` and return what became of it."""
    before, start = digest(command[0], dev.PACK), time.monotonic()
    try:
        run(command, chosen.out, timeout=max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        return "stopped; the next call goes on"
    complaints = [text for figure in shown for text in figure.complaints()]
    if chosen.write:
        update(shown)
        keep_record(dev.PACK, command, before, time.monotonic() - start)
        return "written"
    return "; ".join(complaints) or "agrees"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("labs", nargs="*", metavar="LAB", help="these alone (default: all on the pages)")
    parser.add_argument("--list", action="store_true", help="run nothing; print what is stale")
    parser.add_argument("--minutes", type=float, default=60.0, help="of this part")
    parser.add_argument("--write", action="store_true", help="put what was made onto the pages")
    parser.add_argument("--out", type=Path, default=dev.PACK / "out", metavar="DIR", help="for what is made")
    chosen = parser.parse_args()
    by_command: dict[Command, list[Figure]] = {}
    for figure in figures(dev.PACK, chosen.out):
        if not chosen.labs or figure.command[0] in chosen.labs:
            by_command.setdefault(figure.command, []).append(figure)
    records = read_records(dev.PACK)
    states = {command: state(command, records, digest(command[0], dev.PACK)) for command in by_command}
    end = time.monotonic() + 60 * chosen.minutes
    for command, shown in by_command.items():
        if not chosen.list and not states[command].startswith("current") and time.monotonic() < end:
            states[command] = make(command, shown, chosen, end - time.monotonic())
    for command, text in states.items():
        print(f"lab {shlex.join(command)}: {text}")
    return int(any(text.startswith(("stale", "unknown", "stopped")) for text in states.values()))


if __name__ == "__main__":
    sys.exit(main())
