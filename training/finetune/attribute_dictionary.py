"""Attribute Decoupling (DreamMix, sec. 3.3): what a subject looks like, kind by kind, and prompts made of it.

A dictionary maps each kind of attribute to the subject's own words, most telling first. As a file:

    {
      "colour": ["brown"],
      "material": ["clay"],
      "shape": ["round", "squat"],
      "accessory": ["a lid"]
    }

Kinds are free; `AttributeSubstitutionEncode` knows the values of colour, material, texture, pattern, shape
and size, and finds by them what a prompt contradicts. Words of the kinds accessory, part, clothing and
feature follow the class name with "with", all others stand before it; a word that begins with a preposition
("made of clay") follows as it is.
"""

import json
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ...common.text_files import parse_json, read_text
from .subject import check_words

Attributes = Mapping[str, Sequence[str]]  # kind -> words

WITH = {"accessory", "accessories", "part", "parts", "clothing", "feature", "features"}
PREPOSITIONS = {"with", "without", "wearing", "holding", "in", "on", "of", "from", "made", "covered"}
SUBJECT = "{subject}"


def parse_attributes(text: str) -> dict[str, list[str]]:
    """A dictionary from JSON, or from lines as people type them: "colour: brown, dark; material: clay".

    Words keep their order, lose surrounding blanks and repetitions; kinds become lower case. Empty text is an
    empty dictionary. Raises ValueError that shows the part it could not read.
    """
    text = text.strip().removeprefix("\ufeff")
    return _checked(_json(text).items() if text.startswith("{") else _lines(text))


def read_attributes(path: Path) -> dict[str, list[str]]:
    """The dictionary in a JSON file; raises ValueError when it is none."""
    return parse_attributes(read_text(path, "attributes"))


def write_attributes(attributes: Attributes) -> str:
    """The dictionary as JSON, which `parse_attributes` reads back."""
    return json.dumps({kind: list(words) for kind, words in attributes.items()}, indent=2, ensure_ascii=False)


def _json(text: str) -> Mapping:
    try:
        return parse_json(text, "attributes: this")
    except ValueError as error:
        raise ValueError(
            f'{error} Write for example {{"colour": ["brown"], "material": ["clay"]}}.'
        ) from error


def _lines(text: str) -> Iterator[tuple[str, list[str]]]:
    for line in filter(str.strip, re.split(r"[;\n]", text)):
        kind, colon, words = line.partition(":")
        if not colon:
            raise ValueError(
                f"attributes: '{line.strip()}' has no kind; write for example colour: brown; material: clay."
            )
        yield kind, words.split(",")


def _checked(found: Iterable[tuple[str, object]]) -> dict[str, list[str]]:
    attributes: dict[str, list[str]] = {}
    for kind, words in found:
        words = [words] if isinstance(words, str) else words
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(
                f'attributes: the words of "{kind}" are no list of words; write for example ["brown"].'
            )
        for word in (kind, *words):
            check_words("attributes", " ".join(word.split()))
        known = attributes.setdefault(" ".join(kind.split()).lower(), [])
        known += [word for word in (" ".join(word.split()) for word in words) if word and word not in known]
    return {kind: list(dict.fromkeys(words)) for kind, words in attributes.items() if kind and words}


def compose_prompts(
    attributes: Attributes,
    class_name: str,
    token: str = "",
    count: int = 8,
    seed: int = 0,
    template: str = f"a {SUBJECT}",
) -> list[str]:
    """Up to `count` different prompts "a [token] [attributes] [class] [attributes]", combined at random.

    Each takes at least one kind, and one word of every kind it takes; when there are fewer combinations, all
    of them come. An empty `token` leaves it out. `template` says what stands around the subject; its "a"
    becomes "an" where it must. Raises ValueError when there is no attribute, class or place for them.
    """
    if not attributes:
        raise ValueError("attributes: there are none; write for example colour: brown; material: clay.")
    if not class_name.strip():
        raise ValueError("class_name: it is empty; say in a word or two what the subject is, such as teapot.")
    check_words("class_name", class_name.strip())
    check_words("token", token.strip())
    if SUBJECT not in template:
        raise ValueError(f"template: it has no {SUBJECT}; write for example a photo of a {SUBJECT}.")
    draw = random.Random(seed)
    combinations = math.prod(len(words) + 1 for words in attributes.values())
    chosen: dict[int, None] = {}  # in the order they were drawn
    while len(chosen) < min(count, combinations - 1):
        chosen[draw.randrange(1, combinations)] = None
    prompts = [
        _fill(template, attributes_to_words(dict(_choice(attributes, number)), class_name, token))
        for number in chosen
    ]
    return list(dict.fromkeys(prompts))


def _choice(attributes: Attributes, number: int) -> Iterator[tuple[str, str]]:
    """Combination `number` of one word or none of each kind: digits in a mixed base, 0 = none."""
    for kind, words in attributes.items():
        number, digit = divmod(number, len(words) + 1)
        if digit:
            yield kind, words[digit - 1]


def attributes_to_words(words: Mapping[str, str], class_name: str, token: str = "") -> str:
    """One word of each kind about the class: "sks brown clay teapot with a lid".

    What follows the class follows in the dictionary's order: "with a lid and a chain made of brass".
    """
    before, worn, after = [], [], []
    for kind, word in words.items():
        if word.split()[0].lower() in PREPOSITIONS:
            after.append(word)
        else:
            (worn if kind in WITH else before).append(word)
    if worn:
        after.insert(0, "with " + " and ".join(worn))
    return " ".join(filter(None, [token.strip(), *before, class_name.strip(), *after]))


def _fill(template: str, subject: str) -> str:
    article = r"\b([aA])(?=\s+" + re.escape(SUBJECT) + ")"
    if subject[0].lower() in "aeiou":
        template = re.sub(article, r"\1n", template)
    return template.replace(SUBJECT, subject)
