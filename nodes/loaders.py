"""Nodes that load a subject, an adapter, an encoder, a UNet or an inpaint patch from a file."""

from dataclasses import replace
from pathlib import Path

import comfy.model_detection
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..common.log import logger
from ..common.lora_files import peft_config, read_lora_file
from ..conditioning.fooocus import InpaintHead, InpaintPatch
from ..encoders import AUTO_LAYOUT, CHOICES
from ..families.table import label_of
from ..host.families import family_name, is_transformer
from ..host.patches import misfitting_patches
from .checks import check_wired
from .model_files import (
    INLAY_FOLDER,
    check_finite_weights,
    load_weights,
    model_file,
    model_files,
    model_folders,
    read_file,
    read_folder,
    recognising,
)


class InlayLoadSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayLoadSubject",
            display_name="Load Subject (Inlay)",
            category="Inlay/train a subject",
            description="Puts a learned subject on the model: one of Train Subject's, or a LoRA that"
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
                    tooltip="A file in models/loras. Train Subject keeps its results in inlay/. DreamMix's"
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
        """Return the model and text encoder with the LoRA, its weights, and the subject."""
        check_wired(model=model)
        path = Path(folder_paths.get_full_path_or_raise("loras", lora_name))
        lora, metadata = read_lora_file(path)
        if is_transformer(model):
            from ..training.finetune.lora_formats import with_host_names

            lora = with_host_names(model, lora, peft_config(path), lora_name)
        subject = _subject(path, metadata, lora_name, token.strip(), class_name.strip(), family_name(model))
        base = label_of(family_name(model))
        if subject.family != family_name(model):
            raise ValueError(
                f"lora_name: {subject.words} was trained for {label_of(subject.family)} but the model is"
                f" {base}; load the model it was trained on."
            )
        check_finite_weights(lora, "lora_name", lora_name)
        with recognising("lora_name", lora_name, "LoRA"):
            patched, text = comfy.sd.load_lora_for_models(model, clip, lora, strength, strength)
        if strength and _count(patched) == _count(model) and (clip is None or _count(text) == _count(clip)):
            raise ValueError(
                f"lora_name: no weight of {lora_name} belongs to this model ({base}); load the model"
                " it was trained on."
            )
        if strength:
            misfits = [key for one in (patched, text) if one is not None for key in misfitting_patches(one)]
            check_fit(misfits, _count(patched) - _count(model), lora_name, base)
        return io.NodeOutput(patched, text, lora, subject)


def check_fit(misfits: list[str], added: int, name: str, base: str) -> None:
    """Raise ValueError when most of a LoRA's weights have other shapes than the model's; logs the others.

    The host leaves such weights out while it samples, so the picture would be one without the subject.
    """
    if not misfits:
        return
    if 2 * len(misfits) > added:
        raise ValueError(
            f"lora_name: {len(misfits)} of the {added} weights of {name} have other shapes than this model's"
            f" ({base}); load the model it was trained on."
        )
    logger.warning(
        "Load Subject: %s weights of %s have other shapes than this model's and are left out.",
        len(misfits),
        name,
    )


def _count(patcher) -> int:
    patcher = getattr(patcher, "patcher", patcher)  # a CLIP has one inside
    return sum(map(len, patcher.patches.values()))


def _subject(path: Path, metadata: dict, name: str, token: str, class_name: str, base: str):
    """Return the Subject that the JSON beside the file describes, or the file itself, or else the user."""
    from ..training.finetune.subject import Subject, check_words, is_subject

    check_words("token", token)
    check_words("class_name", class_name)
    facts = path.with_suffix(".json")
    beside = facts.read_text(encoding="utf-8-sig", errors="replace") if facts.is_file() else ""
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


AdapterType = io.Custom("INLAY_ADAPTER")
CHECKPOINTS = "checkpoints"


class InlayLoadAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayLoadAdapter",
            display_name="Load Identity Adapter (Inlay)",
            category="Inlay/insert an object",
            description="Loads what turns an object's picture into a model's context: an adapter trained with"
            " Inlay, ObjectStitch, Paint-by-Example, AnyDoor's projector, or a Visually Guided embedding"
            " optimizer. The layout is told from the file.",
            search_aliases=["objectstitch", "paint by example", "anydoor", "emb_opt", "imprint"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=adapter_files(),
                    tooltip="A file of models/inlay, or a checkpoint of models/checkpoints that holds one"
                    " (ObjectStitch.pth, Paint-by-Example's model.ckpt, AnyDoor's).",
                ),
                io.Combo.Input(
                    "published_as",
                    options=list(CHOICES),
                    default=AUTO_LAYOUT,
                    optional=True,
                    advanced=True,
                    tooltip="ObjectStitch and Paint-by-Example files look alike, but one was trained with all"
                    " of CLIP's tokens and one with the first. by the file: ObjectStitch where the name says"
                    " 'stitch', else Paint-by-Example.",
                ),
            ],
            outputs=[
                AdapterType.Output(display_name="adapter", tooltip="Turns an encoder's tokens into context."),
                io.ClipVision.Output(
                    display_name="encoder", tooltip="The encoder in the same file; nothing if there is none."
                ),
                io.String.Output(display_name="report", tooltip="What the file holds."),
            ],
        )

    @classmethod
    def execute(cls, file: str, published_as: str = AUTO_LAYOUT) -> io.NodeOutput:
        """Return the adapter, the encoder of the same file or None, and a report."""
        from ..encoders.checkpoint_layouts import recognise_checkpoint
        from ..encoders.image_context import encoder_name, load_adapter, load_vision  # loaded when needed

        kind, _, name = (
            file.partition("/") if file.startswith(f"{CHECKPOINTS}/") else (INLAY_FOLDER, "", file)
        )
        state, metadata = read_file(model_file(name, kind, "file"), "file")
        with recognising("file", name, "identity adapter"):
            found = recognise_checkpoint(state, metadata, name, published_as)
            check_finite_weights(found.adapter, "file", name)
            adapter = load_adapter(found, name)
            vision = None if found.encoder is None else load_vision(found.encoder, found.dino)
        reads = found.config.encoder_spec
        wanted = encoder_name(reads.encoder, reads.width, reads.registers)
        report = (
            f"{name}: {found.layout}, for {wanted} at {reads.size}x{reads.size} pixels, context of width"
            f" {found.config.context}; {'with' if vision else 'without'} its encoder."
        )
        return io.NodeOutput(adapter, vision, report, ui=ui.PreviewText(report))


def adapter_files() -> list[str]:
    """Return the files of models/inlay, and those of models/checkpoints with that folder before the name."""
    return model_files() + [f"{CHECKPOINTS}/{name}" for name in model_files(CHECKPOINTS)]


CLIP_VISION = "clip_vision"


class InlayLoadImageEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayLoadImageEncoder",
            display_name="Load Image Encoder (Inlay)",
            category="Inlay/insert an object",
            description="Loads a DINOv2 (S, B, L, g; with or without registers) or a CLIP image encoder. The"
            " host's Load CLIP Vision knows CLIP and two DINOv2 without registers.",
            search_aliases=["dinov2", "dino", "registers", "clip vision loader", "image encoder"],
            inputs=[
                io.Combo.Input(
                    "name",
                    options=[*model_folders(), *model_files(CLIP_VISION)],
                    tooltip="A folder of models/inlay as transformers writes it (config.json and weights), or"
                    " a file of models/clip_vision, transformers' or the published DINOv2's.",
                ),
            ],
            outputs=[
                io.ClipVision.Output(
                    display_name="encoder",
                    tooltip="For the identity nodes, and the host's CLIP Vision nodes.",
                )
            ],
        )

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        """Return the encoder, as the host's CLIP_VISION."""
        from ..encoders import dinov2  # loaded when needed: a host starts sooner without
        from ..encoders.image_context import load_vision

        folder, config = model_folders().get(name), None
        with recognising("name", name, "image encoder"):
            if folder is not None:
                state, facts = read_folder(folder)
                if dinov2.is_transformers(state):
                    config = dinov2.read_dino_config(state, facts["num_attention_heads"])
            else:
                state, _ = read_file(model_file(name, CLIP_VISION, "name"), "name")
            encoder = load_vision(state, config)
        if encoder is None:
            raise ValueError(
                f"name: '{name}' is no encoder that Inlay or ComfyUI knows; choose a DINOv2 or a CLIP."
            )
        return io.NodeOutput(encoder)


PIX2PIX_FOLDER = "diffusion_models"
CONV_IN = "conv_in.weight"  # (320, channels, 3, 3)


class InlayLoadPix2Pix(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayLoadPix2Pix",
            display_name="Load Pix2Pix UNet (Inlay)",
            category="Inlay/insert an object",
            description="Loads an SD 1.5 InstructPix2Pix UNet (8 channels) from diffusers' file, which the"
            " host's loaders do not know.",
            search_aliases=["instruct pix2pix", "diffusers", "unet loader", "paint by inpaint"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=model_files(PIX2PIX_FOLDER),
                    tooltip="A file of models/diffusion_models: unet/diffusion_pytorch_model.safetensors of"
                    " the model, under a name of your choice.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The InstructPix2Pix model, for Insert Object Without Mask."
                )
            ],
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        """Return the InstructPix2Pix model (8 input channels) as a MODEL."""
        state, _ = read_file(model_file(file, PIX2PIX_FOLDER, "file"), "file")
        if CONV_IN not in state:
            raise ValueError(f"file: '{file}' is no UNet in diffusers' layout; use the host's own loader.")
        with recognising("file", file, "SD 1.5 UNet"):
            model = comfy.sd.load_diffusion_model_state_dict(original_keys(state))
        if model is None:
            raise ValueError(f"file: '{file}' is no SD 1.5 UNet; choose an InstructPix2Pix UNet of SD 1.5.")
        return io.NodeOutput(model)


def original_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a diffusers UNet's weights under the original names, by the host's table for 4 channels."""
    config = comfy.model_detection.unet_config_from_diffusers_unet(state | {CONV_IN: state[CONV_IN][:, :4]})
    names = {} if config is None else comfy.utils.unet_to_diffusers(config)
    return {ours: state[theirs] for theirs, ours in names.items() if theirs in state}


INPAINT_FOLDER = "inpaint"


class InlayLoadFooocusInpaint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = _files()
        return io.Schema(
            node_id="InlayLoadFooocusInpaint",
            display_name="Load Fooocus Inpaint (Inlay)",
            category="Inlay/inpaint",
            description="Fooocus' inpaint patch, which makes a plain SDXL model an inpainting one for the"
            " Inpaint Subject. The same INPAINT_PATCH as in Acly's Inpaint Nodes.",
            search_aliases=["fooocus", "inpaint head", "inpaint patch", "sdxl inpaint"],
            inputs=[
                io.Combo.Input("head", options=files, tooltip="fooocus_inpaint_head.pth, in models/inpaint."),
                io.Combo.Input(
                    "patch", options=files, tooltip="inpaint_v26.fooocus.patch, in models/inpaint."
                ),
            ],
            outputs=[
                io.Custom("INPAINT_PATCH").Output(
                    display_name="inpaint_patch",
                    tooltip="For Inpaint Subject, or the inpaint nodes pack.",
                )
            ],
        )

    @classmethod
    def execute(cls, head: str, patch: str) -> io.NodeOutput:
        """Return Fooocus' head and deltas, which the sampler or a training applies."""
        weights = _read(head, "head").get("head")
        if not isinstance(weights, torch.Tensor) or weights.shape[1:] != (5, 3, 3):
            raise ValueError(f"head: '{head}' is not Fooocus' inpaint head; choose fooocus_inpaint_head.pth.")
        check_finite_weights({"head": weights}, "head", head)
        deltas = _read(patch, "patch")
        if not deltas or not all(map(_is_delta, deltas.values())):
            raise ValueError(f"patch: '{patch}' is not Fooocus' patch; choose inpaint_v26.fooocus.patch.")
        loaded = InpaintPatch(InpaintHead(weights), {key: tuple(delta) for key, delta in deltas.items()})
        return io.NodeOutput(loaded)


def _files() -> list[str]:
    if INPAINT_FOLDER not in folder_paths.folder_names_and_paths:
        # Fooocus' files end in .pth and .patch
        paths = [str(Path(folder_paths.models_dir) / INPAINT_FOLDER)]
        folder_paths.folder_names_and_paths[INPAINT_FOLDER] = (
            paths,
            {*folder_paths.supported_pt_extensions, ".patch"},
        )
    return folder_paths.get_filename_list(INPAINT_FOLDER)


def _is_delta(value: object) -> bool:
    """(bytes, min, max), see `QuantizedDelta`."""
    return (
        isinstance(value, tuple | list)
        and len(value) == 3
        and all(isinstance(part, torch.Tensor) for part in value)
        and all(part.numel() == 1 for part in value[1:])
    )


def _read(name: str, input_name: str) -> dict:
    """Return a file of models/inpaint.

    Folder_paths keeps the name inside it, and the host reads tensors only.
    """
    path = folder_paths.get_full_path(INPAINT_FOLDER, name)
    if path is None:
        raise ValueError(f"{input_name}: there is no '{name}' in models/inpaint; download it there.")
    return load_weights(path, input_name)[0]
