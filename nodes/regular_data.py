"""Nodes for regular data (DreamMix, section 3.3): attribute dictionary, generation, loading and saving."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import comfy.model_management
import comfy.samplers
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..conditioning.compatibility import check_clip_fits, check_vae_fits
from ..host.devices import prefers_bfloat16
from ..host.families import working_side
from ..imaging.inputs import as_images_each, check_finite
from ..imaging.references import read_reference
from ..sampling.view_sampler import check_inpaint_model, choose_settings
from ..training.finetune.attribute_dictionary import (
    SUBJECT,
    compose_prompts,
    parse_attributes,
    write_attributes,
)
from .checks import check_list_inputs, check_wired

NO_MODEL = "none"
ATTRIBUTE_KINDS = (
    "vlm",
    "VLM",
    "LLM",
)  # where packs keep vision-language models, inside ComfyUI's models folder
LOOKED_AT = 5  # pictures, at most
LONGEST_CATEGORY = 100  # bytes of a category; file systems allow 255 for a folder


class InlayAttributeDictionary(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayAttributeDictionary",
            display_name="Attribute Dictionary (Inlay)",
            category="Inlay/train a subject",
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
                    options=[NO_MODEL, *vision_language_models()],
                    optional=True,
                    tooltip="A vision-language model in models/vlm (a transformers folder with config.json),"
                    " which proposes the attributes from the images. Nothing is downloaded.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="attributes", tooltip="The dictionary as JSON, for Train Subject."
                ),
                io.String.Output(
                    display_name="prompts", is_output_list=True, tooltip="For Regular Images, one by one."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, attributes: list[str] | None = None) -> bool | str:
        """Return True, or why the attributes cannot be read."""
        try:
            parse_attributes((attributes or [""])[0] or "")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    @check_list_inputs
    def execute(
        cls, class_name, attributes, token, count, seed, template, images=None, vision_model=(NO_MODEL,)
    ) -> io.NodeOutput:
        """Return the dictionary as JSON and the prompts made of it; every input is a list."""
        found = parse_attributes(attributes[0])
        if vision_model[0] != NO_MODEL:
            if not images:
                raise ValueError("vision_model: it has nothing to look at; wire the subject's images.")
            pictures = [picture for batch in as_images_each(images) for picture in batch]
            found = propose_with_model(pictures[:LOOKED_AT], class_name[0], vision_model[0]) | found
        prompts = compose_prompts(found, class_name[0], token[0], count[0], seed[0], template[0])
        shown = "\n".join([write_attributes(found), "", *prompts])
        return io.NodeOutput(write_attributes(found), prompts, ui=ui.PreviewText(shown))


def vision_language_models() -> dict[str, Path]:
    """Every folder with a transformers model in it, as "vlm/SmolVLM"."""
    roots = [Path(folder_paths.models_dir, kind) for kind in ATTRIBUTE_KINDS]
    registered = [kind for kind in ATTRIBUTE_KINDS if kind in folder_paths.folder_names_and_paths]
    roots += [Path(root) for kind in registered for root in folder_paths.get_folder_paths(kind)]
    configs = (config for root in roots for config in sorted(root.glob("*/config.json")))
    return {f"{config.parent.parent.name}/{config.parent.name}": config.parent for config in configs}


def propose_with_model(images: Sequence[Tensor], class_name: str, vision_model: str) -> dict[str, list[str]]:
    """Return the attributes that the model finds in the pictures (H, W, 3) in [0, 1]."""
    from ..training.finetune.attribute_dictionary import propose_attributes

    folder = vision_language_models().get(vision_model)
    if folder is None:
        raise ValueError(
            f"vision_model: there is no {vision_model}; put a transformers folder in models/vlm."
        )
    device = comfy.model_management.get_torch_device()
    dtype = torch.bfloat16 if prefers_bfloat16(device) else torch.float16
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    comfy.model_management.free_memory(1.2 * size, device)
    try:
        return propose_attributes(images, class_name, folder, device, dtype)
    finally:
        comfy.model_management.soft_empty_cache()


class InlayRegularImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayRegularImages",
            display_name="Regular Images (Inlay)",
            category="Inlay/train a subject",
            description="Paints each prompt with the wired-in model itself, before it learns your subject,"
            " and finds the outline of what it painted: regular data for Train Subject (DreamMix eq. 8).",
            search_aliases=["regularization images", "class images", "prior preservation", "ADM", "DreamMix"],
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that will be taught, still without the subject."),
                io.Clip.Input("clip", tooltip="The text encoder of the same checkpoint."),
                io.Vae.Input("vae", tooltip="The VAE of the same checkpoint."),
                io.String.Input(
                    "prompts",
                    force_input=True,
                    tooltip="What to paint, from Attribute Dictionary, Load Regular Data or a text.",
                ),
                io.Int.Input(
                    "count",
                    default=4,
                    min=1,
                    max=1000,
                    tooltip="Pictures of each prompt (DreamMix: 30), each with its own background and place.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="The same seed gives the same pictures.",
                ),
                io.Int.Input(
                    "steps", default=20, min=1, max=10000, tooltip="Sampling steps of each picture."
                ),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How strictly the pictures follow their prompts. 0: what the model's family"
                    " takes, as FLUX Fill needs it (1, with its embedded guidance).",
                ),
                io.Combo.Input(
                    "sampler_name", options=comfy.samplers.KSampler.SAMPLERS, tooltip="As in KSampler."
                ),
                io.Combo.Input(
                    "scheduler", options=comfy.samplers.KSampler.SCHEDULERS, tooltip="As in KSampler."
                ),
                io.String.Input(
                    "background_prompt",
                    default="a photo of an empty room",
                    tooltip="What the pictures show before the thing is painted into them. Unused where"
                    " backgrounds are wired in.",
                ),
                io.Int.Input(
                    "size",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                    advanced=True,
                    tooltip="Side of the pictures in pixels; larger backgrounds are shrunk to the area of"
                    " such a square. 0 = the model's own (SD 1.5 512, SDXL 1024).",
                ),
                io.Image.Input(
                    "backgrounds",
                    optional=True,
                    tooltip="Pictures to paint into, in turn: a batch, or a list of different sizes.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    is_output_list=True,
                    tooltip="For Train Subject's regular_images, or first through a segmenter.",
                ),
                io.Mask.Output(
                    display_name="masks",
                    is_output_list=True,
                    tooltip="The outline by what changed in the background; a segmenter's is better.",
                ),
                io.String.Output(
                    display_name="prompts", is_output_list=True, tooltip="The prompt of each picture."
                ),
            ],
        )

    @classmethod
    @check_list_inputs
    def execute(
        cls, model, clip, vae, prompts, count, seed, steps, cfg, sampler_name, scheduler, background_prompt,
        size=(0,), backgrounds=None,
    ) -> io.NodeOutput:  # fmt: skip
        """Return pictures, masks of what was painted, and prompts, one of each per picture."""
        from ..training.finetune.generation import (  # loaded when needed
            SamplingSettings,
            fit_background,
            generate_backgrounds,
            generate_regular_images,
        )

        wired = model[0], clip[0], vae[0]
        check_wired(model=model[0], clip=clip[0], vae=vae[0])
        check_inpaint_model(model[0])
        check_vae_fits(model[0], vae[0])
        check_clip_fits(model[0], clip[0])
        chosen = choose_settings(model[0], sampler_name[0], scheduler[0], steps[0], cfg[0], "")
        how = SamplingSettings(chosen.steps, chosen.cfg, chosen.sampler, chosen.scheduler, chosen.guidance)
        prompts = [prompt.strip() for prompt in prompts if prompt.strip()]
        if not prompts:
            raise ValueError("prompts: there are none; wire Attribute Dictionary's prompts.")
        said = [prompt for prompt in prompts for _ in range(count[0])]
        side = size[0] or working_side(model[0])
        own = 0 if backgrounds else count[0]
        bar = comfy.utils.ProgressBar((own + count[0] * len(prompts)) * how.steps)

        def advance(*_):
            bar.update(1)

        if backgrounds:
            scenes = [
                picture[None, ..., :3]
                for batch in as_images_each(backgrounds, "backgrounds")
                for picture in batch
            ]
            for number, scene in enumerate(scenes, 1):
                check_finite(scene, f"backgrounds: picture {number}")
            scenes = [fit_background(scene, side) for scene in scenes]
        else:
            after = seed[0] + len(said)  # no picture begins with the noise of its background
            scenes = list(generate_backgrounds(*wired, background_prompt[0], side, own, after, how, advance))
        painted = [
            generate_regular_images(
                *wired, scenes[number % len(scenes)], prompt, seed[0] + number, how, advance
            )
            for number, prompt in enumerate(said)
        ]
        images, masks = ([getattr(one, name) for one in painted] for name in ("image", "mask"))
        return io.NodeOutput(images, masks, said, ui=ui.PreviewImage(images[0], cls=cls))


class InlayLoadRegularData(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayLoadRegularData",
            display_name="Load Regular Data (Inlay)",
            category="Inlay/train a subject",
            description="Loads the regular pictures of a class with their masks and prompts, from the folders"
            " that DreamMix's code writes and Save Regular Data.",
            search_aliases=["regularization images", "DreamMix", "load dataset", "class images", "prior"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=list(regular_data_folders()),
                    tooltip="A folder regular_<category> in ComfyUI's input or output folder, with"
                    " <prompt_with_underscores>/<name>-image.png and -mask.png in it.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images", is_output_list=True, tooltip="The pictures, by prompt and name."
                ),
                io.Mask.Output(display_name="masks", is_output_list=True, tooltip="1 on the thing."),
                io.String.Output(
                    display_name="prompts", is_output_list=True, tooltip="The prompt of each picture."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: str) -> bool | str:
        """Return True, or why the folder cannot be read."""
        try:
            _list_folder(folder)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: str) -> str:
        """Return a SHA-256 of the prompts, names and contents of the folder's files."""
        digest = hashlib.sha256()
        for file in _list_folder(folder):
            for path in (file.image, file.mask):
                digest.update(f"{file.prompt}/{path.name}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        """Return pictures, masks and prompts, by prompt and name."""
        files = _list_folder(folder)
        references = [read_reference(file.image, file.mask, "folder") for file in files]
        images, masks = ([pair[i] for pair in references] for i in (0, 1))
        return io.NodeOutput(images, masks, [file.prompt for file in files])


def _list_folder(folder: str) -> list:
    """Return the files of a regular_<category> folder. Raises ValueError when there are none."""
    from ..training.finetune.regular_data import list_regular  # loaded when needed

    return list_regular(_resolve(folder))


def regular_data_folders() -> dict[str, Path]:
    """Every regular_<category> folder of the input, and of the output as "regular_<category> [output]"."""
    places = {"": folder_paths.get_input_directory(), " [output]": folder_paths.get_output_directory()}
    return {
        f"{path.name}{mark}": path
        for mark, place in places.items()
        for path in sorted(Path(place).glob("regular_*"))
        if path.is_dir()
    }


def _resolve(folder: str) -> Path:
    """Return the named folder; only those that are listed are opened."""
    found = regular_data_folders().get(folder)
    if found is None:
        raise ValueError(f"folder: there is no {folder} in ComfyUI's input or output folder; save one there.")
    return found


class InlaySaveRegularData(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlaySaveRegularData",
            display_name="Save Regular Data (Inlay)",
            category="Inlay/train a subject",
            description="Keeps regular pictures in ComfyUI's output folder, as DreamMix's code lays them out:"
            " regular_<category>/<prompt>/<name>-image.png and -mask.png.",
            search_aliases=["regularization images", "DreamMix", "save dataset", "class images"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The pictures, from Regular Images."),
                io.Mask.Input("masks", tooltip="One mask per picture, 1 on the thing."),
                io.String.Input(
                    "prompts", force_input=True, tooltip="One for all of the pictures, or one for each."
                ),
                io.String.Input("category", tooltip="The folder will be called regular_<category>."),
            ],
            outputs=[io.String.Output(display_name="folder", tooltip="Where they are now.")],
        )

    @classmethod
    def validate_inputs(cls, category: list[str] | None = None) -> bool | str:
        """Return True, or why a category cannot be a folder's name."""
        try:
            for name in category or ():
                _category_folder(name)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    @check_list_inputs
    def execute(cls, images, masks, prompts, category) -> io.NodeOutput:
        """Write the pictures, masks and prompts, and return their folder; every input is a list."""
        from ..training.finetune.data import collect_references  # loaded when needed
        from ..training.finetune.regular_data import save_regular

        folder = _category_folder(category[0])
        references = collect_references(images, masks)
        for number, (image, _) in enumerate(references, 1):
            check_finite(image, f"images: picture {number}")
        save_regular(folder, references, prompts)
        return io.NodeOutput(str(folder))


def _category_folder(category: str) -> Path:
    """Return the folder of a category in ComfyUI's output folder.

    Raises ValueError for no name of a folder.
    """
    category = category.strip()
    if not re.fullmatch(r"[\w -]+", category) or len(category.encode()) > LONGEST_CATEGORY:
        raise ValueError(
            "category: use letters, digits, spaces, hyphens and underscores, such as teapot, at most"
            f" {LONGEST_CATEGORY} bytes."
        )
    return Path(folder_paths.get_output_directory(), f"regular_{category}")
