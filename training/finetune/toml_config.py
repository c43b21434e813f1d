"""A finetuning as a TOML file: what to teach, to which model, by which recipe with which numbers changed."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ...common.text_files import read_text
from .attribute_dictionary import Attributes, parse_attributes
from .presets import MEMORY_PRESETS
from .recipes import RECIPES, Recipe

try:
    import tomllib  # pyright: ignore[reportMissingImports]  (Python 3.10 has tomli instead)
except ModuleNotFoundError:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

COUNTS = ("steps", "batch_size", "accumulation", "copies", "regular_copies")

Changed = TypeVar("Changed")


@dataclass(frozen=True)
class Config:
    """Paths are absolute, or relative to the file they were written in. See workflows/finetune.toml."""

    checkpoint: str  # a name in the host's models/checkpoints, or a path
    references: Path  # a folder of pictures, with masks as `Load References` reads them
    class_name: str
    token: str = "sks"
    seed: int = 0
    recipe: Recipe = field(default=RECIPES["DreamCom"])
    regular: Path | None = None  # a folder regular_<category>
    attributes: Attributes = field(default_factory=dict)  # kind -> words
    previous: str = ""  # a subject to go on from: its LoRA's name in models/loras, or a path
    memory: str = "recipe"  # a preset's name
    save_every: int = 100  # steps between checkpoints
    preview_every: int = 0  # steps between samples; 0: none
    out: Path | None = None  # where subjects are kept; models/loras/inlay when left out
    optimiser_named: bool = field(default=False, metadata={"key": False})  # so that no preset changes it


def read_toml(path: Path) -> Config:
    """The file's `Config`. Raises ValueError with one sentence that names the key and the mend."""
    try:
        values = tomllib.loads(read_text(path))
    except OSError as error:
        raise ValueError(f"{path}: it cannot be read ({error.strerror}).") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: it is no TOML ({error}).") from error
    try:
        return _config(values, path.resolve().parent)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def _config(values: dict[str, Any], folder: Path) -> Config:
    names = [f.name for f in dataclasses.fields(Config) if f.metadata.get("key", True)]
    check_names(values, names, "")
    for name in ("checkpoint", "references", "class_name"):
        if not values.get(name):
            raise ValueError(f"{name} is missing; workflows/finetune.toml shows all keys.")
    known = Config("", folder, "", regular=folder, out=folder)  # an example of every key's type
    for name in set(values) - {"recipe", "attributes"}:
        check_type(name, values[name], getattr(known, name))
    for name, most in (("seed", 2**64 - 1), ("save_every", math.inf), ("preview_every", math.inf)):
        if not 0 <= values.get(name, 0) <= most:
            limit = f"from 0 to {most}" if name == "seed" else "0 or more"
            raise ValueError(f"{name}: it must be {limit}.")
    if values.get("memory", known.memory) not in MEMORY_PRESETS:
        raise ValueError(
            f'memory: there is no preset "{values["memory"]}"; choose {_choices(MEMORY_PRESETS)}.'
        )
    paths = {name: folder / values[name] for name in ("references", "regular", "out") if values.get(name)}
    local = {
        name: str(folder / values[name])
        for name in ("checkpoint", "previous")
        if values.get(name) and (folder / values[name]).is_file()
    }
    attributes = parse_attributes(json.dumps(values.get("attributes", {})))
    table = values.get("recipe", {})
    parts = {"recipe": read_recipe(table), "attributes": attributes}
    parts["optimiser_named"] = isinstance(table, Mapping) and "kind" in table.get("optimiser", {})
    settings: dict[str, Any] = values | paths | local | parts
    return Config(**settings)


def read_recipe(table: Mapping[str, Any] | str) -> Recipe:
    """The recipe that a name or a table describes: `base` names one, every other key changes a number."""
    if not isinstance(table, (str, Mapping)):
        raise ValueError(f"recipe: {table!r} is neither a recipe's name nor a table of its numbers.")
    table = {"base": table} if isinstance(table, str) else dict(table)
    base = table.pop("base", RECIPES["DreamCom"].name)
    if not isinstance(base, str) or base not in RECIPES:
        raise ValueError(f'recipe: there is no "{base}"; choose {_choices(RECIPES)}.')
    optimiser = table.get("optimiser")
    kind = optimiser.get("kind") if isinstance(optimiser, Mapping) else None
    recipe = with_values(RECIPES[base].with_choices(optimiser=kind), table, "recipe")  # with its own rate
    check_recipe(recipe)
    return recipe


def check_recipe(recipe: Recipe) -> None:
    """Raises ValueError, naming the key, for a number or a sentence that no training can be made of."""
    counts = {name: getattr(recipe, name) for name in COUNTS} | {"adapter.rank": recipe.adapter.rank}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"recipe.{name}: it must be at least 1; leave it out for the recipe's own.")
    if recipe.resolution < 0:
        raise ValueError("recipe.resolution: it must be 0, for the model's own, or a side in pixels.")
    rates = {
        "optimiser.learning_rate": recipe.optimiser.learning_rate,
        "optimiser.clip_norm": recipe.optimiser.clip_norm,
        "optimiser.eps": recipe.optimiser.eps,
    }
    for name, rate in rates.items():
        if not 0 < rate < math.inf:
            raise ValueError(
                f"recipe.{name}: it must be a number above 0; leave it out for the recipe's own."
            )
    for name in ("beta", "weight_inside", "weight_outside"):
        if not 0 <= getattr(recipe, name) < math.inf:
            raise ValueError(f"recipe.{name}: it must be 0 or a number above it.")
    if not 0 <= recipe.ema_decay < 1:
        raise ValueError("recipe.ema_decay: it must be at least 0 and below 1.")
    if not 0 <= recipe.regular_chance <= 1:
        raise ValueError("recipe.regular_chance: it must be a probability from 0 to 1.")
    if recipe.adapter.kind == "lora" and not recipe.adapter.targets:
        raise ValueError('recipe.adapter.targets: there are none; name layers, such as ["to_k", "to_v"].')
    try:
        recipe.prompt.format(token="", class_name="")
    except (AttributeError, IndexError, KeyError, ValueError) as error:
        raise ValueError(
            f"recipe.prompt: {recipe.prompt!r} has more in braces than {{token}} and {{class_name}};"
            " leave that out."
        ) from error


def with_values(record: Changed, table: Mapping[str, Any], place: str) -> Changed:
    """A dataclass with the table's values, tables within changing the dataclasses within.

    Raises ValueError, naming `place` and key, for an unknown key or a value of another type.
    """
    check_names(table, [f.name for f in dataclasses.fields(record)], f"{place}.")  # pyright: ignore[reportArgumentType]
    hints, values = get_type_hints(type(record)), {}
    for name, value in table.items():
        old = getattr(record, name)
        if dataclasses.is_dataclass(old) and isinstance(value, Mapping):
            values[name] = with_values(old, value, f"{place}.{name}")
        elif get_origin(hints[name]) is Literal and value not in get_args(hints[name]):
            raise ValueError(
                f"{place}.{name}: there is no {value!r}; choose {_choices(get_args(hints[name]))}."
            )
        else:
            values[name] = check_type(f"{place}.{name}", value, old)
    return dataclasses.replace(record, **values)  # pyright: ignore[reportArgumentType, reportCallIssue]


def check_names(table: Mapping[str, Any], names: list[str], place: str) -> None:
    for name in table:
        if name not in names:
            raise ValueError(f"{place}{name}: there is no such key; choose {_choices(names)}.")


def check_type(name: str, value: Any, old: Any) -> Any:
    """The value, whole numbers as fractions and lists as tuples where the old one is such."""
    if isinstance(old, tuple) and isinstance(value, list):
        return tuple(check_type(name, one, old[0] if old else "") for one in value)  # no targets yet
    if isinstance(old, float | None) and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(old) and not (isinstance(old, Path) and isinstance(value, str)):
        kinds = {
            str: "text",
            int: "a whole number",
            float: "a number",
            bool: "true or false",
            tuple: "a list",
        }
        wanted = kinds.get(
            type(old), "a number" if old is None else "text" if isinstance(old, Path) else "a table"
        )
        raise ValueError(f"{name}: {value!r} is not {wanted}.")
    return value


def _choices(names) -> str:
    return ", ".join(f'"{name}"' for name in names)
