"""What finetuning needs and what it costs, in the tiny world: four questions with the truth at hand.

    python dev.py lab finetune [--checkpoint FILE] [--subjects 20] [--studies references adapter ...]

references   how alike is the subject after learning it from 1 to 5 pictures?
adapter      a LoRA of rank 4 and 16 against the whole UNet
ablation     DreamMix: base -> + weighted loss -> + ADM, on identity and on edits of the subject's attributes
             (colour, pattern, accessory: does the judge see what the words say, and is it still the subject?)
steps        the same measures after 25 to 400 steps: what overfitting takes first

Every held-out subject is rendered, learned in each way, and painted into rooms whose truth is known. "other
things right": do captions of other things of its kind still give them? One JSON file a subject and way under
OUT/cells: an interrupted run goes on where it was. Writes <study>.md and .json, finetune.png (curves) and
finetune_pictures.png.
"""

import argparse
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...evaluation.tables import Table
from ..models.classifier import load_judge
from ..models.inpainter import Painter, add_sampling
from .dreamcom import LIKENESS, held_out_subject
from .dreammix import cell_file
from .finetune_cells import (
    EDIT_LIKENESS,
    EDIT_RIGHT,
    NOTHING,
    OTHERS_RIGHT,
    PROMPT,
    TOKEN,
    Bench,
    Numbers,
    Way,
    file_name,
    run_cell,
    untrained,
)
from .finetune_pictures import draw_curves, picture_sheet
from .quality import PACK, SIZE, checkpoint_file, write_table
from .result_cache import cell, fingerprint

BASE, WEIGHTED, ADM, ADM_PLAIN = "base", "+ weighted loss", "+ ADM", "+ ADM, token left out"
STUDIES = ("references", "adapter", "ablation", "steps")
MEASURES = (LIKENESS, "class", "colour", "trim", "background SSIM", EDIT_RIGHT, "colour edit", "pattern edit",
            "accessory edit", EDIT_LIKENESS, OTHERS_RIGHT)  # fmt: skip


@dataclass(frozen=True)
class Choices:
    """Everything that decides a cell's numbers; kept with them, so that a changed run starts anew."""

    way: str
    rooms: int
    sampler: str
    scheduler: str
    sampling_steps: int
    cfg: float
    checkpoint: str


def ways(options: argparse.Namespace) -> dict[str, dict[str, Way]]:
    """study -> row -> how it learns. DreamCom for the first two, DreamMix's for the others."""
    from ...training.finetune.recipes import DREAMCOM, DREAMCOM_FULL, DREAMMIX

    common = {"steps": options.steps, "batch_size": options.batch, "resolution": SIZE}
    com = DREAMCOM.with_choices(learning_rate=options.rate, rank=16, **common)
    small = DREAMCOM.with_choices(learning_rate=options.rate, rank=4, **common)
    full = DREAMCOM_FULL.with_choices(learning_rate=options.full_rate, **common)
    com, small, full = (replace(recipe, prompt=PROMPT) for recipe in (com, small, full))
    # The batch does what accumulation does where memory is short.
    mix = DREAMMIX.with_choices(learning_rate=options.rate, rank=options.rank, **common)
    mix = replace(mix, accumulation=1, prompt=PROMPT)
    plain = replace(mix, weight_inside=1.0, weight_outside=1.0)
    adm = Way(mix, 4, regular=True, regular_token=TOKEN)
    return {
        "references": {f"{n} references": Way(com, n, masked=True) for n in range(1, 6)},
        "adapter": {
            "LoRA, rank 4": Way(small, 4, masked=True),
            "LoRA, rank 16": Way(com, 4, masked=True),
            "the whole UNet": Way(full, 4, masked=True),
        },
        "ablation": {
            BASE: Way(plain, 4),
            WEIGHTED: Way(mix, 4),
            ADM: adm,
            ADM_PLAIN: adm._replace(regular_token=""),
        },
        "steps": {
            f"{BASE}, over steps": Way(plain, 4, snapshots=options.snapshots),
            f"{ADM}, over steps": adm._replace(snapshots=options.snapshots),
        },
    }


def run_subject(
    bench: Bench, index: int, rows: dict[str, Way], options, checkpoint: str
) -> dict[str, Numbers]:
    """One subject's numbers by row; what the same choices made before is read back."""
    results, done, subject = {}, {}, held_out_subject(index, 5, options.rooms)

    def make(way: Way | None):
        return run_cell(bench, subject, way, index) if way else ({}, untrained(bench, subject, index))

    for row, way in {NOTHING: None, **rows}.items():
        choices: Any = Choices(
            named(way), options.rooms, options.sampler, options.scheduler, options.sampling_steps,
            options.cfg, checkpoint,
        )  # fmt: skip
        # Two studies may ask for the same way: four references, and rank 16.
        if choices.way not in done:
            path = cell_file(options.out / "cells", index, file_name(row))
            done[choices.way] = cell(path, choices, functools.partial(make, way))
        results[row] = done[choices.way]
    return results


def named(way: Way | None) -> str:
    """A way's fingerprint: every number of it."""
    facts = None if way is None else way._asdict() | {"recipe": asdict(way.recipe)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def sampling(options) -> dict:
    return {
        "sampler": options.sampler, "scheduler": options.scheduler,
        "steps": options.sampling_steps, "cfg": options.cfg,
    }  # fmt: skip


def table_of(
    title: str, results: Sequence[dict[str, Numbers]], points: dict[str, tuple[str, str]], notes
) -> Table:
    """`points`: label -> (row, point of it). A unit is a subject."""
    rows = {
        label: {m: [result[row][point][m] for result in results] for m in MEASURES}
        for label, (row, point) in points.items()
    }
    return Table(title, rows, notes)


def study_tables(
    results: Sequence[dict[str, Numbers]], studies: dict[str, dict[str, Way]], notes
) -> dict[str, Table]:
    """study -> its table, with how sure the differences are that it is about."""
    tables, first = {}, {NOTHING: (NOTHING, "0")}
    for study, rows in studies.items():
        points = dict(first)
        for row, way in rows.items():
            steps = way.snapshots or (way.recipe.steps,)
            points |= {f"{row}, {s} steps" if way.snapshots else row: (row, str(s)) for s in steps}
        table = table_of(f"Finetuning: {study}", results, points, [])
        tables[study] = replace(table, notes=[*gains(study, table), *notes])
    return tables


def gains(study: str, table: Table) -> list[str]:
    """Each pair of rows that the study compares, in standard errors of the paired difference."""
    pairs = {
        "references": [("5 references", "1 references", LIKENESS)],
        "adapter": [
            ("the whole UNet", "LoRA, rank 16", LIKENESS),
            ("LoRA, rank 16", "LoRA, rank 4", LIKENESS),
        ],
        "ablation": [
            (row, base, measure)
            for row, base in ((WEIGHTED, BASE), (ADM, WEIGHTED), (ADM_PLAIN, WEIGHTED))
            for measure in (LIKENESS, EDIT_RIGHT, EDIT_LIKENESS)
        ],
    }
    lines = []
    for row, base, measure in pairs.get(study, []):
        gain = table.difference(row, base, measure)
        lines.append(f"{row} over {base}: {measure} {gain.text()} ({gain.z_score:.1f} standard errors).")
    return lines


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, help="default: the shipped weights")
    add("--judge", type=Path, help="default: the shipped judge")
    add("--studies", nargs="+", choices=STUDIES, default=STUDIES)
    add("--subjects", type=int, default=20)
    add("--rooms", type=int, default=3)
    add("--steps", type=int, default=150)
    add("--snapshots", type=int, nargs="+", default=(25, 50, 100, 200, 400))
    add("--rank", type=int, default=16, help="of the DreamMix rows; the paper's 4 is for SDXL")
    add("--rate", type=float, default=1e-3)
    add("--full-rate", type=float, default=1e-4)
    add("--batch", type=int, default=4)
    add_sampling(parser)
    add("--out", type=Path, default=PACK / "out" / "finetune")
    options = parser.parse_args()
    options.snapshots = tuple(sorted(options.snapshots))
    return options


def main():
    options = parsed()
    (options.out / "cells").mkdir(parents=True, exist_ok=True)
    judge = load_judge(options.judge) if options.judge else load_judge()
    checkpoint = checkpoint_file(options.checkpoint, options.out)
    bench = Bench(Painter(checkpoint), judge, sampling(options))
    studies = {study: rows for study, rows in ways(options).items() if study in options.studies}
    rows = {row: way for study in studies.values() for row, way in study.items()}
    results = [run_subject(bench, i, rows, options, fingerprint(checkpoint)) for i in range(options.subjects)]
    notes = [
        f"{options.subjects} subjects x {options.rooms} rooms; errors over subjects. Similarity by"
        f" {judge.name}.",
        f"{options.steps} steps, batch {options.batch}, rate {options.rate:g} (whole UNet"
        f" {options.full_rate:g}), DreamMix rows rank {options.rank}; {options.sampler} {options.scheduler},"
        f" {options.sampling_steps} steps, guidance {options.cfg:g}.",
    ]
    tables = study_tables(results, studies, notes)
    for study, table in tables.items():
        write_table(table, options.out, study)
    draw_curves(tables, studies, options.out / "finetune.png")
    shown = studies.get("ablation") or next(iter(studies.values()))
    count = min(4, options.subjects)
    picture_sheet(options.out / "cells", shown, count, options.rooms).save(
        options.out / "finetune_pictures.png"
    )
    print(f"pictures: {options.out / 'finetune.png'}, {options.out / 'finetune_pictures.png'}")


if __name__ == "__main__":
    main()
