"""The subject: what was learned, how, and where its weights are. It travels as INLAY_SUBJECT."""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ...families.table import name_of_stored

VERSION = 1
LONGEST_WORDS = 200  # characters of a name of the subject; the text encoder's window holds about 300
OWN_FIELDS = {"class_name", "lora", "recipe"}  # which other programs' notes on a LoRA do not have together


@dataclass(frozen=True)
class Subject:
    """One learned subject; also a JSON file of the same name beside its LoRA."""

    token: str  # the rare word that stands for it, e.g. "sks"
    class_name: str  # what it is, e.g. "cat"
    caption: str  # the sentence it was learned with
    lora: str  # its weights as LoRA loaders list them, e.g. "inlay/cat-dreamcom-0f3a.safetensors"
    recipe: str
    family: str  # our own name of the model family, e.g. "sd15"; see families/table.py
    steps: int
    seed: int
    rank: int
    attributes: dict[str, list[str]] = field(default_factory=dict)  # attribute kind -> words
    losses: list[float] = field(default_factory=list)
    version: int = VERSION
    previous: str = ""  # the weights of the subject that the training went on from
    held_out: list[list[float]] = field(default_factory=list)  # (step, loss) of a picture that was held out

    @property
    def words(self) -> str:
        """How to name the subject in a prompt: "sks cat"."""
        return f"{self.token} {self.class_name}"

    def to_json(self) -> str:
        """Return the text of the subject's file: ASCII, indented."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=True)

    @classmethod
    def from_json(cls, text: str, name: str = "The subject's JSON file") -> "Subject":
        """Raise ValueError, naming the file, when the text is no subject of this or an earlier version.

        What other programs wrote into the file beside it is left out.
        """
        try:
            facts = dict(json.loads(text.removeprefix("\ufeff")))
            newer = facts.get("version", VERSION) > VERSION
            known = {f.name: facts[f.name] for f in fields(cls) if f.name in facts}
            subject = None if newer else cls(**known)
            if subject is not None:
                _check_types(known)
                subject = replace(subject, family=name_of_stored(subject.family))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{name} is damaged: it cannot be read ({error}); delete it to train again."
            ) from error
        if subject is None:
            raise ValueError(f"{name} was stored by a newer Inlay; update Inlay to load it.")
        return subject


def _check_types(known: dict[str, Any]) -> None:
    """Raise TypeError, naming the field, for a value of another type than `Subject` has."""
    for name, value in known.items():
        wanted = next(f.type for f in fields(Subject) if f.name == name)
        kind = {str: str, int: int}.get(wanted)  # pyright: ignore[reportArgumentType, reportCallIssue]
        if kind is not None:
            fits = isinstance(value, kind) and not isinstance(value, bool)
        elif name == "held_out":
            fits = isinstance(value, list) and all(
                isinstance(point, list)
                and len(point) == 2
                and all(isinstance(number, int | float) for number in point)
                for point in value
            )
        elif name == "losses":
            fits = isinstance(value, list) and all(isinstance(loss, int | float) for loss in value)
        else:
            fits = isinstance(value, dict) and all(
                isinstance(words, list) and all(isinstance(word, str) for word in words)
                for words in value.values()
            )
        if not fits:
            raise TypeError(f"its {name} is {json.dumps(value)[:40]}")


def check_words(name: str, words: str) -> None:
    """Raise ValueError, naming the input, for a name of the subject that is no word or two."""
    if len(words) > LONGEST_WORDS:
        raise ValueError(
            f'{name}: "{words[:20]}..." has {len(words)} characters; write a word or two, at most'
            f" {LONGEST_WORDS} characters."
        )


def is_subject(text: str) -> bool:
    """Whether a JSON file is a `Subject`. Other programs' notes on a LoRA have the same name."""
    try:
        facts = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return False
    return isinstance(facts, dict) and facts.keys() >= OWN_FIELDS
