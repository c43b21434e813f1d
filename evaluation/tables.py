"""Tables that say how sure they are: every cell a mean, its standard error and how many numbers made it."""

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
        """Raises ValueError when there are none."""
        n = len(values)
        if not n:
            raise ValueError("A mean of no values was asked for; measure at least one picture.")
        mean = math.fsum(values) / n
        spread = math.fsum((v - mean) ** 2 for v in values)
        return cls(mean, math.sqrt(spread / (n - 1) / n) if n > 1 else math.nan, n)

    @property
    def sureness(self) -> float:
        """How many standard errors the mean lies from zero; NaN for n = 1."""
        if self.error == 0:
            return math.copysign(math.inf, self.mean) if self.mean else 0.0
        return self.mean / self.error

    def text(self, digits: int = 3) -> str:
        return f"{self.mean:.{digits}f} +- {self.error:.{digits}f}"


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Mean:
    """The mean of first - second, unit by unit, with the error of that difference (a paired comparison).

    Raises ValueError when the two differ in length.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values cannot be paired with {len(second)}; measure the same units.")
    return Mean.of([a - b for a, b in zip(first, second, strict=True)])


@dataclass(frozen=True)
class Table:
    """`rows`: row -> measure -> one value per unit, in the same order of units in every row. `notes` name the
    backbones and what a unit is. `sets`: row -> measure of all units at once, which has no error."""

    title: str
    rows: Mapping[str, Mapping[str, Sequence[float]]]
    notes: Sequence[str] = ()
    sets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def measures(self) -> list[str]:
        return list(dict.fromkeys(measure for row in self.rows.values() for measure in row))

    def cells(self) -> dict[str, dict[str, Mean]]:
        return {label: {m: Mean.of(values) for m, values in row.items()} for label, row in self.rows.items()}

    def difference(self, row: str, base: str, measure: str) -> Mean:
        """How much `row` is above `base`, paired by unit."""
        return paired_difference(self.rows[row][measure], self.rows[base][measure])

    def markdown(self, digits: int = 3) -> str:
        """One line per row; a measure that a row lacks is a dash."""
        wholes = list(dict.fromkeys(measure for row in self.sets.values() for measure in row))
        head = ["", *self.measures, *wholes, "n"]
        lines = [f"**{self.title}**", "", _line(head), _line(["---"] + ["---:"] * (len(head) - 1))]
        for label, row in self.cells().items():
            values = [row[m].text(digits) if m in row else "-" for m in self.measures]
            own = self.sets.get(label, {})
            values += [f"{own[m]:.{digits}f}" if m in own else "-" for m in wholes]
            count = max((cell.n for cell in row.values()), default=0)
            lines.append(_line([label, *values, str(count)]))
        return "\n".join([*lines, "", *(f"{note}  " for note in self.notes)]).rstrip() + "\n"

    def to_json(self) -> str:
        """Means, errors, counts and the values themselves; a NaN is written as null."""
        cells = {
            label: {m: {**asdict(mean), "values": list(self.rows[label][m])} for m, mean in row.items()}
            for label, row in self.cells().items()
        }
        table = {"title": self.title, "rows": cells, "notes": list(self.notes)}
        sets = {label: dict(row) for label, row in self.sets.items()}
        return json.dumps(_plain(table | ({"sets": sets} if sets else {})), indent=1)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(value):
    """NaN and infinity have no place in JSON."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None
