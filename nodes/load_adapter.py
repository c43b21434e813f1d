"""InlayLoadAdapter: an identity adapter or embedding optimizer, and the encoder in the same file."""

from comfy_api.latest import io, ui

from ..encoders.published import AUTO, CHOICES
from .models import INLAY, model_file, model_files, read_file

AdapterType = io.Custom("INLAY_ADAPTER")
CHECKPOINTS = "checkpoints"


class InlayLoadAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayLoadAdapter",
            display_name="Load Identity Adapter (Inlay)",
            category="Inlay",
            description="Loads what turns an object's picture into a model's context: an adapter trained with"
            " Inlay, ObjectStitch, Paint-by-Example, AnyDoor's projector, or a Visually Guided embedding"
            " optimizer. The layout is told from the file.",
            search_aliases=["objectstitch", "paint by example", "anydoor", "emb_opt", "imprint"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=_names(),
                    tooltip="A file of models/inlay, or a checkpoint of models/checkpoints that holds one"
                    " (ObjectStitch.pth, Paint-by-Example's model.ckpt, AnyDoor's).",
                ),
                io.Combo.Input(
                    "published_as",
                    options=list(CHOICES),
                    default=AUTO,
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
    def execute(cls, file: str, published_as: str = AUTO) -> io.NodeOutput:
        from ..encoders.host import encoder_name, load_adapter, load_vision  # loaded when needed
        from ..encoders.layouts import recognise

        kind, _, name = file.partition("/") if file.startswith(f"{CHECKPOINTS}/") else (INLAY, "", file)
        state, metadata = read_file(model_file(name, kind, "file"))
        found = recognise(state, metadata, name, published_as)
        adapter = load_adapter(found, name)
        vision = None if found.encoder is None else load_vision(found.encoder, found.dino)
        reads = found.config.reading
        wanted = encoder_name(reads.encoder, reads.width, reads.registers)
        report = (
            f"{name}: {found.layout}, for {wanted} at {reads.size}x{reads.size} pixels, context of width"
            f" {found.config.context}; {'with' if vision else 'without'} its encoder."
        )
        return io.NodeOutput(adapter, vision, report, ui=ui.PreviewText(report))


def _names() -> list[str]:
    return model_files() + [f"{CHECKPOINTS}/{name}" for name in model_files(CHECKPOINTS)]
