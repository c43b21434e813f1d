"""Make jobs of a workflow from a benchmark's cases: references, background, box and prompt of each case."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ..evaluation.benchmark_datasets import Case, References
from ..imaging.boxes import Box, find_box
from ..imaging.picture_files import read_mask
from .client import Graph
from .errors import HostError
from .jobs import INPUT_FOLDER, GraphJob, Upload, files_digest, input_name
from .node_definitions import Definition
from .workflow import Setting, find_input, find_node, with_value

# Part of a case -> the input that takes it; nodes by title, type or id.
INPUT_BINDINGS = {
    "references": "InlayLoadReferences.folder",
    "background": "LoadImage.image",
    "box": "InlayBoxMask",
    "class": "SubjectFinetune.class_name",
    "prompt": "Prompt.text",
}


def read_input_bindings(texts: Iterable[str]) -> dict[str, str]:
    """Return `INPUT_BINDINGS` with the user's changes, written as FIELD=NODE.input.

    Raises:
        HostError: if a field is unknown.
    """
    bindings = dict(INPUT_BINDINGS)
    for text in texts:
        field, equals, node = text.partition("=")
        if not equals or field not in INPUT_BINDINGS:
            raise HostError(
                f"--take {text}: write FIELD=NODE.input, with FIELD one of {', '.join(INPUT_BINDINGS)}."
            )
        bindings[field] = node
    return bindings


def plan_cases(
    graph: Graph,
    sets: Iterable[Setting],
    cases: Iterable[Case],
    definitions: dict[str, Definition],
    bindings: dict[str, str] = INPUT_BINDINGS,
) -> list[GraphJob]:
    """Return one job, labelled with the case's name, for each case that has a background and a hole.

    Raises:
        HostError: if the graph lacks a node that a case needs, or no case has a background and a hole.
    """
    base = GraphJob(graph)
    for setting in sets:
        base = base.set(setting, definitions)
    jobs = [_job(base, case, definitions, bindings) for case in cases if case.background and case.hole]
    if not jobs:
        raise HostError(
            "--benchmark: it marks the subject's place in no picture; choose one with masks or boxes."
        )
    return jobs


def _job(
    base: GraphJob, case: Case, definitions: dict[str, Definition], bindings: dict[str, str]
) -> GraphJob:
    job = replace(base, labels=tuple(case.name.split("/")))
    job = _with_references(job, bindings["references"], case.references, definitions)
    token = _token(base.graph, bindings["class"])
    values = {
        bindings["background"]: case.background,
        bindings["class"]: case.class_name,
        bindings["prompt"]: case.prompt.format(subject=f"{token} {case.class_name}".strip()),
    }
    assert case.hole
    box = case.hole if isinstance(case.hole, Box) else box_of_mask(case.hole)
    sides = {"x": box.left, "y": box.top, "width": box.width, "height": box.height}
    values |= {f"{bindings['box']}.{name}": value for name, value in sides.items()}
    for name, value in values.items():
        job = job.set(Setting.parse(f"{name}={value}"), definitions)
    return job


def _with_references(
    job: GraphJob, binding: str, references: References, definitions: dict[str, Definition]
) -> GraphJob:
    """Return the job with these images and masks as a folder in the layout of `InlayLoadReferences`."""
    setting = Setting.parse(f"{binding}=")
    key, _, _ = find_input(job.graph, setting, definitions)
    files = []
    for number, (picture, mask) in enumerate(references):
        files.append((picture, f"{number}{picture.suffix}"))
        files += [(mask, f"{number}_mask{mask.suffix}")] if mask else []
    name = files_digest(path for path, _ in files)[:12]
    upload = Upload(tuple(files), f"{INPUT_FOLDER}/{name}")
    graph = with_value(job.graph, key, setting.input, input_name(upload))
    return replace(job, graph=graph, uploads=(*job.uploads, upload))


def _token(graph: Graph, binding: str) -> str:
    """Return the token of the node that takes the class, or "" if it has none."""
    return graph[find_node(graph, binding.rpartition(".")[0])]["inputs"].get("token", "")


def box_of_mask(mask: Path) -> Box:
    """Return the box around the white pixels of a mask file."""
    try:
        box = find_box(read_mask(mask, "--benchmark")[0])
    except ValueError as error:
        raise HostError(str(error)) from error
    if box is None:
        raise HostError(
            f"{mask} is an empty mask; paint the place where the subject goes, or remove this case."
        )
    return box
