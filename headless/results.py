"""Store a run's outputs: files named by their node's title, and `result.json`, which is written last."""

import json
import os
from pathlib import Path
from typing import Any

from ..common.files import atomic_write, atomic_write_folder
from .client import Graph, PromptResult, title_of
from .jobs import GraphJob, slug

FACTS = "result.json"


def save_outputs(result: PromptResult, graph: Graph, folder: Path) -> list[Path]:
    """Write every file of the output nodes into `folder`, each atomically; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    titles = {node: slug(title_of(node, graph, node)).lower() for node in result}
    saved = []
    for node, output in result.items():
        unique = list(titles.values()).count(titles[node]) == 1
        stem = titles[node] if unique else f"{titles[node]}_{node}"
        for number, (name, content) in enumerate(output.files, 1):
            suffix = f"_{number}" if len(output.files) > 1 else ""
            saved.append(write(folder / f"{stem}{suffix}{Path(name).suffix}", content))
    return saved


def write(path: Path, content: bytes) -> Path:
    """Write a file atomically and return its path."""
    atomic_write(path, lambda partial: partial.write_bytes(content))
    return path


def result_record(result: PromptResult, graph: Graph, files: list[Path]) -> dict[str, Any]:
    """Return the names of the files, and the text of every node that has text, as JSON data."""
    texts = {title_of(node, graph, node): output.text for node, output in result.items() if output.text}
    return {"files": [file.name for file in files], "text": texts}


def save_result(job: GraphJob, result: PromptResult, seconds: float, out: Path) -> dict[str, Any]:
    """Store a job's result in the folder of its labels, completely or not at all; return its record."""
    folder = out.joinpath(*job.labels)
    facts: dict[str, Any] = {}

    def write_into(partial: Path) -> None:
        files = save_outputs(result, job.graph, partial)
        facts.update(
            key=job.key,
            settings=[relative_setting(setting, folder) for setting in job.settings],
            seconds=round(seconds, 2),
            **result_record(result, job.graph, files),
            graph=job.graph,
        )
        write(partial / FACTS, json.dumps(facts, indent=1).encode())

    folder.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_folder(folder, write_into)
    return facts


def relative_setting(setting: str, folder: Path) -> str:
    """Return a setting whose value is a path of this machine, relative to the result's folder."""
    name, equals, value = setting.partition("=")
    if not value or not Path(value).is_absolute() or not Path(value).exists():
        return setting
    try:
        return f"{name}{equals}{Path(os.path.relpath(value, folder.resolve())).as_posix()}"
    except ValueError:  # Windows: on another drive
        return setting


def load_result(job: GraphJob, out: Path) -> dict[str, Any] | None:
    """Return the record of a job's stored result; None if there is none, or if it has other settings."""
    try:
        facts = json.loads((out.joinpath(*job.labels) / FACTS).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) and facts.get("key") == job.key else None
