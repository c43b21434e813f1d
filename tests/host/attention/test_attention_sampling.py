"""Masked attention inside the host's sampler: exactness, bit identity, batches, guidance, precision."""

import pytest
import torch


def difference(a, b):
    return (a.float() - b.float()).abs().max().item()


@pytest.mark.parametrize("operator", ["paper", "renormalised"])
def test_the_whole_sampler_equals_a_dense_mask(rig, operator):
    from inlay.attention.model_patch import mask_attention

    model = rig.model()
    expected = rig.sample(rig.dense(model, rig.mask, operator))
    ours = rig.sample(mask_attention(model, [rig.mask], self_layers="all", operator=operator))
    scale = expected.abs().max().item()
    assert difference(ours, expected) < 1e-5 * scale
    assert difference(rig.sample(model), expected) > 1e-3 * scale


@pytest.mark.parametrize("operator", ["paper", "renormalised"])
@pytest.mark.parametrize("kind", ["SD15", "SD20", "SDXL"])
def test_a_whole_unet_equals_a_dense_mask_in_float64(rig, kind, operator):
    """The output of the network in one step, of both prompts, in the row of each UNet family."""
    from inlay.attention.model_patch import mask_attention

    model = rig.model("deep", torch.float64, kind=kind)
    outputs = []
    model.model.diffusion_model.register_forward_hook(lambda module, args, output: outputs.append(output))
    pooled = {"pooled_output": torch.ones(1, 1280)}
    prompts = {"positive": rig.prompt(2, **pooled), "negative": rig.prompt(3, **pooled)}
    ours = mask_attention(model, [rig.mask], self_layers="all", operator=operator)
    for variant in (ours, rig.dense(model, rig.mask, operator), model):
        rig.sample(variant, batch=2, steps=1, **prompts)
    got, want, plain = outputs
    assert got.dtype == torch.float64
    assert (got - want).abs().max() <= 1e-12 * want.abs().max()
    assert (plain - want).abs().max() > 1e-4 * want.abs().max()


@pytest.mark.parametrize(
    "options",
    [
        {"cross_strength": 0.0, "self_layers": "none"},
        {"cross_strength": 0.0, "self_strength": 0.0},
        {"percent": (0.3, 0.6)},  # two steps: the noisiest and the cleanest level
    ],
    ids=["preset none", "strength 0", "outside the range"],
)
def test_nothing_to_mask_is_the_unpatched_output_bit_for_bit(rig, options):
    from inlay.attention.model_patch import mask_attention

    model = rig.model()
    assert torch.equal(
        rig.sample(mask_attention(model, [rig.mask], **options), steps=2), rig.sample(model, steps=2)
    )


def test_the_input_model_is_left_as_it_was(rig):
    from inlay.attention.model_patch import mask_attention

    model = rig.model()
    before = rig.sample(model)
    patched = mask_attention(model, [rig.mask])
    rig.sample(patched)
    assert torch.equal(rig.sample(model), before)
    assert model.model_options["transformer_options"] == {}
    assert not model.get_all_wrappers("apply_model")
    assert not torch.equal(rig.sample(patched), before)


def test_a_full_mask_with_every_layer_changes_nothing(rig):
    from inlay.attention.model_patch import mask_attention

    model = rig.model()
    assert torch.equal(
        rig.sample(mask_attention(model, [torch.ones(1, 8, 8)], self_layers="all")), rig.sample(model)
    )


@pytest.mark.parametrize("apply_to", ["both", "conditional", "unconditional"])
def test_guidance_in_one_batch_or_in_two(rig, apply_to):
    """Prompts with different hooks run apart; the result is the one they have together."""
    import comfy.hooks

    from inlay.attention.model_patch import mask_attention

    patched = mask_attention(rig.model(), [rig.mask], apply_to=apply_to)
    passes = []

    def count(executor, *args, **kwargs):
        passes.append(args[5]["cond_or_uncond"])
        return executor(*args, **kwargs)

    patched.add_wrapper_with_key("apply_model", "test", count)
    together = rig.sample(patched, batch=2, steps=1)
    hooks = comfy.hooks.create_hook_lora({}, 1.0, 1.0)
    apart = rig.sample(patched, batch=2, steps=1, positive=rig.prompt(2, hooks=hooks))
    assert [sorted(chunks) for chunks in passes] == [[0, 1], [0], [1]]
    torch.testing.assert_close(apart, together, atol=1e-4, rtol=1e-4)


def test_only_the_chosen_pass_is_masked(rig):
    from inlay.attention.model_patch import mask_attention

    model = rig.model()
    free = rig.sample(model, cfg=1.0)
    assert torch.equal(rig.sample(mask_attention(model, [rig.mask], apply_to="unconditional"), cfg=1.0), free)
    assert (
        difference(rig.sample(mask_attention(model, [rig.mask], apply_to="conditional"), cfg=1.0), free)
        > 1e-3
    )


def test_one_mask_for_all_images_or_one_for_each(rig):
    from inlay.attention.model_patch import mask_attention

    model = rig.model()
    masks = torch.cat([rig.mask, rig.mask.flip(1)])
    each = rig.sample(mask_attention(model, [masks]), batch=2)
    for image, mask in enumerate(masks):
        alone = rig.sample(mask_attention(model, [mask]), batch=2)
        torch.testing.assert_close(each[image], alone[image], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="2 masks for 3 image"):
        rig.sample(mask_attention(model, [masks]), batch=3)


def test_strength_mixes(rig):
    from inlay.attention.model_patch import mask_attention

    model = rig.model()
    free, full = rig.sample(model, steps=1), rig.sample(mask_attention(model, [rig.mask]), steps=1)
    half = rig.sample(mask_attention(model, [rig.mask], cross_strength=0.5, self_strength=0.5), steps=1)
    assert 0.2 < difference(half, free) / difference(full, free) < 0.8


def test_the_range_of_steps(rig):
    from inlay.attention.model_patch import mask_attention

    model = rig.model()
    outputs = [
        rig.sample(mask_attention(model, [rig.mask], percent=percent))
        for percent in ((0.0, 1.0), (0.0, 0.5), (0.5, 1.0))
    ]
    free = rig.sample(model)
    assert all(difference(output, free) > 1e-3 for output in outputs)
    assert difference(outputs[0], outputs[1]) > 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("operator", ["paper", "renormalised"])
def test_half_precision(rig, dtype, operator):
    from inlay.attention.model_patch import mask_attention

    exact = rig.sample(mask_attention(rig.model(), [rig.mask], self_layers="all", operator=operator), steps=1)
    model = rig.model(dtype=dtype)
    rounded = rig.sample(mask_attention(model, [rig.mask], self_layers="all", operator=operator), steps=1)
    assert torch.isfinite(rounded).all()
    assert difference(rounded, exact) < 0.02 * exact.abs().max().item()


def test_two_subjects_with_their_own_words(rig):
    from inlay.attention.model_patch import mask_attention

    model = rig.model()
    masks = [rig.mask, rig.mask.flip(2)[:, :, :40].repeat(1, 1, 2)]
    shared = rig.sample(mask_attention(model, masks))
    own = rig.sample(mask_attention(model, masks, text=[{1, 2}, {5, 6}]))
    assert torch.isfinite(own).all()
    assert difference(shared, own) > 1e-3


@pytest.mark.parametrize("operator", ["paper", "renormalised"])
def test_a_prompt_that_the_host_repeats_keeps_its_words(rig, operator):
    """Beside a negative of twice its length the host says a prompt twice; its subject's words are in both."""
    from inlay.attention.model_patch import mask_attention

    patched = mask_attention(rig.model(), [rig.mask], text=[{1, 2}], operator=operator)
    ((text, extras),) = rig.prompt(3)
    twice = rig.sample(patched, negative=[[text.repeat(1, 2, 1), extras]])
    once = rig.sample(patched, negative=[[text, extras]])
    assert difference(twice, once) < 1e-5 * once.abs().max().item()


def test_the_close_up_moves_the_mask(rig):
    """With a window of the image's left half, the left half of the mask is what counts."""
    from inlay.attention.model_patch import mask_attention

    model = rig.model()
    patched = mask_attention(model, [rig.mask])
    patched.model_options["transformer_options"]["inlay_window"] = (0.0, 0.0, 1.0, 0.5)
    cropped = mask_attention(model, [rig.mask[:, :, :40]])
    assert torch.equal(rig.sample(patched, latent=(12, 5)), rig.sample(cropped, latent=(12, 5)))


def test_odd_latents_and_grids(rig):
    from inlay.attention.model_patch import mask_attention

    out = rig.sample(mask_attention(rig.model(), [rig.mask], self_layers="all"), latent=(7, 13))
    assert out.shape[-2:] == (7, 13)
    assert torch.isfinite(out).all()


def test_one_transformer_of_a_block_can_be_chosen(rig):
    from inlay.attention.model_patch import mask_attention

    model = rig.model("deep")
    outputs = [
        rig.sample(mask_attention(model, [rig.mask], cross_strength=0.0, self_layers=layers))
        for layers in ("output 1", "output 1.0", "output 1.1")
    ]
    free = rig.sample(model)
    assert all(difference(output, free) > 1e-6 for output in outputs)
    assert difference(outputs[1], outputs[2]) > 1e-6


def test_every_prompt_of_a_dual_guider_is_masked(rig):
    """The host numbers the passes of three prompts 0 (negative), 1, 2; the whole equals a dense mask."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    from inlay.attention.model_patch import mask_attention

    def run(model):
        first, second, negative = (rig.prompt(seed) for seed in (2, 4, 3))
        guider = DualCFGGuider.execute(model, first, second, negative, 4.0, 2.0, "regular")[0]
        noise = torch.randn(1, 4, 12, 10, generator=torch.Generator().manual_seed(1))
        sigmas = comfy.samplers.KSampler(model, 2, model.load_device, "euler", "normal", 1.0).sigmas
        sampler = comfy.samplers.sampler_object("euler")
        with torch.inference_mode():
            return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=1)

    model = rig.model()
    expected = run(rig.dense(model, rig.mask))
    ours = run(mask_attention(model, [rig.mask], self_layers="all"))
    assert difference(ours, expected) < 1e-5 * expected.abs().max().item()
