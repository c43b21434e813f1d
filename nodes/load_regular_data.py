"""InlayLoadRegularData: a regular_<category> folder, DreamMix's own or a saved one."""

import hashlib
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..imaging.references import read_reference
from ..training.regular_files import list_regular


class InlayLoadRegularData(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayLoadRegularData",
            display_name="Load Regular Data (Inlay)",
            category="Inlay",
            description="Loads the regular pictures of a class with their masks and prompts, from the folders"
            " that DreamMix's code writes and Save Regular Data.",
            search_aliases=["regularization images", "DreamMix", "load dataset", "class images", "prior"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=list(folders()),
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
        try:
            list_regular(_resolve(folder))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: str) -> str:
        digest = hashlib.sha256()
        for file in list_regular(_resolve(folder)):
            for path in (file.image, file.mask):
                digest.update(f"{file.prompt}/{path.name}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        files = list_regular(_resolve(folder))
        references = [read_reference(file.image, file.mask) for file in files]
        images, masks = ([pair[i] for pair in references] for i in (0, 1))
        return io.NodeOutput(images, masks, [file.prompt for file in files])


def folders() -> dict[str, Path]:
    """Every regular_<category> folder of the input, and of the output as "regular_<category> [output]"."""
    places = {"": folder_paths.get_input_directory(), " [output]": folder_paths.get_output_directory()}
    return {
        f"{path.name}{mark}": path
        for mark, place in places.items()
        for path in sorted(Path(place).glob("regular_*"))
        if path.is_dir()
    }


def _resolve(folder: str) -> Path:
    """The named folder; only those that are listed are opened."""
    found = folders().get(folder)
    if found is None:
        raise ValueError(f"folder: there is no {folder} in ComfyUI's input or output folder; save one there.")
    return found
