"""Trainings of transformers by their settings: stopped and gone on, what the page sees, samples, text."""

import shutil
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from .test_transformers import QUICK, TRAINED, random_examples, trained_parts

NEEDS_PRODIGY = pytest.mark.skipif(find_spec("prodigyopt") is None, reason="needs prodigyopt")
# Family, inputs of Train Subject, and of Training Options.
SETTINGS = {
    "Prodigy": ("flux2-klein", {"optimiser": "Prodigy", "learning_rate": 0.0}, {"schedule": "cosine"}),
    "Adafactor": ("z-image", {"optimiser": "Adafactor", "learning_rate": 0.0}, {"layers": "attention"}),
    "DoRA": ("flux1-fill", {}, {"adapter": "DoRA", "schedule": "cosine", "warmup_steps": 2}),
    "LoKr": ("flux2-klein", {}, {"adapter": "LoKr", "warmup_steps": 3}),
    "running mean": ("qwen-image-edit-2511", {"ema_decay": 0.9}, {"layers": "attention"}),
    "captions": ("flux2-klein", {}, {"caption_dropout": 0.5, "preservation": 1.0}),
    "references": (
        "flux2-klein", {"precision": "bf16"}, {"subject_references": 1, "reference_dropout": 0.5},
    ),
    "drawn latents": ("krea2", {"recipe": "DreamMix (released)"}, {}),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain_losses():
    """Losses of a training without settings, by family."""
    return {}


@pytest.mark.parametrize(
    "setting", [pytest.param(name, marks=NEEDS_PRODIGY if name == "Prodigy" else ()) for name in SETTINGS]
)
def test_a_stopped_training_goes_on_with_the_same_bits(
    setting, train, plain_losses, store_folder, stopped_in_step
):
    name, inputs, options = SETTINGS[setting]
    choices = {"steps": 4, "preview_every": 0, "captions": ["on a chair", "", "in the snow, from far above"]}
    if name not in plain_losses:
        plain_losses[name] = train(name, **choices)[2]
    choices |= inputs | {"options": options}
    whole = train(name, **choices)
    assert whole[2] != plain_losses[name]  # the setting has an effect
    shutil.rmtree(store_folder)

    with stopped_in_step(2):
        train(name, **choices)
    assert [file.suffix for file in store_folder.iterdir()] == [".resume"]
    resumed = train(name, **choices)
    assert resumed[2] == whole[2]
    assert resumed[3] == whole[3]
    assert all(torch.equal(whole[1][key], resumed[1][key]) for key in whole[1])


@pytest.mark.parametrize("adapter", ["LoRA", "DoRA", "LoKr"])
@pytest.mark.parametrize("name", QUICK)
def test_the_host_shows_the_weights_that_were_trained(name, adapter, opened, answer):
    """The network in training against the MODEL with the exported file on it."""
    from inlay.host.models import apply_lora, model_around
    from inlay.training.finetune.diffusion_transformers import resolved_recipe
    from inlay.training.finetune.lora_formats import lora_names
    from inlay.training.finetune.pipeline import trainable_model
    from inlay.training.finetune.recipes import RECIPES

    model, recipe = opened(name).model, RECIPES["DreamCom"].with_choices(rank=4)
    kind = {"dora": adapter == "DoRA", "lokr": adapter == "LoKr", "alpha": 2.0}
    recipe = resolved_recipe(replace(recipe, adapter=replace(recipe.adapter, **kind)), model)
    with torch.inference_mode(False):
        trainable = trainable_model(model, recipe, torch.float32, 0)
        generator = torch.Generator().manual_seed(3)
        for parameter in trainable.adapter.parameters:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        lora = trainable.adapter.export(lora_names(model))
        live = model_around(model, trainable.unet, torch.float32)
    trained, shown, plain = (answer(name, one) for one in (live, apply_lora(model, lora), model))
    assert (shown - trained).norm() < 1e-4 * (trained - plain).norm()


@pytest.mark.parametrize("name", ["flux1-fill", "qwen-image-edit-2511"])
def test_the_page_sees_stages_losses_and_samples_and_a_stored_result(name, train, store_folder, monkeypatch):
    from inlay.nodes import training_progress

    told = []
    pages = SimpleNamespace(
        send_progress_text=lambda *words: None,
        send_sync=lambda event, facts: told.append(facts) if event == training_progress.EVENT else None,
    )
    monkeypatch.setattr(training_progress, "PromptServer", SimpleNamespace(instance=pages))
    subject = train(name, steps=3, node_id="7")[3]
    stages = list(dict.fromkeys(event["stage"] for event in told))
    expected = ["looking for a stored result", "encoding 3 photos", "loading the model", "measuring memory"]
    assert stages[:4] == expected
    assert stages[4].startswith("first step, with about")
    points = [point for event in told for point in event["points"]]
    assert [step for step, _ in points] == [1, 2, 3]
    assert [loss for _, loss in points] == pytest.approx(subject.losses, rel=1e-3)
    assert [step for event in told for step, _ in event["samples"]] == [2, 3]
    assert [told[0]["state"], told[-1]["state"]] == ["running", "finished"]
    told.clear()
    assert train(name, steps=3, node_id="7")[3] == subject
    assert told[-1]["state"] == "loaded"
    assert len(told[-1]["samples"]) == 1


@pytest.mark.parametrize("name", ["flux1-fill", "qwen-image-edit-2511"])
def test_samples_change_no_bit_and_keep_their_seeds(name, train, store_folder, monkeypatch):
    from inlay.nodes import subject_finetune

    shown = {}
    monkeypatch.setattr(
        subject_finetune.NodeProgress, "show", lambda progress, step, picture: shown.update({step: picture})
    )
    choices = {"steps": 2, "learning_rate": 1e-2}
    plain = train(name, **choices, preview_every=0)
    shutil.rmtree(store_folder)
    mask = torch.zeros(1, 48, 80)
    mask[:, 10:30, 40:70] = 1
    image = torch.rand(1, 48, 80, 3, generator=torch.Generator().manual_seed(1))
    options = {"sample_prompts": "sks cat\nsks cat", "sample_image": image, "sample_mask": mask}
    watched = train(name, **choices, preview_every=1, options=options)
    assert watched[2] == plain[2]
    assert all(torch.equal(plain[1][key], watched[1][key]) for key in plain[1])
    early, late = shown[1], shown[2]
    assert not torch.equal(early, late)
    first, second = early.chunk(2)
    assert not torch.equal(first, second)  # the same words with seeds of their own
    shutil.rmtree(store_folder)
    train(name, **choices | {"steps": 1}, preview_every=1, options=options)
    assert torch.equal(shown[1], early)


@pytest.mark.parametrize("name", TRAINED)
def test_each_pass_reads_one_caption_as_it_is(name, opened):
    """Joint attention would give repeated or padded text more weight; the host itself pads FLUX.2's."""
    from inlay.host.training import training_switches
    from inlay.training.finetune.recipes import RECIPES
    from inlay.training.finetune.trainer import per_sample_loss

    captions = ("a photo of sks cat", "a cat", "a large picture of sks cat on a red chair")
    recipe, read = RECIPES["DreamCom"].with_choices(rank=4), []
    with torch.inference_mode(False), torch.no_grad():
        trainable, recipe, texts = trained_parts(opened, name, recipe, torch.float64, None, captions)
        rows = random_examples(trainable, 4, (0, 1, 0, 2)).take(torch.arange(4))
        trainable.unet.register_forward_pre_hook(
            lambda network, args, kwargs: read.append((kwargs["context"], kwargs.get("guidance"))),
            with_kwargs=True,
        )
        with training_switches(trainable.unet):
            per_sample_loss(trainable, recipe, rows, torch.Generator().manual_seed(4))
    assert [len(context) for context, _ in read] == [2, 1, 1]
    for (context, guidance), text in zip(read, texts, strict=True):
        tokens = text["cross_attn"].to(context)
        length = tokens.shape[1]
        assert context.shape[1] == (512 if name.startswith("flux2") else length)
        assert torch.equal(context[:, -length:], tokens.expand(len(context), -1, -1))
        assert not context[:, :-length].any()
        if name.startswith(("flux1", "flux2-dev")):  # 1 switches the guidance embedding off
            assert (guidance == 1).all()


@pytest.mark.parametrize("prediction", ["velocity", "epsilon", "v"])
def test_min_snr_weighs_each_picture_by_its_noise(prediction, opened):
    from inlay.host.training import training_switches
    from inlay.training.finetune.recipes import RECIPES
    from inlay.training.finetune.trainer import per_sample_loss

    from .test_transformers import discrete

    recipe = RECIPES["DreamCom"].with_choices(rank=4)
    sampling = None if prediction == "velocity" else discrete(prediction)
    with torch.inference_mode(False), torch.no_grad():
        trainable, recipe, _ = trained_parts(opened, "flux1", recipe, torch.float64, sampling)
        rows = random_examples(trainable).take(torch.arange(3))

        def losses(recipe):
            return per_sample_loss(trainable, recipe, rows, torch.Generator().manual_seed(4))

        with training_switches(trainable.unet):
            plain, weighted = losses(recipe), losses(replace(recipe, min_snr=0.02))
    if prediction == "velocity":
        assert torch.equal(weighted, plain)
        return
    sigmas = trainable.diffusion.sigmas
    level = sigmas[torch.randint(len(sigmas), (3,), generator=torch.Generator().manual_seed(4))].double()
    snr = 1 / level**2
    wanted = snr.clamp(max=0.02) / (snr if prediction == "epsilon" else snr + 1)
    assert (wanted < 0.9).any()
    torch.testing.assert_close(weighted / plain, wanted, rtol=1e-6, atol=0)
