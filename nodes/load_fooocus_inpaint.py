"""InlayLoadFooocusInpaint: Fooocus' inpaint patch for SDXL from models/inpaint."""

from pathlib import Path

import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io

from ..conditioning.fooocus import InpaintHead, InpaintPatch

FOLDER = "inpaint"


class InlayLoadFooocusInpaint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = _files()
        return io.Schema(
            node_id="InlayLoadFooocusInpaint",
            display_name="Load Fooocus Inpaint (Inlay)",
            category="Inlay",
            description="Fooocus' inpaint patch, which makes a plain SDXL model an inpainting one for the"
            " Disentangled Inpaint Sampler. The same INPAINT_PATCH as in Acly's Inpaint Nodes.",
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
                    tooltip="For the Disentangled Inpaint Sampler, or the inpaint nodes pack.",
                )
            ],
        )

    @classmethod
    def execute(cls, head: str, patch: str) -> io.NodeOutput:
        weights = _read(head, "head").get("head")
        if not isinstance(weights, torch.Tensor) or weights.shape[1:] != (5, 3, 3):
            raise ValueError(f"head: '{head}' is not Fooocus' inpaint head; choose fooocus_inpaint_head.pth.")
        deltas = _read(patch, "patch")
        if not all(isinstance(delta, tuple | list) and len(delta) == 3 for delta in deltas.values()):
            raise ValueError(f"patch: '{patch}' is not Fooocus' patch; choose inpaint_v26.fooocus.patch.")
        loaded = InpaintPatch(InpaintHead(weights), {key: tuple(delta) for key, delta in deltas.items()})
        return io.NodeOutput(loaded)


def _files() -> list[str]:
    if FOLDER not in folder_paths.folder_names_and_paths:
        # Fooocus' files end in .pth and .patch
        paths = [str(Path(folder_paths.models_dir) / FOLDER)]
        folder_paths.folder_names_and_paths[FOLDER] = (
            paths,
            {*folder_paths.supported_pt_extensions, ".patch"},
        )
    return folder_paths.get_filename_list(FOLDER)


def _read(name: str, input_name: str) -> dict:
    """A file of models/inpaint; folder_paths keeps the name inside it, and the host reads tensors only."""
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise ValueError(f"{input_name}: there is no '{name}' in models/inpaint; download it there.")
    weights = comfy.utils.load_torch_file(path, safe_load=True)
    if not isinstance(weights, dict):
        raise ValueError(f"{input_name}: '{name}' holds no weights; choose another file.")
    return weights
