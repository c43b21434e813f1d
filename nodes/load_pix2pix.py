"""InlayLoadPix2Pix: an 8-channel SD 1.5 UNet from diffusers' file."""

import comfy.model_detection
import comfy.sd
import comfy.utils
from comfy_api.latest import io
from torch import Tensor

from .models import model_file, model_files, read_file

FOLDER = "diffusion_models"
FIRST = "conv_in.weight"  # (320, channels, 3, 3)


class InlayLoadPix2Pix(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayLoadPix2Pix",
            display_name="Load Pix2Pix UNet (Inlay)",
            category="Inlay",
            description="Loads an SD 1.5 InstructPix2Pix UNet (8 channels) from diffusers' file, which the"
            " host's loaders do not know.",
            search_aliases=["instruct pix2pix", "diffusers", "unet loader", "paint by inpaint"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=model_files(FOLDER),
                    tooltip="A file of models/diffusion_models: unet/diffusion_pytorch_model.safetensors of"
                    " the model, under a name of your choice.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The InstructPix2Pix model, for Image-Conditioned Pix2Pix."
                )
            ],
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        state, _ = read_file(model_file(file, FOLDER, "file"))
        if FIRST not in state:
            raise ValueError(f"file: '{file}' is no UNet in diffusers' layout; use the host's own loader.")
        model = comfy.sd.load_diffusion_model_state_dict(original_keys(state))
        if model is None:
            raise ValueError(f"file: '{file}' is no SD 1.5 UNet; choose an InstructPix2Pix UNet of SD 1.5.")
        return io.NodeOutput(model)


def original_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A diffusers UNet's weights under the original names, by the host's table for its four-channel twin."""
    config = comfy.model_detection.unet_config_from_diffusers_unet(state | {FIRST: state[FIRST][:, :4]})
    names = {} if config is None else comfy.utils.unet_to_diffusers(config)
    return {ours: state[theirs] for theirs, ours in names.items() if theirs in state}
