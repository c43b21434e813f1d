"""What the studies in the tiny world share: options, folders, one stored cell for each subject."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import dev
from ...evaluation.tables import Table
from ..models import assemble, shipped
from ..models.files import WEIGHTS
from .result_cache import cell


def study_parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """Return a parser with --work, --models and --out; results go to DIR/`name`, or out/`name`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = "without it, and for what is not trained there, the repository's weights"
    parser.add_argument("--work", type=Path, metavar="DIR", help=f"folder of the trainings; {default}")
    parser.add_argument("--models", type=Path, help="a models folder that `assemble` wrote")
    parser.add_argument("--out", type=Path, help=f"default: DIR/{name}, or out/{name}")
    parser.set_defaults(study=name)
    return parser


def training_parser(description: str | None, name: str, each: int, pilot: int) -> argparse.ArgumentParser:
    """Return a parser of a study that finetunes subjects, with `each` scenes a subject by default."""
    parser = study_parser(description, name)
    parser.add_argument("--subjects", type=int, default=20)
    parser.add_argument("--scenes", type=int, default=each)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--pilot", action="store_true", help=f"{pilot} subjects")
    return parser


def study_folders(options: argparse.Namespace, trained: bool = True) -> tuple[Path, Path]:
    """Return the folder of the results, created, and that of the models.

    Where none was named they are assembled: each part from the training in DIR if there is one and `trained`
    are asked for, else as the repository ships it.
    """
    beside = options.work / options.study if options.work else dev.PACK / "out" / options.study
    out = options.out or beside
    out.mkdir(parents=True, exist_ok=True)
    if options.models:
        return out, options.models
    models = (options.work or out) / ("models" if trained else "shipped")
    if options.work is None or not trained:
        shipped.install(models)
    else:
        own = assemble.trained_parts(options.work)
        shared = assemble.shipped_parts(WEIGHTS)
        if "fill" in own:  # the edit model is a change of the Fill that it was trained on
            shared.pop("edit")
        assemble.assemble(shared | own, models)
    return out, models


def subject_cells(
    folder: Path, count: int, choices: Any, measure: Callable[[int], tuple[dict, Any]]
) -> list[Any]:
    """Return the numbers of `count` subjects; each is measured once and kept in FOLDER/NUMBER.json."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        cell(subject_file(folder, index), choices, lambda index=index: measure(index))
        for index in range(count)
    ]


def subject_file(folder: Path, index: int) -> Path:
    """Return the file of a subject's numbers; its pictures stand beside it."""
    return folder / f"{index:03d}.json"


def write_table(table: Table, out: Path, name: str) -> None:
    """Write OUT/NAME.md and OUT/NAME.json, and print the former."""
    text = table.markdown()
    (out / f"{name}.md").write_text(text, encoding="utf-8")
    (out / f"{name}.json").write_text(table.to_json(), encoding="utf-8")
    print(text)


def change(table: Table, way: str, base: str, measure: str) -> str:
    """Return what a way changes, unit by unit, in words."""
    gain = table.difference(way, base, measure)
    return f"{measure}: {way} against {base} {gain.text()} ({gain.z_score:.1f} standard errors)."


def rows_of(results: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, list[float]]]:
    """Return a table's rows, a value for each subject, from each subject's numbers by row and measure."""
    return {row: {m: [result[row][m] for result in results] for m in results[0][row]} for row in results[0]}
