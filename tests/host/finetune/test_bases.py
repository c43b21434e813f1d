"""Bases that are no plain checkpoint: quantised ones, Fooocus' patch, and a VAE with a distribution."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def load_fp8(random_checkpoint, tmp_path_factory):
    """Loads the tiny checkpoint with the UNet's matrices in fp8.

    kind: "plain"; "scaled": a scale for each, and some in 16 bits; "numbers": those of "scaled".
    """
    import comfy.sd
    from safetensors.torch import load_file, save_file

    def load(kind):
        parts = {}
        for key, weight in load_file(random_checkpoint).items():
            parts[key] = weight
            if key.startswith(UNET) and key.endswith(".weight") and weight.ndim == 2 and "emb" not in key:
                if kind != "plain" and "attn1.to_q" in key:
                    parts[key] = weight.half() if kind == "scaled" else weight.half().float()
                    continue
                scale = torch.tensor(1.0) if kind == "plain" else weight.abs().max() / 448
                parts[key] = (weight / scale).to(torch.float8_e4m3fn)
                if kind == "numbers":
                    parts[key] = parts[key].float() * scale
                if kind == "scaled":
                    parts[key.replace(".weight", ".scale_weight")] = scale
        if kind == "scaled":
            parts[f"{UNET}scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
        path = tmp_path_factory.mktemp("fp8") / f"{kind}.safetensors"
        save_file(parts, path)
        with torch.inference_mode():
            return comfy.sd.load_checkpoint_guess_config(str(path))[0]

    return load


def test_scaled_fp8_stays_scaled_fp8_and_trains_as_its_numbers(load_fp8, pictures, store_folder, run):
    from inlay.host.training import is_special, stays_frozen

    def values(model):
        layers = [layer for layer in model.model.diffusion_model.modules() if stays_frozen(layer)]
        return [layer.weight.dequantize() if is_special(layer.weight) else layer.weight for layer in layers]

    scaled = load_fp8("scaled")
    before = [weight.clone() for weight in values(scaled)]
    assert len(before) > 10
    choices = {"precision": "fp32", "batch_size": 1}
    model, lora, loss, *_ = run(*pictures, model=scaled, preview_every=2, **choices)
    numbers = run(*pictures, model=load_fp8("numbers"), **choices)
    assert loss["loss"] == pytest.approx(numbers[2]["loss"], rel=1e-4)
    assert len(model.patches) == len(lora) // 3 > 0
    assert all(torch.equal(a, b) for a, b in zip(before, values(scaled), strict=True))


def test_fp8_without_scales_trains(load_fp8, pictures, store_folder, run):
    model, lora, loss, *_ = run(*pictures, model=load_fp8("plain"), steps=1)
    assert len(model.patches) == len(lora) // 3 > 0
    assert all(torch.isfinite(torch.tensor(loss["loss"])))


class Packed(torch.Tensor):
    """A weight in a format of another pack, without a layer that could unpack it."""


def test_weights_that_cannot_be_read_are_refused_before_any_work(parts, pictures, run, monkeypatch):
    from inlay.training.finetune import pipeline

    unet = parts.model.model.diffusion_model
    layer = unet.get_submodule("input_blocks.1.1.transformer_blocks.0.attn1.to_q")
    packed = torch.nn.Parameter(torch.zeros(320, 320).as_subclass(Packed), requires_grad=False)
    monkeypatch.setitem(layer._parameters, "weight", packed)
    monkeypatch.setattr(pipeline, "encode_examples", lambda *_: pytest.fail("work began"))
    with pytest.raises(ValueError, match=r"^model: its weights are in a format .* \(Packed\); load the same"):
        run(*pictures)
    whole = torch.nn.Parameter(torch.zeros(320, 320, dtype=torch.int8), requires_grad=False)
    monkeypatch.setitem(layer._parameters, "weight", whole)
    with pytest.raises(ValueError, match=r"^model: its weights are in a format .* \(torch.int8\)"):
        run(*pictures)


def test_a_model_that_cannot_be_copied_is_refused_before_any_work(parts, pictures, run, monkeypatch):
    import comfy.model_patcher

    from inlay.training.finetune import pipeline

    class Paged(comfy.model_patcher.ModelPatcher):
        def is_dynamic(self):
            return True

    base = parts.model
    monkeypatch.setattr(pipeline, "encode_examples", lambda *_: pytest.fail("work began"))
    with pytest.raises(ValueError, match=r"^model: the node that loaded it gives no way to load a copy"):
        run(*pictures, model=Paged(base.model, base.load_device, base.offload_device))


# Fooocus' inpaint patch


@pytest.fixture
def plain(random_tiny):
    """MODEL, CLIP and VAE of a 4-channel checkpoint."""
    return SimpleNamespace(**dict(zip(("model", "clip", "vae"), random_tiny(4), strict=True)))


@pytest.fixture
def patch(plain):
    """A head and one weight's deltas, shaped for the tiny UNet."""
    from inlay.conditioning.fooocus import InpaintHead, InpaintPatch

    key = "diffusion_model.middle_block.0.in_layers.2.weight"
    shape, generator = plain.model.model.state_dict()[key].shape, torch.Generator().manual_seed(0)
    steps = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    head = 0.2 * torch.randn(320, 5, 3, 3, generator=generator)
    return InpaintPatch(InpaintHead(head), {key: (steps, torch.tensor(-0.05), torch.tensor(0.05))})


def examples_of(width, count=2):
    from inlay.training.finetune.data import Examples

    generator = torch.Generator().manual_seed(4)
    latent, masked = (torch.randn(count, 4, 8, 8, generator=generator).double() for _ in range(2))
    mask = torch.zeros(count, 1, 8, 8).double()
    mask[..., 2:6, 3:7] = 1
    context = torch.randn(1, 77, width, generator=generator).double()
    return Examples(latent, mask, masked, torch.ones_like(mask), context)


def test_the_head_and_the_deltas_take_part_in_a_step(plain, patch):
    """Against float64 written from the equations: h_0 = conv(x) + head * [mask, masked], W + delta."""
    from inlay.host.models import load_fully, weights_of
    from inlay.training.finetune.data import rows_of_step
    from inlay.training.finetune.pipeline import Pipeline, trainable_model
    from inlay.training.finetune.recipes import DREAMMIX
    from inlay.training.finetune.trainer import loss_of_pass
    from inlay.training.objective import generator_at

    recipe, rows = replace(DREAMMIX, accumulation=1), examples_of(768)
    with torch.inference_mode():
        model = load_fully(Pipeline(plain.model, plain.clip, plain.vae, patch).with_deltas().model)
    with torch.inference_mode(False), torch.enable_grad():
        trainee = trainable_model(model, recipe, torch.float64, 0, inpaint_patch=patch)
        for p in trainee.adapter.parameters:
            p.data += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(9)).double()
        loss = loss_of_pass(trainee, recipe, rows, None, 5, 1)
        gradients = torch.autograd.grad(loss, trainee.adapter.parameters)

        ((key, (steps, low, high)),) = patch.deltas.items()
        weight = trainee.unet.get_parameter(key.removeprefix("diffusion_model."))
        base = dict(weights_of(model))[key].double()  # the host adds deltas in place
        delta = (steps.double() / 255 * (high - low).double() + low.double()).float().double()
        torch.testing.assert_close(weight.detach().double(), base + delta, rtol=0, atol=2e-7)

        i, drawn = int(rows_of_step(2, 1, 1, 5)), generator_at(5, 1)
        t, noise = (
            torch.randint(1000, (1,), generator=drawn),
            torch.randn(1, 4, 8, 8, generator=drawn).double(),
        )
        alpha = 1 / (1 + trainee.diffusion.sigmas[t].double() ** 2)
        z0, mask, masked = rows.latent[i : i + 1], rows.mask[i : i + 1], rows.masked[i : i + 1]
        seen = torch.nn.functional.pad(torch.cat([mask, masked], 1), (1, 1, 1, 1), "replicate")
        head = patch.head.get_parameter("head").double()
        feature = torch.einsum("bchwij,ocij->bohw", seen.unfold(2, 3, 1).unfold(3, 3, 1), head)
        first: Any = trainee.unet.get_submodule("input_blocks.0.0")
        hook = first.register_forward_hook(lambda block, args, h: h + feature)
        zt = alpha.sqrt() * z0 + (1 - alpha).sqrt() * noise
        found = trainee.unet(zt, t.float(), context=rows.context, transformer_options={})
        hook.remove()
        tau = recipe.weight_inside * mask + recipe.weight_outside * (1 - mask)
        wanted = (tau * (found - noise) ** 2).mean()
        expected = torch.autograd.grad(wanted, trainee.adapter.parameters)
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    for gradient, target in zip(gradients, expected, strict=True):
        assert (gradient - target).norm() <= 1e-6 * target.norm()
        assert target.norm() > 0


def test_the_node_trains_on_dreammixs_own_base(plain, patch, pictures, store_folder, run, weights, predict):
    before = weights(plain.model)
    wired = {**vars(plain), "recipe": "DreamMix", "rank": 4, "steps": 2, "batch_size": 1}
    alone = run(*pictures, **wired)
    with_patch = run(*pictures, **wired, inpaint_patch=tuple(patch), preview_every=2)
    assert alone[3].lora != with_patch[3].lora
    assert alone[2] != with_patch[2]
    assert all(torch.equal(weight, before[key]) for key, weight in plain.model.model.state_dict().items())
    assert all(len(patches) == 1 for patches in with_patch[0].patches.values())  # the LoRA, and no delta
    again = run(*pictures, **wired, inpaint_patch=tuple(patch))
    assert again[3] == with_patch[3]
    other = patch._replace(head=type(patch.head)(2 * patch.head.get_parameter("head")))
    assert run(*pictures, **wired, inpaint_patch=tuple(other))[3].lora != with_patch[3].lora


def test_a_patch_on_an_inpainting_model_is_refused(patch, pictures, run):
    with pytest.raises(ValueError, match=r"^inpaint_patch: it is made for a plain SDXL model \(4 channels\)"):
        run(*pictures, inpaint_patch=tuple(patch))


# A VAE's distribution


@pytest.fixture(scope="module")
def autoencoder(in_process_host):
    """A small VAE of Stable Diffusion's kind, with random weights."""
    import comfy.sd
    from comfy.ldm.models.autoencoder import AutoencoderKL

    shape = {
        "double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    settings, generator = {"ddconfig": shape, "embed_dim": 4}, torch.Generator().manual_seed(0)
    network = AutoencoderKL(**settings)
    with torch.no_grad():
        for p in network.parameters():
            p.normal_(0, 0.1, generator=generator)
    return comfy.sd.VAE(sd=network.state_dict(), config={"params": settings})


def test_latents_are_drawn_from_the_vaes_distribution(autoencoder, parts, pictures):
    """A step's loss equals that of latents drawn in float64 from the moments that the encoder gives."""
    from inlay.training.finetune.data import Concept, collect_references, rows_of_step
    from inlay.training.finetune.pipeline import Pipeline, encode_captions, encode_examples
    from inlay.training.finetune.recipes import DREAMCOM
    from inlay.training.objective import generator_at

    pipeline = Pipeline(parts.model, parts.clip, autoencoder)
    concept, recipe = (
        Concept("a photo of sks cat", collect_references(*pictures)),
        replace(DREAMCOM, copies=1),
    )
    with torch.inference_mode():
        text = encode_captions(pipeline, [concept.caption], 64)[concept.caption]
        means = encode_examples(pipeline, concept, text, recipe, 64, 7).first
        posterior = replace(recipe, sample_posterior=True)
        drawn = encode_examples(pipeline, concept, text, posterior, 64, 7).first
    assert means.deviation is None
    assert drawn.deviation is not None
    assert drawn.masked_deviation is not None
    torch.testing.assert_close(drawn.latent, means.latent, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(drawn.masked, means.masked, rtol=1e-6, atol=1e-6)
    many = [drawn.drawn(generator_at(0, k)).latent for k in range(400)]
    spread = torch.stack(many).double()
    error = drawn.deviation.double() / 400**0.5
    assert ((spread.mean(0) - drawn.latent) / error).abs().max() < 6
    torch.testing.assert_close(spread.std(0) / drawn.deviation, torch.ones_like(error), rtol=0.25, atol=0)
    rows = drawn.take(rows_of_step(len(drawn), 2, 0, 3))
    assert not torch.equal(rows.drawn(generator_at(3, 0)).masked, rows.drawn(generator_at(3, 1)).masked)


def test_the_deviation_is_that_of_the_encoders_log_variance(autoencoder):
    from inlay.host.vae import encode_distribution

    pictures = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        mean, deviation = encode_distribution(autoencoder, pictures)
        network = autoencoder.first_stage_model
        moments = network.quant_conv(network.encoder(pictures.movedim(-1, 1) * 2 - 1))
        assert torch.equal(mean, autoencoder.encode(pictures))
    expected, log_variance = moments.double().chunk(2, dim=1)
    torch.testing.assert_close(mean.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        deviation.double(), (log_variance.clamp(-30, 20) / 2).exp(), rtol=1e-5, atol=1e-6
    )


def test_the_recipe_field_changes_the_result_and_the_default_does_not(
    autoencoder, pictures, store_folder, parts
):
    from inlay.training.finetune.data import Concept, collect_references
    from inlay.training.finetune.finetune_subject import finetune_subject
    from inlay.training.finetune.pipeline import Pipeline
    from inlay.training.finetune.recipes import DREAMCOM
    from inlay.training.finetune.spec import FinetuneSpec
    from inlay.training.finetune.store import Store

    pipeline = Pipeline(parts.model, parts.clip, autoencoder)
    concept = Concept("a photo of sks cat", collect_references(*pictures))
    losses = {}
    for drawn in (False, True):
        recipe = replace(DREAMCOM.with_choices(steps=2, rank=2), sample_posterior=drawn)
        spec = FinetuneSpec("sks", "cat", recipe, concept, [], 64, 7)
        with torch.inference_mode():
            losses[drawn] = finetune_subject(pipeline, spec, Store(store_folder)).subject.losses
    assert losses[False] != losses[True]
