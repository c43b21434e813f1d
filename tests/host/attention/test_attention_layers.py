"""The layer map read off the host's UNets: names, order, depth, presets, the free list."""

import pytest
import torch

FULL = {
    "SD 1.5": {
        "channel_mult": [1, 2, 4, 4],
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1,
        "context_dim": 768,
        "num_heads": 8,
    },
    "SDXL": {
        "channel_mult": [1, 2, 4],
        "num_res_blocks": [2, 2, 2],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10,
        "context_dim": 2048,
        "num_head_channels": 64,
        "use_linear_in_transformer": True,
    },
    "one level": {
        "channel_mult": [1],
        "num_res_blocks": [1],
        "transformer_depth": [1],
        "transformer_depth_output": [1, 1],
        "transformer_depth_middle": 1,
        "context_dim": 768,
        "num_heads": 8,
    },
}


def unet(name, **changes):
    """A UNet of the host at full size, without memory behind its weights."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    config = {**FULL[name], **changes}
    return UNetModel(
        image_size=32,
        in_channels=9,
        out_channels=4,
        model_channels=320,
        use_spatial_transformer=True,
        legacy=False,
        device="meta",
        **config,
    )


def names(layers):
    return [f"{layer.block} {layer.number}" for layer in layers]


@pytest.fixture(autouse=True)
def _host(in_process_host):
    pass


def test_the_sixteen_layers_of_sd15():
    from inlay.attention.layers import unet_layers

    layers = unet_layers(unet("SD 1.5"))
    assert names(layers) == [f"input {n}" for n in (1, 2, 4, 5, 7, 8)] + ["middle 0"] + [
        f"output {n}" for n in range(3, 12)
    ]
    assert [layer.depth for layer in layers] == [0, 0, 1, 1, 2, 2, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0]


def test_the_map_agrees_with_what_the_host_passes(rig):
    """Every layer reports, while the UNet runs, the block and the grid that the map says."""
    from inlay.attention.layers import unet_layers
    from inlay.attention.regions import halved

    model = rig.model("deep")
    model.model.diffusion_model.requires_grad_(False)
    seen = []

    def patch(q, k, v, extra_options):
        height, width = extra_options["activations_shape"][-2:]
        seen.append((*extra_options["block"], extra_options["block_index"], (height, width)))
        return v

    layers = unet_layers(model.model.diffusion_model)
    options = {"patches_replace": {"attn1": {(layer.block, layer.number): patch for layer in layers}}}
    size = (13, 9)
    with torch.no_grad():
        model.model.diffusion_model(
            torch.randn(1, 4, *size), torch.ones(1), torch.randn(1, 77, 16), transformer_options=options
        )
    grids = halved(size, 2)
    assert seen == [(layer.block, layer.number, layer.index, grids[layer.depth]) for layer in layers]


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("none", []),
        ("decoder_outer", [f"output {n}" for n in range(6, 12)]),
        ("auto", [f"output {n}" for n in range(6, 12)]),
        ("released", [f"output {n}" for n in range(7, 12)]),
        (
            "paper",
            [f"input {n}" for n in (1, 2, 4, 5, 7, 8)] + ["middle 0"] + [f"output {n}" for n in (3, 4, 5)],
        ),
    ],
)
def test_the_presets_of_sd15(preset, expected):
    from inlay.attention.layers import preset_layers, unet_layers

    layers = unet_layers(unet("SD 1.5"))
    chosen = preset_layers(layers, preset)
    assert names(layer for layer in layers if layer in chosen) == expected
    assert preset_layers(layers, "all") == set(layers)


@pytest.mark.parametrize(("name", "count"), [("SDXL", 70), ("one level", 4)])
def test_other_unets_keep_the_decoder_open(name, count):
    from inlay.attention.layers import preset_layers, unet_layers

    layers = unet_layers(unet(name))
    assert len(layers) == count
    masked = preset_layers(layers, "paper")
    assert {layer.block for layer in masked} == {"input", "middle"}
    assert {layer.block for layer in preset_layers(layers, "decoder_outer")} == {"output"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("output 3-5, middle", ["middle 0", "output 3", "output 4", "output 5"]),
        ("input", [f"input {n}" for n in (1, 2, 4, 5, 7, 8)]),
        ("Input 8;  OUTPUT 10 - 11\nmiddle 0", ["input 8", "middle 0", "output 10", "output 11"]),
        ("input 7.0", ["input 7"]),
    ],
)
def test_the_free_list(text, expected):
    from inlay.attention.layers import listed_layers, unet_layers

    layers = unet_layers(unet("SD 1.5"))
    chosen = listed_layers(layers, text)
    assert names(layer for layer in layers if layer in chosen) == expected


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("output 3, outer 4", "outer 4"),
        ("input 3", "input 3"),
        ("input 7.1", "input 7.1"),
        ("", "empty"),
        ("5", "5"),
    ],
)
def test_unknown_entries_are_named(text, named):
    from inlay.attention.layers import listed_layers, unet_layers

    with pytest.raises(ValueError, match=named) as error:
        listed_layers(unet_layers(unet("SD 1.5")), text)
    assert "output 3, 4, 5" in str(error.value)


def test_attention_to_the_text_is_no_self_attention():
    from inlay.attention.layers import unet_layers

    layers = unet_layers(unet("SD 1.5", disable_self_attentions=[True, False, False, False]))
    assert {layer.depth for layer in layers if not layer.self_attention} == {0}


def test_video_unets_are_refused():
    from inlay.attention.layers import unet_layers

    video = unet(
        "SD 1.5",
        use_temporal_attention=True,
        use_temporal_resblock=True,
        video_kernel_size=[3, 1, 1],
        merge_strategy="fixed",
        merge_factor=0.5,
    )
    with pytest.raises(ValueError, match=r"video UNets yet"):
        unet_layers(video)
