"""The tiny models of the tiny world, untrained: the loaders of the host recognise them and agree."""

import json
from typing import Any

import pytest
import torch
from safetensors import safe_open

from inlay.lab.models import (
    assemble,
    autoencoders,
    files,
    flux,
    flux_blocks,
    inpainting_unet,
    low_rank,
    quantised,
    shipped,
    text_encoder,
)
from inlay.lab.models.classifier import trained_classifier
from inlay.lab.studies import quality


@pytest.fixture(scope="module")
def parts(in_process_host):
    return assemble.random_parts(0)


@pytest.fixture
def training(in_process_host):
    """The host's switch for training, restored afterwards."""
    import comfy.model_management

    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    yield
    comfy.model_management.in_training = before


@pytest.mark.parametrize("channels", [4, 16])
def test_pictures_of_an_untrained_set_differ(parts, channels):
    """Or a test that compares two of them cannot fail."""
    model = autoencoders.new_autoencoder(channels)
    model.load_state_dict(parts[f"autoencoder{channels}"])
    latents = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = model.taesd_decoder(latents).clamp(0, 1)
    assert (first - second).abs().mean() > 0.1


def test_the_checkpoint_is_recognised(parts):
    """As SD 1.5 for inpainting: three levels with attention at each, our autoencoder and text encoder."""
    import comfy.sd

    loaded: Any = comfy.sd.load_state_dict_guess_config(assemble.checkpoint_state(parts))
    model, clip, vae = loaded[:3]
    shape = model.model.model_config.unet_config
    for name in ("num_res_blocks", "transformer_depth", "transformer_depth_output", "in_channels"):
        assert list_of(shape[name]) == list_of(inpainting_unet.SHAPE[name])
    assert type(vae.first_stage_model).__name__ == "TAESD"
    encoder = text_encoder.TextEncoder()
    encoder.load_state_dict(parts["text"])
    for prompt in (
        "a photo of a red striped mug wearing a hat",
        "a (red:1.0) mug and a blue cat in a room",
        "",
    ):
        theirs = clip.encode_from_tokens(clip.tokenize(prompt))
        with torch.no_grad():
            ours = encoder(text_encoder.ids_of([prompt]))
        # the host's copy is stored in half precision
        assert (ours - theirs).abs().max() < 0.01


def list_of(value):
    return list(value) if isinstance(value, (list, tuple)) else value


def test_the_text_encoder_is_causal_and_mixes_words(parts):
    encoder = text_encoder.TextEncoder()
    encoder.load_state_dict(parts["text"])
    with torch.no_grad():
        red, blue, shorter = encoder(text_encoder.ids_of(["a red mug", "a blue mug", "a red"]))
    assert torch.equal(red[:2], blue[:2])
    assert torch.equal(red[:3], shorter[:3])
    assert (red[3] - blue[3]).abs().max() > 1e-4  # the word mug depends on the colour before it


@pytest.mark.parametrize("task", ["fill", "edit"])
def test_a_transformer_is_recognised(parts, task):
    import comfy.sd

    model: Any = comfy.sd.load_diffusion_model_state_dict(dict(parts[task]))
    assert type(model.model.model_config).__name__ == {"fill": "FluxInpaint", "edit": "Flux"}[task]
    assert model.model.model_config.unet_config["in_channels"] == flux.CHANNELS[task]


@pytest.mark.parametrize("channels", [4, 16])
def test_the_host_s_latents_are_on_the_encoder_s_scale(parts, channels):
    import comfy.latent_formats
    import comfy.sd

    scale = (assemble.SD_SCALE, assemble.SD_SHIFT) if channels == 4 else (flux.VAE_SCALE, flux.VAE_SHIFT)
    part = parts[f"autoencoder{channels}"]
    vae = comfy.sd.VAE(sd=assemble.autoencoder_state(part, *scale))
    own = autoencoders.new_autoencoder(channels)
    own.load_state_dict(part)
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    kind = comfy.latent_formats.SD15 if channels == 4 else comfy.latent_formats.Flux
    with torch.no_grad():
        theirs = kind().process_in(vae.encode(image))
        assert torch.allclose(theirs, own.taesd_encoder(image.movedim(-1, 1)), atol=1e-4)


@pytest.mark.parametrize("length", [7, flux_blocks.SHORT + 1])
def test_blocks_that_are_compiled_compute_what_the_hosts_do(training, parts, length):
    """Output and gradients, for short prompts and for long ones, which are not compiled."""
    generator = torch.Generator().manual_seed(2)
    x, masked = torch.randn(2, 2, 16, 8, 8, generator=generator)
    given = {"masked": masked, "pixels": torch.rand(2, 1, 64, 64, generator=generator).round()}
    context, sigma = torch.randn(2, length, 768, generator=generator), torch.tensor([0.3, 0.8])
    found = []
    for own in (False, True):
        model = flux.new_flux("fill")
        model.load_state_dict(parts["fill"])
        if own:
            flux_blocks.compile_blocks(model, backend="eager")
        output = flux.velocity(model, "fill", x, sigma, context, given)
        output.square().mean().backward()
        found.append([output, *(p.grad for p in model.parameters() if p.grad is not None)])
    for theirs, ours in zip(*found, strict=True):
        assert torch.allclose(theirs, ours, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("task", ["fill", "edit"])
def test_a_transformer_can_be_trained(training, task):
    """Every weight but those of the guidance gets a gradient that agrees with a central difference."""
    model = flux.new_flux(task).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.data.normal_(0, 0.05, generator=generator)
    model.guidance_in.out_layer.weight.data.zero_()

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, sigma, context = drawn(1, 16, 4, 4), torch.tensor([0.7], dtype=torch.float64), drawn(1, 5, 768)
    given = {
        "masked": drawn(1, 16, 4, 4),
        "pixels": torch.zeros(1, 1, 32, 32),
        "photos": [drawn(1, 16, 2, 2)] * 2,
    }

    def loss():
        return flux.velocity(model, task, x, sigma, context, given).square().mean()

    loss().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None and "guidance_in" not in n] == []
    weight = model.double_blocks[0].img_attn.qkv.weight
    way = drawn(*weight.shape)
    expected = (weight.grad * way).sum()
    values = []
    for step in (1e-4, -1e-4):
        with torch.no_grad():
            weight.add_(way, alpha=step)
            values.append(loss())
            weight.add_(way, alpha=-step)
    # the host rounds rotary embeddings to float32
    assert float((values[0] - values[1]) / 2e-4) == pytest.approx(float(expected), rel=1e-3)


def test_shipped_parts_come_back_and_are_small(parts, tmp_path):
    """All parts together stay below the room that the repository has for them."""
    written = assemble.ship(parts, tmp_path, {"fill": {"steps": 3}})
    loaded = assemble.shipped_parts(tmp_path)
    assert loaded.keys() == parts.keys()
    for part, state in parts.items():
        assert {n: v.shape for n, v in loaded[part].items()} == {n: v.shape for n, v in state.items()}
    assert sum(path.stat().st_size for path in written) < 62 * 2**20


def test_shipped_models_are_written_once(tmp_path):
    paths = shipped.install(tmp_path)
    assert {path.name for path in paths} >= {"inlay_tiny_fill.safetensors", "inlay_tiny_clip.safetensors"}
    written = [path.stat().st_mtime_ns for path in paths]
    assert shipped.install(tmp_path) == paths
    assert [path.stat().st_mtime_ns for path in paths] == written


def test_the_shipped_classifier_knows_renderings():
    """Of 20 held-out renderings it may miss three: of 200 it knows 19 in 20."""
    tasks = quality.held_out_tasks(20)
    right, _ = quality.scored(
        trained_classifier(None), quality.stacked(tasks, "truth"), tasks
    )  # fmt: skip
    assert sum(right["class and colour"]) >= 17


@pytest.mark.parametrize("task", ["fill", "edit"])
def test_a_training_goes_on_from_the_shipped_weights(in_process_host, tmp_path, task):
    """With their words, which it does not train."""
    begun = flux.Training(tmp_path, task, shipped=True)
    weights = quantised.load(files.WEIGHTS / "fill.safetensors")
    assert begun.frozen == 0
    name = "single_blocks.0.linear1"
    layer = begun.model.get_submodule(name)
    assert torch.equal(layer.weight.detach().cpu(), weights[f"{name}.weight"])
    words = quantised.load(files.WEIGHTS / "text.safetensors")["words"]
    assert torch.equal(begun.encoder.words.detach().cpu(), words)


def test_an_edit_model_is_fill_with_a_small_change(in_process_host, tmp_path):
    """What is shipped of it gives, with Fill, the very model that was trained."""
    training = flux.Training(tmp_path, "edit")
    with torch.no_grad():
        for index, parameter in enumerate(p for p in training.model.parameters() if p.requires_grad):
            noise = torch.Generator().manual_seed(index)
            parameter += 0.02 * torch.randn(parameter.shape, generator=noise)
    change = low_rank.differences_of(training.model.state_dict(), flux.FIXED)
    size = sum(value.numel() for value in change.values())
    assert size < 0.4 * sum(value.numel() for value in training.model.state_dict().values())
    fill = quantised.load(files.WEIGHTS / "fill.safetensors")
    whole = flux.new_flux("edit")
    whole.load_state_dict(flux.edit_state(fill, change))
    generator = torch.Generator().manual_seed(2)
    x, masked = torch.randn(2, 1, 16, 8, 8, generator=generator)
    given = {"masked": masked, "photos": [masked.flip(2)]}
    context, sigma = torch.randn(1, 7, 768, generator=generator), torch.tensor([0.3])
    with torch.no_grad():
        ours, theirs = (
            flux.velocity(model, "edit", x, sigma, context, given) for model in (training.model, whole)
        )
        unchanged = flux.new_flux("edit")
        unchanged.load_state_dict(flux.edit_state(fill))
        before = flux.velocity(unchanged, "edit", x, sigma, context, given)
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert (ours - before).abs().max() > 0.05
    assert not change.keys() & {f"{low_rank.PREFIX}guidance_in.in_layer.weight"}


def test_what_is_shipped_again_has_the_bits_of_the_shipped_file(tmp_path):
    for path in files.WEIGHTS.glob("*.safetensors"):
        if path.stem not in ("identity", "insertion"):  # these have rules of their own
            [again] = assemble.ship({path.stem: quantised.load(path)}, tmp_path, {})
            with safe_open(path, "pt") as old, safe_open(again, "pt") as new:
                assert json.loads(old.metadata()["layout"]) == json.loads(new.metadata()["layout"])


def test_latents_are_made_standard(in_process_host):
    model = autoencoders.new_autoencoder(16, seed=3)
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    autoencoders.standardise(model, images)
    with torch.no_grad():
        latent = model.taesd_encoder(images)
    assert latent.mean((0, 2, 3)).abs().max() < 1e-4
    assert (latent.std((0, 2, 3)) - 1).abs().max() < 1e-4
