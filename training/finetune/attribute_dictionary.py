"""Attribute Decoupling (DreamMix, sec. 3.3): what a subject looks like, kind by kind, and prompts made of it.

A dictionary maps each kind of attribute to the subject's own words, most telling first. As a file:

    {
      "colour": ["brown"],
      "material": ["clay"],
      "shape": ["round", "squat"],
      "accessory": ["a lid"]
    }

Kinds are free. `AttributeSubstitutionEncode` lists the values of colour, material, texture, pattern, shape
and size, and finds by them what a prompt contradicts. Words of the kinds accessory, part, clothing and
feature follow the class name with "with", all others stand before it; a word that begins with a preposition
("made of clay") follows as it is.

`propose_attributes` asks a local vision-language model. Any image-to-text chat model that transformers opens
from a folder will do (Qwen-VL, SmolVLM, LLaVA ...); nothing is downloaded, and only safetensors are read.
DreamMix used GPT-4o and did not release its prompt; the question and the vote are ours.
"""

import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...common import libraries
from ...common.files import parse_json, read_text
from .subject import check_words

Attributes = Mapping[str, Sequence[str]]  # kind -> words

WITH = {"accessory", "accessories", "part", "parts", "clothing", "feature", "features"}
PREPOSITIONS = {"with", "without", "wearing", "holding", "in", "on", "of", "from", "made", "covered"}
SUBJECT = "{subject}"


def parse_attributes(text: str) -> dict[str, list[str]]:
    """Return a dictionary from JSON, or from lines as people type them: "colour: brown, dark.

    Material: clay".

    Words keep their order, lose surrounding blanks and repetitions; kinds become lower case. Empty text is an
    empty dictionary. Raises ValueError that shows the part it could not read.
    """
    text = text.strip().removeprefix("\ufeff")
    return _checked(_json(text).items() if text.startswith("{") else _lines(text))


def read_attributes(path: Path) -> dict[str, list[str]]:
    """Return the dictionary in a JSON file; raises ValueError when it is none."""
    return parse_attributes(read_text(path, "attributes"))


def write_attributes(attributes: Attributes) -> str:
    """Return the dictionary as JSON, which `parse_attributes` reads back."""
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
    of them come. An empty `token` leaves it out. `template` has the words around the subject; its "a"
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
    """Yield combination `number` of one word or none of each kind: digits in a mixed base, 0 = none."""
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


QUESTION = (
    "Describe how the {class_name} in this picture looks, as JSON from kinds of attributes to lists of words,"
    ' for example {{"colour": ["brown"], "material": ["clay"], "texture": ["smooth"], "pattern": ["striped"],'
    ' "shape": ["round"], "accessory": ["a lid"]}}. Only kinds that can be seen, one or two words each.'
    " Answer with the JSON alone."
)
ANSWER_TOKENS = 256
# One "kind: words" of an answer that is no JSON, with or without the marks of a list.
LINE = re.compile(
    r"^[\s>*+-]*(?:\d+[.)])?\s*([^\W\d_][^:{}\[\]\"\n]{0,24}?)[\s*]*:[\s*]*(\S[^{}\[\]\"\n]*)$", re.MULTILINE
)


def propose_attributes(
    images: Sequence[Tensor], class_name: str, folder: Path, device: torch.device, dtype: torch.dtype
) -> dict[str, list[str]]:
    """Return the words that the model in `folder` gives for at least half of the images (H, W, 3) in [0, 1].

    Raises ValueError when the folder holds no such model or no answer can be read.
    """
    chat = Chat(folder, device, dtype)
    return vote([parse_answer(chat.ask(image, QUESTION.format(class_name=class_name))) for image in images])


class Chat:
    """One open model; `ask` is deterministic."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype):
        transformers = libraries.transformers()
        try:
            self.processor: Any = transformers.AutoProcessor.from_pretrained(
                str(folder), local_files_only=True
            )
            model: Any = transformers.AutoModelForImageTextToText.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, torch_dtype=dtype
            )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"vision_model: '{folder.name}' does not open as a vision-language model"
                f" ({str(error).splitlines()[0]}); put a whole transformers folder there."
            ) from error
        self.model = model.to(device).eval()

    @torch.inference_mode()
    def ask(self, image: Tensor, question: str) -> str:
        """Return the answer to a question about an image (H,W,3) in [0,1]."""
        array = (image[..., :3].clamp(0, 1) * 255).round().byte().cpu().numpy()
        content = [
            {"type": "image", "image": Image.fromarray(np.ascontiguousarray(array))},
            {"type": "text", "text": question},
        ]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)
        said = self.model.generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)
        answer = said[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(answer, skip_special_tokens=True)[0].strip()


def parse_answer(answer: str) -> dict[str, list[str]]:
    """Return the dictionary in an answer: the JSON in it, else its lines of the form "kind: words".

    Raises ValueError, with the answer's beginning, when there is neither.
    """
    begin, end = answer.find("{"), answer.rfind("}")
    if -1 < begin < end:
        try:
            return _lower(parse_attributes(answer[begin : end + 1]))
        except ValueError:
            pass  # prose in braces, or JSON cut off: its lines may still have it
    found = parse_attributes("\n".join(f"{kind}: {words}" for kind, words in LINE.findall(answer)))
    if not found:
        raise ValueError(
            f"vision_model: its answer names no attributes ('{' '.join(answer.split())[:80]}'); type them"
            " yourself."
        )
    return _lower(found)


def _lower(attributes: Attributes) -> dict[str, list[str]]:
    return {kind: [word.strip(" .*").lower() for word in words] for kind, words in attributes.items()}


def vote(proposals: Iterable[Attributes]) -> dict[str, list[str]]:
    """Return the words that at least half of the proposals name, most named first."""
    proposals = list(proposals)
    counts = Counter(
        (kind, word) for proposal in proposals for kind, words in proposal.items() for word in words
    )
    agreed: dict[str, list[str]] = {}
    for (kind, word), count in counts.most_common():
        if 2 * count >= len(proposals):
            agreed.setdefault(kind, []).append(word)
    return agreed
