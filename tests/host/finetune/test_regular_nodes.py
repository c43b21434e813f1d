"""Attribute dictionary and regular data in a real host: painted, kept, loaded, learned from."""

import importlib
import json

import pytest
import torch

from inlay.headless import HostError

ATTRIBUTES = "colour: brown; material: clay; accessory: a lid"


@pytest.fixture(scope="module")
def parts(in_process_host, host_work):
    """(model, clip, vae) of a shallow inpainting checkpoint with random weights, from the stock loader."""
    import comfy.sd

    from inlay.lab.models.assemble import random_checkpoint, write_checkpoint

    checkpoint = write_checkpoint(host_work / "regular" / "tiny.safetensors", random_checkpoint(2))
    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3]


def execute(name, *arguments, **inputs):
    """A node of this pack, run as the host runs it."""
    from inlay import nodes

    with torch.inference_mode():
        return getattr(nodes, name).PREPARE_CLASS_CLONE(None).execute(*arguments, **inputs).result


def paint(parts, prompts, **changes):
    model, clip, vae = parts
    inputs = {
        "count": 2, "seed": 5, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal",
        "background_prompt": "a room", "size": 64,
    } | changes  # fmt: skip
    return execute(
        "InlayRegularImages", [model], [clip], [vae], prompts,
        **{name: value if isinstance(value, list) else [value] for name, value in inputs.items()},
    )  # fmt: skip


def test_the_dictionary_goes_out_as_json_and_as_prompts(in_process_host):
    attributes, prompts = execute(
        "InlayAttributeDictionary", ["teapot"], [ATTRIBUTES], ["sks"], [99], [0], ["a {subject}"]
    )
    assert json.loads(attributes) == {"colour": ["brown"], "material": ["clay"], "accessory": ["a lid"]}
    assert len(prompts) == 7
    assert "a sks brown clay teapot with a lid" in prompts
    again = execute("InlayAttributeDictionary", ["teapot"], [attributes], ["sks"], [99], [0], ["a {subject}"])
    assert again[1] == prompts


def test_a_vision_model_proposes_what_was_not_typed(in_process_host, monkeypatch):
    from inlay.training.finetune import attribute_dictionary as vision_language

    folder = in_process_host.models / "vlm" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(in_process_host.folder_paths, "models_dir", str(in_process_host.models))
    asked = []

    class Chat:
        def __init__(self, folder, device, dtype):
            asked.append(folder)

        def ask(self, image, question):
            asked.append(tuple(image.shape))
            return '{"colour": ["red"], "shape": ["round"]}'

    monkeypatch.setattr(vision_language, "Chat", Chat)
    inputs = ["teapot"], ["colour: brown"], [""], [9], [0], ["a {subject}"]
    photos = [torch.rand(1, 8, 9, 3), torch.rand(1, 6, 5, 3), torch.rand(5, 8, 9, 3)]  # as Load References
    out = execute("InlayAttributeDictionary", *inputs, photos, ["vlm/tiny"])
    assert json.loads(out[0]) == {"colour": ["brown"], "shape": ["round"]}
    assert asked == [folder, (8, 9, 3), (6, 5, 3), *[(8, 9, 3)] * 3], "all photos at once, by one model"
    with pytest.raises(ValueError, match="vision_model: it has nothing to look at"):
        execute("InlayAttributeDictionary", *inputs, None, ["vlm/tiny"])
    with pytest.raises(ValueError, match=r"vision_model: there is no \.\./\.\./secret"):
        execute("InlayAttributeDictionary", *inputs, [torch.rand(1, 8, 9, 3)], ["../../secret"])


def test_what_cannot_be_read_is_refused_before_the_graph_runs(in_process_host):
    from inlay.nodes import InlayAttributeDictionary

    assert InlayAttributeDictionary.validate_inputs(attributes=[ATTRIBUTES]) is True
    assert "has no kind" in str(InlayAttributeDictionary.validate_inputs(attributes=["brown"]))


def test_every_prompt_is_painted_as_often_as_asked_and_follows_the_seed(parts):
    images, masks, prompts = paint(parts, ["a brown teapot", "a clay teapot"])
    assert prompts == ["a brown teapot"] * 2 + ["a clay teapot"] * 2
    assert [tuple(image.shape) for image in images] == [(1, 64, 64, 3)] * 4
    assert all(mask.shape == (1, 64, 64) and mask.any() and not mask.all() for mask in masks)
    assert all(((image >= 0) & (image <= 1)).all() for image in images)
    again = paint(parts, ["a brown teapot", "a clay teapot"])
    assert all(torch.equal(a, b) for a, b in zip(images, again[0], strict=True))
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0], paint(parts, ["a brown teapot"], seed=6)[0][0])


def test_wired_backgrounds_keep_their_bits_outside_the_box(parts):
    from inlay.training.finetune.regular_data import random_box

    backgrounds = [torch.rand(1, 64, 72, 3), torch.rand(2, 48, 64, 3)]
    images, masks, _ = paint(parts, ["a brown teapot"], count=4, size=0, backgrounds=backgrounds)
    scenes = [picture[None] for batch in backgrounds for picture in batch]
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        scene = scenes[number % 3]
        hole = random_box(scene.shape[1], scene.shape[2], 5 + number) > 0.5
        assert torch.equal(image[~hole], scene[~hole])
        assert not torch.equal(image[hole], scene[hole])
        assert not (mask.bool() & ~hole).any()


def test_a_large_background_is_shrunk_to_the_area_that_the_model_takes(parts):
    images, masks, _ = paint(parts, ["a teapot"], count=2, size=64, backgrounds=[torch.rand(1, 96, 384, 3)])
    assert [tuple(image.shape) for image in images] == [(1, 32, 128, 3)] * 2
    assert [tuple(mask.shape) for mask in masks] == [(1, 32, 128)] * 2


def test_the_largest_seed_paints_several_pictures(parts):
    images, _, _ = paint(parts, ["a teapot"], seed=2**64 - 1)
    assert not torch.equal(images[0], images[1])


def test_no_picture_begins_with_the_noise_of_its_background(parts, monkeypatch):
    from inlay.host import sampling

    drawn, sample = [], sampling.sample_latent

    def recorded(*arguments, seed, **options):
        drawn.append(seed)
        return sample(*arguments, seed=seed, **options)

    monkeypatch.setattr(sampling, "sample_latent", recorded)
    paint(parts, ["a teapot", "a mug"])
    assert len(drawn) == len(set(drawn)) == 6, "two backgrounds, two pictures of each prompt"


@pytest.mark.parametrize(("cfg", "used", "guidance"), [(0.0, 1.0, 30.0), (2.0, 2.0, None)])
def test_cfg_0_is_what_flux_fill_takes(opened, monkeypatch, cfg, used, guidance):
    from inlay.host import sampling

    told, sample = [], sampling.sample_latent

    def recorded(model, positive, negative, *arguments, cfg, **options):
        told.append((cfg, positive[0][1].get("guidance")))
        return sample(model, positive, negative, *arguments, cfg=cfg, **options)

    monkeypatch.setattr(sampling, "sample_latent", recorded)
    wired = opened("flux1-fill")
    paint(
        (wired.model, wired.clip, wired.vae),
        ["a cat"],
        cfg=cfg,
        count=1,
        backgrounds=[torch.rand(1, 64, 64, 3)],
    )
    assert told == [(used, guidance)]


def test_no_prompt_is_no_work(parts):
    with pytest.raises(ValueError, match="prompts: there are none"):
        paint(parts, ["  "])


def test_saved_data_loads_again_and_only_listed_folders_open(parts, in_process_host):
    from inlay.nodes import InlayLoadRegularData

    images, masks, prompts = paint(parts, ["a brown teapot", "a clay teapot"])
    (folder,) = execute("InlaySaveRegularData", images, masks, prompts, ["teapot"])
    execute("InlaySaveRegularData", images, masks, prompts, ["teapot"])
    assert folder == str(in_process_host.output / "regular_teapot")
    name = "regular_teapot [output]"
    assert InlayLoadRegularData.validate_inputs(folder=name) is True
    before = InlayLoadRegularData.fingerprint_inputs(folder=name)
    loaded = execute("InlayLoadRegularData", name)
    assert sorted(loaded[2]) == sorted(prompts)
    for image, mask, prompt in zip(*loaded, strict=True):
        near = [i for i in range(4) if prompts[i] == prompt and (images[i] - image).abs().max() < 0.003]
        assert len(near) == 1
        assert torch.equal(masks[near[0]], mask)
    next((in_process_host.output / "regular_teapot").rglob("*-mask.png")).unlink()
    assert "has no mask" in str(InlayLoadRegularData.validate_inputs(folder=name))
    with pytest.raises(ValueError, match=r"folder: there is no \.\./models"):
        InlayLoadRegularData.fingerprint_inputs(folder="../models")
    assert before


@pytest.mark.parametrize("category", ["", "../up", "a/b"])
def test_a_category_stays_in_the_output_folder(in_process_host, category):
    with pytest.raises(ValueError, match="category: use letters"):
        execute("InlaySaveRegularData", [torch.rand(1, 8, 8, 3)], [torch.ones(1, 8, 8)], ["a"], [category])


def test_the_graph_from_words_to_a_subject(client, server, tiny_checkpoint):
    """Dictionary, regular images and finetuning wired together, through the host's own execution."""
    importlib.import_module("inlay")
    graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": tiny_checkpoint}},
        "2": {"class_type": "InlayAttributeDictionary", "inputs": {
            "class_name": "mug", "attributes": "colour: red; pattern: striped", "token": "sks", "count": 2,
            "seed": 0, "template": "a photo of a {subject}"}},
        "3": {"class_type": "InlayRegularImages", "inputs": {
            "model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "prompts": ["2", 1], "count": 1, "seed": 0,
            "steps": 2, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "background_prompt": "",
            "size": 64}},
        "4": {"class_type": "SubjectFinetune", "inputs": {
            "model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "images": ["3", 0], "masks": ["3", 1],
            "class_name": "mug", "token": "sks", "recipe": "DreamMix", "steps": 1, "rank": 2,
            "learning_rate": 1e-3, "batch_size": 1, "seed": 0, "resolution": 64,
            "regular_images": ["3", 0], "regular_masks": ["3", 1], "regular_prompt": ["3", 2]}},
        "5": {"class_type": "InlaySaveRegularData", "inputs": {
            "images": ["3", 0], "masks": ["3", 1], "prompts": ["3", 2], "category": "mug"}},
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["4", 4]}},
    }  # fmt: skip
    client.run(graph)
    saved = sorted(path.parent.name for path in (server.work / "output").rglob("*-image.png"))
    assert len(saved) == 2
    graph["2"]["inputs"]["attributes"] = "brown"
    with pytest.raises(HostError, match="has no kind"):
        client.run(graph)
    assert all(name.startswith("a_photo_of_a_sks_") for name in saved)


@pytest.mark.parametrize("name", ["flux2-klein", "qwen-image", "krea2", "flux1-fill"])
def test_regular_pictures_of_a_transformer_have_the_size_of_their_background(name, opened):
    """Its autoencoder takes multiples of 16 pixels or more, and some give a film."""
    wired, generator = opened(name), torch.Generator().manual_seed(1)
    scene = torch.rand(1, 72, 100, 3, generator=generator)
    images, masks, prompts = paint(
        (wired.model, wired.clip, wired.vae), ["a red cat", "a dog"], count=1, size=0, backgrounds=[scene]
    )
    assert prompts == ["a red cat", "a dog"]
    for image, mask in zip(images, masks, strict=True):
        assert image.shape == scene.shape
        assert 0 < mask.mean() < 1
        outside = (image == scene).all(-1) | (mask > 0)
        assert outside.float().mean() > 0.5  # far from the box no bit has changed
        assert not torch.equal(image, scene)
