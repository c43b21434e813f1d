"""Nodes that read a subject's photos."""

import asyncio
import hashlib
from pathlib import Path, PurePosixPath

import folder_paths
import torch
from comfy_api.latest import io, ui

from ..imaging.inputs import as_images_each, as_masks_each
from ..imaging.references import (
    collect_wired,
    cut_out_subject,
    is_whole_frame,
    list_references,
    preview_cut_out,
    read_captions,
    read_reference,
    skipped_files,
    thumbnail,
)
from .checks import check_list_inputs, check_wired
from .page import add_get_route, data_url

REFERENCES_ROUTE = "/inlay/references"
PHOTO_SIDE, MOST_SHOWN = 160, 24  # pixels of the longer side; pictures shown on the node
WITHOUT_CUT_OUT = "connect Load Background Removal Model"


class InlayLoadReferences(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayLoadReferences",
            display_name="Load References (Inlay)",
            category="Inlay/photos and masks",
            description="Loads every photo of a subject from one folder, each with the mask of the subject.",
            search_aliases=["load images from folder", "subject photos", "reference images", "dataset"],
            is_input_list=True,
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=folder_paths.get_input_subfolders(),
                    tooltip="A folder inside ComfyUI's input folder. Each picture in it is a reference, any"
                    " size. Its mask is its transparency (opaque = subject), else the file <name>_mask.png"
                    " or <name>-mask.png beside it (white = subject), else the whole frame.",
                ),
                io.BackgroundRemoval.Input(
                    "background_removal",
                    optional=True,
                    tooltip="From Load Background Removal Model: finds the subject in every photo that has no"
                    " mask of its own.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Photos from Load Image or other nodes, as a batch or a list. They are used"
                    " instead of the folder.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="One mask for each of the connected images, 1 on the subject. An empty mask, or"
                    " one of the whole picture, counts as no mask.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    is_output_list=True,
                    tooltip="The pictures, in natural order.",
                ),
                io.Mask.Output(
                    display_name="masks",
                    is_output_list=True,
                    tooltip="1 where the subject is.",
                ),
                io.String.Output(
                    display_name="captions",
                    is_output_list=True,
                    tooltip="What each picture shows: the text of <name>.txt beside it, empty without that"
                    " file. For Train Subject.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: list[str], images=None) -> bool | str:
        """Return True, or why the folder cannot be read."""
        if images is not None:  # connected: the folder is not used
            return True
        try:
            list_references(_resolve(folder[0]))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: list[str], background_removal=None, images=None, masks=None) -> str:
        """Return a SHA-256 of the names and contents of the folder's files."""
        if images is not None:
            return ""
        digest = hashlib.sha256()
        for pair in list_references(_resolve(folder[0])):
            caption = pair[0].with_suffix(".txt")
            for file in filter(None, [*pair, caption if caption.is_file() else None]):
                digest.update(f"{file.name}\0".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()

    @classmethod
    @check_list_inputs
    def execute(
        cls,
        folder: list[str],
        background_removal: list | None = None,
        images: list[torch.Tensor] | None = None,
        masks: list[torch.Tensor] | None = None,
    ) -> io.NodeOutput:
        """Return pictures (1, H, W, 3), masks (1, H, W) and captions in natural order."""
        notes = []
        if background_removal and background_removal[0] is not None:
            check_wired(background_removal=background_removal[0])
        if images is not None:
            references = collect_wired(as_images_each(images), as_masks_each(masks))
            names = [f"picture {number}" for number in range(1, len(references) + 1)]
            captions = [""] * len(references)
        else:
            path = _resolve(folder[0])
            files = list_references(path)
            references = [read_reference(picture, mask, "folder") for picture, mask in files]
            names = [picture.name for picture, _ in files]
            captions = read_captions(path, "folder")
            notes += _skipped_note(path)
        if background_removal and background_removal[0] is not None:
            references = [
                (image, cut_out_subject(background_removal[0], image) if is_whole_frame(mask) else mask)
                for image, mask in references
            ]
        whole = [name for name, (_, mask) in zip(names, references, strict=True) if is_whole_frame(mask)]
        notes += _no_mask_note(whole, "paint a mask" if background_removal else WITHOUT_CUT_OUT)
        references = [
            (image, torch.ones_like(mask) if is_whole_frame(mask) else mask) for image, mask in references
        ]
        shown = [
            _saved(cls, image, mask, name)
            for name, (image, mask) in list(zip(names, references, strict=True))[:MOST_SHOWN]
        ]
        return io.NodeOutput(
            [image for image, _ in references],
            [mask for _, mask in references],
            captions,
            ui={"inlay_references": shown, "inlay_notes": notes},
        )


def _skipped_note(path: Path) -> list[str]:
    """Return the sentence about the files of a folder that are no pictures, if there are some."""
    files = ", ".join(f"{name} ({reason})" for name, reason in skipped_files(path))
    return [f"Skipped: {files}."] if files else []


def _no_mask_note(names: list[str], mend: str) -> list[str]:
    """Return the warning about pictures that are learned with their background, if there are some."""
    if not names:
        return []
    return [
        f"There is no mask for {', '.join(names)}: the whole picture is learned, with its background;"
        f" {mend} or save the pictures with a transparent background."
    ]


def _saved(cls, image: torch.Tensor, mask: torch.Tensor, label: str) -> dict[str, str]:
    """Return a thumbnail in the host's temporary folder, as its page asks for it."""
    [file] = ui.PreviewImage(preview_cut_out(image, mask, PHOTO_SIDE), cls=cls).as_dict()["images"]
    return dict(file) | {"label": label}


def add_reference_route() -> None:
    """Let the page show a folder's pictures before a run: GET /inlay/references?folder=NAME."""

    async def references(query) -> dict:
        return await asyncio.to_thread(describe_folder, query.get("folder", ""))

    add_get_route(REFERENCES_ROUTE, references)


def describe_folder(folder: str) -> dict:
    """Return a folder's pictures as small data URLs, sentences about them and its error, as JSON.

    `no_mask` holds what is true where nothing cuts the subject out.
    """
    try:
        path = _resolve(folder)
        files = list_references(path)
        pictures = []
        for picture, mask in files[:MOST_SHOWN]:
            small, kind = thumbnail(picture, mask, PHOTO_SIDE)
            pictures.append({"name": picture.name, "mask": kind, "thumbnail": data_url(small)})
    except ValueError as error:
        return {"pictures": [], "notes": [], "no_mask": [], "error": str(error)}
    whole = [picture["name"] for picture in pictures if not picture["mask"]]
    no_mask = _no_mask_note(whole, WITHOUT_CUT_OUT)
    return {"pictures": pictures, "notes": _skipped_note(path), "no_mask": no_mask, "error": ""}


def _resolve(folder: str) -> Path:
    """Return the named folder inside the host's input folder.

    The name comes from a workflow and is not trusted.
    """
    root = Path(folder_paths.get_input_directory())
    path = root / folder
    if not _is_inside(folder) or not _is_folder(path):
        raise ValueError(
            f"folder: ComfyUI's input folder has no folder '{folder[:100]}'; make it and put photos in."
        )
    return path


def _is_inside(folder: str) -> bool:
    """Whether a name goes down from the input folder and nowhere else; a link that is there may lead out."""
    parts = PurePosixPath(folder.replace("\\", "/")).parts
    return bool(parts) and ".." not in parts and not Path(folder).is_absolute() and ":" not in folder


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that is too long or holds a NUL
        return False
