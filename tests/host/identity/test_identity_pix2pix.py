"""ImageConditionedPix2Pix and the two-scale guider in the real host, against the formula in float64."""

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def parts(kit, in_process_host, load_checkpoint):
    """An 8-channel model, its VAE, an encoder, and embedding-optimizer weights for that encoder."""
    from inlay.encoders.content_adapter import EncoderSpec
    from inlay.encoders.embedding_optimizer import OptimizerConfig

    kit.dino().save_pretrained(in_process_host.models / "inlay" / "pix2pix-dino")
    reads = EncoderSpec(width=32, size=70, background="original", uncond="zeros")
    kit.write_adapter(in_process_host.models / "inlay" / "optimizer.safetensors", OptimizerConfig(reads))
    with torch.inference_mode():
        model, _, vae = load_checkpoint(8)
        (vision,) = kit.execute("InlayLoadImageEncoder", "pix2pix-dino")
        optimizer = kit.execute("InlayLoadAdapter", "optimizer.safetensors")[0]
    return SimpleNamespace(model=model, vae=vae, vision=vision, optimizer=optimizer)


def prepare(kit, parts, image, thing, **choices):
    wired = parts.model, parts.vae, parts.vision, parts.optimizer, image, thing
    made = kit.execute("ImageConditionedPix2Pix", *wired, **choices)
    return SimpleNamespace(**dict(zip(("positive", "negative", "latent", "guider"), made, strict=True)))


def run(guider, latent, sigmas, seed=0):
    """Stock nodes: noise, Euler, and the guider."""
    from comfy_extras.nodes_custom_sampler import KSamplerSelect, Noise_RandomNoise, SamplerCustomAdvanced

    def first(output: Any):
        return output.result[0]

    sampler, noise = first(KSamplerSelect.execute("euler")), Noise_RandomNoise(seed)
    return first(SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent))["samples"], noise


def by_hand(parts, made, sigmas, noise, object_scale, image_scale):
    """Euler in float64 on eps = u + s (e(object, picture) - e(picture)) + s_I (e(picture) - u)."""
    base = parts.model.model
    source = made.positive[0][1]["concat_latent_image"]
    x = noise.generate_noise(made.latent).double() * (1 + sigmas[0].double() ** 2).sqrt()
    for sigma, following in zip(sigmas[:-1].double(), sigmas[1:].double(), strict=True):
        eps = []
        for context, given in (
            (made.positive[0][0], source),
            (made.negative[0][0], source),
            (made.negative[0][0], torch.zeros_like(source)),
        ):
            args = x.float(), sigma.float().expand(1)
            denoised = base.apply_model(*args, c_concat=given, c_crossattn=context).double()
            eps.append((x - denoised) / sigma)
        both, image, nothing = eps
        combined = nothing + object_scale * (both - image) + image_scale * (image - nothing)
        x = x + (following - sigma) * combined
    return base.process_latent_out(x)


@pytest.mark.parametrize(("object_scale", "image_scale"), [(7.0, 1.5), (3.0, 1.0), (1.0, 1.0), (0.0, 2.0)])
def test_the_guider_is_the_formula(kit, parts, object_scale, image_scale):
    image, thing = kit.picture(48, 1), kit.picture(40, 2)
    made = prepare(kit, parts, image, thing, object_guidance=object_scale, image_guidance=image_scale)
    sigmas = torch.tensor([14.6146, 5.0, 1.0, 0.0])
    got, noise = run(made.guider, made.latent, sigmas)
    expected = by_hand(parts, made, sigmas, noise, object_scale, image_scale)
    assert (got - expected).abs().max() < 1e-3 * expected.abs().max()
    assert torch.isfinite(got).all()


def test_the_source_is_its_latent_unscaled(kit, parts):
    image = kit.picture(48, 1)
    made = prepare(kit, parts, image, kit.picture(40, 2))
    latent = parts.vae.encode(image)
    for conditioning in (made.positive, made.negative):
        assert torch.equal(conditioning[0][1]["concat_latent_image"], latent)
    assert not made.latent["samples"].any()
    assert made.positive[0][0].shape == made.negative[0][0].shape == (1, 77, 768)
    assert not made.negative[0][0].any()  # no object is a context of zeros


@pytest.mark.parametrize(("height", "width"), [(37, 53), (48, 40), (9, 70)])
def test_any_size_is_padded_and_cropped_back(kit, parts, height, width):
    host_nodes = importlib.import_module("nodes")

    image = torch.rand(2, height, width, 3, generator=torch.Generator().manual_seed(0))
    made = prepare(kit, parts, image, kit.picture(40, 2))
    assert made.latent["samples"].shape == (2, 4, -(-height // 8), -(-width // 8))
    samples, _ = run(made.guider, made.latent, torch.tensor([14.6, 3.0, 0.0]))
    decoded = host_nodes.VAEDecode().decode(parts.vae, {"samples": samples})[0]
    (result,) = kit.execute("InlayCropBack", decoded, image)
    assert result.shape == image.shape
    assert torch.equal(result, decoded[:, :height, :width])
    with pytest.raises(ValueError, match="generated: it is"):
        kit.execute("InlayCropBack", kit.picture(100), image)


def test_what_is_new_lies_on_the_untouched_picture(kit):
    original = 0.3 + 0.4 * torch.rand(2, 37, 53, 4, generator=torch.Generator().manual_seed(0))
    generated = torch.nn.functional.pad(original, (0, 0, 0, 3, 0, 3)) + 0.03
    generated[:, 10:25, 20:40] = 1
    for given in (generated, generated[..., :3]):
        (mask,) = kit.execute("InlayChangeMask", original, given, 0.08, "the largest")
        assert mask.shape == (2, 37, 53)
        assert mask[:, 10:25, 20:40].all()
    result, *_ = kit.execute("InlayPasteBack", original, generated, mask, 0)
    assert torch.equal(result[mask == 0], original[mask == 0])
    assert (result[:, 10:25, 20:40] == 1).all()
    for patches, where in (("the largest", "nowhere by more than"), ("all", "in no patch of 0")):
        with pytest.raises(ValueError, match=f"generated: it differs from the original {where}"):
            kit.execute("InlayChangeMask", original, original, 0.08, patches)
    with pytest.raises(ValueError, match="generated: it is"):
        kit.execute("InlayChangeMask", original, kit.picture(100), 0.08, "all")


def test_a_stock_sampler_takes_the_conditions(kit, parts):
    host_nodes = importlib.import_module("nodes")

    made = prepare(kit, parts, kit.picture(48, 1), kit.picture(40, 2))
    samples = [
        host_nodes.KSampler().sample(
            parts.model, 0, 2, 3.0, "euler", "normal", positive, made.negative, made.latent
        )[0]["samples"]
        for positive in (made.positive, made.negative)
    ]
    assert torch.isfinite(samples[0]).all()
    assert not torch.allclose(*samples, atol=1e-4)


def test_views_alpha_and_raw_pixels(kit, parts):
    image, (thing, mask) = kit.picture(48, 1), kit.object_picture()
    plain = prepare(kit, parts, image, thing).positive[0][0]
    views = prepare(kit, parts, image, torch.cat([thing, thing])).positive[0][0]
    assert (views - torch.cat([plain, plain], 1)).abs().max() < 1e-5 * plain.abs().max()
    cut = prepare(kit, parts, image, torch.cat([thing, mask[..., None]], -1)).positive[0][0]
    raw = prepare(kit, parts, image, thing, raw_pixels=True).positive[0][0]
    for other in (cut, raw):
        assert other.shape == plain.shape
        assert not torch.allclose(other, plain, atol=1e-3)


@pytest.mark.parametrize(("channels", "kind"), [(4, "text-to-image"), (9, "an inpainting")])
def test_another_model_is_named(kit, parts, load_checkpoint, channels, kind):
    other = SimpleNamespace(**{**vars(parts), "model": load_checkpoint(channels)[0]})
    with pytest.raises(ValueError, match=rf"{kind} model \({channels} channels\); load .* \(8 channels\)"):
        prepare(kit, other, kit.picture(48), kit.picture(40))


def test_the_wrong_encoder_is_named(kit, in_process_host, parts):
    kit.dino(registers=0).save_pretrained(in_process_host.models / "inlay" / "pix2pix-bare")
    (bare,) = kit.execute("InlayLoadImageEncoder", "pix2pix-bare")
    other = SimpleNamespace(**{**vars(parts), "vision": bare})
    with pytest.raises(ValueError, match=r"without registers, but the adapter optimizer\.safetensors"):
        prepare(kit, other, kit.picture(48), kit.picture(40))


def test_another_width_of_context_is_named(kit, in_process_host, parts):
    from inlay.encoders.embedding_optimizer import OptimizerConfig

    config = OptimizerConfig(parts.optimizer.encoder_spec, context=1024)
    kit.write_adapter(in_process_host.models / "inlay" / "wide.safetensors", config)
    other = SimpleNamespace(
        **{**vars(parts), "optimizer": kit.execute("InlayLoadAdapter", "wide.safetensors")[0]}
    )
    with pytest.raises(ValueError, match=r"model: it reads context of width 768, but .* makes 1024"):
        prepare(kit, other, kit.picture(48), kit.picture(40))


@pytest.mark.parametrize("which", ["image", "object_image"])
def test_a_picture_with_nan_is_named(kit, parts, which):
    given = {"image": kit.picture(48), "thing": kit.picture(40)}
    given["image" if which == "image" else "thing"][0, 3, 4, 1] = float("nan")
    with pytest.raises(ValueError, match=f"^{which}: it holds NaN"):
        prepare(kit, parts, **given)


def test_an_object_without_a_pixel_is_named_by_its_input(kit, parts):
    thing = torch.cat([kit.picture(40, batch=2), torch.zeros(2, 40, 40, 1)], -1)
    with pytest.raises(ValueError, match=r"^object_image: it is empty"):
        prepare(kit, parts, kit.picture(48), thing[:1])
    with pytest.raises(ValueError, match=r"^object_image: mask 1: it is empty"):
        prepare(kit, parts, kit.picture(48), thing)


def test_learned_queries_are_no_grid_of_patches(kit, in_process_host, parts):
    from inlay.encoders.embedding_optimizer import OptimizerConfig
    from inlay.encoders.image_context import encode_views

    reads = parts.optimizer.encoder_spec
    config = OptimizerConfig(reads, context=768, tokens=reads.leading + 16)
    kit.write_adapter(in_process_host.models / "inlay" / "square.safetensors", config)
    adapter = kit.execute("InlayLoadAdapter", "square.safetensors")[0]
    whole, few = (encode_views(parts.vision, adapter, [kit.picture(70)], count=n).context for n in (0, 9))
    assert torch.equal(few, whole[:, :9])
