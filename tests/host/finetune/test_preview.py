"""Samples while it trains: they are made by the weights of the moment, and leave no trace."""

import shutil

import pytest
import torch
from PIL import Image


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
    assert output[4].shape == (1, 432 + strip.height, 768, 3)
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
        examples = encode_examples(pipeline, material, text, recipe, size, 7)
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


def test_the_browser_gets_step_loss_time_left_and_warnings(monkeypatch, in_process_host):
    from types import SimpleNamespace

    from inlay.nodes import training_progress

    said, told = [], []
    pages = SimpleNamespace(
        send_progress_text=lambda *words: said.append(words), send_sync=lambda *event: told.append(event)
    )
    monkeypatch.setattr(training_progress, "PromptServer", SimpleNamespace(instance=pages))
    progress = training_progress.NodeProgress(2, "7", ["All reference pictures are identical."])
    progress(1, 0.5)
    progress(2, 0.25)
    assert [node for _, node in said] == ["7", "7"]
    assert said[-1][0].startswith("step 2 of 2, loss 0.2500, 0 s left\nAll reference pictures are identical.")
    assert [name for name, _ in told] == [training_progress.EVENT] * 2
