"""Nodes that read a subject's photos."""

import hashlib
from pathlib import Path, PurePosixPath

import folder_paths
from comfy_api.latest import io

from ..imaging.references import list_references, read_reference


class InlayLoadReferences(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayLoadReferences",
            display_name="Load References (Inlay)",
            category="Inlay",
            description="Loads every photo of a subject from one folder, each with the mask of the subject.",
            search_aliases=["load images from folder", "subject photos", "reference images", "dataset"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=folder_paths.get_input_subfolders(),
                    tooltip="A folder inside ComfyUI's input folder. Each picture in it is a reference, any"
                    " size. Its mask is its transparency (opaque = subject), else the file <name>_mask.png"
                    " or <name>-mask.png beside it (white = subject), else the whole frame.",
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
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: str) -> bool | str:
        try:
            list_references(_resolve(folder))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: str) -> str:
        digest = hashlib.sha256()
        for pair in list_references(_resolve(folder)):
            for file in filter(None, pair):
                digest.update(f"{file.name}\0".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        references = [
            read_reference(picture, mask, "folder") for picture, mask in list_references(_resolve(folder))
        ]
        return io.NodeOutput([image for image, _ in references], [mask for _, mask in references])


def _resolve(folder: str) -> Path:
    """The named folder inside the host's input folder; the name comes from a workflow and is not trusted."""
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
