"""The close-up sampler on every transformer: odd sizes, batches, several masks, references by view."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inlay.families.table import FAMILIES, FILL, LATENTS_AND_TEXT, NO_REFERENCES, named
from inlay.imaging.views import pad_to_multiple
from inlay.lab.models.tiny_transformers import (
    TINY,
    random_latent,
    random_prompt,
    tiny_transformer,
    tiny_vae,
)
from inlay.tests.host.families.painting import SIZE, pictures, sample, spots, watched

REFERENCE_ROWS = [row.name for row in FAMILIES if row.references != NO_REFERENCES and row.name in TINY]


@pytest.fixture
def parts(in_process_host):
    def open_parts(name):
        return tiny_transformer(name), tiny_vae(name)

    with torch.inference_mode():
        yield open_parts


@pytest.mark.parametrize("name", TINY)
def test_two_pictures_of_an_odd_size_with_two_masks(parts, name):
    """Pixels past the soft edge keep their bits, the inside changes, and each picture has its own result."""
    model, vae = parts(name)
    image, masks = pictures(), spots((20, 30), (60, 80))
    result, close_ups, latent = sample(name, model, vae, image, masks, several_masks="together")
    far = torch.nn.functional.max_pool2d(masks.amax(0)[None, None], 9, 1, 4)[0, 0] == 0
    assert torch.equal(result[:, far], image[:, far])
    inside = masks.amax(0) > 0
    assert (result[:, inside] != image[:, inside]).any(-1).float().mean() > 0.9
    assert torch.isfinite(result).all()
    assert close_ups.shape[0] == 4
    assert not torch.allclose(result[0, inside], result[1, inside])
    assert latent["samples"].shape[0] == 2
    assert (latent["samples"].ndim == 5) == named(name).time_axis


@pytest.mark.parametrize("name", ["flux1", "qwen-image"])
def test_a_batch_is_each_picture_alone(parts, name):
    """With the same noise, the first picture of a batch is what it is without the second."""
    model, vae = parts(name)
    image, mask = pictures(), spots((20, 30))
    both = sample(name, model, vae, image, mask, close_up_share=0.0)[0]
    alone = sample(name, model, vae, image[:1], mask, close_up_share=0.0)[0]
    torch.testing.assert_close(both[:1], alone, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", TINY)
def test_share_0_is_the_hosts_own_sampler_on_the_window(parts, name):
    import comfy.sample

    model, vae = parts(name)
    image = torch.nn.functional.interpolate(pictures(1).movedim(-1, 1), (64, 96), mode="bilinear").movedim(
        1, -1
    )
    mask = torch.zeros(1, 64, 96)
    mask[:, 16:48, 32:64] = 1
    _, _, latent = sample(name, model, vae, image, mask, close_up_share=0.0, window_area=0.0, steps=2)
    known = vae.encode(image)
    hole = mask[:, None] if known.ndim == 4 else mask[:, None, None]
    prompts = [random_prompt(name, 1), random_prompt(name, 2)]
    if named(name).condition == FILL:
        masked = (image - 0.5) * (1 - mask[..., None]) + 0.5
        fill = {"concat_latent_image": vae.encode(masked), "concat_mask": hole}
        prompts = [[[text, values | fill]] for ((text, values),) in prompts]
    want = comfy.sample.sample(
        model, comfy.sample.prepare_noise(known, 3), 2, 1.0, "euler", "simple", prompts[0], prompts[1], known,
        noise_mask=hole, seed=3, disable_pbar=True,
    )  # fmt: skip
    assert torch.equal(latent["samples"], want)


@pytest.mark.parametrize("name", REFERENCE_ROWS)
def test_the_scene_follows_the_view_and_photos_stay_whole(parts, name):
    """Of a CONDITIONING of stock nodes: the whole picture at another size, and a photo."""
    model, vae = parts(name)
    model, calls = watched(model)
    image, mask = pictures(1), spots((20, 30))
    from inlay.host.vae import PictureVae

    whole = torch.nn.functional.interpolate(image.movedim(-1, 1), (96, 112), mode="bicubic").movedim(1, -1)
    scene = PictureVae(vae).encode(whole.clamp(0, 1))
    photo = random_latent(model, 4, 6, seed=8)
    positive = random_prompt(name, 1, reference_latents=[scene, photo])
    sample(name, model, vae, image, mask, positive, steps=2)
    assert len(calls) == 2
    for call in calls:
        first, second = call.ref_latents
        assert first.shape == call.x.shape
        assert second.shape == photo.shape
        assert call.inlay_references == (("scene",), ("subject", 0, 1.0))
        torch.testing.assert_close(second, model.model.process_latent_in(photo))
    assert not torch.equal(calls[0].ref_latents[0], calls[1].ref_latents[0])
    if named(name).reference_method:
        assert calls[0].ref_latents_method == named(name).reference_method


@pytest.mark.parametrize("name", REFERENCE_ROWS)
def test_what_lies_outside_a_view_never_reaches_it(parts, name):
    """Two scenes that differ outside the close-up's view give its network the same bits; the photo too."""
    from inlay.host.vae import PictureVae
    from inlay.imaging.boxes import bounding_box
    from inlay.sampling.stages import InpaintOptions, close_up_view
    from inlay.sampling.view_sampler import view_multiple

    model, vae = parts(name)
    image, mask = pictures(1), spots((20, 30))
    options = InpaintOptions(64, soft_edge=3, grow=2, multiple=view_multiple(model))
    rows, columns = close_up_view(bounding_box(mask[0]), *SIZE, options).box.slices
    other = 1 - image
    other[:, rows, columns] = image[:, rows, columns]
    assert not torch.equal(other, image)
    given = []
    for picture in (image, other):
        painted, calls = watched(model)
        scene = PictureVae(vae).encode(pad_to_multiple(picture, PictureVae(vae).grid))
        photo = random_latent(model, 4, 6, seed=8)
        positive = random_prompt(name, 1, reference_latents=[scene, photo])
        sample(name, painted, vae, picture, mask, positive, steps=2)
        given.append(calls)
    (first, *rest), (second, *others) = given
    assert [kind for kind, *_ in first.inlay_references] == ["scene", "subject"]
    for one, two in zip(first.ref_latents, second.ref_latents, strict=True):
        assert torch.equal(one, two)
    assert torch.equal(first.x, second.x)
    # the whole picture's stage is shown the difference
    assert not torch.equal(rest[-1].ref_latents[0], others[-1].ref_latents[0])


def test_a_photo_is_no_scene_even_in_the_pictures_proportions(parts):
    model, vae = parts("flux1")
    model, calls = watched(model)
    image = pictures(1)
    other = vae.encode(
        torch.nn.functional.interpolate(pictures(1, seed=9).movedim(-1, 1), (88, 104)).movedim(1, -1)
    )
    positive = random_prompt("flux1", 1, reference_latents=[other])
    sample("flux1", model, vae, image, spots((20, 30)), positive, steps=2)
    assert [call.inlay_references for call in calls] == [(("subject", 0, 1.0),)] * 2


@pytest.mark.parametrize("name", TINY)
def test_the_noise_at_the_switch_has_the_level_of_the_schedule(parts, monkeypatch, name):
    """Flow matching: the network's first input of each stage is sigma noise + (1 - sigma) latent."""
    from inlay.sampling import view_sampler as host

    model, vae = parts(name)
    model, calls = watched(model)
    runs = []
    original = host.ViewSampler._sample

    def recorded(self, guider, latent, hole, sigmas):
        noise = self.noise.generate_noise({"samples": latent} | self._noise_index())
        runs.append((guider.model_patcher.model.process_latent_in(latent), noise, sigmas))
        return original(self, guider, latent, hole, sigmas)

    monkeypatch.setattr(host.ViewSampler, "_sample", recorded)
    sample(name, model, vae, pictures(1), spots((20, 30)), steps=4, blend="at the end")
    assert [len(sigmas) - 1 for _, _, sigmas in runs] == [2, 2]
    cell = 16 if calls[0].x.shape[1] == 128 else 8
    grid = named(name).picture_grid
    assert all(length * cell % grid == 0 for call in calls for length in call.x.shape[-2:])
    starts = [calls[0], calls[2]]
    for (latent, noise, sigmas), call in zip(runs, starts, strict=True):
        sigma = float(sigmas[0])
        torch.testing.assert_close(call.x, sigma * noise + (1 - sigma) * latent, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [4, 5, 8])
@pytest.mark.parametrize("share", [0.05, 0.95])
def test_a_few_steps_leave_one_for_each_stage(parts, steps, share):
    model, vae = parts("flux1-schnell")
    model, calls = watched(model)
    choices = {"close_up_share": share, "window_area": 0.0}  # the whole picture is larger than a close-up
    sample("flux1-schnell", model, vae, pictures(1), spots((20, 30)), steps=steps, **choices)
    near, wide = (calls[index].x.shape[-2:] for index in (0, -1))
    assert near != wide
    first = {0.05: 1, 0.95: steps - 1}[share]
    assert [call.x.shape[-2:] for call in calls] == [near] * first + [wide] * (steps - first)


@pytest.mark.parametrize(("name", "steps", "cfg"), [("flux1-schnell", 4, 1.0), ("z-image", 25, 4.0)])
def test_auto_takes_the_familys_settings(parts, monkeypatch, name, steps, cfg):
    from inlay.nodes.disentangled_inpaint_sampler import DisentangledInpaintSampler

    model, vae = parts(name)
    model, calls = watched(model)
    node: Any = DisentangledInpaintSampler.PREPARE_CLASS_CLONE(None)
    node.execute(
        model, random_prompt(name, 1), random_prompt(name, 2), vae, pictures(1), spots((20, 30)), 3, 0, 0.0,
        "auto", "auto", close_up_size=64,
    )  # fmt: skip
    assert len(calls) == steps
    assert len(calls[0].x) == (1 if cfg == 1.0 else 2)


def test_klein_distilled_runs_the_hosts_own_schedule_by_its_files_name(parts):
    """The defaults of the node: 4 steps of Flux2Scheduler at a close-up of one megapixel, cfg 1."""
    from comfy_extras.nodes_flux import Flux2Scheduler

    from inlay.sampling.view_sampler import choose_settings, sigmas_of

    model, _ = parts("flux2-klein")
    model.cached_patcher_init = (None, ("/models/diffusion_models/flux-2-klein-4b-fp8.safetensors",))
    chosen = choose_settings(model, "auto", "auto", 0, 0.0, "auto")
    assert (chosen.sampler, chosen.steps, chosen.cfg) == ("euler", 4, 1.0)
    sigmas = sigmas_of(model, chosen.sampler, chosen.scheduler, chosen.steps, 1.0, 1024 * 1024)
    assert torch.equal(sigmas, Flux2Scheduler.execute(4, 1024, 1024)[0])
    assert [round(float(sigma), 3) for sigma in sigmas] == [1.0, 0.967, 0.908, 0.767, 0.0]


def test_a_view_of_an_edit_model_has_the_area_of_its_references(parts):
    """Of a mask of 800 pixels the window of two close-ups would be larger than the model's references."""
    from inlay.imaging.boxes import Box
    from inlay.sampling.stages import InpaintOptions, window_view
    from inlay.sampling.view_sampler import cfg_guider, largest_window

    def area(name, **extras):
        prompt = random_prompt(name, 1, **extras)
        window = min(2.0, largest_window(cfg_guider(parts(name)[0], prompt, prompt, 1.0), 1024))
        view = window_view(Box(400, 400, 1200, 1200), 2000, 2000, InpaintOptions(1024, window=window))
        return view.height * view.width

    assert area("flux1", reference_latents=[torch.zeros(1, 16, 8, 8)]) == 1024 * 1024
    assert area("flux1") > 1.5 * 1024 * 1024


def test_auto_on_a_model_without_a_row_is_refused(in_process_host):
    from inlay.sampling.view_sampler import choose_settings

    class Config:
        unet_config = {}

    model: Any = SimpleNamespace(model=SimpleNamespace(model_config=Config()))
    with pytest.raises(ValueError, match="steps: Inlay has no automatic settings for Config models"):
        choose_settings(model, "euler", "auto", 0, 1.0, "auto")


def test_automatic_guidance_is_embedded_where_the_prompt_sets_none(parts):
    model, vae = parts("flux1-fill")
    model, calls = watched(model)
    sample("flux1-fill", model, vae, pictures(1), spots((20, 30)), steps=2, cfg=0.0)
    assert float(calls[0].guidance) == 30.0
    positive = random_prompt("flux1-fill", 1, guidance=7.0)
    sample("flux1-fill", model, vae, pictures(1), spots((20, 30)), positive, steps=2, cfg=0.0)
    assert float(calls[-1].guidance) == 7.0


def test_soft_masks_reach_the_last_step_of_a_steep_schedule(in_process_host):
    """klein's sigmas with 4 steps: a value of 0.5 never changes with Differential Diffusion alone."""
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

    from inlay.sampling.view_sampler import last_level, reach_soft_masks

    model = tiny_transformer("flux2-klein")
    patched = DifferentialDiffusion.execute(model)[0]
    sigmas = torch.tensor([1.0, 0.967, 0.908, 0.767, 0.0])
    extra = {"model": SimpleNamespace(inner_model=model.model), "sigmas": sigmas}
    mask = torch.tensor([0.0, 0.5, 1.0])
    last = torch.tensor([0.767])
    alone = patched.model_options["denoise_mask_function"](last, mask, extra_options=extra)
    assert alone.tolist() == [0.0, 0.0, 1.0]
    options = dict(patched.model_options)
    reach_soft_masks(options)
    assert options["denoise_mask_function"](last, mask, extra_options=extra).tolist() == [0.0, 1.0, 1.0]
    assert options["denoise_mask_function"](sigmas[:1], mask, extra_options=extra).tolist() == [0.0, 0.0, 1.0]
    assert last_level(model.model.model_sampling, sigmas) == pytest.approx(0.767, abs=2e-3)
    for end in torch.linspace(0.01, 0.99, 99):  # a hard mask stays one, to the bit
        extra["sigmas"] = torch.tensor([1.0, float(end), 0.0])
        first = torch.tensor([1.0])
        assert options["denoise_mask_function"](first, mask, extra_options=extra).tolist() == [0.0, 0.0, 1.0]


def cell(mask, row, column):
    """The largest value of a mask (..., h, w) in the cell at a pixel of a picture of 96 x 96."""
    return float(mask[..., row * mask.shape[-2] // 96, column * mask.shape[-1] // 96].amax())


@pytest.mark.parametrize("name", ["flux2-klein", "qwen-image", "z-image"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_differential_diffusion_paints_a_soft_mask_in_either_stage(parts, name, share):
    """Four steps as steep as klein's: a value of 0.55 changes in the last step, a value of 1 in every one."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import CFGGuider, Noise_RandomNoise
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

    from inlay.nodes.disentangled_inpaint_sampler import DisentangledInpaintSamplerAdvanced

    model, vae = parts(name)
    model, shown = model.clone(), []

    def recorded(sigma, denoise_mask, extra_options):
        shown.append(DifferentialDiffusion.forward(sigma, denoise_mask, extra_options, strength=1.0))
        return shown[-1]

    model.set_model_denoise_mask_function(recorded)
    image = torch.nn.functional.interpolate(pictures(1).movedim(-1, 1), (96, 96)).movedim(1, -1)
    mask = torch.zeros(1, 96, 96)
    mask[:, 32:64, 32:48], mask[:, 32:64, 48:64] = 1.0, 0.55
    guider = CFGGuider.execute(model, random_prompt(name, 1), random_prompt(name, 2), 1.0)[0]
    sigmas = torch.tensor([1.0, 0.967, 0.908, 0.767, 0.0])
    node: Any = DisentangledInpaintSamplerAdvanced.PREPARE_CLASS_CLONE(None)
    result = node.execute(
        Noise_RandomNoise(3), guider, comfy.samplers.sampler_object("euler"), sigmas, vae, image, mask,
        close_up_share=share, close_up_size=96, context=3.0, window_area=0.0, soft_edge=0, grow=0,
    ).result[0]  # fmt: skip
    steps = [[cell(step, 48, column) for step in shown] for column in (36, 60, 4)]
    assert steps == [[1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    changed = (result != image).any(-1)[0]
    assert changed[mask[0] > 0].float().mean() > 0.9
    assert not changed[mask[0] == 0].any()


@pytest.mark.parametrize("name", ["flux1", "qwen-image", "z-image"])
def test_the_advanced_twin_does_the_same_on_a_transformer(parts, name):
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import CFGGuider, Noise_RandomNoise

    from inlay.nodes.disentangled_inpaint_sampler import DisentangledInpaintSamplerAdvanced
    from inlay.sampling.view_sampler import sigmas_of

    model, vae = parts(name)
    image, masks = pictures(2), spots((20, 30), (60, 80))
    scene = random_latent(model, 4, 6, seed=8)
    extras: dict = {} if named(name).references == NO_REFERENCES else {"reference_latents": [scene]}
    positive, negative = random_prompt(name, 1, **extras), random_prompt(name, 2, **extras)
    more = {"several_masks": "together", "window_area": 1.0}
    simple = sample(name, model, vae, image, masks, positive, negative, cfg=2.0, **more)
    node: Any = DisentangledInpaintSamplerAdvanced.PREPARE_CLASS_CLONE(None)
    sigmas = sigmas_of(model, "euler", "simple", 4, 1.0)
    twin = node.execute(
        Noise_RandomNoise(3), CFGGuider.execute(model, positive, negative, 2.0)[0],
        comfy.samplers.sampler_object("euler"), sigmas, vae, image, masks,
        close_up_size=64, soft_edge=3, grow=2, close_up_share=0.5, **more,
    ).result  # fmt: skip
    assert torch.equal(twin[0], simple[0])
    assert torch.equal(twin[2]["samples"], simple[2]["samples"])


def test_a_model_without_a_row_is_blended_and_pasted_back(in_process_host):
    """SD 3's class: what the sentence about such models promises."""
    import comfy.model_patcher
    import comfy.supported_models

    from inlay.host.families import family_of

    embedder = {"target": "torch.nn.Linear", "params": {"in_features": 16, "out_features": 64}}
    config = comfy.supported_models.SD3({
        "in_channels": 16, "out_channels": 16, "patch_size": 2, "depth": 1, "input_size": None,
        "adm_in_channels": 2048, "context_embedder_config": embedder, "num_patches": 36864,
        "pos_embed_max_size": 192, "pos_embed_scaling_factor": None,
    })  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    model = comfy.model_patcher.ModelPatcher(config.get_model({}, ""), cpu, cpu)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.08
    assert family_of(model) is None
    text = [[torch.randn(1, 7, 16, generator=generator), {"pooled_output": torch.ones(1, 2048)}]]
    image, mask = pictures(2), spots((20, 30))
    with torch.inference_mode():
        result, _, _ = sample("flux1", model, tiny_vae("flux1"), image, mask, text, text, steps=2)
    far = torch.nn.functional.max_pool2d(mask[None], 9, 1, 4)[0, 0] == 0
    assert torch.equal(result[:, far], image[:, far])
    assert (result[:, mask[0] > 0] != image[:, mask[0] > 0]).any(-1).float().mean() > 0.9


class ControlNetwork:
    """Stands in for a Z-Image control model: it notes what it was given."""

    additional_in_dim = 17


def test_control_pictures_of_model_patches_follow_the_view(in_process_host):
    from comfy_extras.nodes_model_patch import ZImageControlPatch

    from inlay.sampling.crop_conditioning import CropRegion
    from inlay.sampling.view_sampler import cfg_guider, guider_for_region

    model, vae = tiny_transformer("z-image"), tiny_vae("z-image")
    image, mask = pictures(1), spots((20, 30))
    patch = ZImageControlPatch(
        SimpleNamespace(model=ControlNetwork()),
        vae,
        None,
        0.8,
        inpaint_image=image,
        mask=1 - mask[:, None, None],
    )
    model = model.clone()
    model.set_model_noise_refiner_patch(patch)
    model.set_model_double_block_patch(patch)
    guider = cfg_guider(model, random_prompt("z-image", 1), random_prompt("z-image", 2), 1.0)
    place = CropRegion((0.2, 0.25, 0.6, 0.7), SIZE, (64, 64))
    viewed = guider_for_region(guider, place, {})
    patches = viewed.model_options["transformer_options"]["patches"]
    part = patches["double_block"][0]
    assert part is patches["noise_refiner"][0]
    assert part is not patch
    assert part.strength == 0.8
    assert part.inpaint_image.shape == (1, 64, 64, 3)
    rows, columns = slice(18, 54), slice(28, 77)  # fractions of 90 and 110, to the pixel
    assert torch.equal(part.mask, 1 - mask[:, None, None, rows, columns])
    want = torch.nn.functional.interpolate(
        image[:, rows, columns].movedim(-1, 1), (64, 64), mode="bicubic", antialias=True
    )
    torch.testing.assert_close(part.inpaint_image, want.movedim(1, -1).clamp(0, 1))
    assert guider.model_options["transformer_options"]["patches"]["double_block"][0] is patch


def test_a_film_autoencoder_gets_one_picture_at_a_time(in_process_host):
    from inlay.host.vae import PictureVae

    vae, image = tiny_vae("qwen-image"), pictures(3)[:, :64, :96]
    assert vae.encode(image).shape[0] == 1, "the host reads a batch as a film"
    latents = PictureVae(vae).encode(image)
    assert latents.shape == (3, 16, 1, 8, 12)
    assert PictureVae(vae).decode(latents).shape == (3, 64, 96, 3)
    assert torch.equal(latents[1:2], vae.encode(image[1:2]))


def test_every_row_that_shows_pictures_to_its_text_encoder_is_known():
    assert [row.name for row in FAMILIES if row.references == LATENTS_AND_TEXT] == [
        "qwen-image-edit-2511", "qwen-image", "boogu",
    ]  # fmt: skip
