"""A local vision-language model proposes the subject's attribute dictionary (DreamMix, sec. 3.3).

Any image-to-text chat model that transformers opens from a folder will do (Qwen-VL, SmolVLM, LLaVA ...);
nothing is ever downloaded, and only safetensors are read. DreamMix asked GPT-4o and did not release how; the
question and the vote are ours.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .attribute_dictionary import Attributes, parse_attributes

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
    """What the model in `folder` says in at least half of the pictures (H,W,3) in [0,1], each asked alone.

    Raises ValueError when the folder holds no such model or no answer can be read.
    """
    chat = Chat(folder, device, dtype)
    return vote([parse_answer(chat.ask(image, QUESTION.format(class_name=class_name))) for image in images])


class Chat:
    """One open model; `ask` is deterministic."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype):
        from transformers import AutoModelForImageTextToText, AutoProcessor  # seconds to import

        try:
            self.processor: Any = AutoProcessor.from_pretrained(str(folder), local_files_only=True)
            model: Any = AutoModelForImageTextToText.from_pretrained(
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
        """The answer to a question about an image (H,W,3) in [0,1]."""
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
    """The dictionary in an answer: the JSON in it, else its lines of the form "kind: words".

    Raises ValueError, with the answer's beginning, when there is neither.
    """
    begin, end = answer.find("{"), answer.rfind("}")
    if -1 < begin < end:
        try:
            return _lower(parse_attributes(answer[begin : end + 1]))
        except ValueError:
            pass  # prose in braces, or JSON cut off: its lines may still say it
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
    """The words that at least half of the proposals name, most named first."""
    proposals = list(proposals)
    counts = Counter(
        (kind, word) for proposal in proposals for kind, words in proposal.items() for word in words
    )
    agreed: dict[str, list[str]] = {}
    for (kind, word), count in counts.most_common():
        if 2 * count >= len(proposals):
            agreed.setdefault(kind, []).append(word)
    return agreed
