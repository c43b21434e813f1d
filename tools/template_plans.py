"""How the published templates look: which nodes stand in which column, what is folded into subgraphs, models.

A template is made of the graph in workflows/api of the plan's `graph`; `dropped` nodes are not shown.
"""

from dataclasses import dataclass, field
from typing import Any

HUB = "https://huggingface.co"
# (node type, file) -> address and folder; the page offers what is missing for download.
MODELS: dict[tuple[str, str], tuple[str, str]] = {
    ("CheckpointLoaderSimple", "sd-v1-5-inpainting.safetensors"): (
        f"{HUB}/webui/stable-diffusion-inpainting/resolve/main/sd-v1-5-inpainting.safetensors",
        "checkpoints",
    ),
    ("CheckpointLoaderSimple", "model.ckpt"): (
        f"{HUB}/Fantasy-Studio/Paint-by-Example/resolve/main/model.ckpt",
        "checkpoints",
    ),
    ("InlayLoadAdapter", "model.ckpt"): (
        f"{HUB}/Fantasy-Studio/Paint-by-Example/resolve/main/model.ckpt",
        "checkpoints",
    ),
    ("LoadBackgroundRemovalModel", "birefnet.safetensors"): (
        f"{HUB}/Comfy-Org/BiRefNet/resolve/main/background_removal/birefnet.safetensors",
        "background_removal",
    ),
}
# (node type, file) -> folder on the hub, folder of the models
FILES = {
    ("UNETLoader", "flux-2-klein-4b.safetensors"): (
        "Comfy-Org/flux2-klein/resolve/main/split_files/diffusion_models",
        "diffusion_models",
    ),
    ("UNETLoader", "flux-2-klein-base-4b.safetensors"): (
        "Comfy-Org/flux2-klein/resolve/main/split_files/diffusion_models",
        "diffusion_models",
    ),
    ("UNETLoader", "qwen_image_edit_2511_fp8mixed.safetensors"): (
        "Comfy-Org/Qwen-Image-Edit_ComfyUI/resolve/main/split_files/diffusion_models",
        "diffusion_models",
    ),
    ("UNETLoader", "z_image_bf16.safetensors"): (
        "Comfy-Org/z_image/resolve/main/split_files/diffusion_models",
        "diffusion_models",
    ),
    ("UNETLoader", "flux1-fill-dev.safetensors"): (
        "Comfy-Org/flux1-dev/resolve/main/split_files/diffusion_models",
        "diffusion_models",
    ),
    ("CLIPLoader", "qwen_3_4b.safetensors"): (
        "Comfy-Org/z_image_turbo/resolve/main/split_files/text_encoders",
        "text_encoders",
    ),
    ("CLIPLoader", "qwen_2.5_vl_7b_fp8_scaled.safetensors"): (
        "Comfy-Org/HunyuanVideo_1.5_repackaged/resolve/main/split_files/text_encoders",
        "text_encoders",
    ),
    ("DualCLIPLoader", "clip_l.safetensors"): (
        "comfyanonymous/flux_text_encoders/resolve/main",
        "text_encoders",
    ),
    ("DualCLIPLoader", "t5xxl_fp16.safetensors"): (
        "comfyanonymous/flux_text_encoders/resolve/main",
        "text_encoders",
    ),
    ("VAELoader", "flux2-vae.safetensors"): (
        "Comfy-Org/flux2-dev/resolve/main/split_files/vae",
        "vae",
    ),
    ("VAELoader", "qwen_image_vae.safetensors"): (
        "Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files/vae",
        "vae",
    ),
    ("VAELoader", "ae.safetensors"): (
        "Comfy-Org/z_image_turbo/resolve/main/split_files/vae",
        "vae",
    ),
    ("LoraLoaderModelOnly", "easy-insert-diffusers.safetensors"): (
        "LiXiY/Easy-Insert/resolve/main",
        "loras",
    ),
}
MODELS |= {key: (f"{HUB}/{place}/{key[1]}", folder) for key, (place, folder) in FILES.items()}
NOTE = "note"  # the place of a template's note in its columns


@dataclass(frozen=True)
class Part:
    """Nodes that are one subgraph on the outside; of several instances the first is the definition.

    `widgets`, as "node.input", are shown outside. Instances have the same types and wires in the same order.
    """

    name: str
    instances: tuple[tuple[str, ...], ...]
    widgets: tuple[str, ...]
    titles: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """One template: groups of columns of nodes, from left to right; a part stands under its first node."""

    graph: str
    title: str  # the file's name, which the template browser shows and searches
    groups: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]
    parts: tuple[Part, ...] = ()
    dropped: tuple[str, ...] = ()
    app: dict[str, Any] = field(default_factory=dict)  # the front end's `linearData`
    labels: dict[str, str] = field(default_factory=dict)  # "node.input" -> what an app calls it
    width: int = 292  # pixels of a column
    between: int = 12  # groups
    last: int = 292  # pixels of the last column: Save Image is never narrower
    caption: str = ""  # on its picture in the template browser, which cuts long titles


def _group(title: str, *columns: str) -> tuple[str, tuple[tuple[str, ...], ...]]:
    return title, tuple(tuple(column.split()) for column in columns)


def _app(*inputs: str, output: str) -> dict[str, Any]:
    """The app form: "node.input" to set or to look at, and the node whose picture is shown."""
    pairs = [name.split(".") for name in inputs]
    return {"inputs": [[node, widget] for node, widget in pairs], "outputs": [output]}


FOLDER, PICTURE, CLASS = "Folder of the photos", "Your picture", "What the object is"
PROMPT = "What to paint; sks is your object"


def _training_app(prompt: str, output: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The app form and the labels of a workflow that trains a subject; `prompt` is "node.input"."""
    fields = ("2.inlay_references", "2.folder", "3.image", "4.inlay_box", "5.class_name", prompt)
    labels = {"2.folder": FOLDER, "3.image": PICTURE, "5.class_name": CLASS, prompt: PROMPT}
    return _app(*fields, "5.inlay_training", output=output), labels


BOX = "Paint Into the Box"
START = _group("Read me; the model", "note 1")
THINGS = _group("1. Your photos, your picture", "101 2 3")
LEARN = _group("3. Learn the subject", "5")


def _sampling(node: str, *nodes: str, name: str = BOX) -> Part:
    """The sampler `node`, and what goes with it, as one subgraph that shows its seed, steps and cfg."""
    return Part(name, (nodes or (node,),), _shown(node), (name,))


def _shown(node: str) -> tuple[str, ...]:
    return tuple(f"{node}.{name}" for name in ("seed", "steps", "cfg"))


# With an edit model: nothing is trained.
EDIT_GROUPS = (
    _group("Read me; the model", "note 1 2 3"),
    _group("1. Your photos, your picture", "101 4 5"),
    _group("2. Where, and what", "6 7"),
    _group("3. Paint", "8 10", "9"),
)
PLANS = [
    Plan(
        "insert_subject",
        "Inlay 01 - Insert my subject from a few photos",
        (START, THINGS, _group("2. Where, and what", "4 7 8"), LEARN, _group("4. Paint", "6 17")),
        (_sampling("11", "6", "9", "11", "13", "15"),),
        ("10", "12", "14", "16", "18"),
        *_training_app("7.text", output="17"),
        caption="a few photos",
    ),
    Plan(
        "insert_small",
        "Inlay 02 - Insert my subject small into a large photo",
        (START, THINGS, _group("2. Where, and what", "4 6 7"), LEARN, _group("4. Paint", "8 10 12")),
        (_sampling("8", name="Close-Up, Then Surroundings"),),
        ("9", "11"),
        caption="small, in a large photo",
    ),
    Plan(
        "edit_attribute",
        "Inlay 03 - Edit colour or material of my subject",
        (START, THINGS, _group("2. Where, and what", "4 6 7"), LEARN, _group("4. Paint", "9 11")),
        (_sampling("9"),),
        ("8", "10", "12"),
        *_training_app("6.prompt", output="11"),
        caption="a green sks mug",
    ),
    Plan(
        "insert_one_photo",
        "Inlay 04 - Insert an object from one photo",
        (
            _group("Read me; the model", "note 1 3"),
            _group("1. Your object, your picture", "4 5 6"),
            _group("2. Where, and what", "7 8"),
            _group("3. Paint", "9 13"),
        ),
        (_sampling("10", "9", "10", "11", "12"),),
        (),
        _app("4.image", "6.image", "7.inlay_box", output="13"),
        {"4.image": "Photo of the object", "6.image": PICTURE},
        caption="one photo",
    ),
    Plan(
        "insert_by_shape",
        "Inlay 05 - Insert an object in a drawn shape",
        (
            _group("Read me; the model", "note 1 3"),
            _group("1. Your object, your picture", "4 5 6"),
            _group("2. The shape", "7 8"),
            _group("3. Paint", "9 10", "14"),
        ),
        (_sampling("11", "10", "11", "12", "13", name="Paint Into the Shapes"),),
        caption="a drawn shape",
    ),
    Plan(
        "dreammix",
        "Inlay 06 - DreamMix - edited subject in a large photo",
        (
            _group("Read me; the model", "note 1 13"),
            THINGS,
            _group("2. Where, and its looks", "4 12 7"),
            LEARN,
            _group("4. Paint", "6 8 9"),
        ),
        (
            Part("Paint Others of Its Kind", (("13",),), ("13.count", "13.seed"), ("Others of Its Kind",)),
            _sampling("8", name="Close-Up, Then Surroundings"),
        ),
        ("10", "11", "14"),
        caption="DreamMix",
    ),
    Plan(
        "train_and_share",
        "Inlay 07 - Train a subject and share it",
        (
            START,
            THINGS,
            _group("2. Where, and what", "4 8 9"),
            LEARN,
            _group("4. Keep it, and try what others get", "6 7 10 11"),
        ),
        (_sampling("10"),),
        ("12",),
        caption="a LoRA file",
    ),
    Plan(
        "compare",
        "Inlay 08 - Compare with and without",
        (
            _group("Read me; the model", "note 1"),
            _group("1. Your things", "101 2 3"),
            _group("2. Where, and what", "4 7 8 10"),
            _group("3. Learn the subject", "5 9"),
            _group("4. Paint three times", "6 11 12 13"),
            _group("5. Side by side", "20 22"),
        ),
        (
            Part("Masked Attention", (("6",),), (), ("Masked Attention",)),
            Part(
                "Sample and Paste Back",
                (("11", "14", "17"), ("12", "15", "18"), ("13", "16", "19")),
                (),
                ("Without", "Learned", "Learned and Masked"),
            ),
            Part("Three Side by Side", (("20", "21"),), (), ("Side by Side",)),
        ),
        width=236,
        between=8,
        caption="with and without",
    ),
    Plan(
        "insert_klein",
        "Inlay 09 - Insert my subject with FLUX.2 klein",
        EDIT_GROUPS,
        (_sampling("8"),),
        caption="FLUX.2 klein",
    ),
    Plan(
        "insert_easy",
        "Inlay 10 - Insert an object from one photo with Easy-Insert",
        (
            _group("Read me; the model", "note 1 2 3"),
            _group("1. Your object, your picture", "4 11 5"),
            _group("2. Where, and what", "6 7"),
            _group("3. Paint", "12 8 10", "9"),
        ),
        (_sampling("8"),),
        caption="Easy-Insert",
    ),
    Plan(
        "insert_qwen",
        "Inlay 11 - Insert my subject with Qwen-Image-Edit",
        EDIT_GROUPS,
        (_sampling("8"),),
        caption="Qwen-Image-Edit",
    ),
    Plan(
        "insert_z_image",
        "Inlay 12 - Insert my trained subject with Z-Image",
        (
            _group("Read me; the model", "note 1 2 3"),
            _group("1. Your photos, your picture", "101 4 5"),
            _group("2. Where, and what", "6 8 9"),
            _group("3. Learn the subject", "7"),
            _group("4. Paint", "10 11 12"),
        ),
        (_sampling("10"),),
        caption="Z-Image",
    ),
    Plan(
        "insert_fill",
        "Inlay 13 - Insert my trained subject with FLUX Fill",
        (
            _group("Read me; the model", "note 1 2 3"),
            _group("1. Your photos, your picture", "101 4 5"),
            _group("2. Where, and what", "6 8 9"),
            _group("3. Learn the subject", "7"),
            _group("4. Paint", "10 11 12"),
        ),
        (_sampling("10"),),
        caption="FLUX Fill",
    ),
    Plan(
        "edit_box",
        "Inlay 14 - Edit by prompt and only the box changes",
        (
            _group("Read me; the model", "note 1 2 3"),
            _group("1. Your picture, where", "5 6"),
            _group("2. What to change", "8 7"),
            _group("3. Look", "15 16"),
        ),
        (
            Part(
                "Crop, Edit, Paste Back",
                (("7", "9", "10", "11", "12", "13", "14"),),
                ("7.context", "12.seed", "12.steps", "12.cfg", "14.area", "14.align", "14.colour"),
                ("Crop, Edit, Paste Back",),
            ),
        ),
        caption="a mug of blue glass",
    ),
    Plan(
        "insert_api",
        "Inlay 15 - Insert with an API node and only the box changes",
        (
            _group("Read me", "note"),
            _group("1. Your photos, your picture", "4 5"),
            _group("2. Where", "6", "7"),
            _group("3. Paint", "102 103 8 9"),
            _group("4. Paste back, and look", "10 11 12"),
        ),
        width=240,
        caption="API",
    ),
    Plan(
        "insert_other_sampler",
        "Inlay 16 - Insert with another sampler and only the box changes",
        (
            _group("Read me; the model", "note 1 2 3"),
            _group("1. Your photos, your picture", "101 4 5"),
            _group("2. Where, and what", "6 9 10"),
            _group("3. Learn the subject", "7"),
            _group("4. Paint and paste back", "8 16 17"),
        ),
        (
            Part(
                "Crop, Sample, Paste Back",
                (("8", "11", "12", "13", "14", "15"),),
                ("8.context", "13.seed", "13.steps", "13.cfg", "15.align", "15.colour"),
                ("Crop, Sample, Paste Back",),
            ),
        ),
        caption="LanPaint",
    ),
]

# Shown by `dev.py serve` alone: nobody offers weights of this kind for download.
TINY_ONLY = [
    Plan(
        "insert_without_mask",
        "Inlay 17 - Insert an object without a mask",
        (
            _group("Read me; the model", "note 1 2"),
            _group("1. Your object, your picture", "3 4 5"),
            _group("2. Insert", "6 7 8 9", "10 11 12"),
            _group("3. Keep the rest", "13 14 15"),
        ),
    )
]
