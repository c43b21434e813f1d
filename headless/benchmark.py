"""A benchmark's cases as jobs of a workflow: `--benchmark` fills in references, background, box and words."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ..evaluation.readers import Case, References
from ..imaging.boxes import Box, find_box
from ..imaging.picture_files import read_mask
from .client import Graph
from .errors import HostError
from .jobs import INPUT_FOLDER, GraphJob, Upload, files_digest, input_name
from .node_definitions import Definition
from .workflow import Setting, find_input, find_node, with_value

# Where a case goes, in the user's names for nodes: titles, types or ids.
INPUT_BINDINGS = {
    "references": "InlayLoadReferences.folder",
    "background": "LoadImage.image",
    "box": "InlayBoxMask",
    "class": "SubjectFinetune.class_name",
    "prompt": "Prompt.text",
}


def read_input_bindings(given: Iterable[str]) -> dict[str, str]:
    """`INPUT_BINDINGS` with the user's `FIELD=NODE.input`. Raises HostError for an unknown field."""
    takers = dict(INPUT_BINDINGS)
    for text in given:
        field, equals, node = text.partition("=")
        if not equals or field not in INPUT_BINDINGS:
            raise HostError(
                f"--take {text}: write FIELD=NODE.input, with FIELD one of {', '.join(INPUT_BINDINGS)}."
            )
        takers[field] = node
    return takers


def plan_cases(
    graph: Graph,
    sets: Iterable[Setting],
    cases: Iterable[Case],
    definitions: dict[str, Definition],
    takers: dict[str, str] = INPUT_BINDINGS,
) -> list[GraphJob]:
    """One job per case that has a background and a hole, under the case's name.

    Raises:
        HostError: when the graph lacks a node that a case needs, or no case has a place for the subject.
    """
    base = GraphJob(graph)
    for setting in sets:
        base = base.set(setting, definitions)
    jobs = [_job(base, case, definitions, takers) for case in cases if case.background and case.hole]
    if not jobs:
        raise HostError("--benchmark: it says of no picture where the subject goes, so nothing can be run.")
    return jobs


def _job(base: GraphJob, case: Case, definitions: dict[str, Definition], takers: dict[str, str]) -> GraphJob:
    job = replace(base, labels=tuple(case.name.split("/")))
    job = _with_references(job, takers["references"], case.references, definitions)
    token = _token(base.graph, takers["class"])
    values = {
        takers["background"]: case.background,
        takers["class"]: case.class_name,
        takers["prompt"]: case.prompt.format(subject=f"{token} {case.class_name}".strip()),
    }
    assert case.hole
    box = case.hole if isinstance(case.hole, Box) else _box_of(case.hole)
    edges = {"x": box.left, "y": box.top, "width": box.width, "height": box.height}
    values |= {f"{takers['box']}.{name}": value for name, value in edges.items()}
    for name, value in values.items():
        job = job.set(Setting.parse(f"{name}={value}"), definitions)
    return job


def _with_references(
    job: GraphJob, taker: str, references: References, definitions: dict[str, Definition]
) -> GraphJob:
    """The job with these pictures as a folder, and their masks as `InlayLoadReferences` knows them."""
    setting = Setting.parse(f"{taker}=")
    key, _, _ = find_input(job.graph, setting, definitions)
    files = []
    for number, (picture, mask) in enumerate(references):
        files.append((picture, f"{number}{picture.suffix}"))
        files += [(mask, f"{number}_mask{mask.suffix}")] if mask else []
    name = files_digest(path for path, _ in files)[:12]
    upload = Upload(tuple(files), f"{INPUT_FOLDER}/{name}")
    graph = with_value(job.graph, key, setting.input, input_name(upload))
    return replace(job, graph=graph, uploads=(*job.uploads, upload))


def _token(graph: Graph, taker: str) -> str:
    """The rare word of the node that takes the class, where it has one."""
    return graph[find_node(graph, taker.rpartition(".")[0])]["inputs"].get("token", "")


def _box_of(mask: Path) -> Box:
    """The box around a mask's white."""
    try:
        box = find_box(read_mask(mask, "--benchmark")[0])
    except ValueError as error:
        raise HostError(str(error)) from error
    if box is None:
        raise HostError(f"{mask} is an empty mask; there is no place for the subject.")
    return box
