"""What a run made, on disk: pictures under their node's title, and `result.json`, written last."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from .client import Graph, PromptResult, title_of
from .jobs import GraphJob, slug

FACTS = "result.json"


def save_outputs(result: PromptResult, graph: Graph, folder: Path) -> list[Path]:
    """Writes every file that the output nodes show into `folder`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    titles = {node: slug(title_of(node, graph, node)).lower() for node in result}
    saved = []
    for node, output in result.items():
        alone = list(titles.values()).count(titles[node]) == 1
        stem = titles[node] if alone else f"{titles[node]}_{node}"
        for number, (name, content) in enumerate(output.files, 1):
            many = f"_{number}" if len(output.files) > 1 else ""
            saved.append(write(folder / f"{stem}{many}{Path(name).suffix}", content))
    return saved


def write(path: Path, content: bytes) -> Path:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
    return path


def result_record(result: PromptResult, graph: Graph, files: list[Path]) -> dict[str, Any]:
    """The files' names, and the text of every node that shows some."""
    said = {title_of(node, graph, node): output.text for node, output in result.items() if output.text}
    return {"files": [file.name for file in files], "text": said}


def keep_file(job: GraphJob, result: PromptResult, seconds: float, out: Path) -> dict[str, Any]:
    """Stores a job's result under its labels, complete or not at all; returns its facts."""
    folder = out.joinpath(*job.labels)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    files = save_outputs(result, job.graph, partial)
    facts = {
        "key": job.key,
        "settings": [relative_setting(setting, folder) for setting in job.settings],
        "seconds": round(seconds, 2),
        **result_record(result, job.graph, files),
        "graph": job.graph,
    }
    write(partial / FACTS, json.dumps(facts, indent=1).encode())
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return facts


def relative_setting(setting: str, folder: Path) -> str:
    """A setting whose value is a path of this machine, with the path as seen from the result's folder."""
    name, equals, value = setting.partition("=")
    if not value or not Path(value).is_absolute() or not Path(value).exists():
        return setting
    try:
        return f"{name}{equals}{Path(os.path.relpath(value, folder.resolve())).as_posix()}"
    except ValueError:  # Windows: on another drive
        return setting


def kept_files(job: GraphJob, out: Path) -> dict[str, Any] | None:
    """The facts of a job's stored result, or None when it has none or belongs to other settings."""
    try:
        facts = json.loads((out.joinpath(*job.labels) / FACTS).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return facts if facts.get("key") == job.key else None
