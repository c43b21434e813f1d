"""The finetuning tables as curves, and what they count as pictures."""

from pathlib import Path

from ...evaluation.tables import Mean, Table
from .. import world
from . import picture_grid as sheets
from .dreamcom import LIKENESS, held_out_subject
from .dreammix import cell_file
from .finetune_cells import EDIT_RIGHT, IDENTITY, NOTHING, OTHERS_RIGHT, Way, edits_of, file_name
from .result_cache import pictures_of

SHOWN = {LIKENESS: "C0", EDIT_RIGHT: "C1", OTHERS_RIGHT: "C2"}
OVER_STEPS = ", over steps"


def draw_curves(tables: dict[str, Table], studies: dict[str, dict[str, Way]], path: Path) -> None:
    """One panel a study: identity, edits followed and other things, with standard errors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(tables), 4), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, (study, table) in zip(panels, tables.items(), strict=True):
        if study == "steps":
            draw_steps(axes, table.cells(), studies[study])
        else:
            draw_rows(axes, table.cells(), joined=study == "references")
        axes.set(title=study, ylim=(0, 1.02))
        axes.legend(fontsize=7, handlelength=4)  # long enough to tell a dashed line
    figure.savefig(path, dpi=120)


def draw_rows(axes, cells: dict[str, dict[str, Mean]], joined: bool) -> None:
    for measure, colour in SHOWN.items():
        means = [row[measure] for row in cells.values()]
        points(axes, range(len(means)), means, colour, "-" if joined else "none", measure)
    axes.set_xticks(range(len(cells)), list(cells), rotation=25, ha="right", fontsize=8)


def draw_steps(axes, cells: dict[str, dict[str, Mean]], rows: dict[str, Way]) -> None:
    for (row, way), line in zip(rows.items(), ("--", "-"), strict=True):
        for measure, colour in SHOWN.items():
            labels = [NOTHING, *(f"{row}, {step} steps" for step in way.snapshots)]
            means = [cells[label][measure] for label in labels]
            name = f"{measure}, {row.removesuffix(OVER_STEPS)}"
            points(axes, (0, *way.snapshots), means, colour, line, name)
    axes.set(xlabel="training steps")


def points(axes, places, means: list[Mean], colour: str, line: str, label: str) -> None:
    heights, errors = [m.mean for m in means], [m.error for m in means]
    axes.errorbar(places, heights, errors, color=colour, ls=line, marker="o", ms=4, capsize=2, label=label)


def picture_sheet(folder: Path, rows: dict[str, Way], count: int, rooms: int, side: int = 112):
    """For the first subjects and every row: a reference, the learned subject, and its edits in one room."""
    cells = []
    for index in range(count):
        subject = held_out_subject(index, 5, rooms)
        edits = edits_of(subject.thing, index)
        words = world.caption(subject.thing).removeprefix("a photo of ")
        asked = ", ".join(str(getattr(edit.thing, edit.field)) for edit in edits)
        for row in rows:
            stored = pictures_of(cell_file(folder, index, file_name(row)))
            shown = [stored[name][0] for name in (IDENTITY, *(edit.field for edit in edits))]
            panels = [sheets.shown(image, side) for image in (subject.references[0], *shown)]
            cells.append(sheets.Cell(panels, [f"{row}: {words}; then {asked}"]))
    return sheets.grid("reference | learned | other colour | other pattern | other accessory", cells, 2)
