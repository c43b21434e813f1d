"""AttributeSubstitutionEncode: a prompt without the subject's own attributes."""

import torch
from comfy_api.latest import io, ui

from ..conditioning.attribute_words import words_to_remove
from ..conditioning.substitution import JOINT, PROJECTIONS, Removed, substitute, word_rows
from .checks import check_texts, check_wired


class AttributeSubstitutionEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttributeSubstitutionEncode",
            display_name="Edit Subject Prompt (Inlay)",
            category="Inlay/prompt",
            description="Encodes a prompt and takes the meaning of other words out of it, so that a learned"
            ' subject follows an edit: "a glass sks teapot" without "brass" (DreamMix).',
            search_aliases=[
                "clip text encode",
                "prompt",
                "remove concept",
                "DreamMix",
                "TAS",
                "edit attribute",
            ],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the checkpoint."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to paint; weights, embeddings and schedules as in CLIP Text Encode.",
                ),
                io.String.Input(
                    "remove",
                    default="",
                    tooltip="The subject's own words that the prompt contradicts: brass, shiny. With a"
                    " subject wired in, also the name of one of its attributes: material; empty then means"
                    " whatever the prompt says another of. Without a subject, empty means nothing.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much of the removed words is taken out. 0: the plain prompt. 1: all.",
                ),
                io.Combo.Input(
                    "projection",
                    options=list(PROJECTIONS),
                    default=JOINT,
                    advanced=True,
                    tooltip="joint: off all removed words at once; nothing of them is left. sequential: off"
                    " one after another, as in DreamMix's released code.",
                ),
                io.Custom("INLAY_SUBJECT").Input(
                    "subject",
                    optional=True,
                    tooltip="Its own words for an attribute are removed when the prompt gives another value.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning", tooltip="The prompt without the removed words."
                ),
                io.String.Output(
                    display_name="report", tooltip="What was removed from which words, and how much."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, clip, prompt: str, remove: str = "", strength: float = 1.0, projection: str = JOINT, subject=None
    ) -> io.NodeOutput:
        """Return the prompt's conditioning without the removed words, and a report."""
        check_wired(clip=clip)
        check_texts(prompt=prompt, remove=remove)
        if subject is not None:
            check_wired(subject=subject)
        if not 0 <= strength <= 1:
            raise ValueError(f"strength: {strength} is out of range; give a number from 0 to 1.")
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        names = [subject.words, subject.class_name, subject.token] if subject else []
        removed = words_to_remove(prompt, subject.attributes if subject else {}, remove, names)
        if not removed or not strength:
            return _output(conditioning, "Nothing was removed.")

        text = " ".join(removed)
        removal = clip.encode_from_tokens_scheduled(clip.tokenize(text), show_pbar=False)
        words, off = _rows(clip, prompt, conditioning[0][0]), _rows(clip, text, removal[0][0], one_chunk=True)
        if not off:
            return _output(
                conditioning, f"Nothing was removed: '{text}' holds no word that the text encoder knows."
            )
        conditioning, reports = substitute(
            conditioning, removal, [row for row, _ in words], [row for row, _ in off], strength, projection
        )
        names = {row: _name(clip, token) for row, token in words}
        lines = [f"Removed {', '.join(removed)} ({len(off)} rows, {projection}, strength {strength:g})."]
        for entry in reports:
            lines += _lines(entry, names, [_name(clip, token) for _, token in off])
        return _output(conditioning, "\n".join(lines))


def _rows(clip, text: str, encoded: torch.Tensor, one_chunk: bool = False) -> list[tuple[int, object]]:
    tokens = clip.tokenize(text, return_word_ids=True)
    tokens = {name: chunks for name, chunks in tokens.items() if _is_loaded(clip, name)}
    if one_chunk and any(len(chunks) > 1 for chunks in tokens.values()):
        length = min(len(chunks[0]) for chunks in tokens.values() if len(chunks) > 1)
        raise ValueError(
            f"remove: the words are longer than the {length} tokens that the text encoder reads at once;"
            " remove fewer."
        )
    return word_rows(tokens, encoded.shape[1])


def _is_loaded(clip, name: str) -> bool:
    """Whether the text encoder of this name is loaded; SD 3's tokenizer makes tokens for all of its three."""
    model = clip.cond_stage_model
    return getattr(model, {"l": "clip_l", "g": "clip_g"}.get(name, name), model) is not None


def _name(clip, token) -> str:
    """Return a token in letters; an embedding has none."""
    if not isinstance(token, int):
        return "embedding"
    for part in vars(clip.tokenizer).values():
        name = getattr(part, "inv_vocab", {}).get(token)
        if name is not None:
            return str(name).removesuffix("</w>")
    return str(token)


def _lines(removed: Removed, names: dict[int, str], off: list[str]) -> list[str]:
    lines = [
        f"row {row.index} '{names[row.index]}': {row.removed:.0%}, most like '{off[row.nearest]}'"
        for row in removed.rows
    ]
    if removed.pooled is not None:
        lines.append(f"pooled: {removed.pooled:.0%}")
    return lines


def _output(conditioning: list, report: str) -> io.NodeOutput:
    return io.NodeOutput(conditioning, report, ui=ui.PreviewText(report))
