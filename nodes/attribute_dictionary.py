"""InlayAttributeDictionary: what the subject looks like, kind by kind, and prompts that combine it."""

from collections.abc import Sequence
from pathlib import Path

import comfy.model_management
import folder_paths
from comfy_api.latest import io, ui
from torch import Tensor

from ..training.attributes import SUBJECT, compose_prompts, parse_attributes, write_attributes

NO_MODEL = "none"
KINDS = ("vlm", "VLM", "LLM")  # where packs keep vision-language models, inside ComfyUI's models folder
LOOKED_AT = 5  # pictures, at most


class InlayAttributeDictionary(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayAttributeDictionary",
            display_name="Attribute Dictionary (Inlay)",
            category="Inlay",
            description="The subject's attributes (colour, material, accessories ...) and prompts that"
            " combine them at random, for regular images: so that words can edit the subject (DreamMix).",
            search_aliases=["ADM", "DreamMix", "attributes", "describe subject", "VLM", "caption", "regular"],
            is_input_list=True,  # the pictures of a subject are looked at together, of whatever sizes
            inputs=[
                io.String.Input("class_name", tooltip="What the subject is, in a word or two: teapot."),
                io.String.Input(
                    "attributes",
                    multiline=True,
                    tooltip="The subject's own looks, as lines: colour: brown; material: clay; accessory: a"
                    " lid; or as JSON. Empty: the vision model proposes them. A kind typed here wins.",
                ),
                io.String.Input(
                    "token",
                    default="sks",
                    tooltip="The subject's rare word in the prompts, as in DreamMix's paper; empty leaves it"
                    " out, so that it stands for your subject alone.",
                ),
                io.Int.Input("count", default=8, min=1, max=1000, tooltip="How many different prompts."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Which combinations; the same seed gives the same prompts.",
                ),
                io.String.Input(
                    "template",
                    default=f"a {SUBJECT}",
                    advanced=True,
                    tooltip=f"What stands around the subject, such as: a photo of a {SUBJECT}.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Pictures of the subject for the vision model; it looks at the first five.",
                ),
                io.Combo.Input(
                    "vision_model",
                    options=[NO_MODEL, *models()],
                    optional=True,
                    tooltip="A vision-language model in models/vlm (a transformers folder with config.json),"
                    " which proposes the attributes from the images. Nothing is downloaded.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="attributes", tooltip="The dictionary as JSON, for Subject Finetune."
                ),
                io.String.Output(
                    display_name="prompts", is_output_list=True, tooltip="For Regular Images, one by one."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, attributes: list[str] | None = None) -> bool | str:
        try:
            parse_attributes((attributes or [""])[0] or "")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, class_name, attributes, token, count, seed, template, images=None, vision_model=(NO_MODEL,)
    ) -> io.NodeOutput:
        found = parse_attributes(attributes[0])
        if vision_model[0] != NO_MODEL:
            if not images:
                raise ValueError("vision_model: it has nothing to look at; wire the subject's images.")
            pictures = [picture for batch in images for picture in batch]
            found = propose(pictures[:LOOKED_AT], class_name[0], vision_model[0]) | found
        prompts = compose_prompts(found, class_name[0], token[0], count[0], seed[0], template[0])
        shown = "\n".join([write_attributes(found), "", *prompts])
        return io.NodeOutput(write_attributes(found), prompts, ui=ui.PreviewText(shown))


def models() -> dict[str, Path]:
    """Every folder with a transformers model in it, as "vlm/SmolVLM"."""
    roots = [Path(folder_paths.models_dir, kind) for kind in KINDS]
    registered = [kind for kind in KINDS if kind in folder_paths.folder_names_and_paths]
    roots += [Path(root) for kind in registered for root in folder_paths.get_folder_paths(kind)]
    configs = (config for root in roots for config in sorted(root.glob("*/config.json")))
    return {f"{config.parent.parent.name}/{config.parent.name}": config.parent for config in configs}


def propose(images: Sequence[Tensor], class_name: str, vision_model: str) -> dict[str, list[str]]:
    """What the model says of the pictures (H, W, 3) in [0, 1]."""
    from ..training.vision_language import propose_attributes

    folder = models().get(vision_model)
    if folder is None:
        raise ValueError(
            f"vision_model: there is no {vision_model}; put a transformers folder in models/vlm."
        )
    device = comfy.model_management.get_torch_device()
    dtype = comfy.model_management.text_encoder_dtype(device)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    comfy.model_management.free_memory(1.2 * size, device)
    try:
        return propose_attributes(images, class_name, folder, device, dtype)
    finally:
        comfy.model_management.soft_empty_cache()
