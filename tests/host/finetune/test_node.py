"""SubjectFinetune in a real host, on a shallow SD 1.5-shaped checkpoint with random weights."""

import json
import re
import sys

import pytest
import torch


def test_every_output_and_an_untouched_model(parts, pictures, store_folder, run, predict, weights):
    before, answer = weights(parts.model), predict(parts.model)
    model, lora, loss, subject, curve = run(*pictures)
    assert all(torch.equal(weight, before[key]) for key, weight in parts.model.model.state_dict().items())
    assert torch.equal(predict(parts.model), answer)
    assert not parts.model.patches

    assert len(model.patches) == len(lora) // 3 > 0  # every key of the file found its layer
    assert not torch.equal(predict(model), answer)
    assert torch.equal(predict(parts.model), answer)  # and taking the patched branch away restores the bits
    assert len(loss["loss"]) == 3
    assert curve.shape[0] == 1
    assert curve.shape[-1] == 3
    assert subject.words == "sks cat"
    assert subject.caption == "a photo of sks cat"
    assert (store_folder.parent / subject.lora).is_file()
    stored = json.loads((store_folder.parent / subject.lora).with_suffix(".json").read_text(encoding="utf-8"))
    assert stored["family"] == "sd15"


def test_the_same_inputs_train_once(parts, pictures, store_folder, monkeypatch, run, predict):
    from inlay.training.finetune import finetune_subject

    first = run(*pictures)
    monkeypatch.setattr(finetune_subject, "train_lora", lambda *_, **__: pytest.fail("trained again"))
    again = run(*pictures)
    assert all(torch.equal(first[1][key], again[1][key]) for key in first[1])
    assert first[2] == again[2]
    assert torch.equal(predict(first[0]), predict(again[0]))


def test_the_same_seed_gives_the_same_bits_and_another_does_not(parts, pictures, store_folder, run):
    import shutil

    first = run(*pictures)[1]
    shutil.rmtree(store_folder)
    second = run(*pictures)[1]
    other = run(*pictures, seed=8)[1]
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_an_interrupt_stops_within_a_step_and_the_next_run_goes_on_bit_for_bit(
    parts, pictures, store_folder, monkeypatch, run, weights
):
    import shutil

    import comfy.model_management

    from inlay.nodes import subject_finetune

    whole = run(*pictures, steps=6)
    shutil.rmtree(store_folder)
    before = weights(parts.model)
    taken = []

    class Interrupting(subject_finetune.NodeProgress):
        def __call__(self, step, loss):
            taken.append(step)
            if step == 4:
                comfy.model_management.interrupt_current_processing()

    with monkeypatch.context() as patch:
        patch.setattr(subject_finetune, "NodeProgress", Interrupting)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run(*pictures, steps=6)
    assert taken == [1, 2, 3, 4]
    assert [file.suffix for file in store_folder.iterdir()] == [".resume"]
    assert all(torch.equal(weight, before[key]) for key, weight in parts.model.model.state_dict().items())
    assert not parts.model.patches

    resumed = run(*pictures, steps=6)
    assert all(torch.equal(whole[1][key], resumed[1][key]) for key in whole[1])
    assert whole[2] == resumed[2]
    assert sorted(file.suffix for file in store_folder.iterdir()) == [".json", ".safetensors"]


def test_a_learning_rate_that_explodes_says_so_and_keeps_the_good_steps(parts, pictures, store_folder, run):
    message = r"learning_rate: the loss stopped being a number at step \d+ .* checkpoint of step \d+ is kept"
    with pytest.raises(ValueError, match=message):
        run(*pictures, steps=40, learning_rate=1.0, rank=64)
    assert [file.suffix for file in store_folder.iterdir()] == [".resume"]


def test_full_finetuning_is_a_difference_that_can_be_taken_away(
    parts, pictures, store_folder, run, predict, weights
):
    before, answer = weights(parts.model), predict(parts.model)
    model, lora, _, subject, _ = run(*pictures, recipe="DreamCom (full UNet)", steps=2, learning_rate=0)
    assert all(torch.equal(weight, before[key]) for key, weight in parts.model.model.state_dict().items())
    trained = [key for key in before if key.startswith("diffusion_model.")]
    assert len(model.patches) == len(lora) == len(trained)
    assert not torch.equal(predict(model), answer)
    assert torch.equal(predict(parts.model), answer)
    assert subject.recipe == "DreamCom (full UNet)"


def test_training_options_are_used_instead_of_the_nodes_own_values(parts, pictures, store_folder, run):
    from inlay.nodes import InlayTrainingOptions

    given = {
        "rank": 2, "learning_rate": 0.0, "batch_size": 0, "resolution": 0, "precision": "preset",
        "optimiser": "preset", "gradient_checkpointing": "preset", "ema_decay": 0.0,
        "attributes": "colour: brown",
    }  # fmt: skip
    options = InlayTrainingOptions.execute(**given)[0]
    assert options == {"rank": 2, "attributes": "colour: brown"}
    subject = run(*pictures, options=options)[3]
    same = run(*pictures, rank=2)[3]
    assert (subject.rank, subject.attributes) == (2, {"colour": ["brown"]})
    assert subject.lora == same.lora  # the same training: it was stored


def test_dreammix_trains_keys_and_values_only(parts, pictures, store_folder, run):
    _, lora, *_ = run(*pictures, recipe="DreamMix", rank=0)
    assert {key.split("_attn")[1].split(".")[0][1:] for key in lora} == {"_to_k", "_to_v"}
    assert {w.shape[0] for key, w in lora.items() if "lora_down" in key} == {4}


def test_the_words_of_dreamcom_reach_only_the_hole(parts):
    """One layer's cross-attention in training: zero outside the hole, plain inside; so are its gradients."""
    from inlay.training.finetune import pipeline
    from inlay.training.finetune.data import Examples

    options = pipeline.step_options(parts.model.model.diffusion_model, True, torch.device("cpu"))
    hole = torch.zeros(1, 8, 8)
    hole[:, 2:6, 3:7] = 1
    latent = torch.zeros(1, 4, 8, 8)
    chosen = options(Examples(latent, hole[:, None], latent, hole[:, None], torch.zeros(1, 77, 768)))
    replacements = chosen["patches_replace"]["attn2"]
    attn = parts.model.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn2
    g = torch.Generator().manual_seed(0)
    q = torch.randn(1, 64, 320, generator=g, requires_grad=True)
    k, v = (torch.randn(1, 77, 320, generator=g) for _ in range(2))
    extra = chosen | {
        "n_heads": attn.heads, "dim_head": 40, "attn_precision": None, "block": ("input", 1),
        "block_index": 0, "activations_shape": [1, 320, 8, 8], "original_shape": [1, 9, 8, 8],
    }  # fmt: skip
    out = replacements[("input", 1)](q, k, v, extra)
    inside = hole.flatten(1)[..., None]
    assert (out * (1 - inside) == 0).all()
    heads = lambda x: x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # noqa: E731
    plain = (
        torch.nn.functional.scaled_dot_product_attention(heads(q), heads(k), heads(v))
        .transpose(1, 2)
        .flatten(2)
    )
    torch.testing.assert_close(out, plain * inside)
    torch.testing.assert_close(
        torch.autograd.grad(out.sum(), q)[0], torch.autograd.grad((plain * inside).sum(), q)[0]
    )


def test_regular_pictures_count_where_the_recipe_has_a_beta(parts, pictures, store_folder, run):
    images, masks = pictures
    alone = run(images[:1], masks[:1], recipe="DreamMix")
    both = run(images[:1], masks[:1], recipe="DreamMix", regular_images=images[1:], regular_masks=masks[1:])
    ignored = run(images[:1], masks[:1], regular_images=images[1:], regular_masks=masks[1:])
    assert both[2]["loss"][0] > alone[2]["loss"][0]  # L(subject) + 0.4 L(regular)
    assert ignored[3] == run(images[:1], masks[:1])[3]


def test_training_goes_on_top_of_a_lora_that_is_already_wired_in(parts, pictures, store_folder, run, predict):
    first = run(*pictures)
    before, patches = predict(first[0]), len(first[0].patches)
    second = run(*pictures, model=first[0])
    assert first[3].lora != second[3].lora  # another base, another subject
    assert torch.equal(predict(first[0]), before)
    assert len(first[0].patches) == patches
    assert not torch.equal(predict(second[0]), before)
    assert all(len(patch) == 2 for patch in second[0].patches.values())


def tiny_mask():
    mask = torch.zeros(1, 64, 64)
    mask[:, 30:32, 30:33] = 1
    return mask


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "images: there are no reference pictures"),
        ({"masks": [torch.zeros(1, 64, 64)]}, "masks: mask 1 is empty"),
        ({"masks": [torch.ones(1, 64, 32)]}, "masks: mask 1: it is 32x64 pixels but the image is 64x64"),
        ({"masks": []}, "masks: there are 0 masks for 1 images"),
        ({"class_name": "  "}, "class_name: it is empty"),
        ({"token": ""}, "token: it is empty"),
        ({"masks": [tiny_mask()]}, "masks: mask 1: the subject is only 3x2 pixels of a 64x64 picture"),
        ({"images": [torch.full((1, 64, 64, 3), float("nan"))]}, "images: picture 1 holds NaN"),
        (
            {
                "recipe": "DreamMix",
                "regular_images": [torch.rand(1, 64, 64, 3)],
                "regular_masks": [torch.zeros(1, 64, 64)],
            },
            "^regular_masks: mask 1 is empty",
        ),
        ({"rank": 512}, r"rank: 512 is larger than the model's smallest layer \(320\); choose 320 or less"),
    ],
)
def test_bad_input_gets_one_sentence_before_any_work(parts, pictures, monkeypatch, changes, message, run):
    from inlay.training.finetune import pipeline

    monkeypatch.setattr(pipeline, "encode_examples", lambda *_: pytest.fail("work began"))
    images, masks = changes.pop("images", pictures[0][:1]), changes.pop("masks", pictures[1][:1])
    with pytest.raises(ValueError, match=message):
        run(images, masks, **changes)


def test_eight_bits_without_bitsandbytes_are_refused_before_any_work(
    pictures, store_folder, run, monkeypatch
):
    from inlay.training import optimizers as optimisers
    from inlay.training.finetune import pipeline

    monkeypatch.setattr(optimisers, "eight_bit_installed", lambda: False)
    monkeypatch.setattr(pipeline, "encode_examples", lambda *_: pytest.fail("work began"))
    with pytest.raises(ValueError, match="optimiser: AdamW8bit needs the Python package bitsandbytes"):
        run(*pictures, optimiser="AdamW8bit")


def test_identical_references_are_warned_of_where_the_user_looks(pictures, store_folder, run, monkeypatch):
    from inlay.nodes import subject_finetune
    from inlay.training.finetune import progress as curve

    said = []

    class Listening(subject_finetune.NodeProgress):
        def __init__(self, steps, node_id, notes, workflow):
            super().__init__(steps, node_id, notes, workflow)
            said.extend(notes)

    monkeypatch.setattr(subject_finetune, "NodeProgress", Listening)
    images, masks = pictures
    drawn = []
    draw = curve.draw_curve
    monkeypatch.setattr(
        curve,
        "draw_curve",
        lambda *words, notes, **more: drawn.extend(notes) or draw(*words, notes=notes, **more),
    )
    run(images, masks)
    assert not said
    run([images[0]] * 3, [masks[0]] * 3)
    assert (
        said == drawn == ["All reference pictures are identical; different views teach the subject better."]
    )


@pytest.mark.parametrize(
    ("recipe", "given", "message"),
    [
        ("DreamCom", "images masks", "regular_images: the recipe DreamCom does not use them"),
        ("DreamMix", "masks", "regular_masks: they have no pictures"),
        ("DreamMix", "images whole", r"regular_masks: there is no mask for picture 1.*mask the thing alone"),
    ],
)
def test_regular_pictures_that_do_not_help_are_warned_of(parts, pictures, recipe, given, message):
    from inlay.training.finetune.pipeline import Pipeline
    from inlay.training.finetune.recipes import RECIPES
    from inlay.training.finetune.spec import spec_from_node

    images, masks = pictures
    wired = images[:1] if "images" in given else None
    marked = [torch.ones_like(masks[0])] if "whole" in given else masks[:1]
    wires = Pipeline(parts.model, parts.clip, parts.vae)
    _, notes = spec_from_node(
        wires, RECIPES[recipe], "sks", "cat", images[:1], masks[:1], wired, marked, ["a cat"], 0, None, {}
    )
    assert len([note for note in notes if re.match(message, note)]) == 1


def test_a_full_disk_is_said_before_any_work(pictures, store_folder, run, monkeypatch):
    import shutil
    from types import SimpleNamespace

    from inlay.training.finetune import pipeline

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**20))
    monkeypatch.setattr(pipeline, "encode_examples", lambda *_: pytest.fail("work began"))
    with pytest.raises(ValueError, match=r"1 MB are free on that disk but the subject .* make room"):
        run(*pictures)


def test_a_disk_that_fills_up_while_saving_loses_no_checkpoint(pictures, store_folder, run, monkeypatch):
    from functools import partial

    from inlay.training.finetune import finetune_subject, store

    save = store.save_file

    def full(tensors, path, metadata):
        if ".safetensors" in path.name:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(tensors, path, metadata)

    whole = run(*pictures)
    for file in store_folder.iterdir():
        file.unlink()
    monkeypatch.setattr(finetune_subject, "RunOptions", partial(finetune_subject.RunOptions, save_every=2))
    with monkeypatch.context() as patch:
        patch.setattr(store, "save_file", full)
        with pytest.raises(ValueError, match=r"could not be written.*No space left.*make room"):
            run(*pictures)
    assert [file.suffix for file in store_folder.iterdir()] == [".resume"]
    again = run(*pictures)
    assert all(torch.equal(whole[1][key], again[1][key]) for key in whole[1])


def test_a_damaged_checkpoint_is_passed_over(pictures, store_folder, run, caplog):
    whole = run(*pictures)
    path = store_folder.parent / whole[3].lora
    path.unlink()
    path.with_suffix(".json").unlink()
    path.with_suffix(".resume").write_bytes(b"\x07" * 50)
    again = run(*pictures)
    assert "training starts from the beginning" in caplog.text
    assert all(torch.equal(whole[1][key], again[1][key]) for key in whole[1])


def model_of(config, base=None):
    """A MODEL as loaders make it, on the meta device: the checks read shapes and classes only."""
    import comfy.model_base
    import comfy.model_patcher

    with torch.device("meta"):
        model = (base or comfy.model_base.BaseModel)(config)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def test_a_text_to_image_model_is_told_what_to_load_instead(parts, pictures, run):
    import comfy.supported_models

    unet_config = {**parts.model.model.model_config.unet_config, "in_channels": 4}
    config = comfy.supported_models.SD15(unet_config)
    config.unet_config["dtype"] = torch.float32
    with pytest.raises(ValueError, match=r"this is a text-to-image model .*load an inpainting checkpoint"):
        run(*pictures, model=model_of(config))


def test_a_missing_peft_is_named_before_anything_is_encoded(parts, pictures, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"a LoRA needs peft, .* -m pip install peft"):
        run(*pictures)


def test_a_vae_of_another_family_is_named(parts, pictures, run):
    import comfy.model_base
    import comfy.supported_models

    config = comfy.supported_models.Flux({
        "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 8,
        "context_in_dim": 16, "hidden_size": 128, "mlp_ratio": 1.0, "num_heads": 1, "depth": 1,
        "depth_single_blocks": 1, "axes_dim": [16, 56, 56],
        "txt_ids_dims": [], "theta": 10000, "qkv_bias": True,
        "guidance_embed": False, "dtype": torch.float32,
    })  # fmt: skip
    with pytest.raises(ValueError, match=r"^vae: its latents have 4 channels, but this Flux model reads 16;"):
        run(*pictures, model=model_of(config, comfy.model_base.Flux))
