"""DisentangledInpaintSamplerAdvanced: the same with the host's NOISE, GUIDER, SAMPLER and SIGMAS."""

import torch
from comfy_api.latest import io

from .disentangled_inpaint_sampler import close_up_inputs, picture_inputs, sample, sampler_outputs


class DisentangledInpaintSamplerAdvanced(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DisentangledInpaintSamplerAdvanced",
            display_name="Disentangled Inpaint Sampler (Advanced)",
            category="Inlay",
            description="Disentangled Inpaint Sampler for guiders, samplers and schedules of your own. The"
            " guider's conditions are made anew for every window, so wire plain prompts.",
            search_aliases=["inpaint custom sampler", "DreamMix", "crop and stitch", "dual cfg", "guider"],
            inputs=[
                io.Noise.Input("noise", tooltip="The noise of both stages."),
                io.Guider.Input("guider", tooltip="Model, prompts and guidance."),
                io.Sampler.Input("sampler", tooltip="The sampler of both stages."),
                io.Sigmas.Input("sigmas", tooltip="The schedule of both stages together."),
                *picture_inputs(),
                *close_up_inputs(),
            ],
            outputs=sampler_outputs(),
        )

    @classmethod
    def execute(
        cls,
        noise,
        guider,
        sampler,
        sigmas: torch.Tensor,
        vae,
        image: torch.Tensor,
        mask: torch.Tensor,
        **choices,
    ) -> io.NodeOutput:
        return sample(guider, noise, sampler, sigmas, vae, image, mask, **choices)
