"""What a training prompt is: captions of the hole and of the whole picture, with words left out or put in."""

import numpy as np

from .. import scenes
from .scene_data import EMPTY

FILLERS = ("sks", "small", "nice", "old", "shiny", "toy", "glass", "wooden", "big", "new", "zwx", "little")
# every word a caption can hold; their embeddings are trained
VOCABULARY = (
    "a", "an", "photo", "of", "wearing", "with", "hat", "bow", "flag", "in", "room", "and", "empty",
    *scenes.COLOURS, *scenes.CLASSES, *scenes.PATTERNS,
)  # fmt: skip


def words_of(rng: np.random.Generator, thing: dict[str, str], drop: float) -> tuple[list[str], str]:
    """The looks and what is worn, each left out with probability `drop`; sometimes with a strange word."""
    looks = [thing["colour"]] if rng.random() > drop else []
    if thing["pattern"] != "plain" and rng.random() > drop:
        looks.append(thing["pattern"])
    if rng.random() < drop:
        looks.insert(int(rng.integers(len(looks) + 1)), FILLERS[int(rng.integers(len(FILLERS)))])
    return looks, thing["accessory"] if rng.random() > drop else "none"


def hole_caption(rng: np.random.Generator, thing: dict[str, str], drop: float = 0.08) -> str:
    """'a photo of a red striped mug wearing a hat'."""
    looks, worn = words_of(rng, thing, drop)
    return scenes.phrase(looks, thing["kind"], worn)


def picture_caption(rng: np.random.Generator, things: list[dict[str, str]], drop: float = 0.08) -> str:
    """'a red mug and a blue cat in a room', in any order."""
    named = []
    for index in rng.permutation(len(things)):
        looks, worn = words_of(rng, things[index], drop)
        named.append(scenes.phrase(looks, things[index]["kind"], worn).removeprefix("a photo of "))
    return f"{' and '.join(named)} in a room" if named else "an empty room"


def prompt(
    rng: np.random.Generator,
    things: list[dict[str, str]],
    content: int,
    whole: float = 0.25,
    free: float = 0.10,
) -> str:
    """The prompt of one example.

    Args:
        content: Index of the thing the hole holds, or EMPTY, or UNCLEAR.
        whole: Share of captions of the whole picture where the hole holds one thing.
        free: Share of empty prompts (for classifier-free guidance).
    """
    if rng.random() < free:
        return ""
    if content >= 0:
        if rng.random() < whole:
            return picture_caption(rng, things)
        return hole_caption(rng, things[content])
    if content == EMPTY:
        choice = rng.random()
        return picture_caption(rng, things) if choice < 0.6 else scenes.EMPTY if choice < 0.85 else ""
    return picture_caption(rng, things) if rng.random() < 0.8 else ""


def batch_prompt(rng: np.random.Generator, things: list[dict[str, str]], content: int, long: bool) -> str:
    """The prompt of an example in a batch of few text tokens, where no whole picture fits, or of many."""
    if not long and content < 0:
        return "" if content != EMPTY or rng.random() < 0.5 else scenes.EMPTY
    return prompt(rng, things, content, whole=0.6 if long else 0.0)
