"""Which of a subject's own words a prompt contradicts: "a glass sks teapot" removes the teapot's material."""

import re
from collections.abc import Mapping, Sequence

# A subject's dictionary names its own attributes; a prompt that gives another value of a kind edits it.
VALUES = {
    "colour": """red orange yellow green blue purple violet pink brown black white grey gray beige turquoise
        cyan magenta teal navy maroon crimson scarlet golden silvery ivory colourful colorful transparent""",
    "material": """glass crystal metal metallic steel iron brass bronze copper gold silver aluminium aluminum
        wood wooden bamboo stone marble granite clay ceramic porcelain plastic rubber leather wool woolen
        woollen cotton silk velvet felt fabric paper cardboard ice chocolate wax concrete""",
    "texture": """smooth rough shiny glossy matte polished fluffy furry fuzzy soft hard woven knitted cracked
        rusty rusted weathered wrinkled""",
    "pattern": """striped stripes checkered chequered checks dotted spotted dots plaid floral plain paisley
        camouflage zigzag""",
    "shape": "round square rectangular triangular oval spherical cubic cylindrical conical flat curved",
    "size": "tiny small little large big huge giant miniature tall short thin thick",
}
ALIASES = {"color": "colour", "colors": "colour"} | {f"{kind}s": kind for kind in VALUES}


def words_to_remove(prompt: str, attributes: Mapping[str, Sequence[str]], typed: str = "") -> list[str]:
    """The subject's own words of every kind to which the prompt gives another value, then the typed ones.

    attributes: kind -> the subject's words, as in `Subject.attributes`; those that the prompt uses itself
    stay. typed: words between commas; one that names a kind ("material") means the subject's words of it.
    """
    said = set(_words(prompt))
    looked_up = []
    for kind, own in attributes.items():
        values = VALUES.get(_kind(kind), "").split()
        if said & (set(values) - {word for value in own for word in _words(value)}):
            looked_up += [value for value in own if not said >= set(_words(value))]
    kinds = {_kind(kind): list(own) for kind, own in attributes.items()}
    parts = [part.strip() for part in re.split(r"[,\n]", typed) if part.strip()]
    asked = [word for part in parts for word in kinds.get(_kind(part), [part])]
    return list(dict.fromkeys(looked_up + asked))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.casefold())


def _kind(name: str) -> str:
    name = name.strip().casefold()
    return ALIASES.get(name, name)
