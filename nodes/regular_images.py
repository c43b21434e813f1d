"""InlayRegularImages: the wired-in model paints other things of the subject's kind, each with its mask."""

import comfy.samplers
import comfy.utils
from comfy_api.latest import io, ui

from ..conditioning.family import working_side


class InlayRegularImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayRegularImages",
            display_name="Regular Images (Inlay)",
            category="Inlay",
            description="Paints each prompt with the wired-in model itself, before it learns your subject,"
            " and finds the outline of what it painted: regular data for Subject Finetune (DreamMix eq. 8).",
            search_aliases=["regularization images", "class images", "prior preservation", "ADM", "DreamMix"],
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that will be taught, still without the subject."),
                io.Clip.Input("clip", tooltip="The text encoder of the same checkpoint."),
                io.Vae.Input("vae", tooltip="The VAE of the same checkpoint."),
                io.String.Input(
                    "prompts",
                    force_input=True,
                    tooltip="What to paint, from Attribute Dictionary, Load Regular Data or a text.",
                ),
                io.Int.Input(
                    "count",
                    default=4,
                    min=1,
                    max=1000,
                    tooltip="Pictures of each prompt (DreamMix: 30), each with its own background and place.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="The same seed gives the same pictures.",
                ),
                io.Int.Input(
                    "steps", default=20, min=1, max=10000, tooltip="Sampling steps of each picture."
                ),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How strictly the pictures follow their prompts.",
                ),
                io.Combo.Input(
                    "sampler_name", options=comfy.samplers.KSampler.SAMPLERS, tooltip="As in KSampler."
                ),
                io.Combo.Input(
                    "scheduler", options=comfy.samplers.KSampler.SCHEDULERS, tooltip="As in KSampler."
                ),
                io.String.Input(
                    "background_prompt",
                    default="a photo of an empty room",
                    tooltip="What the pictures show before the thing is painted into them. Unused where"
                    " backgrounds are wired in.",
                ),
                io.Int.Input(
                    "size",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                    advanced=True,
                    tooltip="Side of the pictures in pixels where no backgrounds are wired in; 0 = the"
                    " model's own (SD 1.5 512, SDXL 1024).",
                ),
                io.Image.Input(
                    "backgrounds",
                    optional=True,
                    tooltip="Pictures to paint into, in turn: a batch, or a list of different sizes.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    is_output_list=True,
                    tooltip="For Subject Finetune's regular_images, or first through a segmenter.",
                ),
                io.Mask.Output(
                    display_name="masks",
                    is_output_list=True,
                    tooltip="The outline by what changed in the background; a segmenter's is better.",
                ),
                io.String.Output(
                    display_name="prompts", is_output_list=True, tooltip="The prompt of each picture."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model, clip, vae, prompts, count, seed, steps, cfg, sampler_name, scheduler, background_prompt,
        size=(0,), backgrounds=None,
    ) -> io.NodeOutput:  # fmt: skip
        from ..training.paint import Sampling, paint_backgrounds, paint_regular  # loaded when needed

        wired = model[0], clip[0], vae[0]
        how = Sampling(steps[0], cfg[0], sampler_name[0], scheduler[0])
        prompts = [prompt.strip() for prompt in prompts if prompt.strip()]
        if not prompts:
            raise ValueError("prompts: there are none; wire Attribute Dictionary's prompts.")
        own = 0 if backgrounds else count[0]
        bar = comfy.utils.ProgressBar((own + count[0] * len(prompts)) * how.steps)

        def advance(*_):
            bar.update(1)

        scenes = (
            [picture[None, ..., :3] for batch in backgrounds for picture in batch]
            if backgrounds
            else list(
                paint_backgrounds(
                    *wired,
                    background_prompt[0],
                    size[0] or working_side(wired[0]),
                    own,
                    seed[0],
                    how,
                    advance,
                )
            )
        )
        said = [prompt for prompt in prompts for _ in range(count[0])]
        painted = [
            paint_regular(*wired, scenes[number % len(scenes)], prompt, seed[0] + number, how, advance)
            for number, prompt in enumerate(said)
        ]
        images, masks = ([getattr(one, name) for one in painted] for name in ("image", "mask"))
        return io.NodeOutput(images, masks, said, ui=ui.PreviewImage(images[0], cls=cls))
