"""Masked attention beside other patches, in both orders: theirs keep working, and ours stays exact.

"Exact" means equal to a model whose every layer is masked by a dense float64 patch, with the same neighbour.
"""

import importlib
from typing import Any

import pytest
import torch


def node(module, name):
    """One of the host's own nodes, as a function."""
    return getattr(importlib.import_module(f"comfy_extras.{module}"), name).execute


def close(a, b, tolerance=1e-5):
    assert torch.isfinite(a).all()
    torch.testing.assert_close(a, b, atol=tolerance * b.abs().max().item(), rtol=0)


def masked(model, mask, **options):
    from inlay.attention.model_patch import mask_attention

    return mask_attention(model, [mask], self_layers="all", **options)


NEIGHBOURS = {
    "FreeU": lambda model: node("nodes_freelunch", "FreeU")(model, 1.1, 1.2, 0.9, 0.2)[0],
    "PAG": lambda model: node("nodes_pag", "PerturbedAttentionGuidance")(model, 3.0)[0],
    "SAG": lambda model: node("nodes_sag", "SelfAttentionGuidance")(model, 0.5, 2.0)[0],
}


@pytest.mark.parametrize("operator", ["paper", "renormalised"])
@pytest.mark.parametrize("name", NEIGHBOURS)
def test_a_neighbour_after_ours(rig, name, operator):
    model, add = rig.model(), NEIGHBOURS[name]
    ours = rig.sample(add(masked(model, rig.mask, operator=operator)))
    close(ours, rig.sample(add(rig.dense(model, rig.mask, operator))))
    assert not torch.equal(ours, rig.sample(masked(model, rig.mask, operator=operator)))


@pytest.mark.parametrize("name", ["FreeU", "PAG"])
def test_a_neighbour_before_ours_gives_the_same(rig, name):
    model, add = rig.model(), NEIGHBOURS[name]
    close(rig.sample(masked(add(model), rig.mask)), rig.sample(add(rig.dense(model, rig.mask))))


@pytest.mark.parametrize("operator", ["paper", "renormalised"])
def test_sag_before_ours_records_the_whole_map(rig, operator):
    """Its replacement of the middle block is called with every token, and what it returns is masked."""
    model, mask = rig.model(), rig.mask
    ours = rig.sample(masked(NEIGHBOURS["SAG"](model), mask, operator=operator))
    # The reference masks the middle block as well, and records like SAG does.
    close(ours, rig.sample(masked_sag(rig, model, mask, operator)), 2e-5)


def masked_sag(rig, model, mask, operator):
    """SAG whose recording replacement returns what the dense reference computes there."""
    sag = NEIGHBOURS["SAG"](rig.dense(model, mask, operator))
    replacements = sag.model_options["transformer_options"]["patches_replace"]["attn1"]
    record, dense = replacements["middle", 0, 0], replacements["middle", 0]

    def both(q, k, v, extra_options):
        record(q, k, v, extra_options)
        return dense(q, k, v, extra_options)

    replacements["middle", 0, 0] = both
    return sag


def image_prompt(model, previous_of=None):
    """A stand-in for IPAdapter: attends to tokens of its own beside the text, chaining if asked to."""
    model = model.clone()
    generator = torch.Generator().manual_seed(7)
    there = model.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    for block in (("input", 3), ("middle", 0), ("output", 3)):
        own = torch.randn(1, 4, 64 if block[0] != "output" else 32, generator=generator)
        previous = there.get(block) if previous_of == "ours" else None
        model.set_model_attn2_replace(added_attention(own, previous), *block)
    return model


def added_attention(own, previous):
    from comfy.ldm.modules.attention import attention_pytorch

    def patch(q, k, v, extra_options):
        assert q.shape[1] == extra_options["activations_shape"][2] * extra_options["activations_shape"][3]
        tokens = own.expand(q.shape[0], -1, -1)
        text = previous(q, k, v, extra_options) if previous else attention_pytorch(q, k, v, 4)
        return text + attention_pytorch(q, tokens, tokens, 4)

    return patch


def test_an_image_prompt_before_ours_speaks_only_to_the_box(rig):
    from inlay.attention.regions import region_labels, token_labels

    model, labels = rig.model(), region_labels([rig.mask])
    prompted = image_prompt(model)
    reference = rig.dense(model, rig.mask)
    replacements = prompted.model_options["transformer_options"]["patches_replace"]["attn2"]
    for block, patch in replacements.items():

        def inside(q, k, v, extra_options, patch=patch):
            latent, grid = extra_options["original_shape"][-2:], extra_options["activations_shape"][-2:]
            tokens = token_labels(labels, tuple(latent), tuple(grid))[0].flatten()
            return patch(q, k, v, extra_options) * tokens[:, None]

        reference.set_model_attn2_replace(inside, *block)
    close(rig.sample(masked(prompted, rig.mask)), rig.sample(reference))


def test_an_image_prompt_after_ours_finds_it_and_can_call_it(rig):
    model = rig.model()
    ours = image_prompt(masked(model, rig.mask), previous_of="ours")
    close(rig.sample(ours), rig.sample(image_prompt(rig.dense(model, rig.mask), previous_of="ours")))


@pytest.mark.parametrize("name", ["attn1", "attn2"])
def test_what_would_add_to_our_replacement_is_told_its_place(rig, name):
    """IPAdapter calls `add` of what it finds in its place."""
    there = masked(rig.model(), rig.mask).model_options["transformer_options"]["patches_replace"][name]
    with pytest.raises(ValueError, match="wire the model through that node first"):
        there["middle", 0].add(image_prompt, weight=1.0)


def identity(q, k, v, extra_options):
    return v


@pytest.mark.parametrize("operator", ["paper", "renormalised"])
@pytest.mark.parametrize("key", [("middle", 0), ("middle", 0, 0)])
def test_a_standing_replacement_of_self_attention_is_called(rig, key, operator):
    """A layer that returns its values stays the identity, whatever is masked around it."""
    model = rig.model()
    before, reference = model.clone(), rig.dense(model, rig.mask, operator)
    before.set_model_attn1_replace(identity, *key)
    reference.set_model_attn1_replace(identity, *key)
    close(rig.sample(masked(before, rig.mask, operator=operator)), rig.sample(reference))


def test_hypertile_in_both_orders(rig):
    """The layers it tiles stay unmasked; all others are masked."""
    model, latent = rig.model(), (64, 64)

    def tile(model):
        return node("nodes_hypertile", "HyperTile")(model, 256, 1, 0, False)[0]

    after = rig.sample(tile(masked(model, rig.mask)), steps=1, latent=latent)
    before = rig.sample(masked(tile(model), rig.mask), steps=1, latent=latent)
    assert torch.equal(after, before)
    from inlay.attention.model_patch import mask_attention

    coarse = tile(mask_attention(model, [rig.mask], self_layers="input 3, middle, output 0-1"))
    assert torch.equal(after, rig.sample(coarse, steps=1, latent=latent))
    assert not torch.equal(after, rig.sample(tile(model), steps=1, latent=latent))


def test_token_merging_in_both_orders(rig):
    model = rig.model()

    def merge(model):
        return node("nodes_tomesd", "TomePatchModel")(model, 0.5)[0]

    after = rig.sample(merge(masked(model, rig.mask)), steps=1)
    close(rig.sample(masked(merge(model), rig.mask), steps=1), after)
    for alone in (merge(model), masked(model, rig.mask)):
        assert not torch.allclose(rig.sample(alone, steps=1), after, rtol=1e-3)


def test_deep_shrink_changes_the_grids(rig):
    """Grids come from the host at run time: this node shrinks them in the middle of the UNet."""
    model = rig.model()

    def shrink(model):
        return node("nodes_model_downscale", "PatchModelAddDownscale")(
            model, 1, 1.7, 0.0, 0.6, True, "nearest-exact", "bicubic"
        )[0]

    ours = rig.sample(shrink(masked(model, rig.mask)))
    close(ours, rig.sample(shrink(rig.dense(model, rig.mask))))
    assert not torch.equal(ours, rig.sample(masked(model, rig.mask)))


def test_controlnet_sees_no_mask(rig):
    import comfy.cldm.cldm
    import comfy.controlnet

    config: dict[str, Any] = {
        "image_size": 32,
        "in_channels": 4,
        "model_channels": 32,
        "hint_channels": 3,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 2],
        "transformer_depth": [1, 1],
        "transformer_depth_middle": 1,
        "context_dim": 16,
        "use_spatial_transformer": True,
        "num_heads": 4,
        "legacy": False,
    }
    network = comfy.cldm.cldm.ControlNet(**config)
    generator = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    control = comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))
    control.set_cond_hint(torch.rand(1, 3, 96, 80, generator=generator), 1.0)
    model = rig.model()
    positive = rig.prompt(2, control=control, control_apply_to_uncond=True)
    ours = rig.sample(masked(model, rig.mask), batch=2, positive=positive)
    close(ours, rig.sample(rig.dense(model, rig.mask), batch=2, positive=positive))
    assert not torch.equal(ours, rig.sample(masked(model, rig.mask), batch=2))


def test_weight_hooks(rig):
    import comfy.hooks

    model = rig.model()
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"

    def hooked(model, seed):
        generator = torch.Generator().manual_seed(seed)
        change = torch.randn(model.model.state_dict()[key].shape, generator=generator)
        hooks = comfy.hooks.create_hook_lora({}, 1.0, 1.0)
        hook: Any = hooks.hooks[0]
        hook.weights = {key: ("diff", (change,))}
        hook.need_weight_init = False
        return rig.prompt(2, hooks=hooks)

    ours = rig.sample(masked(model, rig.mask), positive=hooked(model, 4))
    close(ours, rig.sample(rig.dense(model, rig.mask), positive=hooked(model, 4)))
    assert not torch.equal(ours, rig.sample(masked(model, rig.mask)))


def test_an_override_of_the_hosts_attention_reaches_the_masked_calls(rig):
    """Packs that set the attention kernel in transformer_options are asked, with their options passed on."""
    patched = masked(rig.model(), rig.mask)
    lengths = []

    def override(attention, q, k, v, heads, *args, **kwargs):
        assert kwargs["transformer_options"]["cond_or_uncond"]
        lengths.append((q.shape[1], k.shape[1]))
        return attention(q, k, v, heads, *args, **kwargs)

    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    rig.sample(patched, steps=1)
    inside, tokens = 24, 120
    assert {(inside, tokens), (tokens - inside, tokens), (inside, 77)} <= set(lengths)
    assert (tokens, tokens) not in lengths


def test_two_of_ours_mask_what_both_allow(rig):
    """Cross-attention reaches the intersection of the two regions."""
    from inlay.attention.model_patch import mask_attention

    model = rig.model()
    other = torch.zeros_like(rig.mask)
    other[:, 32:96, 40:80] = 1
    twice = mask_attention(mask_attention(model, [rig.mask], self_layers="none"), [other], self_layers="none")
    both = mask_attention(model, [rig.mask * other], self_layers="none")
    close(rig.sample(twice), rig.sample(both))
