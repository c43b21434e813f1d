"""Train Subject on diffusion transformers of the host with random weights and a few blocks."""

import itertools
import math
import os
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from inlay.lab.models.tiny_transformers import TINY, tiny_transformer, tiny_vae

# Our family name -> the way in which its models learn where the hole is.
TRAINED = {
    "flux1-fill": "channels",
    "flux1": "loss",
    "flux2-dev": "reference",
    "flux2-klein": "reference",
    "qwen-image": "loss",
    "qwen-image-edit-2511": "reference",
    "z-image": "loss",
    "krea2": "reference",
    "chroma": "loss",
}
QUICK = ("flux1-fill", "flux2-klein", "qwen-image-edit-2511", "z-image")


def test_every_family_that_can_be_trained_is_trained_here():
    from inlay.families.table import FAMILIES

    assert set(TRAINED) == {row.name for row in FAMILIES if row.transformer and not row.trainable}


@pytest.mark.parametrize("name", TRAINED)
def test_the_node_teaches_it(name, opened, train, store_folder, weights, answer):
    import comfy.model_management

    wired = opened(name).model
    before, unpatched = weights(wired), answer(name, wired)
    model, lora, loss, subject, _ = train(name)
    assert all(torch.isfinite(torch.tensor(loss["loss"])))
    assert len(loss["loss"]) == 2
    # The host's loader finds a layer for every key, and the LoRA changes what the model answers.
    assert len(model.patches) == len(lora) // 3 > 0
    assert all(key.startswith("diffusion_model.") for key in lora)
    assert any(tensor.any() for key, tensor in lora.items() if key.endswith("lora_up.weight"))
    assert not torch.equal(answer(name, model), unpatched)
    assert (store_folder.parent / subject.lora).with_suffix(".png").exists()  # the preview sampled it
    assert torch.equal(answer(name, wired), unpatched)
    assert all(torch.equal(weight, before[key]) for key, weight in wired.model.state_dict().items())
    assert comfy.model_management.in_training is False


@pytest.mark.parametrize("name", QUICK)
def test_samples_have_their_own_prompts_and_background(name, train, store_folder, monkeypatch):
    from inlay.nodes import subject_finetune

    shown = []
    monkeypatch.setattr(
        subject_finetune.NodeProgress, "show", lambda progress, step, picture: shown.append(picture)
    )
    mask = torch.zeros(1, 40, 100)
    mask[:, 10:30, 40:70] = 1
    image = torch.rand(1, 40, 100, 3, generator=torch.Generator().manual_seed(1))
    options = {"sample_prompts": "sks cat\nsks cat at night", "sample_image": image, "sample_mask": mask}
    train(name, options=options, steps=1, preview_every=1)
    [picture] = shown
    height, width = len(picture) / 2, picture.shape[1]  # one prompt below the other
    assert (width / height, width * height) == pytest.approx((100 / 40, 64**2), rel=0.05)


@pytest.mark.parametrize("name", QUICK)
def test_a_held_out_picture_has_its_loss(name, train, pictures, store_folder):
    images, masks = ([*parts, *parts[:2]] for parts in pictures)
    options = {"held_out": True}
    captions = ["", "", "", "", "on a red chair"]  # the held-out picture has a caption of its own
    subject = train(name, images=images, masks=masks, options=options, captions=captions, preview_every=0)[3]
    assert [step for step, _ in subject.held_out] == [0, 1, 2]
    assert all(math.isfinite(loss) for _, loss in subject.held_out)
    assert subject.held_out[0][1] != subject.held_out[2][1]


# One step against an independent reference


def trained_parts(
    opened, name, recipe, dtype, sampling=None, captions=("a photo of sks cat",), references=()
):
    """A `TrainableModel` of a family, with its model and texts."""
    from inlay.host.training import text_values
    from inlay.training.finetune.diffusion_transformers import resolved_recipe
    from inlay.training.finetune.pipeline import EncodedData, EncodedText, ordinary, trainable_model

    parts = opened(name)
    model = parts.model.clone()
    if sampling is not None:
        model.add_object_patch("model_sampling", sampling)
    recipe = resolved_recipe(recipe, model)
    texts = [ordinary(text_values(parts.clip.encode_from_tokens_scheduled(caption))) for caption in captions]
    encoded = [EncodedText(text["cross_attn"], None, text) for text in texts]
    trainable = trainable_model(model, recipe, dtype, 0, EncodedData((), encoded, 0, references))
    generator = torch.Generator().manual_seed(8)
    for path, layer in cast(
        "Any", trainable.adapter
    ).layers.items():  # B starts at 0, which hides A's gradient
        del path
        up = layer.lora_B["default"].weight
        up.data = 0.05 * torch.randn(up.shape, generator=generator).to(dtype)
    return trainable, recipe, texts


def random_examples(trainable, count=3, captions=(0,), dtype=torch.float64, size=(8, 8)):
    from inlay.training.finetune.data import Examples

    base = trainable.host_pass.host.base
    generator = torch.Generator().manual_seed(3)
    channels = base.latent_format.latent_channels
    latent, masked = (torch.randn(count, channels, *size, generator=generator, dtype=dtype) for _ in range(2))
    mask = torch.zeros(count, 1, *size, dtype=dtype)
    mask[..., 2:6, 2:8] = 1
    valid = torch.ones_like(mask)
    valid[..., 7] = 0
    context = torch.zeros(1, 0, 0)
    return Examples(latent, mask, masked, valid, context, caption=torch.tensor(captions))


def discrete(kind):
    """The host's sampling of noise or v predictions, with SD's table of noise levels."""
    import comfy.model_sampling

    prediction = {"epsilon": comfy.model_sampling.EPS, "v": comfy.model_sampling.V_PREDICTION}[kind]
    return type("Discrete", (comfy.model_sampling.ModelSamplingDiscrete, prediction), {})()


def reference_loss(trainable, recipe, rows, generator, prediction, texts, patch, subject=()):
    """The loss from the equations in float64, with the network called directly.

    subject: latents of the subject's pictures, as the network sees them; one row then runs after the other.
    """
    count = len(rows.latent)
    if prediction == "velocity":
        normal = torch.randn(count, generator=generator)
        tokens = (rows.latent.shape[-2] // patch) * (rows.latent.shape[-1] // patch)
        shift = recipe.shift or math.exp(0.5 + 0.65 * (tokens - 256) / 3840)
        u = normal.sigmoid()
        sigma = (shift * u / (1 + (shift - 1) * u)).double()
    else:
        sigmas = trainable.diffusion.sigmas
        index = torch.randint(len(sigmas), (count,), generator=generator)
        sigma = sigmas[index].double()
    noise = torch.randn(rows.latent.shape, generator=generator).double()
    s = sigma.view(-1, 1, 1, 1)
    clean = rows.latent
    if prediction == "velocity":
        x, wanted = (1 - s) * clean + s * noise, noise - clean
        time = trainable.host_pass.host.sampling.timestep(sigma).float()
    else:
        x = (clean + s * noise) / (1 + s * s) ** 0.5
        wanted = noise if prediction == "epsilon" else (noise - s * clean) / (1 + s * s) ** 0.5
        time = index.float()
    rest = {}
    context = texts[0]["cross_attn"].double().expand(count, -1, -1)
    pooled = texts[0].get("pooled_output")
    if pooled is not None:
        rest["y"] = pooled.double().expand(count, -1)
    if recipe.guidance is not None:
        rest["guidance"] = torch.full((count,), recipe.guidance, dtype=torch.float64)
    elif trainable.unet.params.guidance_embed is False:
        rest["guidance"] = torch.full((count,), 3.5, dtype=torch.float64)
    if recipe.hole_condition == "channels":
        wide = rows.mask.repeat_interleave(8, -1).repeat_interleave(8, -2)
        # pixel (8 i + a, 8 j + b) is channel 8 a + b of latent pixel (i, j)
        channels = torch.stack([wide[:, 0, a::8, b::8] for a in range(8) for b in range(8)], dim=1)
        x = torch.cat([x, rows.masked, channels], dim=1)
    if recipe.hole_condition == "reference":
        rest["ref_latents"] = [rows.masked]
    if trainable.unet.params.txt_ids_dims == [3]:  # FLUX.2 pads its text to 512 tokens, on the left
        context = torch.nn.functional.pad(context, (0, 0, 512 - context.shape[1], 0))
    if subject:
        found = []
        for row, photo in enumerate(rows.photo.tolist()):
            order = torch.randperm(len(subject), generator=generator).tolist()
            dropped = float(torch.rand((), generator=generator)) < recipe.reference_dropout
            shown = [] if dropped else [n for n in order if n != photo][: recipe.subject_references]
            own = {key: value[row : row + 1] for key, value in rest.items() if key != "ref_latents"}
            own["ref_latents"] = [rows.masked[row : row + 1], *(subject[n] for n in shown)]
            one = x[row : row + 1], time[row : row + 1]
            found.append(trainable.unet(*one, context=context[row : row + 1], transformer_options={}, **own))
        predicted = torch.cat(found)
    else:
        predicted = trainable.unet(x, time, context=context, transformer_options={}, **rest)
    weight = recipe.weight_inside * rows.mask + recipe.weight_outside * (1 - rows.mask)
    error = ((predicted - wanted) ** 2).mean(1, keepdim=True) * weight * rows.valid
    return (error.sum((1, 2, 3)) / rows.valid.sum((1, 2, 3))).mean()


@pytest.mark.parametrize("way", ["channels", "reference", "loss"])
@pytest.mark.parametrize("prediction", ["velocity", "epsilon", "v"])
def test_loss_and_gradients_are_those_of_the_equations(opened, prediction, way):
    from inlay.host.training import training_switches
    from inlay.training.finetune.recipes import RECIPES
    from inlay.training.finetune.trainer import per_sample_loss

    name = {"channels": "flux1-fill", "reference": "flux2-klein", "loss": "flux1"}[way]
    recipe = RECIPES["DreamCom"].with_choices(rank=4)
    with torch.inference_mode(False), torch.enable_grad():
        sampling = None if prediction == "velocity" else discrete(prediction)
        trainable, recipe, texts = trained_parts(opened, name, recipe, torch.float64, sampling)
        assert recipe.hole_condition == way
        assert trainable.diffusion.prediction == prediction
        rows = random_examples(trainable).take(torch.arange(3))
        with training_switches(trainable.unet):
            loss = per_sample_loss(trainable, recipe, rows, torch.Generator().manual_seed(4)).mean()
            found = torch.autograd.grad(loss, trainable.adapter.parameters)
            again = torch.Generator().manual_seed(4)
            reference = reference_loss(trainable, recipe, rows, again, prediction, texts, trainable.patch)
            wanted = torch.autograd.grad(reference, trainable.adapter.parameters)
    assert abs(float(loss - reference)) < 1e-6 * float(reference)
    difference = sum(float(((a - b) ** 2).sum()) for a, b in zip(found, wanted, strict=True)) ** 0.5
    assert difference < 1e-6 * sum(float((b**2).sum()) for b in wanted) ** 0.5


@pytest.mark.parametrize("name", ["flux2-klein", "flux1"])
def test_loss_and_gradients_with_subject_references_are_those_of_the_equations(opened, name):
    from inlay.host.training import training_switches
    from inlay.training.finetune.recipes import RECIPES
    from inlay.training.finetune.trainer import per_sample_loss

    recipe = RECIPES["DreamCom"].with_choices(rank=4)
    recipe = replace(recipe, hole_condition="reference", subject_references=2, reference_dropout=0.4)
    generator = torch.Generator().manual_seed(11)
    channels = opened(name).model.model.latent_format.latent_channels
    with torch.inference_mode(False), torch.enable_grad():
        raw = [
            torch.randn(1, channels, *size, generator=generator, dtype=torch.float64)
            for size in ((4, 4), (6, 4), (4, 8))
        ]
        trainable, recipe, texts = trained_parts(opened, name, recipe, torch.float64, references=raw)
        photos = torch.tensor([0, 1, 1, 2])
        rows = replace(random_examples(trainable, 4), photo=photos).take(torch.arange(4))
        assert trainable.host_pass
        base = trainable.host_pass.host.base
        with training_switches(trainable.unet):
            loss = per_sample_loss(trainable, recipe, rows, torch.Generator().manual_seed(4)).mean()
            found = torch.autograd.grad(loss, trainable.adapter.parameters)
            subject = [base.process_latent_in(latent) for latent in raw]
            again = torch.Generator().manual_seed(4)
            reference = reference_loss(
                trainable, recipe, rows, again, "velocity", texts, trainable.patch, subject
            )
            wanted = torch.autograd.grad(reference, trainable.adapter.parameters)
            plain = replace(recipe, subject_references=0)
            bare = per_sample_loss(trainable, plain, rows, torch.Generator().manual_seed(4)).mean()
    loss, reference, bare = (value.detach() for value in (loss, reference, bare))
    assert abs(float(loss - reference)) < 1e-6 * float(reference)
    assert abs(float(loss - bare)) > 1e-5 * float(bare)  # the references reach the network
    difference = sum(float(((a - b) ** 2).sum()) for a, b in zip(found, wanted, strict=True)) ** 0.5
    assert difference < 1e-6 * sum(float((b**2).sum()) for b in wanted) ** 0.5


@pytest.mark.parametrize("name", ["flux2-klein", "qwen-image-edit-2511", "krea2", "flux1"])
def test_the_node_trains_with_subject_references(name, train, store_folder):
    options = {"subject_references": 2, "hole": "reference"}
    plain = train(name, options={"hole": "reference"})
    shown = train(name, options=options)
    assert shown[3].lora != plain[3].lora  # another key
    assert all(math.isfinite(loss) for loss in shown[2]["loss"])
    assert shown[2]["loss"] != plain[2]["loss"]


def test_subject_references_that_no_model_reads_are_an_error(train, run, pictures, store_folder):
    options = {"subject_references": 1}
    with pytest.raises(ValueError, match="subject_references: Z-Image reads no reference pictures"):
        train("z-image", options=options)
    with pytest.raises(ValueError, match="subject_references: SD15 reads no reference pictures"):
        run(*pictures, options=options)
    images, masks = pictures
    with pytest.raises(ValueError, match="subject_references: there is one picture"):
        train("flux2-klein", options=options, images=images[:1], masks=masks[:1])


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_are_the_finite_differences(name, opened):
    from inlay.host.training import training_switches
    from inlay.training.finetune.recipes import RECIPES
    from inlay.training.finetune.trainer import per_sample_loss

    recipe = RECIPES["DreamCom"].with_choices(rank=4)
    with torch.inference_mode(False), torch.enable_grad():
        trainable, recipe, _ = trained_parts(opened, name, recipe, torch.float64)
        rows = random_examples(trainable, 2).take(torch.arange(2))
        parameters = trainable.adapter.parameters
        generator = torch.Generator().manual_seed(6)
        directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

        def loss():
            return per_sample_loss(trainable, recipe, rows, torch.Generator().manual_seed(4)).mean()

        def moved(step):
            with torch.no_grad():
                for p, direction in zip(parameters, directions, strict=True):
                    p += step * direction
                value = float(loss())
                for p, direction in zip(parameters, directions, strict=True):
                    p -= step * direction
            return value

        with training_switches(trainable.unet):
            gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
            slope = sum(
                float((g * d).sum()) for g, d in zip(gradients, directions, strict=True) if g is not None
            )
            # the host gives predictions in float32: smaller steps show its rounding, larger ones the curve
            step = 3e-3
            near, far = (moved(k * step) - moved(-k * step) for k in (1, 2))
            measured = (8 * near - far) / (12 * step)  # of fourth order
    assert slope == pytest.approx(measured, rel=1e-3, abs=1e-6)


def test_captions_of_different_length_run_apart(opened):
    """Text that is repeated or padded would change joint attention."""
    from inlay.host.training import training_switches
    from inlay.training.finetune.recipes import RECIPES
    from inlay.training.finetune.trainer import per_sample_loss

    captions = ("a photo of sks cat", "a cat", "a large picture of sks cat on a red chair")
    with torch.inference_mode(False), torch.no_grad():
        trainable, recipe, _ = trained_parts(
            opened, "qwen-image", RECIPES["DreamCom"].with_choices(rank=4), torch.float64, None, captions
        )
        order = (0, 1, 0, 2)
        rows = random_examples(trainable, 4, order).take(torch.arange(4))
        with training_switches(trainable.unet):
            together = per_sample_loss(trainable, recipe, rows, torch.Generator().manual_seed(4))
            alone = torch.stack([
                per_sample_loss(
                    trainable, recipe, rows, torch.Generator().manual_seed(4), torch.tensor([number])
                )[0]
                for number in range(4)
            ])  # fmt: skip
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", TRAINED)
def test_an_interrupt_and_a_failure_change_nothing_and_the_next_run_goes_on(
    name, opened, train, store_folder, weights, monkeypatch
):
    import shutil

    import comfy.model_management

    from inlay.nodes import subject_finetune
    from inlay.training.finetune import finetune_subject

    wired = opened(name).model
    before = weights(wired)
    choices = {"steps": 4, "preview_every": 0, "gradient_checkpointing": "on"}
    whole = train(name, **choices)
    shutil.rmtree(store_folder)

    class Stopping(subject_finetune.NodeProgress):
        def __call__(self, step, loss):
            assert comfy.model_management.in_training is True
            if step == 1:
                comfy.model_management.interrupt_current_processing()
            if step == 3:
                raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(subject_finetune, "NodeProgress", Stopping)
        for error in (comfy.model_management.InterruptProcessingException, MemoryError):
            with pytest.raises(error):
                train(name, **choices)
            assert comfy.model_management.in_training is False
            assert not wired.patches
            state = wired.model.state_dict()
            assert all(torch.equal(weight, before[key]) for key, weight in state.items())
            assert [file.suffix for file in store_folder.iterdir()] == [".resume"]
    resumed = train(name, **choices)
    assert all(torch.equal(whole[1][key], resumed[1][key]) for key in whole[1])
    assert whole[2] == resumed[2]
    monkeypatch.setattr(finetune_subject, "train_lora", lambda *_, **__: pytest.fail("trained again"))
    assert train(name, **choices)[3] == resumed[3]


@pytest.mark.parametrize("name", QUICK)
def test_checkpointing_changes_no_gradient(name, opened):
    """Blocks add to their inputs in place; a block that is computed again must see what came in first."""
    from inlay.host.training import blocks_of, training_switches
    from inlay.training.finetune.memory import recompute
    from inlay.training.finetune.recipes import RECIPES
    from inlay.training.finetune.trainer import per_sample_loss

    with torch.inference_mode(False), torch.enable_grad():
        trainable, recipe, _ = trained_parts(
            opened, name, RECIPES["DreamCom"].with_choices(rank=4), torch.float64
        )
        rows = random_examples(trainable, 2).take(torch.arange(2))
        found = []
        with training_switches(trainable.unet):
            for _ in range(2):
                loss = per_sample_loss(trainable, recipe, rows, torch.Generator().manual_seed(4)).mean()
                parameters = trainable.adapter.parameters
                found.append(torch.autograd.grad(loss, parameters, allow_unused=True))
                recompute(blocks_of(trainable.unet), in_place=True)
    for plain, again in zip(*found, strict=True):
        assert (plain is None) == (again is None)
        assert plain is None or torch.equal(plain, again)


def test_a_distilled_model_is_named(opened, train, store_folder):
    parts = opened("flux2-klein")
    model = parts.model.clone()
    model.cached_patcher_init = (None, ("models/diffusion_models/flux-2-klein-4b-fp8.safetensors",), 0)
    import inlay.training.finetune.spec as spec

    note = spec.distilled_note(model)
    assert note.startswith("model: flux-2-klein-4b-fp8.safetensors is distilled to a few steps")
    assert "train on FLUX.2 klein base" in note
    model.cached_patcher_init = (None, ("flux-2-klein-base-4b.safetensors",), 0)
    assert spec.distilled_note(model) == ""


@pytest.mark.parametrize("name", sorted(set(TINY) - set(TRAINED)))
def test_a_family_that_cannot_be_trained_is_refused_in_a_sentence(name, opened, train, store_folder, weights):
    import comfy.model_management

    from inlay.families.table import named

    wired, row = opened(name).model, named(name)
    before = weights(wired)
    with pytest.raises(ValueError, match=f"model: {row.label} cannot be trained here: {row.trainable}"):
        train(name)
    assert comfy.model_management.in_training is False
    assert all(torch.equal(weight, before[key]) for key, weight in wired.model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "hole", "missing"),
    [
        ("flux2-klein", "mask channels", "has no mask channels"),
        ("flux1-fill", "reference", "reads no references"),
        ("z-image", "reference", "reads no references"),
        ("chroma", "reference", "reads no references"),
    ],
)
def test_a_way_to_show_the_hole_that_the_model_lacks_is_refused(name, hole, missing, train, store_folder):
    with pytest.raises(ValueError, match=f"^hole: .* {missing}; leave it at"):
        train(name, options={"hole": hole})


def test_a_recipe_for_every_weight_is_refused_on_a_transformer(train, store_folder):
    with pytest.raises(
        ValueError, match=r"recipe: DreamCom .full UNet. trains every weight, which is made for"
    ):
        train("z-image", recipe="DreamCom (full UNet)")


@pytest.mark.parametrize(
    ("name", "file", "base"),
    [
        ("z-image", "z_image_turbo_bf16.safetensors", r"Z-Image \(base\)"),
        ("z-image", "z_image_bf16.safetensors", ""),
        ("krea2", "krea2_turbo_fp8.safetensors", "Krea 2 RAW"),
        ("krea2", "krea2_raw_fp8.safetensors", ""),
        ("qwen-image", "qwen_image_lightning_4steps.safetensors", "the model that it was distilled from"),
        ("qwen-image", "qwen_image_edit_2509_fp8_e4m3fn.safetensors", ""),
        ("flux1-fill", "flux1-fill-dev.safetensors", ""),
    ],
)
def test_distilled_models_are_known_by_their_files_names(
    name, file, base, opened, caplog, train, store_folder
):
    model = opened(name).model.clone()
    model.cached_patcher_init = (None, (file,), 0)
    train(name, model=model, steps=1, preview_every=0)
    assert ("is distilled to a few steps" in caplog.text) == bool(base)
    assert re.search(f"train on {base}", caplog.text) or not base


# Captions, output preservation, schedules


def test_captions_of_the_photos_are_used_and_decide_the_result(opened, train, store_folder):
    captions = ["on a red chair", "sks cat in the snow", ""]
    choices = {"steps": 3, "preview_every": 0}
    plain, own = train("z-image", **choices), train("z-image", **choices, captions=captions)
    again = train("z-image", **choices, captions=captions)
    assert own[2] == again[2] != plain[2]
    assert len(list(store_folder.glob("*.safetensors"))) == 2  # found again, not trained again
    with pytest.raises(ValueError, match=r"captions: there are 2 for 3 pictures; give one for each picture"):
        train("z-image", **choices, captions=captions[:2])


@pytest.mark.parametrize("dropped", [0.0, 1.0])
def test_output_preservation_is_its_definition(opened, dropped):
    """Its own passes, written out: the class caption with and without LoRA, at the noise of the step."""
    from inlay.host.training import training_switches
    from inlay.training.finetune.recipes import RECIPES
    from inlay.training.finetune.trainer import per_sample_loss

    captions = ("a photo of sks cat", "a photo of cat", "")
    with torch.inference_mode(False), torch.enable_grad():
        plain = RECIPES["DreamCom"].with_choices(rank=4)
        trainable, plain, _ = trained_parts(opened, "z-image", plain, torch.float64, None, captions)
        trainable: Any = replace(trainable, blank=2)
        kept = replace(plain, preservation=0.7, caption_dropout=dropped)
        rows = replace(random_examples(trainable, 2), class_caption=torch.tensor([1])).take(torch.arange(2))
        parameters = trainable.adapter.parameters

        def loss(recipe, rows):
            return per_sample_loss(trainable, recipe, rows, torch.Generator().manual_seed(4)).mean()

        with training_switches(trainable.unet):
            found = loss(kept, rows)
            gradients = torch.autograd.grad(found, parameters)
            drawn = torch.Generator().manual_seed(4)
            sigma = trainable.diffusion.draw(2, drawn, 16).double()
            noise = torch.randn(rows.latent.shape, generator=drawn).double()
            caption = 2 if dropped else 1
            shown = replace(rows, caption=torch.full((2,), caption))
            after = trainable.host_pass(shown, noise, sigma)
            ups = [layer.lora_B["default"].weight for layer in trainable.adapter.layers.values()]
            values = [up.detach().clone() for up in ups]
            for up in ups:
                up.data.zero_()
            before = trainable.host_pass(shown, noise, sigma).detach()
            for up, value in zip(ups, values, strict=True):
                up.data.copy_(value)
            own = replace(rows, caption=torch.full((2,), 2)) if dropped else rows
            wanted = loss(plain, own) + 0.7 * ((after - before) ** 2).mean()
            references = torch.autograd.grad(wanted, parameters)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    for gradient, reference in zip(gradients, references, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(("adapter", "part"), [("DoRA", "dora_scale"), ("LoKr", "lokr_w1")])
def test_options_of_every_kind_train_and_resume_what_they_should(opened, train, store_folder, adapter, part):
    from inlay.nodes import InlayTrainingOptions

    given = {
        "hole": "loss alone", "layers": "attention", "adapter": adapter, "schedule": "cosine",
        "warmup_steps": 2, "caption_dropout": 0.5, "min_snr": 5.0, "preservation": 1.0,
    }  # fmt: skip
    node: Any = InlayTrainingOptions
    options = node.execute(**given).result[0]
    assert options == given
    model, lora, loss, *_ = train("qwen-image-edit-2511", options=options, steps=3)
    assert not any("mlp" in key for key in lora)
    assert sum(key.endswith(part) for key in lora) == len(model.patches) > 0
    assert all(torch.isfinite(torch.tensor(loss["loss"])))


def photo_of(height, width, seed):
    """A picture (1, H, W, 3) and the mask of a subject in it."""
    mask = torch.zeros(1, height, width)
    mask[:, height // 4 : height // 2, width // 4 : width // 2] = 1
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(seed)), mask


BUCKETED = {"flux2-klein": 16, "qwen-image-edit-2511": 32}  # with the grid of the sizes in pixels


@pytest.fixture
def trained_shapes(monkeypatch):
    """Sizes (height, width) of the latents of every pass, in order."""
    from inlay.training.finetune import trainer

    shapes, errors = [], trainer.per_sample_loss

    def recorded(trainable, recipe, rows, *rest):
        shapes.append(tuple(rows.latent.shape[-2:]))
        return errors(trainable, recipe, rows, *rest)

    monkeypatch.setattr(trainer, "per_sample_loss", recorded)
    return shapes


@pytest.mark.parametrize("name", BUCKETED)
def test_a_training_in_buckets_keeps_the_shape_of_photos_and_goes_on_with_the_same_bits(
    name, train, store_folder, stopped_in_step, trained_shapes
):
    import shutil

    step = BUCKETED[name]
    (wide, wide_mask), (square, square_mask) = (
        photo_of(4 * step, 6 * step, 0),
        photo_of(5 * step, 5 * step, 1),
    )
    shown = {"images": [wide, square], "masks": [wide_mask, square_mask], "resolution": 5 * step}
    shown |= {"steps": 4, "preview_every": 0, "options": {"aspect_ratios": "buckets"}}
    whole, passes = train(name, **shown), [*trained_shapes]
    assert all(math.isfinite(loss) for loss in whole[2]["loss"])
    assert {height / width for height, width in passes} == {1.0, 4 / 6}
    shutil.rmtree(store_folder)
    trained_shapes.clear()

    with stopped_in_step(1, MemoryError):
        train(name, **shown)
    assert 0 < len(trained_shapes) < len(passes)
    resumed = train(name, **shown)
    assert trained_shapes == passes
    assert all(torch.equal(whole[1][key], resumed[1][key]) for key in whole[1])
    assert whole[2] == resumed[2]


def test_regular_pictures_have_buckets_of_their_own(train, store_folder, trained_shapes):
    (wide, wide_mask), (tall, tall_mask) = photo_of(64, 96, 0), photo_of(96, 64, 1)
    shown = {"images": [wide], "masks": [wide_mask], "regular_images": [tall], "regular_masks": [tall_mask]}
    shown |= {"recipe": "DreamMix", "resolution": 80, "steps": 1, "preview_every": 0}
    loss = train("z-image", **shown, options={"aspect_ratios": "buckets"})[2]["loss"]
    assert math.isfinite(loss[0])
    assert [height < width for height, width in trained_shapes] == [True, False] * 4


def test_square_crops_are_the_default(train, store_folder, trained_shapes):
    (wide, wide_mask), (square, square_mask) = photo_of(64, 96, 0), photo_of(80, 80, 1)
    shown = {"images": [wide, square], "masks": [wide_mask, square_mask], "preview_every": 0}
    default = train("flux2-klein", **shown, batch_size=2)
    assert len(set(trained_shapes)) == 1
    square = train("flux2-klein", **shown, batch_size=2, options={"aspect_ratios": "square"})
    assert square[3].lora == default[3].lora
    assert len(trained_shapes) == 2  # it was not trained again


def test_square_photos_train_the_same_bits_with_and_without_buckets(train, store_folder):
    (first, first_mask), (second, second_mask) = photo_of(96, 96, 0), photo_of(80, 80, 1)
    shown = {"images": [first, second], "masks": [first_mask, second_mask], "preview_every": 0}
    square = train("flux2-klein", **shown)
    buckets = train("flux2-klein", **shown, options={"aspect_ratios": "buckets"})
    assert square[3].lora != buckets[3].lora  # both were trained
    assert square[2] == buckets[2]
    assert all(torch.equal(square[1][key], buckets[1][key]) for key in square[1])


def test_loss_and_gradients_over_two_buckets_are_those_of_the_equations(opened):
    from inlay.host.training import training_switches
    from inlay.training.finetune.data import BucketedExamples
    from inlay.training.finetune.recipes import RECIPES
    from inlay.training.finetune.trainer import loss_of_pass
    from inlay.training.objective import generator_at

    recipe = replace(RECIPES["DreamMix"].with_choices(rank=4, batch_size=2), beta=0.4)
    with torch.inference_mode(False), torch.enable_grad():
        trainable, recipe, texts = trained_parts(opened, "flux2-klein", recipe, torch.float64)
        sizes, captions = ((8, 8), (6, 10), (12, 8)), (0,) * 3
        square, wide, tall = (random_examples(trainable, captions=captions, size=size) for size in sizes)
        subject = BucketedExamples((square, wide))

        def reference(rows, generator):
            return reference_loss(trainable, recipe, rows, generator, "velocity", texts, trainable.patch)

        used = set()
        for k in range(2):
            rows = subject.rows(2, k, 5)
            used.add(rows.latent.shape[-2:])
            with training_switches(trainable.unet):
                loss = loss_of_pass(trainable, recipe, subject, tall, 5, k)
                found = torch.autograd.grad(loss, trainable.adapter.parameters)
                wanted = reference(rows, generator_at(5, k))
                wanted = wanted + 0.4 * reference(tall.rows(2, k, 5), generator_at(5, k, 3))
                gradients = torch.autograd.grad(wanted, trainable.adapter.parameters)
            assert abs(float(loss.detach() - wanted.detach())) < 1e-6 * float(wanted.detach())
            difference = (
                sum(float(((a - b) ** 2).sum()) for a, b in zip(found, gradients, strict=True)) ** 0.5
            )
            assert difference < 1e-6 * sum(float((b**2).sum()) for b in gradients) ** 0.5
    assert len(used) == 2


def test_a_unet_takes_captions_preservation_and_min_snr_as_well(pictures, store_folder, run):
    choices = {"preservation": 1.0, "min_snr": 5.0, "caption_dropout": 0.5, "schedule": "cosine"}
    captions = ["on a red chair", "sks cat in the snow, seen from far above", ""]
    _, lora, loss, *_ = run(*pictures, options=choices, captions=captions)
    again = run(*pictures, options=choices, captions=captions)
    assert all(torch.equal(lora[key], again[1][key]) for key in lora)
    assert all(torch.isfinite(torch.tensor(loss["loss"])))
    assert loss != run(*pictures)[2]
    with pytest.raises(ValueError, match="preservation: it compares the model with and without a LoRA"):
        run(*pictures, options=choices, recipe="DreamCom (full UNet)")


# Quantised bases


def quantised(model, kind):
    """A MODEL of its own with all linear layers in fp8, or as the host's class with a scale, fp8 or int8."""
    import copy

    with torch.inference_mode():
        twin = copy.deepcopy(model.model.diffusion_model)
        for layer in twin.modules():
            if isinstance(layer, torch.nn.Linear):
                weight = layer.weight.to(torch.float8_e4m3fn)
                if kind != "plain":
                    from comfy.quant_ops import QuantizedTensor

                    layout = {"scaled": "TensorCoreFP8E4M3Layout", "int8": "TensorWiseINT8Layout"}[kind]
                    weight = QuantizedTensor.from_float(layer.weight.float(), layout)
                layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    from inlay.host.models import model_around

    return model_around(model, twin, torch.float32)


@pytest.mark.parametrize("adapter", ["DoRA", "LoKr"])
def test_an_adapter_that_needs_whole_weights_is_refused_on_a_quantised_base(adapter, opened):
    from inlay.training.finetune.checks import check_trainable_model
    from inlay.training.finetune.diffusion_transformers import resolved_recipe
    from inlay.training.finetune.recipes import RECIPES

    model = quantised(opened("flux2-klein").model, "scaled")
    recipe = resolved_recipe(RECIPES["DreamCom"].with_choices(rank=4), model)
    check_trainable_model(model, recipe)
    recipe = replace(recipe, adapter=replace(recipe.adapter, **{adapter.lower(): True}))
    with pytest.raises(ValueError, match=f"adapter: {adapter} needs weights in 16 bits"):
        check_trainable_model(model, recipe)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*itertools.product(("flux2-klein", "z-image"), ("plain", "scaled")), ("flux2-klein", "int8")],
)
def test_a_quantised_base_stays_quantised_and_trains_as_its_widened_weights(name, kind, opened):
    """Loss and gradients equal those of an ordinary copy of the same values."""
    from inlay.host.training import FrozenLinear, frozen_copy, text_values, training_switches, weight_bytes
    from inlay.training.finetune.diffusion_transformers import (
        resolved_recipe,
        transformer_pass,
        transformer_schedule,
    )
    from inlay.training.finetune.lora import attach_adapter
    from inlay.training.finetune.pipeline import ordinary
    from inlay.training.finetune.recipes import RECIPES
    from inlay.training.finetune.trainer import TrainableModel, per_sample_loss

    parts = opened(name)
    model = quantised(parts.model, kind)
    recipe = resolved_recipe(RECIPES["DreamCom"].with_choices(rank=4), model)
    results = []
    with torch.inference_mode(False), torch.enable_grad():
        text = ordinary(text_values(parts.clip.encode_from_tokens_scheduled("a photo of sks cat")))
        for widen in (False, True):
            network = frozen_copy(model, torch.float32)
            layers = {path: m for path, m in network.named_modules() if isinstance(m, FrozenLinear)}
            assert len(layers) > 10
            if widen:
                for path, layer in layers.items():
                    plain = torch.nn.Linear(
                        layer.in_features, layer.out_features, bias=layer.frozen[1] is not None
                    )
                    plain.weight = torch.nn.Parameter(layer.widened().clone(), requires_grad=False)
                    if layer.frozen[1] is not None:
                        plain.bias = torch.nn.Parameter(layer.frozen[1].clone(), requires_grad=False)
                    network.set_submodule(path, plain)
            size = weight_bytes(network)
            adapter = attach_adapter(network, recipe.adapter, torch.float32, 0)
            schedule = transformer_schedule(model, recipe)
            host_pass = transformer_pass(model, network, torch.float32, recipe, [text])
            trainable = TrainableModel(
                network, schedule, adapter, torch.float32, torch.device("cpu"), host_pass=host_pass
            )
            rows = random_examples(trainable, 2, dtype=torch.float32).take(torch.arange(2))
            with training_switches(network):
                loss = per_sample_loss(trainable, recipe, rows, torch.Generator().manual_seed(4)).mean()
                gradients = torch.autograd.grad(loss, adapter.parameters, allow_unused=True)
            results.append((size, loss, gradients))
    (small, loss, found), (large, wanted, references) = results
    assert small < 0.4 * large
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0)
    for gradient, reference in zip(found, references, strict=True):
        assert (gradient is None) == (reference is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-6)


# Files of other programs


def split_of(name, lora, form):
    """A LoRA of ours as another program writes it, with q, k and v apart where it has them so.

    ai-toolkit names FLUX.1's layers as diffusers does, and kohya's sd-scripts and musubi-tuner as the host
    does, but for Z-Image.
    """
    written = {}
    by_parts = form == "diffusers" or (form == "ai-toolkit" and name.startswith("flux1"))
    by_parts |= name == "z-image"
    for layer in {key.rsplit(".lora_", 1)[0] for key in lora if ".lora_" in key}:
        down, up = lora[f"{layer}.lora_down.weight"], lora[f"{layer}.lora_up.weight"]
        path = layer.removeprefix("diffusion_model.")
        places = part_names(name, path) if by_parts else [path]
        width = len(up) // 3 if len(places) == 3 else down.shape[1]  # of q, k and v; the rest is the last
        sizes = [width] * (len(places) - 1)
        for place, part in zip(places, up.split([*sizes, len(up) - sum(sizes)]), strict=True):
            if form in ("kohya", "musubi-tuner"):
                flat = "lora_unet_" + place.replace(".", "_")
                written[f"{flat}.lora_down.weight"], written[f"{flat}.lora_up.weight"] = down, part
                written[f"{flat}.alpha"] = torch.tensor(float(len(down)))
                continue
            start = "transformer" if form == "diffusers" or name.startswith("flux1") else "diffusion_model"
            written[f"{start}.{place}.lora_A.weight"] = down
            # in diffusers' file alpha is half the rank
            written[f"{start}.{place}.lora_B.weight"] = part * 2 if form == "diffusers" else part
    return {key: tensor.contiguous().clone() for key, tensor in written.items()}


WRITTEN = {
    "z-image": ("ai-toolkit", "musubi-tuner", "diffusers"),
    "qwen-image": ("ai-toolkit", "musubi-tuner", "diffusers"),
    "krea2": ("ai-toolkit", "musubi-tuner", "diffusers"),
    "flux2-klein": ("ai-toolkit", "musubi-tuner", "diffusers"),
    "flux1": ("ai-toolkit", "kohya", "diffusers"),
    "flux1-fill": ("ai-toolkit", "kohya", "diffusers"),
    "chroma": ("kohya", "diffusers"),
}


@pytest.mark.parametrize(
    ("name", "form"), [(name, form) for name, forms in WRITTEN.items() for form in forms]
)
def test_loras_of_other_programs_load_in_full(
    name, form, opened, train, store_folder, answer, in_process_host
):
    import json

    from safetensors.torch import save_file

    from inlay.nodes.loaders import InlayLoadSubject

    # The host's table of diffusers' names takes FLUX.1's ratio for granted.
    flux1 = name.startswith("flux1") or name == "chroma"
    model = tiny_transformer(name, seed=1, mlp_ratio=4.0) if flux1 else opened(name).model
    patched, lora, *_ = train(name, model=model, preview_every=0, learning_rate=1e-2)
    file = in_process_host.models / "loras" / "other.safetensors"
    settings = {"transformer.lora_alpha": 2.0} if form == "diffusers" else {}
    save_file(split_of(name, lora, form), file, {"lora_adapter_metadata": json.dumps(settings)})
    node: Any = InlayLoadSubject.PREPARE_CLASS_CLONE(None)
    with torch.inference_mode():
        loaded = node.execute(model, file.name, 1.0, "sks", "cat").result[0]
    wanted, plain = answer(name, patched), answer(name, model)
    assert not torch.allclose(wanted, plain, rtol=1e-3)
    torch.testing.assert_close(answer(name, loaded), wanted, rtol=1e-4, atol=1e-5)


def test_a_layer_that_matches_nothing_is_an_error(opened, train, store_folder, in_process_host):
    from safetensors.torch import save_file

    from inlay.nodes.loaders import InlayLoadSubject

    lora = dict(train("krea2", preview_every=0)[1])
    lora["diffusion_model.blocks.7.attn.wq.lora_up.weight"] = torch.ones(64, 4)
    file = in_process_host.models / "loras" / "more.safetensors"
    save_file(lora, file)
    node: Any = InlayLoadSubject.PREPARE_CLASS_CLONE(None)
    with pytest.raises(ValueError, match=r"1 layers of more\.safetensors match nothing in this model"):
        node.execute(opened("krea2").model, file.name, 1.0, "sks", "cat")


def part_names(name, path):
    """diffusers' layers that make up one layer of the host, from the first row on."""
    first = "add_" if "txt_attn." in path else "to_"
    last = "_proj" if "txt_attn." in path else ""
    double = ("linear_in", "linear_out") if name == "flux2-klein" else ("net.0.proj", "net.2")
    if name == "qwen-image":
        return [path]
    if name == "krea2":
        ends = {
            "attn.wq": "attn.to_q", "attn.wk": "attn.to_k", "attn.wv": "attn.to_v",
            "attn.wo": "attn.to_out.0", "attn.gate": "attn.to_gate", "mlp.gate": "ff.gate",
            "mlp.up": "ff.up", "mlp.down": "ff.down",
        }  # fmt: skip
        _, number, kind, leaf = path.split(".")
        return [f"transformer_blocks.{number}.{ends[f'{kind}.{leaf}']}"]
    if name == "z-image":
        if path.endswith("qkv"):
            return [f"{path.removesuffix('qkv')}to_{kind}" for kind in "qkv"]
        return [path.replace("attention.out", "attention.to_out.0")]
    if path.startswith("single"):
        start = path.replace("single_blocks", "single_transformer_blocks").rpartition(".")[0]
        if name == "flux2-klein":
            return [f"{start}.attn.{'to_qkv_mlp_proj' if path.endswith('linear1') else 'to_out'}"]
        whole = [*(f"{start}.attn.to_{kind}" for kind in "qkv"), f"{start}.proj_mlp"]
        return whole if path.endswith("linear1") else [f"{start}.proj_out"]
    block = path.replace("double_blocks", "transformer_blocks").rpartition("_")[0].rpartition(".")[0]
    if path.endswith("qkv"):
        return [f"{block}.attn.{first}{kind}{last}" for kind in "qkv"]
    if path.endswith("proj"):
        return [f"{block}.attn.{'to_add_out' if 'txt_attn.' in path else 'to_out.0'}"]
    kind = "ff_context" if "txt_mlp" in path else "ff"
    return [f"{block}.{kind}.{double[0 if path.endswith('mlp.0') else 1]}"]


HEADS = {"num_attention_heads": 2, "attention_head_dim": 32}
# Our name -> changes of the tiny network, diffusers' class and the same sizes there.
DIFFUSERS = {
    "flux1": (
        {"mlp_ratio": 4.0}, "FluxTransformer2DModel",
        HEADS | {"num_layers": 1, "num_single_layers": 2, "joint_attention_dim": 48,
                 "pooled_projection_dim": 16, "guidance_embeds": True, "axes_dims_rope": (8, 12, 12)},
    ),
    "flux1-fill": (
        {"mlp_ratio": 4.0}, "FluxTransformer2DModel",
        HEADS | {"in_channels": 384, "out_channels": 64, "num_layers": 1, "num_single_layers": 2,
                 "joint_attention_dim": 48, "pooled_projection_dim": 16, "guidance_embeds": True,
                 "axes_dims_rope": (8, 12, 12)},
    ),
    "chroma": (
        {"mlp_ratio": 4.0}, "ChromaTransformer2DModel",
        HEADS | {"num_layers": 1, "num_single_layers": 2, "joint_attention_dim": 48,
                 "axes_dims_rope": (8, 12, 12)},
    ),
    "flux2-klein": (
        {}, "Flux2Transformer2DModel",
        HEADS | {"in_channels": 128, "num_layers": 1, "num_single_layers": 2, "joint_attention_dim": 48,
                 "mlp_ratio": 2.0, "axes_dims_rope": (8, 8, 8, 8)},
    ),
    "qwen-image": (
        {}, "QwenImageTransformer2DModel",
        HEADS | {"num_layers": 2, "joint_attention_dim": 48, "axes_dims_rope": (8, 12, 12)},
    ),
    "z-image": (
        {"dim": 384, "n_heads": 12, "n_kv_heads": 12, "ffn_dim_multiplier": 8 / 3},
        "ZImageTransformer2DModel",
        {"dim": 384, "n_heads": 12, "n_kv_heads": 12, "n_layers": 2, "n_refiner_layers": 1,
         "cap_feat_dim": 48, "axes_dims": [8, 12, 12]},
    ),
    "krea2": (
        {}, "Krea2Transformer2DModel",
        HEADS | {"num_layers": 2, "num_key_value_heads": 1, "intermediate_size": 128, "text_hidden_dim": 16,
                 "num_text_layers": 3, "text_num_attention_heads": 1, "text_num_key_value_heads": 1,
                 "text_intermediate_size": 32, "axes_dims_rope": (8, 12, 12)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFUSERS)
def test_diffusers_loads_every_layer_of_the_exported_lora(name, in_process_host):
    """Its `load_lora_adapter` makes each layer's trained difference out of the file's tensors."""
    import diffusers

    from inlay.training.finetune.diffusion_transformers import resolved_recipe
    from inlay.training.finetune.lora_formats import as_diffusers, lora_names
    from inlay.training.finetune.pipeline import trainable_model
    from inlay.training.finetune.recipes import RECIPES

    changes, class_name, sizes = DIFFUSERS[name]
    model = tiny_transformer(name, **changes)
    recipe = RECIPES["DreamCom"].with_choices(rank=4)
    recipe = resolved_recipe(replace(recipe, adapter=replace(recipe.adapter, alpha=2.0)), model)
    with torch.inference_mode(False):
        trainable = trainable_model(model, recipe, torch.float32, 0)
        generator = torch.Generator().manual_seed(3)
        for parameter in trainable.adapter.parameters:
            parameter.data = torch.randn(parameter.shape, generator=generator)
        lora = trainable.adapter.export(lora_names(model))
        network = getattr(diffusers, class_name)(**sizes)
        network.load_lora_adapter(as_diffusers(model, lora), prefix="transformer")
    deltas = {
        path: module.get_delta_weight("default_0")
        for path, module in network.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    for key, down in lora.items():
        if key.endswith("lora_down.weight"):
            layer = key.removesuffix(".lora_down.weight")
            wanted = lora[f"{layer}.lora_up.weight"] @ down * float(lora[f"{layer}.alpha"]) / len(down)
            names = part_names(name, layer.removeprefix("diffusion_model."))
            found = torch.cat([deltas.pop(part) for part in names])
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert not deltas


# The command line


CONFIG = """
checkpoint = "fill.safetensors"
text_encoders = ["clip_l.safetensors"]
vae = "tae.safetensors"
references = "photos"
class_name = "cat"
out = "{out}"
diffusers_file = true

save_every = 1

[recipe]
resolution = 64
steps = 3
batch_size = 2
caption_dropout = 0.4

[recipe.adapter]
rank = 4
"""
# A FLUX.1 Kontext: an edit model, which is shown photos of the subject; with samples in the user's picture.
EDIT_CONFIG = """
checkpoint = "flux1-kontext.safetensors"
text_encoders = ["clip_l.safetensors"]
vae = "tae.safetensors"
references = "photos"
class_name = "cat"
out = "edit"
diffusers_file = true
preview_every = 2
sample_prompts = ["a photo of sks cat", "sks cat at night"]
sample_image = "room.png"

[recipe]
base = "DreamCom (output preservation)"
resolution = 64
steps = 3
subject_references = 1
aspect_ratios = "buckets"

[recipe.adapter]
rank = 4

[recipe.optimiser]
schedule = "cosine"
warmup = 1
"""


@pytest.fixture(scope="module")
def fill_folder(in_process_host, host_work, tmp_path_factory):
    """The files of a small FLUX.1 Fill and Kontext, two photos of which one has a caption, and a room."""
    from PIL import Image
    from safetensors.torch import load_file, save_file

    from inlay.lab.models.assemble import random_checkpoint, write_checkpoint

    folder = tmp_path_factory.mktemp("fill")
    sizes = {
        "hidden_size": 128,
        "num_heads": 1,
        "axes_dim": [16, 56, 56],
        "context_in_dim": 768,
        "vec_in_dim": 768,
    }
    networks = [
        tiny_transformer(name, **sizes, mlp_ratio=4.0).model.diffusion_model
        for name in ("flux1-fill", "flux1")
    ]
    whole = load_file(write_checkpoint(host_work / "random" / "parts.safetensors", random_checkpoint(0)))
    start = "cond_stage_model.transformer."
    text = {key.removeprefix(start): value for key, value in whole.items() if key.startswith(start)}
    autoencoder: Any = tiny_vae("flux1-fill").first_stage_model
    for name, weights in (
        ("fill", networks[0].state_dict()),
        ("flux1-kontext", networks[1].state_dict()),
        ("clip_l", text),
        ("tae", autoencoder.state_dict()),
    ):
        save_file({key: value.clone() for key, value in weights.items()}, folder / f"{name}.safetensors")
    photos = folder / "photos"
    photos.mkdir()
    generator = torch.Generator().manual_seed(5)
    for number in range(2):
        noise = torch.randint(0, 256, (64, 80, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(photos / f"{number}.png")
        mask = Image.new("L", (80, 64))
        mask.paste(255, (20, 16, 60, 48))
        mask.save(photos / f"{number}_mask.png")
    (photos / "1.txt").write_text("on a red chair", encoding="utf-8")
    Image.new("RGB", (96, 64), "beige").save(folder / "room.png")
    mask = Image.new("L", (96, 64))
    mask.paste(255, (30, 16, 70, 48))
    mask.save(folder / "room_mask.png")
    return folder


def config_in(folder, out):
    config = folder / f"{out}.toml"
    config.write_text(CONFIG.format(out=out), encoding="utf-8")
    return config


@pytest.mark.parametrize("adapter", ["dora", "lokr"])
def test_an_adapter_that_diffusers_cannot_read_is_refused_before_the_training(fill_folder, adapter):
    from inlay.training.finetune.finetune_subject import finetune_from_config
    from inlay.training.finetune.toml_config import read_toml
    from inlay.training.finetune.trainer import SINGLE_PROCESS

    file = config_in(fill_folder, f"refused_{adapter}")
    file.write_text(f"{file.read_text(encoding='utf-8')}{adapter} = true\n", encoding="utf-8")
    plan = []
    with pytest.raises(ValueError, match="diffusers_file: diffusers reads plain LoRAs alone"):
        finetune_from_config(read_toml(file), SINGLE_PROCESS, lambda step, loss: None, plan.append)
    assert plan == []
    assert not list((fill_folder / f"refused_{adapter}").glob("*"))


@pytest.fixture(scope="module")
def trained_alone(fill_folder):
    """A training of the folder's config in this process: subject, LoRA, losses and the planned steps."""
    from safetensors.torch import load_file

    from inlay.training.finetune.finetune_subject import finetune_from_config
    from inlay.training.finetune.toml_config import read_toml
    from inlay.training.finetune.trainer import SINGLE_PROCESS

    losses, plan = [], []
    config = read_toml(config_in(fill_folder, "alone"))
    subject, path = finetune_from_config(
        config, SINGLE_PROCESS, lambda step, loss: losses.append(loss), plan.append
    )
    copy = load_file(path.with_name(f"{path.stem}_diffusers.safetensors"))
    return SimpleNamespace(subject=subject, lora=load_file(path), losses=losses, plan=plan, copy=copy)


def test_a_config_of_separate_files_trains_a_transformer(trained_alone):
    """The host's own loaders open a small FLUX.1 Fill, a text encoder and an autoencoder."""
    assert trained_alone.plan == [3]
    assert trained_alone.losses == trained_alone.subject.losses
    assert len(trained_alone.losses) == 3
    assert any("double_blocks" in key for key in trained_alone.lora)
    assert "transformer.transformer_blocks.0.attn.to_q.lora_A.weight" in trained_alone.copy


def test_captions_stand_beside_the_photos_and_follow_the_recipes_words(fill_folder):
    from inlay.imaging.references import read_captions
    from inlay.training.finetune.recipes import RECIPES
    from inlay.training.finetune.spec import own_captions, without_token

    notes = read_captions(fill_folder / "photos")
    assert notes == ["", "on a red chair"]
    of = {name: own_captions(RECIPES[name], "sks", "cat", notes, 2) for name in ("DreamCom", "DreamMix")}
    assert of["DreamCom"] == ["a photo of sks cat", "a photo of sks cat, on a red chair"]
    assert of["DreamMix"] == ["a sks cat", "a sks cat, on a red chair"]
    assert (
        own_captions(RECIPES["DreamCom"], "sks", "cat", ["sks cat in the snow"], 2)
        == ["sks cat in the snow"] * 2
    )
    assert own_captions(RECIPES["DreamCom"], "sks", "cat", ["", ""], 2) == []
    [desks] = own_captions(RECIPES["DreamCom"], "sks", "cat", ["two desks"], 1)  # a longer word is no token
    assert desks == "a photo of sks cat, two desks"
    assert without_token(desks, "sks", "cat") == "a photo of cat, two desks"
    classes = [without_token(caption, "sks", "cat") for caption in of["DreamCom"]]
    assert classes == ["a photo of cat", "a photo of cat, on a red chair"]


def test_a_config_trains_an_edit_model_with_photos_captions_and_samples(fill_folder, monkeypatch):
    from PIL import Image
    from safetensors.torch import load_file

    from inlay.training.finetune import finetune_subject
    from inlay.training.finetune.progress import draw_strip
    from inlay.training.finetune.toml_config import read_toml
    from inlay.training.finetune.trainer import SINGLE_PROCESS

    file = fill_folder / "edit.toml"
    file.write_text(EDIT_CONFIG, encoding="utf-8")
    specs, build = [], finetune_subject.spec_from_toml

    def recorded(*args):
        specs.append(build(*args))
        return specs[0]

    monkeypatch.setattr(finetune_subject, "spec_from_toml", recorded)
    train = finetune_subject.finetune_from_config
    subject, path = train(read_toml(file), SINGLE_PROCESS, lambda step, loss: None)
    (_, spec), recipe = specs[0], specs[0][1].recipe
    assert spec.captions == ["a photo of sks cat", "a photo of sks cat, on a red chair"]
    assert spec.class_captions == ["a photo of cat", "a photo of cat, on a red chair"]
    assert (recipe.hole_condition, recipe.guidance, recipe.shift) == ("reference", 1.0, 0.0)
    assert (subject.family, len(subject.losses)) == ("flux1", 3)
    assert all(math.isfinite(loss) for loss in subject.losses)
    square = draw_strip({1: torch.zeros(8, 8, 3, dtype=torch.uint8)})
    with Image.open(path.with_suffix(".png")) as strip:
        assert strip.height > square.height + 20  # one prompt below the other, in the shape of the room
    copy = path.with_name(f"{path.stem}_diffusers.safetensors")
    assert "transformer.single_transformer_blocks.0.proj_mlp.lora_A.weight" in load_file(copy)
    written = copy.stat().st_mtime_ns
    again = train(read_toml(file), SINGLE_PROCESS, lambda step, loss: pytest.fail("trained again"))
    assert again == (subject, path)
    assert copy.stat().st_mtime_ns == written, "Windows would refuse to write a file that a host has open"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_command_that_was_killed_goes_on_where_its_last_checkpoint_stood(fill_folder, comfyui_path):
    """Killed in step 3 of 3; the same command takes the rest, to the bits of one that was not killed.

    All three are processes of their own: what ran before in this one can change a sum's last bit.
    """
    import json
    import subprocess
    import sys

    from safetensors.torch import load_file

    from inlay import dev

    environment = os.environ | {"COMFYUI_PATH": str(comfyui_path), "ACCELERATE_USE_CPU": "true"}
    environment.pop("PYTHONPATH", None)
    watched = [str(dev.PACK / "tests" / "programs" / "terminate_at_line.py"), "SIGKILL", "step 3 of"]

    def finetune(name, *program):
        command = [sys.executable, *program, str(dev.PACK), "finetune", "--config"]
        command.append(str(config_in(fill_folder, name)))
        return subprocess.run(
            command, cwd=fill_folder, env=environment, capture_output=True, text=True, timeout=900
        )

    def written(name):
        files = {file.suffix: file for file in (fill_folder / name).iterdir()}
        assert set(files) == {".safetensors", ".json"}
        [lora] = [f for f in (fill_folder / name).glob("*.safetensors") if not f.stem.endswith("_diffusers")]
        return load_file(lora), json.loads(files[".json"].read_text(encoding="utf-8"))

    whole, killed = finetune("whole"), finetune("killed", *watched)
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert killed.returncode == -9, killed.stderr[-3000:]
    assert [file.suffix for file in (fill_folder / "killed").iterdir()] == [".resume"]
    resumed = finetune("killed")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "step 1 of" in whole.stderr
    assert "step 3 of" in resumed.stderr
    assert "step 1 of" not in resumed.stderr
    (lora, subject), (expected, its) = written("killed"), written("whole")
    assert subject["losses"] == its["losses"]
    assert lora.keys() == expected.keys()
    assert all(torch.equal(lora[key], weight) for key, weight in expected.items())


def test_two_processes_learn_on_a_transformer_what_one_learns(fill_folder, trained_alone, comfyui_path):
    """At the same global batch of 2, to 1e-4 of every matrix, as on SD."""
    import json
    import subprocess
    import sys

    from safetensors.torch import load_file

    from inlay import dev
    from inlay.headless.server import loopback_port

    environment = os.environ | {
        "COMFYUI_PATH": str(comfyui_path),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    environment.pop("PYTHONPATH", None)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(loopback_port())]
    command = [sys.executable, *launcher, str(dev.PACK), "finetune", "--config"]
    done = subprocess.run(
        [*command, str(config_in(fill_folder, "group"))],
        cwd=fill_folder, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["processes"] == 2
    assert facts["loss"] == pytest.approx(trained_alone.losses[-1], rel=1e-4)
    lora = load_file(facts["lora"])
    assert lora.keys() == trained_alone.lora.keys()
    for key, weight in trained_alone.lora.items():
        assert float((lora[key] - weight).norm()) <= 1e-4 * float(weight.norm()) + 1e-8, key
