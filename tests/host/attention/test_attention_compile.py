"""torch.compile: no graph break of ours, and the right graph for every step and mask."""

from typing import Any

import pytest
import torch


def breaks(model, options):
    """Graph breaks of the model's UNet under these transformer_options."""
    unet = model.model.diffusion_model
    x, t, context = torch.randn(2, 4, 12, 10), torch.tensor([500.0, 500.0]), torch.randn(2, 77, 16)
    torch._dynamo.reset()
    explained = torch._dynamo.explain(unet)(x, t, context=context, transformer_options=options)
    torch._dynamo.reset()
    return explained.graph_break_count


@pytest.mark.parametrize(("operator", "strength"), [("paper", 0.5), ("renormalised", 1.0)])
def test_no_graph_break_of_ours(rig, operator, strength):
    import comfy.ldm.modules.attention

    from inlay.attention.patch import PLAN, region_options

    model = rig.model("shallow")
    masks = torch.cat([rig.mask, rig.mask.flip(1)])
    options = region_options(
        model.model.diffusion_model, masks, self_layers="all", operator=operator, self_strength=strength,
        cross_strength=strength, attend=comfy.ldm.modules.attention.optimized_attention,
    )  # fmt: skip
    options[PLAN].at((12, 10), (12, 10))
    options[PLAN].text_keys(77)
    assert breaks(model, options) == breaks(model, {}) == 0


def test_the_hosts_compiled_model_follows_range_and_mask(rig):
    """The host compiles without guards on transformer_options: steps and masks must not share a graph."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    from inlay.attention.model_patch import mask_attention

    def compiled(model):
        model = model.clone()
        unguarded: Any = {
            "guard_filter_fn": lambda guards: ["transformer_options" not in guard.name for guard in guards]
        }
        backend: Any = ShapeBound()
        set_torch_compile_wrapper(model=model, backend=backend, options=unguarded)
        return model

    torch._dynamo.reset()
    model = rig.model("shallow")
    wide = torch.ones_like(rig.mask)
    wide[:, :, 56:] = 0
    for patched in (
        model,
        mask_attention(model, [rig.mask], percent=(0.0, 0.5)),
        mask_attention(model, [wide]),
        mask_attention(model, [rig.mask.roll(16, 1)]),
        mask_attention(model, [rig.mask], cross_strength=0.5, released=True),
        model,
    ):
        expected = rig.sample(patched, steps=2)
        torch.testing.assert_close(rig.sample(compiled(patched), steps=2), expected, atol=1e-3, rtol=1e-4)
    torch._dynamo.reset()


class ShapeBound:
    """A backend that runs the graph as it is, but like a real one only for the shapes it was made for."""

    def __call__(self, graph, examples, **kwargs):
        shapes = [tuple(example.shape) for example in examples if isinstance(example, torch.Tensor)]

        def run(*inputs):
            assert shapes == [tuple(x.shape) for x in inputs if isinstance(x, torch.Tensor)]
            return graph(*inputs)

        return run
