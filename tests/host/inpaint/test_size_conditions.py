"""SDXL's size conditions reach the network as the prompt has them, in both stages."""

from typing import Any

import pytest
import torch

SHAPE = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 64, "num_res_blocks": [1, 1],
    "channel_mult": [1, 2], "transformer_depth": [1, 1], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1], "context_dim": 2048, 
    "num_classes": "sequential", "adm_in_channels": 2816, "use_linear_in_transformer": True,
    "use_spatial_transformer": True, "legacy": False,
}  # fmt: skip
POOLED, STEPS = 1280, 10


@pytest.fixture(scope="module")
def network(in_process_host):
    """A small network with SDXL's conditions and random weights."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    torch.manual_seed(0)
    config = comfy.supported_models.SDXL(SHAPE)
    base = comfy.model_base.SDXL(config)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.normal_(std=0.02)
    return comfy.model_patcher.ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))


def prompt(seed, **values):
    generator = torch.Generator().manual_seed(seed)
    text, pooled = torch.randn(1, 77, 2048, generator=generator), torch.randn(1, POOLED, generator=generator)
    return [[text, {"pooled_output": pooled, **values}]]


def test_other_sizes_in_the_first_steps(network, random_tiny):
    """DreamMix's code names 1.5 times the size in the prompt and 0.8 times in the negative one, for 30 %."""
    from comfy.patcher_extension import WrappersMP

    from inlay.nodes.disentangled_inpaint_sampler import DisentangledInpaintSampler

    sampler: Any = DisentangledInpaintSampler
    size, seen = 48, []
    larger, smaller = int(1.5 * size), int(0.8 * size)
    positive, negative = [
        [
            *prompt(seed, width=other, height=other, start_percent=0.0, end_percent=0.3),
            *prompt(seed, width=size, height=size, start_percent=0.3, end_percent=1.0),
        ]
        for seed, other in ((1, larger), (2, smaller))
    ]
    watched = network.clone()

    def watch(executor, x, t, *arguments, **kwargs):
        seen.append((float(t[0]), kwargs["y"].clone()))
        return executor(x, t, *arguments, **kwargs)

    watched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", watch)
    picture = torch.rand(1, size, size, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, size, size)
    mask[:, 16:24, 16:24] = 1
    with torch.inference_mode():
        sampler.PREPARE_CLASS_CLONE(None).execute(
            watched, positive, negative, random_tiny(4)[2], picture, mask, 3, STEPS, 4.0, "euler", "normal",
            close_up_share=0.5, close_up_size=32, soft_edge=2, grow=2,
        )  # fmt: skip
    sampling = network.model.model_sampling
    border = float(sampling.percent_to_sigma(0.3))
    sizes = {value: network.model.embedder(torch.tensor([value])) for value in (larger, smaller, size)}
    assert len(seen) >= STEPS
    early = late = 0
    for sigma, vectors in seen:
        found = {
            value
            for vector in vectors
            for value, embedded in sizes.items()
            if torch.allclose(vector[POOLED : POOLED + 256].float(), embedded[0].float(), atol=1e-4)
        }
        if sigma > border:
            assert found in ({larger}, {smaller}, {larger, smaller})
            early += 1
        else:
            assert found == {size}
            late += 1
    assert (early > 0, late > 0) == (True, True)
