"""Which of a subject's own words a prompt contradicts: "a glass sks teapot" removes the teapot's material."""

import re
from collections.abc import Mapping, Sequence

# A subject's dictionary names its own attributes; a prompt that gives another value of a kind edits it.
VALUES = {
    "colour": """red orange yellow green blue purple violet pink brown black white grey gray beige turquoise
        cyan magenta teal navy maroon crimson scarlet golden silvery ivory colourful colorful transparent
        amber apricot aqua aquamarine azure blond blonde burgundy charcoal chartreuse chestnut cobalt coral
        cream emerald fuchsia ginger indigo khaki lavender lilac lime mauve mustard ochre olive peach plum
        rose ruby russet salmon sapphire tan taupe tawny terracotta ultramarine vermilion pastel neon""",
    "material": """glass crystal metal metallic steel iron brass bronze copper gold silver aluminium aluminum
        wood wooden bamboo stone marble granite clay ceramic porcelain plastic rubber leather wool woolen
        woollen cotton silk velvet felt fabric paper cardboard ice chocolate wax concrete acrylic alabaster
        amber bone brick burlap canvas carbon cashmere cedar chrome cork corduroy denim earthenware ebony
        enamel fiberglass fibreglass flannel fleece foam fur gingerbread jade jelly jute lace lacquer latex
        linen mahogany mohair mud nylon oak obsidian pearl pewter pine platinum plush plywood polyester quartz
        rattan resin rope sand satin silicone slate stoneware straw suede teak terracotta tin titanium tweed
        vinyl walnut wicker yarn""",
    "texture": """smooth rough shiny glossy matte polished fluffy furry fuzzy soft hard woven knitted cracked
        rusty rusted weathered wrinkled bumpy coarse crinkled crocheted embossed glittery grainy hairy ribbed
        silky sparkly spiky velvety wet woolly worn""",
    "pattern": """striped stripes checkered chequered checks dotted spotted dots plaid floral plain paisley
        camouflage zigzag argyle houndstooth herringbone tartan gingham mottled marbled flowery geometric
        leopard zebra patterned""",
    "shape": """round square rectangular triangular oval spherical cubic cylindrical conical flat curved
        angular boxy elliptical heptagonal hexagonal octagonal pentagonal polygonal pyramidal spiral tubular
        twisted crescent helical trapezoidal""",
    "size": """tiny small little large big huge giant miniature tall short thin thick enormous gigantic
        colossal massive mini wide narrow slim fat""",
}
# Words that end the noun phrase of a subject; determiners open it.
BOUNDARY_WORDS = """
    a an the this that these those my your his her its our their some one two three each every another
    of on in at near next to beside besides under over behind with without by from against inside into onto
    between above below beneath around through among upon off across along before after like as while when
    where who which sitting standing lying placed resting wearing holding"""
BOUNDARIES = frozenset(BOUNDARY_WORDS.split())
PREDICATES = {"is", "are", "was", "were", "becomes", "painted", "dyed", "coloured", "colored"}
MADE = {"made", "built", "carved", "formed", "crafted", "cast", "knitted", "woven"}
ALIASES = {"color": "colour", "colors": "colour"} | {f"{kind}s": kind for kind in VALUES}


def words_to_remove(
    prompt: str, attributes: Mapping[str, Sequence[str]], typed: str = "", names: Sequence[str] = ()
) -> list[str]:
    """Return the subject's own words of the kinds to which the prompt gives another value, then typed ones.

    attributes: kind -> the subject's words, as in `Subject.attributes`; those that the prompt uses itself
    stay. typed: words between commas; one that names a kind ("material") means the subject's words of it.
    names: what the prompt calls the subject, the longest first; only its words about that count, and all of
    the prompt where no name is given.
    """
    said = set(subject_words(prompt, names) if names else _words(prompt))
    looked_up = []
    for kind, own in attributes.items():
        values = VALUES.get(_kind(kind), "").split()
        if said & (set(values) - {word for value in own for word in _words(value)}):
            looked_up += [value for value in own if not said >= set(_words(value))]
    kinds = {_kind(kind): list(own) for kind, own in attributes.items()}
    parts = [part.strip() for part in re.split(r"[,\n]", typed) if part.strip()]
    asked = [word for part in parts for word in kinds.get(_kind(part), [part])]
    return list(dict.fromkeys(looked_up + asked))


def subject_words(prompt: str, names: Sequence[str]) -> list[str]:
    """Return what a prompt states about the subject.

    The words before its name, and those of "made of", "is", "painted".

    "a small sks dog next to a red car" -> ["small"]. Empty where the prompt has none of the names.
    """
    plain = re.sub(r"[()\[\]{}]", " ", re.sub(r":\s*-?[\d.]+\s*\)", ")", prompt))  # without weights
    parts = re.findall(r"[^\W_]+|[^\w\s]", plain.casefold())
    known = {word for values in VALUES.values() for word in values.split()}
    for name in names:
        wanted = re.findall(r"[^\W_]+", name.casefold())
        starts = [
            i
            for i in range(len(parts) - len(wanted) + 1)
            if wanted and parts[i : i + len(wanted) - 1] == wanted[:-1]
            and parts[i + len(wanted) - 1] in (wanted[-1], f"{wanted[-1]}s")
        ]  # fmt: skip
        if starts:
            said = ([*_before(parts, i, known), *_after(parts, i + len(wanted), known)] for i in starts)
            return list(dict.fromkeys(word for words in said for word in words))
    return []


def _before(parts: Sequence[str], start: int, known: set[str]) -> list[str]:
    """Return the words of the noun phrase before its noun; a list of adjectives goes on over commas."""
    words = []
    for i in range(start - 1, -1, -1):
        part = parts[i]
        if part in ".;!?" or part in BOUNDARIES:
            break
        if part == "," and (i == 0 or parts[i - 1] not in known):
            break
        words.append(part)
    return [word for word in reversed(words) if word.isalpha()]


def _after(parts: Sequence[str], end: int, known: set[str]) -> list[str]:
    """Return the words after "made of", "in", "is" or "painted", up to the next noun phrase.

    "in" counts only where a value follows at once.
    """
    rest = [part for part in parts[end : end + 8] if part.isalpha() or part in ".;!?,"]
    if not rest:
        return []
    if rest[0] in MADE and len(rest) > 1:
        rest = rest[2 + (rest[1:3] == ["out", "of"]) :]
    elif rest[0] in PREDICATES or (rest[0] in ("in", "of") and len(rest) > 1 and rest[1] in known):
        rest = rest[1:]
        if rest and rest[0] in MADE and len(rest) > 1:
            rest = rest[2:]
    else:
        return []
    words = []
    for part in rest:
        if part in ".;!?," or part in BOUNDARIES:
            break
        words.append(part)
    return words


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.casefold())


def _kind(name: str) -> str:
    name = name.strip().casefold()
    return ALIASES.get(name, name)
