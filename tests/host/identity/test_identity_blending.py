"""Background blending and mask levels in the real host."""

import importlib

import pytest
import torch


def words(seed=0):
    text = torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(seed))
    return [[text, {"pooled_output": None}]]


def hole():
    mask = torch.zeros(1, 48, 48)
    mask[:, 16:40, 8:32] = 1
    return mask


def watched(model):
    """A clone that records the noisy input of every call as the network gets it."""
    calls, clone = [], model.clone()

    def watch(apply_model, arguments):
        x, sigma = arguments["input"], arguments["timestep"]
        calls.append(model.model.model_sampling.calculate_input(sigma, x))
        return apply_model(x, sigma, **arguments["c"])

    clone.set_model_unet_function_wrapper(watch)
    return clone, calls


def sample(kit, parts, model, sampler="euler"):
    host_nodes = importlib.import_module("nodes")

    positive, negative, latent = kit.execute(
        "InlayInpaintConditioning", words(), words(1), parts[2], kit.picture(48, 3), hole()
    )
    result = host_nodes.KSampler().sample(model, 5, 3, 1.0, sampler, "normal", positive, negative, latent)
    return result[0]["samples"], latent["samples"]


@pytest.mark.parametrize("channels", [9, 4])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m_sde"])
def test_clean_shows_the_network_the_latent_itself(kit, load_checkpoint, channels, sampler):
    parts = load_checkpoint(channels)
    (clean,) = kit.execute("InlayBackgroundBlending", parts[0], "clean")
    model, calls = watched(clean)
    result, latent = sample(kit, parts, model, sampler)
    known = parts[0].model.process_latent_in(latent)
    outside = torch.ones(6, 6, dtype=torch.bool)
    outside[2:5, 1:4] = False
    assert calls
    for seen in calls:
        assert (seen[0, :, outside] - known[0, :, outside]).abs().max() < 1e-5 * known.abs().max()
        assert not torch.allclose(seen[0, :, ~outside], known[0, :, ~outside], atol=1e-3)
    assert (result[0, :, outside] - latent[0, :, outside]).abs().max() < 1e-4


def test_renoised_is_what_the_host_does_and_no_trace_is_left(kit, load_checkpoint):
    parts = load_checkpoint(9)
    before, _ = sample(kit, parts, parts[0])
    (renoised,) = kit.execute("InlayBackgroundBlending", parts[0], "renoised")
    (clean,) = kit.execute("InlayBackgroundBlending", parts[0], "clean")
    assert torch.equal(sample(kit, parts, renoised)[0], before)
    assert not torch.equal(sample(kit, parts, clean)[0], before)
    assert torch.equal(sample(kit, parts, parts[0])[0], before)
    (again,) = kit.execute("InlayBackgroundBlending", clean, "renoised")
    assert torch.equal(sample(kit, parts, again)[0], before)
    assert not torch.equal(sample(kit, parts, clean)[0], before)


def test_fresh_noise_is_other_noise_at_every_step_and_the_seeds_own(kit, load_checkpoint):
    parts = load_checkpoint(4)
    (fresh,) = kit.execute("InlayBackgroundBlending", parts[0], "fresh noise")
    outside = torch.ones(6, 6, dtype=torch.bool)
    outside[2:5, 1:4] = False
    runs = []
    for _ in range(2):
        model, seen = fresh.clone(), []

        def watch(apply_model, arguments, seen=seen):
            x, sigma = arguments["input"], arguments["timestep"]
            seen.append((x, sigma[0]))
            return apply_model(x, sigma, **arguments["c"])

        model.set_model_unet_function_wrapper(watch)
        result, latent = sample(kit, parts, model)
        known = parts[0].model.process_latent_in(latent)
        runs.append([((x[0] - known[0]) / sigma)[:, outside] for x, sigma in seen])
        assert (result[0, :, outside] - latent[0, :, outside]).abs().max() < 1e-4
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    for number, noise in enumerate(runs[0]):
        assert 0.8 < noise.std() < 1.2
        for other in runs[0][number + 1 :]:
            assert not torch.allclose(noise, other, atol=0.1)


def test_the_disentangled_sampler_blends_as_asked(kit, load_checkpoint):
    model, _, vae = load_checkpoint(9)
    (clean,) = kit.execute("InlayBackgroundBlending", model, "clean")

    def paint(model):
        return kit.execute(
            "DisentangledInpaintSampler", model, words(), words(1), vae, kit.picture(48, 3), hole(), 1, 2,
            2.0, "euler", "normal", close_up_size=32, soft_edge=2,
        )[0]  # fmt: skip

    assert torch.isfinite(paint(clean)).all()
    assert not torch.allclose(paint(clean), paint(model), atol=1e-4)


@pytest.mark.parametrize(
    ("level", "count"), [("1 outline", 1), ("2 near the outline", 1), ("4 box", 1), ("all four", 4)]
)
def test_levels_come_with_a_preview(kit, level, count):
    from inlay.imaging.mask_levels import MASK_LEVELS, mask_level

    mask = hole()
    mask[:, 16:24, 8:16] = 0
    made, shown = kit.execute("InlayMaskLevels", mask, level)
    assert shown.shape == (1, 48, 4 * 48, 3)
    levels = MASK_LEVELS if count == 4 else [int(level[0])]
    assert torch.equal(made, torch.cat([mask_level(mask, k) for k in levels]))
    over, pictured = kit.execute("InlayMaskLevels", mask, level, kit.picture(48))
    assert torch.equal(over, made)
    assert not torch.equal(pictured, shown)


def test_an_empty_mask_or_one_of_another_size_is_named(kit):
    with pytest.raises(ValueError, match="mask: it is empty"):
        kit.execute("InlayMaskLevels", torch.zeros(1, 9, 9), "4 box")
    with pytest.raises(ValueError, match="48x48 pixels but the image is 30x30"):
        kit.execute("InlayMaskLevels", hole(), "4 box", kit.picture(30))
