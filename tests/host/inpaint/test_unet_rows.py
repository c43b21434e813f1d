"""The rows of the three UNet families in the sampler: blended models, and inpainting models of 9 channels."""

import pytest
import torch

from inlay.host.families import family_of
from inlay.tests.host.attention.conftest import KINDS, make_model
from inlay.tests.host.families.painting import pictures, sample, spots

CASES = [(kind, channels) for kind in KINDS for channels in (4, 9)]


def words(seed):
    generator = torch.Generator().manual_seed(seed)
    pooled = {"pooled_output": torch.randn(1, 1280, generator=generator)}
    return [[torch.randn(1, 7, 16, generator=generator), pooled]]


@pytest.fixture
def parts(random_tiny):
    def open_parts(kind, channels):
        return make_model(kind=kind, in_channels=channels), random_tiny(4)[2]

    with torch.inference_mode():
        yield open_parts


@pytest.mark.parametrize(("kind", "channels"), CASES)
def test_two_pictures_of_an_odd_size_with_two_masks(parts, kind, channels):
    """Pixels past the soft edge keep their bits, the inside changes, and each picture has its own result."""
    model, vae = parts(kind, channels)
    row = family_of(model)
    assert row is not None
    assert kind in row.configs
    image, masks = pictures(), spots((20, 30), (60, 80))
    result, close_ups, latent = sample(
        kind, model, vae, image, masks, words(1), words(2), several_masks="together"
    )
    far = torch.nn.functional.max_pool2d(masks.amax(0)[None, None], 9, 1, 4)[0, 0] == 0
    inside = masks.amax(0) > 0
    assert torch.equal(result[:, far], image[:, far])
    assert (result[:, inside] != image[:, inside]).any(-1).float().mean() > 0.9
    assert torch.isfinite(result).all()
    assert not torch.allclose(result[0, inside], result[1, inside])
    assert (close_ups.shape[0], latent["samples"].shape[0]) == (4, 2)


@pytest.mark.parametrize(("kind", "channels"), CASES)
def test_share_0_is_the_hosts_own_sampler_on_the_window(parts, kind, channels):
    import comfy.sample

    model, vae = parts(kind, channels)
    image = pictures(1)[:, :64, :96]
    mask = torch.zeros(1, 64, 96)
    mask[:, 16:48, 32:64] = 1
    prompts = words(1), words(2)
    *_, latent = sample(kind, model, vae, image, mask, *prompts, close_up_share=0.0, window_area=0.0, steps=2)
    known, values = vae.encode(image), {}
    if channels == 9:
        masked = (image - 0.5) * (1 - mask[..., None]) + 0.5
        values = {"concat_latent_image": vae.encode(masked), "concat_mask": mask[:, None]}
    positive, negative = ([[text, extras | values]] for ((text, extras),) in prompts)
    want = comfy.sample.sample(
        model, comfy.sample.prepare_noise(known, 3), 2, 1.0, "euler", "simple", positive, negative, known,
        noise_mask=mask[:, None], seed=3, disable_pbar=True,
    )  # fmt: skip
    assert torch.equal(latent["samples"], want)


@pytest.mark.parametrize("kind", KINDS)
def test_auto_takes_the_familys_settings(parts, kind):
    from inlay.sampling.view_sampler import choose_settings

    model, _ = parts(kind, 4)
    chosen = choose_settings(model, "auto", "auto", 0, 0.0, "auto")
    assert (chosen.sampler, chosen.scheduler, chosen.steps) == ("dpmpp_2m_sde", "karras", 30)
    assert (chosen.cfg, chosen.guidance) == (4.0, None)
