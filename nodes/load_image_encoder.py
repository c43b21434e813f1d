"""InlayLoadImageEncoder: DINOv2 of any size, with or without registers, or CLIP, as CLIP_VISION."""

from comfy_api.latest import io

from .models import model_file, model_files, model_folders, read_file, read_folder

CLIP_VISION = "clip_vision"


class InlayLoadImageEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayLoadImageEncoder",
            display_name="Load Image Encoder (Inlay)",
            category="Inlay",
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
        from ..encoders import dinov2  # loaded when needed: a host starts sooner without
        from ..encoders.host import load_vision

        folder, config = model_folders().get(name), None
        if folder is not None:
            state, facts = read_folder(folder)
            if dinov2.is_transformers(state):
                config = dinov2.read_config(state, facts["num_attention_heads"])
        else:
            state, _ = read_file(model_file(name, CLIP_VISION, "name"))
        encoder = load_vision(state, config)
        if encoder is None:
            raise ValueError(
                f"name: '{name}' is no encoder that Inlay or ComfyUI knows; choose a DINOv2 or a CLIP."
            )
        return io.NodeOutput(encoder)
