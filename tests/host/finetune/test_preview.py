"""Samples while it trains: they are made by the weights of the moment, and leave no trace."""

import shutil

import pytest
import torch
from PIL import Image

from inlay.training.finetune.progress import draw_curve


@pytest.fixture
def shown(monkeypatch):
    """Every sample that the browser would get, by its step."""
    from inlay.nodes import subject_finetune

    pictures = {}

    class Watching(subject_finetune.NodeProgress):
        def show(self, step, picture):
            super().show(step, picture)
            pictures[step] = picture

    monkeypatch.setattr(subject_finetune, "NodeProgress", Watching)
    return pictures


@pytest.mark.parametrize("recipe", ["DreamCom", "DreamMix"])
def test_samples_change_no_bit_of_the_result(pictures, store_folder, run, shown, recipe):
    plain = run(*pictures, steps=5, recipe=recipe, rank=0)
    shutil.rmtree(store_folder)
    assert not shown
    state = torch.get_rng_state()
    watched = run(*pictures, steps=5, recipe=recipe, rank=0, preview_every=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(shown) == [2, 4, 5]
    assert plain[2] == watched[2]
    assert all(torch.equal(plain[1][key], watched[1][key]) for key in plain[1])


def test_samples_show_what_is_learned_and_keep_what_was_there(pictures, store_folder, run, shown):
    output = run(*pictures, steps=6, learning_rate=1e-2, preview_every=3)
    assert shown[3].shape == (64, 64, 3)
    assert shown[3].dtype == torch.uint8
    assert not torch.equal(shown[3], shown[6])
    strip = Image.open((store_folder.parent / output[3].lora).with_suffix(".png"))
    curve = draw_curve(output[3].losses, "")
    assert output[4].shape == (1, curve.shape[1] + strip.height, curve.shape[2], 3)
    again = run(*pictures, steps=6, learning_rate=1e-2)
    assert torch.equal(again[4], output[4])  # the strip comes out of the store


def test_a_sample_is_what_the_finished_model_would_paint(parts, pictures, store_folder, run, shown):
    """The last sample, painted again through the patched MODEL, as a user would sample it."""
    import comfy.model_management

    from inlay.training.finetune.checks import crop_size
    from inlay.training.finetune.data import Concept, collect_references
    from inlay.training.finetune.generation import make_preview_scene, paint_preview
    from inlay.training.finetune.pipeline import Pipeline, encode_captions, encode_examples
    from inlay.training.finetune.recipes import RECIPES

    model, _, _, subject, _ = run(*pictures, learning_rate=1e-2, preview_every=3)
    recipe = RECIPES["DreamCom"].with_choices(steps=3, batch_size=2, resolution=64)
    with torch.inference_mode():
        material = Concept(subject.caption, collect_references(*pictures))
        size = crop_size(parts.model, recipe)
        pipeline = Pipeline(parts.model, parts.clip, parts.vae)
        text = encode_captions(pipeline, [subject.caption], size)[subject.caption]
        examples = encode_examples(pipeline, material, text, recipe, size, 7).first
        scene = make_preview_scene(parts.clip, parts.vae, examples, subject.caption, 7, masked=True)
        comfy.model_management.load_models_gpu([model])
        painted = paint_preview(scene, model)
    assert (painted.int() - shown[3].int()).abs().max() <= 1
    comfy.model_management.load_models_gpu([parts.model])
    untrained = paint_preview(scene, parts.model)
    assert (painted.int() - untrained.int()).abs().max() > 1


def test_samples_of_an_interrupted_run_stay(pictures, store_folder, run, shown, monkeypatch):
    import comfy.model_management

    whole = run(*pictures, steps=4, preview_every=2)
    first, second = shown[2], shown[4]
    shutil.rmtree(store_folder)
    shown.clear()
    from inlay.nodes import subject_finetune

    class Interrupting(subject_finetune.NodeProgress):
        def __call__(self, step, loss):
            if step == 3:
                comfy.model_management.interrupt_current_processing()

    with monkeypatch.context() as patch:
        patch.setattr(subject_finetune, "NodeProgress", Interrupting)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run(*pictures, steps=4, preview_every=2)
    assert torch.equal(shown.pop(2), first)
    resumed = run(*pictures, steps=4, preview_every=2)
    assert list(shown) == [4]
    assert torch.equal(shown[4], second)
    assert torch.equal(resumed[4], whole[4])
    assert all(torch.equal(whole[1][key], resumed[1][key]) for key in whole[1])


def test_the_page_gets_step_loss_time_left_and_warnings(monkeypatch, in_process_host):
    from types import SimpleNamespace

    from inlay.nodes import training_progress

    told = []
    pages = SimpleNamespace(send_sync=lambda *event: told.append(event))
    monkeypatch.setattr(training_progress, "PromptServer", SimpleNamespace(instance=pages))
    progress = training_progress.NodeProgress(2, "7", ["All reference pictures are identical."])
    progress(1, 0.5)
    progress(2, 0.25)
    assert [name for name, _ in told] == [training_progress.EVENT] * 2
    assert [(event["step"], event["points"]) for _, event in told] == [(1, [(1, 0.5)]), (2, [(2, 0.25)])]
    assert [event["left"] for _, event in told][-1] == 0
    assert all(event["node"] == "7" for _, event in told)
    assert all(event["notes"] == ["All reference pictures are identical."] for _, event in told)


def test_own_prompts_and_background_change_no_bit(pictures, store_folder, run, shown):
    plain = run(*pictures, steps=2, learning_rate=1e-2)
    image, mask = torch.rand(1, 48, 96, 3, generator=torch.Generator().manual_seed(1)), torch.zeros(1, 48, 96)
    mask[:, 10:30, 40:70] = 1
    options = {
        "sample_prompts": "a photo of sks cat\n\n a photo of sks cat ",
        "sample_image": image,
        "sample_mask": mask,
    }
    choices = {"steps": 2, "learning_rate": 1e-2, "preview_every": 1, "options": options}
    assert run(*pictures, **choices)[3] == plain[3]  # the same key: stored
    assert not shown
    shutil.rmtree(store_folder)
    watched = run(*pictures, **choices)
    # The area of a training crop, in the picture's shape; both prompts below each other.
    assert list(shown) == [1, 2]
    first, second = shown[2].chunk(2)
    height, width, _ = first.shape
    assert (width / height, width * height) == pytest.approx((2, 64**2), rel=0.05)
    assert not torch.equal(first, second)  # the same words with seeds of their own
    assert not torch.equal(shown[1], shown[2])
    assert watched[4].shape[1] > plain[4].shape[1]  # with the samples below the curve
    assert all(torch.equal(plain[1][key], watched[1][key]) for key in plain[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_image": torch.zeros(1, 8, 8, 3)}, "sample_image: it has no sample_mask"),
        ({"sample_mask": torch.ones(1, 8, 8)}, "sample_mask: there is no sample_image"),
        (
            {"sample_image": torch.zeros(1, 8, 8, 3), "sample_mask": torch.zeros(1, 8, 8)},
            "sample_mask: it is empty",
        ),
        ({"sample_prompts": "a cat\n" * 9}, "sample_prompts: there are 9"),
    ],
)
def test_samples_that_cannot_be_made_are_an_error(pictures, store_folder, run, options, message):
    with pytest.raises(ValueError, match=message):
        run(*pictures, preview_every=1, options=options)


def test_a_config_names_its_samples(in_process_host, tmp_path):
    from inlay.training.finetune.spec import read_samples
    from inlay.training.finetune.toml_config import read_toml

    Image.new("RGB", (32, 24)).save(tmp_path / "room.png")
    file = tmp_path / "finetune.toml"
    file.write_text(
        'checkpoint = "a"\nreferences = "photos"\nclass_name = "cat"\nsample_image = "room.png"\n'
        'sample_prompts = ["a sks cat", "a sks cat at night"]\n',
        encoding="utf-8",
    )
    with pytest.raises(ValueError, match=r"room_mask\.png"):
        read_samples(read_toml(file))
    mask = Image.new("L", (32, 24))
    mask.paste(255, (4, 4, 12, 12))
    mask.save(tmp_path / "room_mask.png")
    samples = read_samples(read_toml(file))
    assert samples.prompts == ["a sks cat", "a sks cat at night"]
    assert samples.background is not None
    assert samples.background.mask.sum() == 64
