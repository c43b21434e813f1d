"""A finetuning as a TOML file: the subject, the model, the recipe and the numbers of it that are changed."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from ...common.files import read_text
from .attribute_dictionary import Attributes, parse_attributes
from .recipes import MEMORY_PRESETS, RECIPES, Recipe

try:
    import tomllib  # pyright: ignore[reportMissingImports]  (Python 3.10 has tomli instead)
except ModuleNotFoundError:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

# pydantic's types of error -> what the value should be.
TYPE_WORDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dataclass_type": "a table",
}
TABLES = ("recipe", "attributes")  # keys with their own reader
PATHS = ("checkpoint", "references", "regular", "previous", "out", "sample_image")
# Numbers of a recipe by what they may be; None, where a number has it, is the model family's own.
COUNTS = ("steps", "batch_size", "accumulation", "copies", "regular_copies", "adapter.rank")
ABOVE_ZERO = ("optimiser.learning_rate", "optimiser.clip_norm", "optimiser.eps", "adapter.alpha")
FROM_ZERO = (
    "beta", "weight_inside", "weight_outside", "min_snr", "preservation", "shift", "guidance",
    "optimiser.warmup", "optimiser.weight_decay",
)  # fmt: skip
PROBABILITIES = ("regular_chance", "reference_dropout", "caption_dropout")

Changed = TypeVar("Changed")


@dataclass(frozen=True)
class Config:
    """Paths are absolute, or relative to the file they were written in. See workflows/finetune.toml."""

    # A name in the host's models/checkpoints, or a path; with `text_encoders`, in models/diffusion_models.
    checkpoint: str
    references: Path  # a folder of pictures, with masks as `Load References` reads them
    class_name: str
    token: str = "sks"
    seed: int = 0
    recipe: Recipe = field(default=RECIPES["DreamCom"])
    regular: Path | None = None  # a folder regular_<category>
    attributes: Attributes = field(default_factory=dict)  # kind -> words
    previous: str = ""  # a subject to go on from: its LoRA's name in models/loras, or a path
    memory: str = "recipe"  # a preset's name
    held_out: bool = False  # keep the last of five or more pictures out and measure the loss on it
    save_every: int = 100  # steps between checkpoints
    preview_every: int = 0  # steps between samples; 0: none
    sample_prompts: tuple[str, ...] = ()  # what samples show; the caption of the training when left out
    sample_image: Path | None = None  # the picture that samples fill, with its mask as references have it
    diffusers_file: bool = False  # a copy of a transformer's LoRA as diffusers names it
    out: Path | None = None  # where subjects are kept; models/loras/inlay when left out
    text_encoders: tuple[
        str, ...
    ] = ()  # names in models/text_encoders, or paths, for a model in several files
    text_encoder_type: str = ""  # as the host's Load CLIP has it, such as "flux2"
    vae: str = ""  # a name in models/vae, or a path
    optimiser_named: bool = field(default=False, metadata={"key": False})  # so that no preset changes it


def read_toml(path: Path) -> Config:
    """Return the `Config` in a file.

    Raises:
        ValueError: one sentence that names the key and what to do.
    """
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
    table, plain = values.get("recipe", {}), {k: v for k, v in values.items() if k not in TABLES}
    config = validated(Config, plain, plain, "")
    for name, most in (("seed", 2**64 - 1), ("save_every", math.inf), ("preview_every", math.inf)):
        if not 0 <= getattr(config, name) <= most:
            limit = f"from 0 to {most}" if name == "seed" else "0 or more"
            raise ValueError(f"{name}: it must be {limit}.")
    if config.memory not in MEMORY_PRESETS:
        raise ValueError(f'memory: there is no preset "{config.memory}"; choose {_choices(MEMORY_PRESETS)}.')
    for name in PATHS:
        _check_path(name, folder / (values.get(name) or ""))
    paths = {
        name: folder / values[name]
        for name in ("references", "regular", "out", "sample_image")
        if values.get(name)
    }
    local = {
        name: str(folder / values[name])
        for name in ("checkpoint", "previous", "vae")
        if values.get(name) and (folder / values[name]).is_file()
    }
    encoders = [str(folder / name) if (folder / name).is_file() else name for name in config.text_encoders]
    if bool(encoders) != bool(config.vae):
        raise ValueError(
            "text_encoders and vae belong together: name both for a model in several files, or neither for a"
            " whole checkpoint."
        )
    return dataclasses.replace(
        config,
        recipe=read_recipe(table),
        attributes=parse_attributes(_as_json(values.get("attributes", {}))),
        text_encoders=tuple(encoders),
        optimiser_named=isinstance(table, Mapping) and "kind" in table.get("optimiser", {}),
        **paths,
        **local,
    )


def read_recipe(table: Mapping[str, Any] | str) -> Recipe:
    """Return the recipe that a name or a table describes: `base` names one, other keys change its numbers.

    Raises:
        ValueError: in the user's words.
    """
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
    """Raise ValueError, with the key's name, for a number or a prompt that cannot be trained with."""
    for name in COUNTS:
        if attrgetter(name)(recipe) < 1:
            raise ValueError(f"recipe.{name}: it must be at least 1; leave it out for the recipe's own.")
    if recipe.resolution < 0:
        raise ValueError("recipe.resolution: it must be 0, for the model's own, or a side in pixels.")
    for name in ABOVE_ZERO:
        number = attrgetter(name)(recipe)
        if number is not None and not 0 < number < math.inf:
            raise ValueError(
                f"recipe.{name}: it must be a number above 0; leave it out for the recipe's own."
            )
    for name in FROM_ZERO:
        number = attrgetter(name)(recipe)
        if number is not None and not 0 <= number < math.inf:
            raise ValueError(f"recipe.{name}: it must be 0 or a number above it.")
    if not 0 <= recipe.ema_decay < 1:
        raise ValueError("recipe.ema_decay: it must be at least 0 and below 1.")
    if not all(0 <= beta < 1 for beta in recipe.optimiser.betas):
        raise ValueError("recipe.optimiser.betas: both must be at least 0 and below 1.")
    for name in PROBABILITIES:
        if not 0 <= getattr(recipe, name) <= 1:
            raise ValueError(f"recipe.{name}: it must be a probability from 0 to 1.")
    if recipe.subject_references < 0:
        raise ValueError("recipe.subject_references: it must be 0, for none, or a number of pictures.")
    if recipe.adapter.kind == "lora" and not recipe.adapter.targets:
        raise ValueError('recipe.adapter.targets: there are none; name layers, such as ["to_k", "to_v"].')
    try:
        re.compile(recipe.adapter.pattern)
    except re.error as error:
        raise ValueError(f"recipe.adapter.pattern: it is no regular expression ({error}).") from error
    try:
        recipe.prompt.format(token="", class_name="")
    except (AttributeError, IndexError, KeyError, ValueError) as error:
        raise ValueError(
            f"recipe.prompt: {recipe.prompt!r} has more in braces than {{token}} and {{class_name}};"
            " leave that out."
        ) from error


def with_values(record: Changed, table: Mapping[str, Any], place: str) -> Changed:
    """Return a dataclass with the values of a table; an inner table changes the inner dataclass.

    Raises:
        ValueError: for an unknown key or a value of another type; it names `place` and the key.
    """
    return validated(type(record), _merged(record, table, f"{place}."), table, f"{place}.")


def _merged(record: Any, table: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the values of a dataclass as nested tables, changed by those of `table`."""
    values = dataclasses.asdict(record)
    check_names(table, list(values), place)
    for name, value in table.items():
        old = getattr(record, name)
        inner = dataclasses.is_dataclass(old)
        if inner and not isinstance(value, Mapping):
            raise ValueError(f"{place}{name}: {value!r} is not a table.")
        values[name] = _merged(old, value, f"{place}{name}.") if inner else value
    return values


def check_names(table: Mapping[str, Any], names: list[str], place: str) -> None:
    """Raise ValueError when a key of the table is not in `names`; the message shows it after `place`."""
    for name in table:
        if name not in names:
            raise ValueError(f"{place}{name}: there is no such key; choose {_choices(names)}.")


def validated(
    kind: type[Changed], values: Mapping[str, Any], table: Mapping[str, Any], place: str
) -> Changed:
    """Return the dataclass that `values` describe; pydantic checks their types.

    As JSON, because a list is then a tuple and a whole number a fraction where the dataclass has one, and
    nothing else is converted. A date has no type that a key accepts.

    Args:
        kind: the dataclass.
        values: one for each field, or for those without default.
        table: the part of the values that the user wrote, for the message.
        place: text before the key in the error message, such as "recipe.".

    Raises:
        ValueError: for the first value of a wrong type.
    """
    text = _as_json(values)
    try:
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
    value: Any = table
    for key in first["loc"]:
        if isinstance(value, Mapping) or (isinstance(key, int) and key < len(value)):
            value = value[key]
    name = place + ".".join(key for key in first["loc"] if isinstance(key, str))
    if first["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", str(first.get("ctx", {}).get("expected")))
        raise ValueError(f"{name}: there is no {value!r}; choose {_choices(choices)}.")
    raise ValueError(f"{name}: {value!r} is not {TYPE_WORDS.get(first['type'], 'a list of that length')}.")


def _as_json(values: Any) -> str:
    """Return values of a TOML file as JSON; a date, which no key takes, is a table there."""
    return json.dumps(values, default=lambda date: {"date": str(date)})


def _check_path(name: str, path: Path) -> None:
    """Raise ValueError for a text that the system does not take as a path."""
    try:
        path.exists()
        if "\0" in str(path):
            raise ValueError("it holds the character NUL")
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: it cannot be the path of a file ({error}); correct it."[:200]) from error


def _choices(names) -> str:
    return ", ".join(f'"{name}"' for name in names)
