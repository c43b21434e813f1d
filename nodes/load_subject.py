"""InlayLoadSubject: a subject that was learned before, here or elsewhere, on the model it belongs to."""

from dataclasses import replace
from pathlib import Path

import comfy.sd
import folder_paths
from comfy_api.latest import io

from ..conditioning.family import family


class InlayLoadSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayLoadSubject",
            display_name="Load Subject (Inlay)",
            category="Inlay",
            description="Puts a learned subject on the model: one of Subject Finetune's, or a LoRA that"
            " DreamMix, diffusers or kohya's tools trained.",
            search_aliases=[
                "load lora",
                "DreamMix",
                "pytorch_lora_weights",
                "diffusers lora",
                "INLAY_SUBJECT",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model the subject was trained on; it is not changed."),
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="A file in models/loras. Subject Finetune keeps its results in inlay/. DreamMix's"
                    " pytorch_lora_weights.safetensors is read as it is.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How much of it: 1 = as learned, 0 = nothing.",
                ),
                io.String.Input(
                    "token",
                    default="",
                    tooltip="The subject's rare word; empty = as the file says, if it does.",
                ),
                io.String.Input(
                    "class_name", default="", tooltip="What the subject is; empty = as the file says."
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="For files from elsewhere that changed the text encoder too.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the subject on it."),
                io.Clip.Output(display_name="clip", tooltip="The wired-in text encoder with its part of it."),
                io.Custom("LORA_MODEL").Output(display_name="lora", tooltip="The weights."),
                io.Custom("INLAY_SUBJECT").Output(
                    display_name="subject", tooltip="Its words and history, for Inlay's other nodes."
                ),
            ],
        )

    @classmethod
    def execute(cls, model, lora_name, strength, token, class_name, clip=None) -> io.NodeOutput:
        from ..training.foreign import read_lora_file  # loaded when needed

        path = Path(folder_paths.get_full_path_or_raise("loras", lora_name))
        lora, metadata = read_lora_file(path)
        subject = _subject(path, metadata, lora_name, token.strip(), class_name.strip(), family(model))
        if subject.family != family(model):
            raise ValueError(
                f"lora_name: {subject.words} was trained for {subject.family} but the model is"
                f" {family(model)}; load the model it was trained on."
            )
        patched, text = comfy.sd.load_lora_for_models(model, clip, lora, strength, strength)
        if strength and _count(patched) == _count(model) and (clip is None or _count(text) == _count(clip)):
            raise ValueError(
                f"lora_name: no weight of {lora_name} belongs to this model ({family(model)}); load the model"
                " it was trained on."
            )
        return io.NodeOutput(patched, text, lora, subject)


def _count(patcher) -> int:
    patcher = getattr(patcher, "patcher", patcher)  # a CLIP has one inside
    return sum(map(len, patcher.patches.values()))


def _subject(path: Path, metadata: dict, name: str, token: str, class_name: str, base: str):
    """The Subject that the JSON beside the file describes, or the file itself, or else the user."""
    from ..training.subject import Subject, is_subject

    facts = path.with_suffix(".json")
    beside = facts.read_text(encoding="utf-8", errors="replace") if facts.is_file() else ""
    said, where = (beside, facts.name) if is_subject(beside) else (metadata.get("inlay"), name)
    if said:
        known = Subject.from_json(said, f"lora_name: the subject in {where}")
        words = {"token": token or known.token, "class_name": class_name or known.class_name}
        return replace(known, lora=name, **words)  # it may lie elsewhere than where it was trained
    for key, value in (("token", token), ("class_name", class_name)):
        if not value:
            raise ValueError(f"{key}: {name} does not say it; type what it was trained with.")
    words = f"a {token} {class_name}"
    return Subject(token, class_name, words, name, recipe="", family=base, steps=0, seed=0, rank=0)
