"""On a small network of SDXL's shape: size conditions in both stages, and training on DreamMix's own base."""

from typing import Any, cast

import pytest
import torch

SHAPE = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 64, "num_res_blocks": [1, 1],
    "channel_mult": [1, 2], "transformer_depth": [1, 1], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1], "context_dim": 2048, 
    "num_classes": "sequential", "adm_in_channels": 2816, "use_linear_in_transformer": True,
    "use_spatial_transformer": True, "legacy": False,
}  # fmt: skip
POOLED, STEPS, SIDE = 1280, 10, 48


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


def paint(model, vae, positive, negative, steps, **inputs):
    """Inpaint Subject on a picture of 48 pixels; the finished picture."""
    from inlay.nodes.disentangled_inpaint_sampler import DisentangledInpaintSampler

    node: Any = DisentangledInpaintSampler
    picture = torch.rand(1, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, 16:24, 16:24] = 1
    with torch.inference_mode():
        return node.PREPARE_CLASS_CLONE(None).execute(
            model, positive, negative, vae, picture, mask, 3, steps, 4.0, "euler", "normal",
            close_up_share=0.5, close_up_size=32, soft_edge=2, grow=2, **inputs,
        ).result[0]  # fmt: skip


def test_other_sizes_in_the_first_steps(network, random_tiny):
    """DreamMix's code names 1.5 times the size in the prompt and 0.8 times in the negative one, for 30 %."""
    from comfy.patcher_extension import WrappersMP

    size, seen = SIDE, []
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
    paint(watched, random_tiny(4)[2], positive, negative, STEPS)
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


def test_the_sampler_paints_the_same_before_and_after_a_training_on_dreammixs_base(network, random_tiny):
    """DreamMix trains on SDXL with Fooocus' deltas and head; the wired model and the patch stay the same."""
    from inlay.conditioning.fooocus import InpaintHead, InpaintPatch
    from inlay.host.models import load_fully
    from inlay.training.finetune.data import Examples
    from inlay.training.finetune.pipeline import Pipeline, trainable_model
    from inlay.training.finetune.recipes import DREAMMIX
    from inlay.training.finetune.trainer import loss_of_pass

    vae: Any = random_tiny(4)[2]
    generator = torch.Generator().manual_seed(0)
    key = "diffusion_model.middle_block.0.in_layers.2.weight"
    shape = network.model.state_dict()[key].shape
    steps = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    head = InpaintHead(0.2 * torch.randn(SHAPE["model_channels"], 5, 3, 3, generator=generator))
    patch = InpaintPatch(head, {key: (steps, torch.tensor(-0.05), torch.tensor(0.05))})
    prompts = prompt(1), prompt(2)
    before = paint(network, vae, *prompts, 4, inpaint_patch=tuple(patch))
    assert not torch.equal(before, paint(network, vae, *prompts, 4))

    latent, masked = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., 2:6, 3:7] = 1
    rows = Examples(
        latent, mask, masked, torch.ones_like(mask), torch.randn(1, 77, 2048, generator=generator),
        torch.randn(1, SHAPE["adm_in_channels"], generator=generator),
    )  # fmt: skip
    with torch.inference_mode():
        based = load_fully(Pipeline(network, cast(Any, None), vae, patch).with_deltas().model)
    with torch.inference_mode(False), torch.enable_grad():
        trainee = trainable_model(based, DREAMMIX, torch.float32, 0, inpaint_patch=patch)
        optimizer = torch.optim.SGD(trainee.adapter.parameters, lr=1.0)
        for step in range(2):
            loss_of_pass(trainee, DREAMMIX, rows, None, 5, step).backward()
            assert any(p.grad is not None and p.grad.norm() > 0 for p in trainee.adapter.parameters)
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(paint(network, vae, *prompts, 4, inpaint_patch=tuple(patch)), before)
