"""What states which text encoder and VAE a model works with, called after the seam; and the checks on it."""

import copy

import pytest
import torch


@pytest.fixture
def parts(random_tiny):
    return random_tiny(9)


def test_compatibility_text_width(parts):
    from inlay.host import compatibility

    model, clip, _ = parts
    with torch.inference_mode():
        context = clip.encode_from_tokens(clip.tokenize("a cat"))
    assert compatibility.text_width(model) == context.shape[-1] == 768


def test_compatibility_reads_pooled_text(parts):
    from inlay.host import compatibility

    assert not compatibility.reads_pooled_text(parts[0])
    assert hasattr(parts[0].model.diffusion_model, "num_classes"), "UNetModel.num_classes moved"


def test_compatibility_latent_channels_of(parts):
    from inlay.host import compatibility

    assert compatibility.latent_channels_of(parts[0]) == 4


def test_compatibility_vae_channels(parts):
    from inlay.host import compatibility

    model, _, vae = parts
    with torch.inference_mode():
        latent = vae.encode(torch.rand(1, 64, 64, 3))
    assert compatibility.vae_channels(vae) == compatibility.latent_channels_of(model) == latent.shape[1] == 4


def test_parts_of_other_families_are_named(parts):
    from inlay.conditioning import compatibility

    model, clip, vae = parts
    compatibility.check_vae_fits(model, vae)
    with torch.inference_mode():
        compatibility.check_clip_fits(model, clip)
    other = copy.copy(vae)
    other.latent_channels = 16
    with pytest.raises(ValueError, match=r"^vae: its latents have 16 channels, but this SD15 model reads 4;"):
        compatibility.check_vae_fits(model, other)
    wide = torch.zeros(1, 77, 2048)
    with pytest.raises(ValueError, match=r"^positive: .* 2048, of SDXL, but this SD15 model reads 768;"):
        compatibility.check_prompts_fit(model, positive=[[wide, {}]])
