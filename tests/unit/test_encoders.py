"""Encoders, adapter and optimizer against transformers' models and plain references; layouts of files."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from inlay.encoders import checkpoint_layouts as layouts
from inlay.encoders import dinov2
from inlay.encoders.content_adapter import (
    AdapterConfig,
    ContentAdapter,
    EncoderSpec,
    as_pixels,
    downsample_tokens,
    scale_context,
)
from inlay.encoders.embedding_optimizer import EmbeddingOptimizer, OptimizerConfig, seeded_queries

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 70, "patch_size": 14,
}  # fmt: skip


def randomise(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def transformers_dino(registers, gated):
    """A small random model, and its weights as transformers writes them to a file."""
    transformers = pytest.importorskip("transformers")
    if registers:
        config = transformers.Dinov2WithRegistersConfig(
            **SMALL, use_swiglu_ffn=gated, num_register_tokens=registers
        )
        model = randomise(transformers.Dinov2WithRegistersModel(config))
    else:
        config = transformers.Dinov2Config(**SMALL, use_swiglu_ffn=gated)
        model = randomise(transformers.Dinov2Model(config))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return model, load((Path(folder) / "model.safetensors").read_bytes())


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("size", [(70, 70), (56, 56), (28, 98)])
def test_dinov2_equals_transformers(registers, gated, size):
    theirs, state = transformers_dino(registers, gated)
    assert dinov2.is_transformers(state)
    ours = dinov2.DinoV2(dinov2.read_dino_config(state, heads=2))
    ours.load_state_dict(state)
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, got = theirs(pixels, output_hidden_states=True), ours.hidden_states(pixels)
    assert (got[0] - expected.last_hidden_state).abs().max() < 1e-5
    assert (got[1] - expected.hidden_states[-2]).abs().max() < 1e-4  # unnormed values are large
    assert got[0].shape == (2, 1 + registers + size[0] * size[1] // 196, 32)


@pytest.mark.parametrize(
    ("width", "depth", "heads", "gated"),
    [(384, 12, 6, False), (768, 12, 12, False), (1024, 24, 16, False), (1536, 40, 24, True)],
)
@pytest.mark.parametrize("registers", [0, 4])
def test_every_published_size_is_read_from_its_keys(width, depth, heads, gated, registers):
    """The modules are made without memory; only names and shapes count."""
    hidden = 4096 if gated else 4 * width
    config = dinov2.DinoConfig(width, depth, heads, hidden, gated, registers, antialias=bool(registers))
    with torch.device("meta"):
        state = dinov2.DinoV2(config).state_dict()
    assert dinov2.read_dino_config(state) == config


def facebook(state, chunks):
    """Our keys in the published layout."""
    published = {}
    for key, value in state.items():
        if ".attention.attention." in key and ".query." not in key:
            continue
        if ".query." in key:
            value = torch.cat([state[key.replace("query", name)] for name in ("query", "key", "value")])
        key = key.removeprefix("embeddings.").replace("position_embeddings", "pos_embed")
        key = key.replace("patch_embeddings.projection", "patch_embed.proj").replace("layernorm.", "norm.")
        key = key.replace("encoder.layer.", "blocks.0." if chunks else "blocks.")
        key = key.replace("layer_scale1.lambda1", "ls1.gamma").replace("layer_scale2.lambda1", "ls2.gamma")
        key = key.replace("attention.output.dense", "attn.proj")
        key = key.replace("attention.attention.query", "attn.qkv")
        key = key.replace("mlp.weights_in", "mlp.w12").replace("mlp.weights_out", "mlp.w3")
        published[key] = value
    return published


@pytest.mark.parametrize("chunks", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_the_published_layout_converts_to_the_same_weights(gated, chunks):
    _, state = transformers_dino(4, gated)
    published = facebook(state, chunks)
    assert dinov2.is_facebook(published)
    assert not dinov2.is_transformers(published)
    back = dinov2.from_facebook(published)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_positions_of_the_original_code_are_stretched_with_its_offset():
    config = dinov2.DinoConfig(16, 1, 2, 64, False, 0, grid=5, antialias=False, offset=0.1)
    model = randomise(dinov2.DinoV2(config))
    positions = model.embeddings.position_embeddings
    plane = positions[:, 1:].reshape(1, 5, 5, 16).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(plane, scale_factor=(3.1 / 5, 4.1 / 5), mode="bicubic")
    got = model.embeddings._positions(torch.zeros(1), 3, 4)
    assert torch.equal(got[:, 1:], expected.permute(0, 2, 3, 1).reshape(1, 12, 16))


def test_pixels_are_normalised_by_channel_or_left_at_255():
    image = torch.rand(2, 4, 5, 3)
    pixels = as_pixels(image, (0.1, 0.2, 0.3), (0.5, 0.25, 0.125))
    for channel, (mean, std) in enumerate(zip((0.1, 0.2, 0.3), (0.5, 0.25, 0.125), strict=True)):
        assert torch.allclose(pixels[:, channel], (image[..., channel] - mean) / std, atol=1e-6)
    mean, std = torch.tensor([1.0, 2, 3]), torch.tensor([4.0, 5, 6])
    reference = ((255 * image.double() - mean) / std).permute(0, 3, 1, 2)
    assert torch.allclose(as_pixels(image, (1, 2, 3), (4, 5, 6), raw=True).double(), reference, atol=1e-4)


# -- the content adapter


def attention_by_hand(block, x):
    """One head at a time, softmax(q k^T / sqrt d) v."""
    qkv = x @ block["attn.c_qkv.weight"].T + block["attn.c_qkv.bias"]
    heads = qkv.unflatten(-1, (block["heads"], -1))
    seen = []
    for h in range(block["heads"]):
        q, k, v = heads[:, :, h].chunk(3, -1)
        seen.append(torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, -1) @ v)
    return torch.cat(seen, -1) @ block["attn.c_proj.weight"].T + block["attn.c_proj.bias"]


def norm_by_hand(x, weight, bias):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def adapter_by_hand(state, config, x):
    if "proj_in.weight" in state:
        x = x @ state["proj_in.weight"].T + state["proj_in.bias"]
    if config.tokens:
        x = torch.cat([state["queries"].expand(len(x), -1, -1), x], 1)
    for i in range(config.depth):
        block = {k.removeprefix(f"resblocks.{i}."): v for k, v in state.items() if f"resblocks.{i}." in k}
        normed = norm_by_hand(x, block["ln_1.weight"], block["ln_1.bias"])
        x = x + attention_by_hand({**block, "heads": config.heads}, normed)
        inner = norm_by_hand(x, block["ln_2.weight"], block["ln_2.bias"])
        inner = inner @ block["mlp.c_fc.weight"].T + block["mlp.c_fc.bias"]
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        x = x + inner @ block["mlp.c_proj.weight"].T + block["mlp.c_proj.bias"]
    x = x[:, : config.tokens or None]
    if config.norm:
        x = norm_by_hand(x, state["final_ln.weight"], state["final_ln.bias"])
    return x @ state["proj_out.weight"].T + state["proj_out.bias"]


@pytest.mark.parametrize(
    "config",
    [
        AdapterConfig(EncoderSpec(width=24), width=16, depth=2, heads=1, context=12),
        AdapterConfig(EncoderSpec(width=16), width=16, depth=3, heads=4, context=12),
        AdapterConfig(EncoderSpec(width=24), width=16, depth=1, heads=2, context=12, tokens=5),
        AdapterConfig(EncoderSpec(width=24), width=24, depth=0, context=12, norm=False),
    ],
)
def test_the_adapter_equals_a_plain_reference(config):
    adapter = randomise(ContentAdapter(config))
    tokens = torch.randn(2, 9, config.encoder_spec.width, generator=torch.Generator().manual_seed(0))
    double = {key: value.double() for key, value in adapter.state_dict().items()}
    with torch.no_grad():
        got = adapter(tokens)
    assert got.shape == (2, config.tokens or 9, 12)
    assert (got - adapter_by_hand(double, config, tokens.double())).abs().max() < 1e-5


def test_object_stitchs_adapter_has_the_published_shapes():
    reads = EncoderSpec(encoder="clip", width=1024, registers=0, tokens="normed")
    with torch.device("meta"):
        state = ContentAdapter(AdapterConfig(reads)).state_dict()
    assert state["resblocks.4.attn.c_qkv.weight"].shape == (3072, 1024)
    assert state["resblocks.4.mlp.c_fc.weight"].shape == (4096, 1024)
    assert state["proj_out.weight"].shape == (768, 1024)
    assert state["nothing"].shape == (1, 1, 768)


def test_fewer_tokens_keep_the_leading_ones_and_average_the_patches():
    context = torch.randn(2, 5 + 16, 3)
    fewer = downsample_tokens(context, 9, leading=5)
    assert torch.equal(fewer[:, :5], context[:, :5])
    cells = context[:, 5:].reshape(2, 2, 2, 2, 2, 3).mean((2, 4)).reshape(2, 4, 3)
    assert torch.allclose(fewer[:, 5:], cells, atol=1e-6)
    assert downsample_tokens(context, 0, 5) is context
    assert downsample_tokens(context, 99, 5) is context
    assert torch.equal(downsample_tokens(context, 4, 5), context[:, :4])  # no room for patches
    queries = torch.randn(1, 77, 3)
    assert torch.equal(downsample_tokens(queries, 20, 1), queries[:, :20])  # no square grid
    assert torch.equal(
        downsample_tokens(context, 9, None), context[:, :9]
    )  # queries whose number happens to be one


def test_strength_goes_from_nothing_to_the_object():
    context, nothing = torch.randn(1, 4, 3), torch.randn(1, 4, 3)
    assert torch.equal(scale_context(context, nothing, 1.0), context)
    assert torch.equal(scale_context(context, nothing, 0.0), nothing)
    assert torch.allclose(
        scale_context(context, nothing, 1.5), nothing + 1.5 * (context - nothing), atol=1e-6
    )


# -- the embedding optimizer


def published_optimizer(width=1024, context=768, layers=4):
    """The released module, by its parts."""
    parts: dict[str, torch.nn.Module] = {"projection_layer": torch.nn.Linear(width, context)}
    parts["attention_pooling"] = torch.nn.MultiheadAttention(context, 8, batch_first=True)
    parts |= {f"mlp_fc{i + 1}": torch.nn.Linear(context, context) for i in range(layers)}
    return torch.nn.ModuleDict(parts)


def test_the_optimizer_has_the_published_count_and_its_queries():
    with torch.device("meta"):
        ours, theirs = EmbeddingOptimizer(OptimizerConfig()), published_optimizer()
    count = sum(p.numel() for p in theirs.parameters())
    assert count == 5_511_936
    assert sum(p.numel() for p in ours.parameters()) == 5_511_936 + 77 * 768


@pytest.mark.parametrize("layers", [4, 2])
def test_published_weights_give_what_the_released_module_gives_for_the_same_queries(layers):
    theirs: Any = randomise(published_optimizer(32, 16, layers))
    state = dict(theirs.state_dict())
    state["mlp_fc1.bias"] = state["mlp_fc1.bias"].clone()
    state["mlp_fc1.bias"][3] = float("nan")  # the released code reads NaN as 0
    found = layouts.recognise_checkpoint(state, {}, "emb_opt.pt")
    assert found.layout == layouts.OPTIMIZER
    ours = layouts.build_adapter(found.config)
    ours.load_state_dict(found.adapter)
    queries = seeded_queries(77, 16)
    assert torch.equal(found.adapter["queries"], queries)
    tokens = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs["mlp_fc1"].bias[3] = 0
        x = theirs["projection_layer"](tokens)
        x, _ = theirs["attention_pooling"](queries.expand(2, -1, -1), x, x)
        for i in range(layers):
            x = theirs[f"mlp_fc{i + 1}"](torch.relu(x) if i else x)
        assert (ours(tokens) - x).abs().max() < 1e-5


# -- files


def composite(width=32, context=24, depth=5):
    """A checkpoint with the keys of ObjectStitch.pth and Paint-by-Example's model.ckpt, made small."""
    reads = EncoderSpec(encoder="clip", width=width, registers=0)
    adapter = randomise(ContentAdapter(AdapterConfig(reads, width, depth, context=context))).state_dict()
    state = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 9, 3, 3),
        "cond_stage_model.transformer.vision_model.embeddings.class_embedding": torch.ones(width),
        "learnable_vector": adapter["nothing"],
    }
    for key, value in adapter.items():
        if key.startswith("resblocks."):
            state[f"cond_stage_model.mapper.{key}"] = value
        elif key.startswith("final_ln."):
            state[f"cond_stage_model.{key}"] = value
        elif key.startswith("proj_out."):
            state[key] = value
    return state, adapter


@pytest.mark.parametrize(
    ("name", "choice", "layout", "tokens", "background"),
    [
        ("ObjectStitch.pth", layouts.AUTO_LAYOUT, layouts.OBJECT_STITCH, "normed", "black"),
        ("model.ckpt", layouts.AUTO_LAYOUT, layouts.PAINT, "pooled", "original"),
        ("model.ckpt", layouts.OBJECT_STITCH, layouts.OBJECT_STITCH, "normed", "black"),
        ("ObjectStitch.pth", layouts.PAINT, layouts.PAINT, "pooled", "original"),
    ],
)
def test_object_stitch_and_paint_by_example(name, choice, layout, tokens, background):
    state, adapter = composite()
    found: Any = layouts.recognise_checkpoint(state, {}, name, choice)
    assert found.layout == layout
    reads = found.config.encoder_spec
    assert (reads.encoder, reads.width, reads.tokens, reads.background) == ("clip", 32, tokens, background)
    assert (found.config.depth, found.config.context, found.config.heads) == (5, 24, 1)
    layouts.build_adapter(found.config).load_state_dict(found.adapter)
    assert all(torch.equal(found.adapter[key], adapter[key]) for key in adapter)
    assert list(found.encoder) == ["vision_model.embeddings.class_embedding"]
    assert found.dino is None


@pytest.mark.parametrize("with_encoder", [True, False])
def test_anydoors_encoder_and_projector(with_encoder):
    projector = torch.nn.Linear(32, 20)
    state = {f"cond_stage_model.projector.{key}": value for key, value in projector.state_dict().items()}
    state["control_model.time_embed.0.weight"] = torch.zeros(2, 2)
    _, encoder = transformers_dino(0, gated=True)
    if with_encoder:
        state |= {f"cond_stage_model.model.{key}": value for key, value in facebook(encoder, False).items()}
    found: Any = layouts.recognise_checkpoint(state, {}, "epoch=1-step=8687.ckpt")
    assert found.layout == layouts.ANYDOOR
    assert found.config.encoder_spec == EncoderSpec(
        width=32, registers=0, background="white", uncond="picture"
    )
    adapter = layouts.build_adapter(found.config)
    adapter.load_state_dict(found.adapter)
    tokens = torch.randn(1, 7, 32)
    assert torch.equal(adapter(tokens), projector(tokens))
    if not with_encoder:
        assert found.encoder is None
        return
    assert found.dino.gated
    assert found.dino.offset == 0.1
    assert not found.dino.registers
    assert all(torch.equal(found.encoder[key], encoder[key]) for key in encoder)


@pytest.mark.parametrize(
    "config",
    [AdapterConfig(EncoderSpec(width=24), 16, 1, 2, 12, tokens=3), OptimizerConfig(context=16, tokens=4)],
)
@pytest.mark.parametrize("dino", [None, dinov2.DinoConfig(32, 3, 2, 128, False, 4, grid=5)])
def test_our_own_files_say_what_they_hold(config, dino):
    state = {f"adapter.{key}": value for key, value in layouts.build_adapter(config).state_dict().items()}
    if dino is not None:
        state |= {f"encoder.{key}": value for key, value in dinov2.DinoV2(dino).state_dict().items()}
    found = layouts.recognise_checkpoint(
        state, {layouts.METADATA: layouts.describe_checkpoint(config, dino)}, "mine.safetensors"
    )
    assert (found.layout, found.config, found.dino) == (layouts.INLAY_LAYOUT, config, dino)
    layouts.build_adapter(found.config).load_state_dict(found.adapter)
    assert (found.encoder is None) == (dino is None)


def test_a_file_of_a_later_version_is_refused():
    facts = json.loads(layouts.describe_checkpoint(AdapterConfig())) | {"wings": 2}
    with pytest.raises(ValueError, match="no Inlay of this version knows"):
        layouts.recognise_checkpoint({}, {layouts.METADATA: json.dumps(facts)}, "new.safetensors")


def test_an_unknown_file_lists_what_was_found_and_what_is_accepted():
    state = {f"blocks.{i}.weight": torch.zeros(1) for i in range(9)} | {"head.bias": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"other\.pt holds blocks\.0 \(1\)") as error:
        layouts.recognise_checkpoint(state, {}, "other.pt")
    text = str(error.value)
    assert "4 other groups" in text
    for name in ("ObjectStitch", "Paint-by-Example", "AnyDoor", "emb_opt.pt", "Inlay has trained"):
        assert name in text
