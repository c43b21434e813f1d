"""InlayBackgroundBlending: how the known surroundings are mixed in while a model samples."""

from comfy_api.latest import io

from ..sampling.blending import BLENDINGS, RENOISED, blend_background


class InlayBackgroundBlending(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayBackgroundBlending",
            display_name="Background Blending (Inlay)",
            category="Inlay",
            description="Chooses what the picture outside the mask looks like to the model at every step,"
            " for any sampler whose latent has a noise mask (IMPRINT, fig. 3).",
            search_aliases=["blend background", "imprint", "noise mask", "inpaint blending"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will sample; it is not changed."),
                io.Combo.Input(
                    "blending",
                    options=list(BLENDINGS),
                    default=RENOISED,
                    tooltip="renoised: the background's latent, noised to the step's level, as models saw it"
                    " in training and as ComfyUI samples anyway; the default. clean: without noise at every"
                    " step, as IMPRINT draws it; for models trained like that, others may blend worse.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="A copy of the model that sees the chosen background."
                )
            ],
        )

    @classmethod
    def execute(cls, model, blending: str = RENOISED) -> io.NodeOutput:
        return io.NodeOutput(blend_background(model, blending))
