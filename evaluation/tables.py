"""Make tables in which every cell is a mean with its standard error and the number of values."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Mean:
    """A mean of `n` independent values and its standard error s / sqrt(n), s with n - 1; NaN for n = 1."""

    mean: float
    error: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Return the mean of values.

        Raises:
            ValueError: if there are none.
        """
        n = len(values)
        if not n:
            raise ValueError("There are no values to average; measure at least one picture.")
        mean = math.fsum(values) / n
        squares = math.fsum((v - mean) ** 2 for v in values)
        return cls(mean, math.sqrt(squares / (n - 1) / n) if n > 1 else math.nan, n)

    @property
    def z_score(self) -> float:
        """The mean divided by its standard error; NaN for n = 1."""
        if self.error == 0:
            return math.copysign(math.inf, self.mean) if self.mean else 0.0
        return self.mean / self.error

    def text(self, digits: int = 3) -> str:
        """Return "mean +- standard error"."""
        return f"{self.mean:.{digits}f} +- {self.error:.{digits}f}"


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Mean:
    """Return the mean of first - second, unit by unit, with the standard error of that difference.

    Raises:
        ValueError: if their lengths differ.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values cannot be paired with {len(second)}; measure the same units.")
    return Mean.of([a - b for a, b in zip(first, second, strict=True)])


@dataclass(frozen=True)
class Table:
    """Measures by row, as markdown and JSON.

    Attributes:
        title: of the table.
        rows: row -> measure -> one value per unit, in the same order of units in every row.
        notes: name the backbones and the unit.
        sets: row -> measure over all units together, which has no standard error.
    """

    title: str
    rows: Mapping[str, Mapping[str, Sequence[float]]]
    notes: Sequence[str] = ()
    sets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def measures(self) -> list[str]:
        """The measures of all rows, in order."""
        return list(dict.fromkeys(measure for row in self.rows.values() for measure in row))

    def cells(self) -> dict[str, dict[str, Mean]]:
        """Return row -> measure -> mean."""
        return {label: {m: Mean.of(values) for m, values in row.items()} for label, row in self.rows.items()}

    def difference(self, row: str, base: str, measure: str) -> Mean:
        """Return the mean difference of `row` and `base`, paired by unit."""
        return paired_difference(self.rows[row][measure], self.rows[base][measure])

    def markdown(self, digits: int = 3) -> str:
        """Return the table in markdown, one line per row; a missing measure is a dash."""
        set_measures = list(dict.fromkeys(measure for row in self.sets.values() for measure in row))
        head = ["", *self.measures, *set_measures, "n"]
        lines = [
            f"**{self.title}**",
            "",
            _markdown_line(head),
            _markdown_line(["---"] + ["---:"] * (len(head) - 1)),
        ]
        for label, row in self.cells().items():
            values = [row[m].text(digits) if m in row else "-" for m in self.measures]
            set_values = self.sets.get(label, {})
            values += [f"{set_values[m]:.{digits}f}" if m in set_values else "-" for m in set_measures]
            count = max((cell.n for cell in row.values()), default=0)
            lines.append(_markdown_line([label, *values, str(count)]))
        return "\n".join([*lines, "", *(f"{note}  " for note in self.notes)]).rstrip() + "\n"

    def to_json(self) -> str:
        """Return means, errors, counts and the values as JSON; NaN is written as null."""
        cells = {
            label: {m: {**asdict(mean), "values": list(self.rows[label][m])} for m, mean in row.items()}
            for label, row in self.cells().items()
        }
        table = {"title": self.title, "rows": cells, "notes": list(self.notes)}
        sets = {label: dict(row) for label, row in self.sets.items()}
        return json.dumps(_without_nan(table | ({"sets": sets} if sets else {})), indent=1)


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _without_nan(value):
    """Replace NaN and infinity, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None
