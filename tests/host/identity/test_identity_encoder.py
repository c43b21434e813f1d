"""Encoders, adapters and IdentityEncoderDINOv2 in the real host: transformers' values, any sampler."""

import importlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def encoder_spec():
    from inlay.encoders.content_adapter import EncoderSpec

    return EncoderSpec(width=32, registers=4, size=70)


@pytest.fixture(scope="module")
def adapter_config(encoder_spec):
    from inlay.encoders.content_adapter import AdapterConfig

    return AdapterConfig(encoder_spec, width=24, depth=2, heads=2, context=768)


@pytest.fixture(scope="module")
def dinov2(kit, in_process_host):
    """transformers' model, and ours loaded from its folder in models/inlay."""
    model = kit.dino()
    model.save_pretrained(in_process_host.models / "inlay" / "dinov2-tiny-registers")
    with torch.inference_mode():
        return model, kit.execute("InlayLoadImageEncoder", "dinov2-tiny-registers")[0]


@pytest.fixture(scope="module")
def adapter(kit, in_process_host, adapter_config):
    """The module, and INLAY_ADAPTER loaded from its file."""
    module = kit.write_adapter(in_process_host.models / "inlay" / "tiny_adapter.safetensors", adapter_config)
    with torch.inference_mode():
        return module, kit.execute("InlayLoadAdapter", "tiny_adapter.safetensors")[0]


@pytest.fixture(scope="module")
def checkpoint(load_checkpoint):
    return load_checkpoint(9)


def square(pixels, seed=0):
    return torch.rand(2, pixels, pixels, 3, generator=torch.Generator().manual_seed(seed))


def imagenet(pictures):
    from inlay.encoders.content_adapter import IMAGENET, as_pixels

    return as_pixels(pictures, *IMAGENET)


# -- encoders


@pytest.mark.parametrize("size", [70, 42])
def test_a_folder_of_transformers_gives_its_own_tokens(dinov2, encoder_spec, size):
    from inlay.encoders.image_context import vision_tokens

    theirs, vision = dinov2
    pictures = square(size)
    expected = theirs(imagenet(pictures)).last_hidden_state
    assert (vision_tokens(vision, encoder_spec, pictures, raw=False) - expected).abs().max() < 1e-5


def test_the_hosts_own_nodes_take_our_clip_vision(dinov2):
    host_nodes = importlib.import_module("nodes")

    theirs, vision = dinov2
    pictures = square(70)
    output = host_nodes.CLIPVisionEncode().encode(vision, pictures, "none")[0]
    rounded = (255 * pictures).round() / 255  # the host rounds to bytes
    expected = theirs(imagenet(rounded), output_hidden_states=True)
    assert (output["last_hidden_state"] - expected.last_hidden_state).abs().max() < 1e-5
    assert (output["image_embeds"] - expected.last_hidden_state[:, 0]).abs().max() < 1e-5
    assert (output["penultimate_hidden_states"] - expected.hidden_states[-2]).abs().max() < 1e-4


def test_the_hosts_own_dinov2_is_read_as_it_is(kit, encoder_spec, tmp_path):
    import comfy.clip_vision

    from inlay.encoders.content_adapter import IMAGENET
    from inlay.encoders.image_context import check_encoder, vision_tokens

    theirs = kit.dino(registers=0)
    config = theirs.config.to_dict() | {"image_mean": IMAGENET[0], "image_std": IMAGENET[1]}
    vision = comfy.clip_vision.ClipVisionModel(config)
    vision.model.float()  # the host stores half precision
    theirs.save_pretrained(tmp_path)
    vision.load_sd(load_file(tmp_path / "model.safetensors"))
    bare = replace(encoder_spec, registers=0)
    check_encoder(vision, adapter_named("plain", bare))
    pictures = square(70)
    expected = theirs(imagenet(pictures)).last_hidden_state
    assert (vision_tokens(vision, bare, pictures, raw=False) - expected).abs().max() < 1e-5


def adapter_named(name, encoder_spec) -> Any:
    return SimpleNamespace(name=name, encoder_spec=encoder_spec)


@pytest.mark.parametrize("tokens", ["last", "normed", "pooled"])
def test_the_hosts_clip_gives_the_tokens_published_adapters_read(kit, tokens):
    import comfy.clip_vision

    from inlay.encoders.content_adapter import OPENAI, EncoderSpec, as_pixels
    from inlay.encoders.image_context import vision_tokens

    theirs = kit.clip()
    vision = comfy.clip_vision.ClipVisionModel({**kit.CLIP, "model_type": "clip_vision_model"})
    vision.model.float()  # the host stores half precision
    vision.load_sd(dict(theirs.state_dict()))
    pictures = square(70)
    output = theirs.vision_model(as_pixels(pictures, *OPENAI))
    normed = theirs.vision_model.post_layernorm(output.last_hidden_state)
    expected = {"last": output.last_hidden_state, "normed": normed, "pooled": output.pooler_output[:, None]}
    reads = EncoderSpec("clip", 32, 0, 70, tokens)
    assert (vision_tokens(vision, reads, pictures, raw=False) - expected[tokens]).abs().max() < 1e-5
    if tokens == "last":
        # the published training left out the division by 255 alone: (255 x - mean) / std
        mean, std = (torch.tensor(values) for values in OPENAI)
        raw = theirs.vision_model(((255 * pictures - mean) / std).movedim(-1, 1)).last_hidden_state
        assert (vision_tokens(vision, reads, pictures, raw=True) - raw).abs().max() < 1e-4


def vit_large():
    """A ViT-L/14 as transformers 5 writes a CLIPVisionModel, without a projection; all layers are one."""
    import transformers

    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=1, patch_size=14
    )
    clip = transformers.CLIPVisionModel(config)
    state = {key.removeprefix("vision_model."): value for key, value in clip.state_dict().items()}
    first = "encoder.layers.0."
    layers = {key: value for key, value in state.items() if key.startswith(first)}
    for i in range(1, 24):
        state |= {key.replace(first, f"encoder.layers.{i}."): value for key, value in layers.items()}
    return state


def test_a_clip_without_prefix_and_projection_is_read_as_it_is():
    """Inside ObjectStitch's file there is no projection; the host makes one of memory that nothing filled."""
    from inlay.encoders.image_context import load_vision

    state = vit_large()
    vision: Any = load_vision(dict(state))
    weight = vision.model.vision_model.encoder.layers[7].mlp.fc1.weight
    assert torch.allclose(weight.float(), state["encoder.layers.7.mlp.fc1.weight"], atol=1e-3)
    output = vision.encode_image(square(224)[:1])
    normed = vision.model.vision_model.post_layernorm(output["last_hidden_state"][:, 0].float())
    assert output["image_embeds"].shape == (1, 1024)
    assert torch.allclose(output["image_embeds"].float(), normed.float(), atol=1e-2)


def test_a_clip_for_larger_pictures_is_another(kit):
    import comfy.clip_vision

    from inlay.encoders.content_adapter import EncoderSpec
    from inlay.encoders.image_context import check_encoder

    vision = comfy.clip_vision.ClipVisionModel({**kit.CLIP, "model_type": "clip_vision_model"})
    check_encoder(vision, adapter_named("fits", EncoderSpec("clip", 32, 0, 70)))
    with pytest.raises(ValueError, match=r"takes 70 pixels, but the adapter other was made for one of 56"):
        check_encoder(vision, adapter_named("other", EncoderSpec("clip", 32, 0, 56)))


def test_a_published_dinov2_file_is_loaded_from_clip_vision(kit, in_process_host, encoder_spec):
    from inlay.encoders import dinov2 as room
    from inlay.encoders.image_context import vision_tokens

    model = randomised_dino(kit, room)
    state = {}
    for key, value in model.state_dict().items():
        key = key.removeprefix("embeddings.").replace("position_embeddings", "pos_embed")
        key = key.replace("patch_embeddings.projection", "patch_embed.proj").replace("layernorm.", "norm.")
        key = key.replace("encoder.layer.", "blocks.").replace("attention.output.dense", "attn.proj")
        key = key.replace("layer_scale1.lambda1", "ls1.gamma").replace("layer_scale2.lambda1", "ls2.gamma")
        state[key] = value
    for layer in range(2):
        for kind in ("weight", "bias"):
            parts = f"blocks.{layer}.attention.attention."
            qkv = [state.pop(f"{parts}{name}.{kind}") for name in ("query", "key", "value")]
            state[f"blocks.{layer}.attn.qkv.{kind}"] = torch.cat(qkv)
    folder = in_process_host.models / "clip_vision"
    folder.mkdir(exist_ok=True)
    in_process_host.folder_paths.add_model_folder_path("clip_vision", str(folder))
    torch.save(state, folder / "dinov2_vits14_pretrain.pth")
    vision = kit.execute("InlayLoadImageEncoder", "dinov2_vits14_pretrain.pth")[0]
    assert vision.model.config.heads == 2
    pictures = square(70)
    assert (
        vision_tokens(vision, encoder_spec, pictures, raw=False) - model(imagenet(pictures))
    ).abs().max() < 1e-5


def randomised_dino(kit, room):
    config = room.DinoConfig(128, 2, 2, 512, False, 0, grid=5, antialias=False, offset=0.1)
    return kit.randomise(room.DinoV2(config))


# -- adapters


def test_one_file_can_hold_adapter_and_encoder(kit, in_process_host, dinov2, adapter_config):
    from inlay.encoders.dinov2 import read_dino_config
    from inlay.encoders.image_context import vision_tokens

    encoder = dinov2[1].model.state_dict()
    path = in_process_host.models / "inlay" / "sub" / "both.safetensors"
    kit.write_adapter(path, adapter_config, read_dino_config(encoder, heads=2), encoder)
    adapter, vision, report = kit.execute("InlayLoadAdapter", str(Path("sub") / "both.safetensors"))
    assert adapter.config == adapter_config
    assert "DINOv2 of width 32 with registers" in report
    assert "with its encoder" in report
    pictures, reads = square(70), adapter.encoder_spec
    assert torch.equal(
        vision_tokens(vision, reads, pictures, False), vision_tokens(dinov2[1], reads, pictures, False)
    )


def test_a_checkpoint_with_a_published_adapter_is_listed_and_read(kit, in_process_host):
    from inlay.encoders.content_adapter import AdapterConfig, ContentAdapter, EncoderSpec
    from inlay.nodes.loaders import adapter_files

    module = ContentAdapter(AdapterConfig(EncoderSpec("clip", 32, 0), 32, 5, context=24))
    prefixes = {"resblocks": "cond_stage_model.mapper.", "final_ln": "cond_stage_model.", "proj_out": ""}
    state = {"learnable_vector": module.nothing.detach().clone()}
    for key, value in module.state_dict().items():
        if key != "nothing":
            state[prefixes[key.split(".")[0]] + key] = value
    torch.save({"state_dict": state}, in_process_host.models / "checkpoints" / "ObjectStitch.pth")
    assert "checkpoints/ObjectStitch.pth" in adapter_files()
    adapter, vision, report = kit.execute("InlayLoadAdapter", "checkpoints/ObjectStitch.pth")
    assert adapter.layout == "ObjectStitch"
    assert vision is None
    assert "without its encoder" in report
    with pytest.raises(ValueError, match=r"encoder: there is none .* load CLIP of width 32"):
        kit.execute("IdentityEncoderDINOv2", [None], [adapter], [square(20)])


def test_other_files_and_names_are_refused(kit, in_process_host):
    save_file({"head.weight": torch.zeros(2)}, in_process_host.models / "inlay" / "other.safetensors")
    with pytest.raises(ValueError, match=r"file: other\.safetensors holds head\.weight \(1\); accepted are"):
        kit.execute("InlayLoadAdapter", "other.safetensors")
    (in_process_host.models / "secret.safetensors").write_bytes(b"")
    for name in ("nowhere.safetensors", "../secret.safetensors", "checkpoints/../../secret.safetensors"):
        with pytest.raises(ValueError, match="file: there is no"):
            kit.execute("InlayLoadAdapter", name)
    with pytest.raises(ValueError, match="name: there is no"):
        kit.execute("InlayLoadImageEncoder", "../secret.safetensors")
    (in_process_host.models / "inlay" / "empty").mkdir()
    (in_process_host.models / "inlay" / "empty" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="the folder 'empty' holds no weights"):
        kit.execute("InlayLoadImageEncoder", "empty")


# -- the node


def encode(kit, dinov2, adapter, images, masks=None, **choices):
    choices = {name: [value] for name, value in choices.items()}
    return kit.execute("IdentityEncoderDINOv2", [dinov2[1]], [adapter[1]], images, masks, **choices)


def test_the_conditioning_is_the_adapter_on_the_encoder_on_the_object(kit, dinov2, adapter):
    from inlay.imaging.object_picture import subject_picture

    image, mask = kit.object_picture()
    positive, negative, seen = encode(kit, dinov2, adapter, [image], [mask])
    picture = subject_picture(image, mask, 70)
    assert torch.equal(seen, picture)
    expected = adapter[0](dinov2[0](imagenet(picture)).last_hidden_state)
    assert len(positive) == len(negative) == 1
    assert positive[0][0].shape == (1, 30, 768)  # class, 4 registers, 25 patches
    assert (positive[0][0] - expected).abs().max() < 1e-4
    assert torch.equal(negative[0][0], adapter[0].nothing.expand(1, 30, -1))


def test_strength_goes_from_nothing_to_the_object(kit, dinov2, adapter):
    image, mask = kit.object_picture()
    full, nothing, _ = encode(kit, dinov2, adapter, [image], [mask])
    none, _, _ = encode(kit, dinov2, adapter, [image], [mask], strength=0.0)
    half, _, _ = encode(kit, dinov2, adapter, [image], [mask], strength=0.5)
    assert torch.equal(none[0][0], nothing[0][0])
    assert torch.allclose(half[0][0], (full[0][0] + nothing[0][0]) / 2, atol=1e-5)


def test_views_are_concatenated_whether_batch_or_list_of_sizes(kit, dinov2, adapter):
    (a, mask_a), (b, mask_b) = kit.object_picture(), kit.object_picture(80, 70, seed=1)
    views = (a, mask_a), (b, mask_b)
    one = [encode(kit, dinov2, adapter, [image], [mask])[0][0][0] for image, mask in views]
    both, negative, seen = encode(kit, dinov2, adapter, [a, b], [mask_a, mask_b])
    assert seen.shape == (2, 70, 70, 3)
    assert torch.allclose(both[0][0], torch.cat(one, 1), atol=1e-5)
    assert negative[0][0].shape == both[0][0].shape
    batch = encode(kit, dinov2, adapter, [torch.cat([a, a])], [torch.cat([mask_a, mask_a])])[0]
    assert torch.allclose(batch[0][0], torch.cat([one[0], one[0]], 1), atol=1e-5)


def test_fewer_tokens_and_other_sizes(kit, dinov2, adapter):
    image, mask = kit.object_picture()
    fewer, negative, _ = encode(kit, dinov2, adapter, [image], [mask], tokens=14)
    assert fewer[0][0].shape == negative[0][0].shape == (1, 5 + 9, 768)
    larger = encode(kit, dinov2, adapter, [image], [mask], size=98)[0]
    assert larger[0][0].shape == (1, 5 + 49, 768)
    with pytest.raises(ValueError, match="size: 100 is no multiple of 14"):
        encode(kit, dinov2, adapter, [image], [mask], size=100)


def test_an_alpha_channel_is_the_mask(kit, dinov2, adapter):
    image, mask = kit.object_picture()
    wired = encode(kit, dinov2, adapter, [image], [mask])[0]
    alpha = encode(kit, dinov2, adapter, [torch.cat([image, mask[..., None]], -1)])[0]
    assert torch.equal(wired[0][0], alpha[0][0])


def test_nothing_can_be_a_picture_of_zeros(kit, in_process_host, dinov2, adapter_config):
    config = replace(adapter_config, encoder_spec=replace(adapter_config.encoder_spec, uncond="picture"))
    module = kit.write_adapter(in_process_host.models / "inlay" / "zeros.safetensors", config)
    zeros = module, kit.execute("InlayLoadAdapter", "zeros.safetensors")[0]
    image, mask = kit.object_picture()
    _, negative, _ = encode(kit, dinov2, zeros, [image], [mask])
    expected = module(dinov2[0](imagenet(torch.zeros(1, 70, 70, 3))).last_hidden_state)
    assert (negative[0][0] - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("images", "masks", "says"),
    [
        ([square(30)[:1]], None, "masks: there is neither a mask nor an alpha channel"),
        ([square(30)], [torch.ones(1, 30, 30)], "masks: there are 1 masks for 2 images"),
        ([square(30)[:1]], [torch.zeros(1, 30, 30)], "masks: it is empty"),
        ([square(30)], [torch.ones(1, 30, 30), torch.zeros(1, 30, 30)], "masks: mask 2: it is empty"),
        ([square(30)[:1]], [torch.ones(1, 20, 30)], "masks: it is 30x20 pixels but the image is 30x30"),
    ],
)
def test_what_is_no_object_is_named(kit, dinov2, adapter, images, masks, says):
    with pytest.raises(ValueError, match=says):
        encode(kit, dinov2, adapter, images, masks)


def test_an_object_of_a_few_pixels_is_named(kit, dinov2, adapter):
    mask = torch.zeros(1, 30, 30)
    mask[:, 3:8, 4:8] = 1
    with pytest.raises(ValueError, match="the object is only 4x5 pixels"):
        encode(kit, dinov2, adapter, [square(30)[:1]], [mask])


def test_the_wrong_encoder_names_both(kit, in_process_host, adapter):
    other = kit.dino(registers=0)
    other.save_pretrained(in_process_host.models / "inlay" / "dinov2-tiny-bare")
    vision = kit.execute("InlayLoadImageEncoder", "dinov2-tiny-bare")[0]
    image, mask = kit.object_picture()
    with pytest.raises(
        ValueError,
        match=r"this is DINOv2 of width 32 without registers, but .* tiny_adapter.* DINOv2 of width 32 with",
    ):
        encode(kit, (other, vision), adapter, [image], [mask])


# -- with the rest of the graph


def sampled(kit, checkpoint, positive, negative, model=None, seed=3):
    host_nodes = importlib.import_module("nodes")

    base, _, vae = checkpoint
    image, mask = square(48, seed=5)[:1], torch.zeros(1, 48, 48)
    mask[:, 16:40, 8:40] = 1
    positive, negative, latent = kit.execute("InlayInpaintConditioning", positive, negative, vae, image, mask)
    return host_nodes.KSampler().sample(
        model or base, seed, 2, 3.0, "euler", "normal", positive, negative, latent
    )[0]["samples"]


def test_the_hosts_sampler_takes_it_and_the_object_matters(kit, dinov2, adapter, checkpoint):
    image, mask = kit.object_picture()
    positive, negative, _ = encode(kit, dinov2, adapter, [image], [mask])
    other, _, _ = encode(kit, dinov2, adapter, [1 - image], [mask])
    one, two = sampled(kit, checkpoint, positive, negative), sampled(kit, checkpoint, other, negative)
    assert torch.isfinite(one).all()
    assert not torch.allclose(one, two, atol=1e-4)


def test_it_joins_words_and_works_with_masked_attention(kit, dinov2, adapter, checkpoint):
    host_nodes = importlib.import_module("nodes")

    model, text, _ = checkpoint
    image, mask = kit.object_picture()
    positive, negative, _ = encode(kit, dinov2, adapter, [image], [mask])
    words = host_nodes.CLIPTextEncode().encode(text, "a photo of a red vase")[0]
    joined = host_nodes.ConditioningConcat().concat(words, positive)[0]
    assert joined[0][0].shape == (1, 77 + 30, 768)
    without = host_nodes.ConditioningConcat().concat(words, negative)[0]
    hole = torch.zeros(1, 48, 48)
    hole[:, 16:40, 8:40] = 1
    patched = kit.execute("MaskedAttentionPatch", model, hole)[0]
    plain = sampled(kit, checkpoint, joined, without)
    masked = sampled(kit, checkpoint, joined, without, patched)
    assert torch.isfinite(masked).all()
    assert not torch.allclose(plain, masked, atol=1e-4)


def test_it_works_with_the_disentangled_sampler(kit, dinov2, adapter, checkpoint):
    model, _, vae = checkpoint
    image, mask = kit.object_picture()
    positive, negative, _ = encode(kit, dinov2, adapter, [image, image], [mask, mask])
    scene, hole = square(64, seed=6)[:1], torch.zeros(1, 64, 64)
    hole[:, 20:36, 20:40] = 1
    result = kit.execute(
        "DisentangledInpaintSampler", model, positive, negative, vae, scene, hole, 1, 2, 2.0, "euler",
        "normal", close_up_size=32, soft_edge=2,
    )[0]  # fmt: skip
    assert result.shape == scene.shape
    assert torch.isfinite(result).all()
    assert not torch.equal(result, scene)


# -- ObjectStitch's channels


def channels_read(model, latent, positive, negative, seed=0):
    """What the UNet gets beside the noisy latent, from one step of the host's sampler."""
    host_nodes = importlib.import_module("nodes")

    seen, watched = [], model.clone()

    def watch(apply_model, arguments):
        seen.append(arguments["c"]["c_concat"])
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    watched.set_model_unet_function_wrapper(watch)
    host_nodes.KSampler().sample(watched, seed, 1, 1.0, "euler", "normal", positive, negative, latent)
    return seen[0]


def test_object_stitch_reads_the_background_and_then_the_inverted_mask(kit, dinov2, adapter, checkpoint):
    model, _, vae = checkpoint
    image, mask = kit.object_picture()
    positive, negative, _ = encode(kit, dinov2, adapter, [image], [mask])
    scene, hole = square(50, seed=7)[:1], torch.zeros(1, 50, 50)
    hole[:, 16:40, 8:40] = 1
    stock = kit.execute("InlayInpaintConditioning", positive, negative, vae, scene, hole)
    ours = kit.execute("InlayObjectStitchConditioning", model, positive, negative, vae, scene, hole)
    usual = channels_read(model, stock[2], *stock[:2])
    turned = channels_read(ours[0], ours[3], *ours[1:3])
    assert torch.equal(turned[:, :4], usual[:, 1:])
    assert torch.equal(turned[:, 4:], 1 - usual[:, :1])
    assert torch.equal(channels_read(model, stock[2], *stock[:2]), usual)  # no trace on the model wired in


def test_object_stitchs_order_holds_in_the_disentangled_sampler(kit, dinov2, adapter, checkpoint):
    model, _, vae = checkpoint
    image, mask = kit.object_picture()
    positive, negative, _ = encode(kit, dinov2, adapter, [image], [mask])
    scene, hole = square(64, seed=6)[:1], torch.zeros(1, 64, 64)
    hole[:, 20:36, 20:40] = 1
    turned = kit.execute("InlayObjectStitchConditioning", model, positive, negative, vae, scene, hole)[0]

    def paint(model):
        return kit.execute(
            "DisentangledInpaintSampler", model, positive, negative, vae, scene, hole, 1, 2, 2.0, "euler",
            "normal", close_up_size=32, soft_edge=2,
        )[0]  # fmt: skip

    assert not torch.allclose(paint(turned), paint(model), atol=1e-4)


def test_a_model_without_nine_channels_is_named(kit, load_checkpoint):
    model, _, vae = load_checkpoint(4)
    with pytest.raises(ValueError, match="model: it reads 4 channels; load the checkpoint of ObjectStitch"):
        kit.execute("InlayObjectStitchConditioning", model, [], [], vae, *kit.object_picture())
