"""DisentangledInpaintSampler in the real host: stock bits at the ends, any sampler, schedule and picture."""

import importlib

import pytest
import torch

from inlay.imaging.latent_mask import snap_hole
from inlay.tests.stock_inpaint import stock_conditions

NEAR = {"close_up_size": 32, "soft_edge": 2, "grow": 2}


@pytest.fixture
def parts(random_tiny):
    with torch.inference_mode():
        yield random_tiny(9)


@pytest.fixture
def plain(random_tiny):
    with torch.inference_mode():
        yield random_tiny(4)


def execute(name, *arguments, **inputs):
    from inlay import nodes

    return getattr(nodes, name).PREPARE_CLASS_CLONE(None).execute(*arguments, **inputs)


def words(seed=0, rows=1):
    text = torch.randn(rows, 77, 768, generator=torch.Generator().manual_seed(seed))
    return [[text, {"pooled_output": None}]]


def picture(batch=1, height=48, width=48, seed=0):
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(seed))


def spot(height=48, width=48, top=20, left=20, size=6):
    mask = torch.zeros(1, height, width)
    mask[:, top : top + size, left : left + size] = 1
    return mask


def view_of(make, mask, **options):
    """The close-up or the window of a mask, `make` being one of the two functions for it."""
    from inlay.imaging.boxes import bounding_box
    from inlay.sampling.stages import InpaintOptions

    return make(bounding_box(mask[0]), *mask.shape[1:], InpaintOptions(**options))


def sample(
    parts, image, mask, seed=3, steps=2, cfg=1.0, sampler="euler", scheduler="normal", denoise=1.0, **more
):
    model, _, vae = parts
    return execute(
        "DisentangledInpaintSampler",
        model, words(1), words(2), vae, image, mask, seed, steps, cfg, sampler, scheduler, denoise,
        **(NEAR | more),
    )  # fmt: skip


def by_hand(parts, image, mask, view, seed, steps, cfg, sampler, scheduler, denoise):
    """Crop and size, stock conditions, stock sampler, stock decoder: what a user would wire without us."""
    host_nodes = importlib.import_module("nodes")

    model, _, vae = parts
    positive, negative, latent = stock_conditions(words(1), words(2), view.image(image), vae, view.mask(mask))
    (latent,) = host_nodes.KSampler().sample(
        model, seed, steps, cfg, sampler, scheduler, positive, negative, latent, denoise
    )
    return latent["samples"], host_nodes.VAEDecode().decode(vae, latent)[0]


@pytest.mark.parametrize("channels", [9, 4])
@pytest.mark.parametrize(
    ("batch", "size", "sampler", "scheduler", "cfg", "denoise"),
    [
        (1, 20, "dpmpp_2m_sde", "karras", 4.0, 1.0),  # a small mask, whose window is enlarged
        (2, 30, "euler_ancestral", "normal", 1.0, 0.6),  # a window of the picture's own pixels
        (1, 30, "uni_pc", "beta", 3.0, 1.0),
    ],
)
def test_share_0_is_the_hosts_own_inpainting_bit_for_bit(
    random_tiny, channels, batch, size, sampler, scheduler, cfg, denoise
):
    from inlay.imaging.composite import paste_back
    from inlay.sampling.stages import window_view

    with torch.inference_mode():
        parts, image, mask = random_tiny(channels), picture(batch, 150, 170), spot(150, 170, 60, 100, size)
        run = 3, 3, cfg, sampler, scheduler, denoise
        result, _, latent = sample(parts, image, mask, *run, close_up_share=0.0, close_up_size=64).result
        view = view_of(window_view, mask, side=64, soft_edge=2)
        assert view.box.height < 150  # a window, not the whole
        samples, decoded = by_hand(parts, image, mask, view, *run)
        assert torch.equal(latent["samples"], samples)
        rows, columns = view.box.slices
        expected = image.clone()
        expected[:, rows, columns] = view.restore(decoded)
        expected = paste_back(image, expected, mask.expand(batch, -1, -1), 2)
        assert torch.equal(result, expected)


def test_share_1_is_the_hosts_own_inpainting_of_the_close_up(parts):
    host_nodes = importlib.import_module("nodes")

    from inlay.sampling.stages import close_up_view

    model, _, vae = parts
    image, mask = picture(1, 96, 96), spot(96, 96)
    result, close_up, latent = sample(parts, image, mask, close_up_share=1.0, grow=0, steps=3).result
    view = view_of(close_up_view, mask, side=32, soft_edge=2)
    positive, negative, start = stock_conditions(words(1), words(2), view.image(image), vae, view.mask(mask))
    (stock,) = host_nodes.KSampler().sample(
        model, 3, 3, 1.0, "euler", "normal", positive, negative, start, 1.0
    )
    assert torch.equal(latent["samples"], stock["samples"])
    assert torch.equal(close_up, host_nodes.VAEDecode().decode(vae, stock)[0])
    inside = mask > 0.5
    rows, columns = view.box.slices
    back = image.clone()
    back[:, rows, columns] = view.restore(close_up)
    assert torch.equal(result[inside], back[inside])


SAMPLERS = """
euler euler_cfg_pp euler_ancestral euler_ancestral_cfg_pp heun heunpp2 exp_heun_2_x0 exp_heun_2_x0_sde dpm_2
dpm_2_ancestral lms dpm_fast dpm_adaptive dpmpp_2s_ancestral dpmpp_2s_ancestral_cfg_pp dpmpp_sde dpmpp_sde_gpu
dpmpp_2m dpmpp_2m_cfg_pp dpmpp_2m_sde dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde
dpmpp_3m_sde_gpu ddpm lcm ipndm ipndm_v deis res_multistep res_multistep_cfg_pp res_multistep_ancestral
res_multistep_ancestral_cfg_pp gradient_estimation gradient_estimation_cfg_pp er_sde seeds_2 seeds_3 sa_solver
sa_solver_pece ddim uni_pc uni_pc_bh2
""".split()  # noqa: SIM905
SCHEDULERS = """
simple sgm_uniform karras exponential ddim_uniform beta normal linear_quadratic kl_optimal
""".split()  # noqa: SIM905


def test_no_sampler_or_scheduler_is_forgotten(in_process_host):
    import comfy.samplers

    assert set(SAMPLERS) >= set(comfy.samplers.SAMPLER_NAMES)
    assert set(SCHEDULERS) >= set(comfy.samplers.SCHEDULER_NAMES)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_runs_both_stages(parts, sampler):
    import comfy.samplers

    if sampler not in comfy.samplers.SAMPLER_NAMES:
        pytest.skip("this host has no such sampler")
    image, mask = picture(), spot()
    result, close_up, latent = sample(
        parts, image, mask, sampler=sampler, steps=4, close_up_share=0.5, scheduler="karras"
    ).result
    assert all(torch.isfinite(part).all() for part in (result, close_up, latent["samples"]))
    assert torch.equal(result[:, :10], image[:, :10])
    assert (result != image).any()


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde", "ddim", "seeds_2"])
def test_the_same_seed_gives_the_same_picture_and_another_one_another(parts, sampler):
    first, again, other = (
        sample(parts, picture(), spot(), seed, steps=3, sampler=sampler).result[0] for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_runs_from_one_step_on(parts, scheduler, steps):
    image, mask = picture(), spot()
    result, close_up, latent = sample(parts, image, mask, scheduler=scheduler, steps=steps).result
    assert all(torch.isfinite(part).all() for part in (result, close_up, latent["samples"]))


def test_every_schedule_up_to_a_thousand_steps_can_be_cut(parts):
    import comfy.samplers

    from inlay.sampling.schedule import split_schedule
    from inlay.sampling.view_sampler import sigmas_of

    for scheduler in comfy.samplers.SCHEDULER_NAMES:
        for steps in (1, 2, 7, 30, 999, 1000):
            sigmas = sigmas_of(parts[0], "dpm_2", scheduler, steps, 1.0)
            assert torch.isfinite(sigmas).all(), (scheduler, steps)
            local, rest = split_schedule(sigmas, 0.7)
            assert len(local) + len(rest) >= len(sigmas)


def test_a_thousand_steps(parts):
    result = sample(
        parts, picture(), spot(), steps=1000, denoise=1.0, close_up_size=8, window_area=1.0
    ).result
    assert torch.isfinite(result[0]).all()


@pytest.mark.parametrize("denoise", [0.0, 0.01, 0.35, 0.99])
@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_any_denoise(parts, denoise, share):
    image, mask = picture(), spot()
    (result, *_) = sample(parts, image, mask, denoise=denoise, close_up_share=share, steps=3).result
    assert torch.isfinite(result).all()
    assert torch.equal(result[:, :10], image[:, :10])


@pytest.mark.parametrize("channels", [9, 4])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", [(5, 7), (33, 47), (61, 24)])
@pytest.mark.parametrize("place", ["corner", "all"])
def test_pixels_beyond_the_edge_keep_their_bits_in_bytes_too(random_tiny, channels, share, size, place):
    from inlay.imaging.composite import soft_edge

    with torch.inference_mode():
        as_bytes = (255 * picture(1, *size)).round().to(torch.uint8)
        image = as_bytes / 255
        mask = torch.ones(1, *size) if place == "all" else spot(*size, top=size[0] - 3, left=size[1] - 3)
        (result, *_) = sample(random_tiny(channels), image, mask, close_up_share=share).result
        beyond = soft_edge(mask, 2) == 0
        assert result.shape == image.shape
        assert torch.equal(result[beyond], image[beyond])
        assert torch.equal((255 * result).round().to(torch.uint8)[beyond], as_bytes[beyond])
        assert torch.isfinite(result).all()


def test_transparency_is_carried_through(parts):
    image = torch.cat([picture(), torch.rand(1, 48, 48, 1)], -1)
    (result, *_) = sample(parts, image, spot()).result
    assert torch.equal(result[..., 3], image[..., 3])


class Watch:
    """A wrapper on the host's `apply_model` that notes what every call is shown."""

    def __init__(self):
        self.calls = []

    def __call__(
        self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **more
    ):
        options = transformer_options or {}
        self.calls.append((tuple(x.shape[-2:]), options.get("inlay_window"), c_concat))
        return executor(x, t, c_concat, c_crossattn, control, options, **more)


def watched(parts):
    from comfy.patcher_extension import WrappersMP

    model, watch = parts[0].clone(), Watch()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", watch)
    return (model, *parts[1:]), watch


def test_every_stage_has_its_window_and_conditions_of_its_own(parts):
    from inlay.sampling.stages import close_up_view, window_view

    image, mask = picture(1, 150, 170), spot(150, 170, 60, 100, 20)
    parts, watch = watched(parts)
    sample(parts, image, mask, steps=4, close_up_share=0.5, close_up_size=64, grow=0)
    near, wide = watch.calls[0], watch.calls[-1]
    assert [call[1] for call in watch.calls] == [near[1]] * 2 + [wide[1]] * 2
    for call, view in (
        (near, view_of(close_up_view, mask, side=64, soft_edge=2)),
        (wide, view_of(window_view, mask, side=64, soft_edge=2)),
    ):
        assert call[0] == (view.height // 8, view.width // 8)
        top, left, bottom, right = call[1]
        assert (top * 150, left * 170) == (pytest.approx(view.box.top), pytest.approx(view.box.left))
        assert (bottom * 150, right * 170) == (pytest.approx(view.box.bottom), pytest.approx(view.box.right))
        assert torch.equal(call[2][:, 0], snap_hole(view.mask(mask), call[0]))


def test_inputs_stay_as_they_were(parts):
    model, _, vae = parts
    image, mask, positive = picture(), spot(), words(1)
    before = image.clone(), mask.clone(), str(model.model_options), positive[0][0].clone()
    execute(
        "DisentangledInpaintSampler",
        model,
        positive,
        words(2),
        vae,
        image,
        mask,
        3,
        2,
        1.0,
        "euler",
        "normal",
        **NEAR,
    )
    assert torch.equal(image, before[0])
    assert torch.equal(mask, before[1])
    assert str(model.model_options) == before[2]
    assert torch.equal(positive[0][0], before[3])
    assert set(positive[0][1]) == {"pooled_output"}


@pytest.mark.parametrize("several", ["one image each", "one after another", "together"])
def test_several_masks(parts, several):
    from inlay.imaging.composite import soft_edge

    image = picture()
    mask = torch.cat([spot(top=6, left=6), spot(top=34, left=36, size=9)])
    result, close_up, latent = sample(parts, image, mask, several_masks=several).result
    each = several == "one image each"
    assert len(result) == len(latent["samples"]) == (2 if each else 1)
    assert len(close_up) == 2
    beyond = soft_edge(mask, 2) == 0
    image, beyond = (image.expand(2, -1, -1, -1), beyond) if each else (image, beyond.all(0, keepdim=True))
    assert torch.equal(result[beyond], image[beyond])
    assert (result[~beyond] != image[~beyond]).any(-1).float().mean() > 0.9


def test_a_picture_of_a_batch_is_the_picture_alone_with_its_own_noise_and_words(parts):
    """Masks that differ are painted picture by picture, each with its row of the noise and of the text."""
    host_nodes = importlib.import_module("nodes")

    from inlay.sampling.stages import window_view

    model, _, vae = parts
    image = picture(2)
    mask = torch.cat([spot(top=6, left=6, size=12), spot(top=34, left=36, size=11)])
    positive = words(1, rows=2)
    _, _, latent = execute(
        "DisentangledInpaintSampler",
        model, positive, words(2), vae, image, mask, 3, 2, 1.0, "euler", "normal",
        **NEAR | {"close_up_share": 0.0},
    ).result  # fmt: skip
    view = view_of(window_view, mask[1:], side=32, soft_edge=2)
    rows, columns = view.box.slices
    alone, negative, start = stock_conditions(
        [[positive[0][0][1:], {}]], words(2), image[1:, rows, columns], vae, mask[1:, rows, columns]
    )
    start["batch_index"] = [1]
    (stock,) = host_nodes.KSampler().sample(model, 3, 2, 1.0, "euler", "normal", alone, negative, start, 1.0)
    assert torch.equal(latent["samples"][1:], stock["samples"])


def test_an_empty_mask_passes_the_picture_through_and_says_so(parts, caplog):
    image = picture(2, 33, 21)
    output = sample(parts, image, torch.zeros(1, 33, 21))
    assert torch.equal(output.result[0], image)
    assert "mask: it is empty" in caplog.text
    assert "mask: it is empty" in str(output.ui)
    half = sample(parts, image, torch.cat([torch.zeros(1, 33, 21), spot(33, 21, 9, 9)]))
    assert torch.equal(half.result[0][0], image[0])
    assert (half.result[0][1] != image[1]).any()
    assert "1 of 2" in str(half.ui)
    tiny = sample(parts, picture(1, 3, 5), torch.zeros(1, 3, 5))
    assert tiny.result[0].shape == (1, 3, 5, 3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mask": torch.ones(1, 40, 48)}, "mask: it is 48x40 pixels but the image is 48x48"),
        ({"mask": torch.ones(2, 48, 48), "image": picture(3)}, "mask: there are 2 in the batch but 3"),
        ({"mask": torch.full((1, 48, 48), float("nan"))}, "mask: it holds NaN"),
        ({"image": picture() * float("nan")}, "image: it holds NaN"),
        ({"close_up_share": 1.2}, "close_up_share: 1.2"),
        ({"close_up_share": float("nan")}, "close_up_share: nan"),
    ],
)
def test_bad_input_is_named(parts, changes, says):
    given = {"image": picture(), "mask": spot()} | changes
    with pytest.raises(ValueError, match=says):
        sample(parts, **given)


def test_an_instruct_pix2pix_model_is_refused(random_tiny):
    with torch.inference_mode(), pytest.raises(ValueError, match=r"InstructPix2Pix model .* inpainting"):
        sample(random_tiny(8), picture(), spot())


def tiny_flux(channels):
    """Flux with random weights, whose first layer reads so many latent channels; prompts of its width."""
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.Flux({
        "image_model": "flux", "in_channels": channels, "out_channels": 16, "patch_size": 2, "vec_in_dim": 8,
        "context_in_dim": 16, "hidden_size": 128, "mlp_ratio": 1.0, "num_heads": 1, "depth": 1,
        "depth_single_blocks": 1, "axes_dim": [16, 56, 56],
        "txt_ids_dims": [], "theta": 10000, "qkv_bias": True,
        "guidance_embed": False, "dtype": torch.float32,
    })  # fmt: skip
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(config.get_model({}, ""), cpu, cpu)


def test_control_pictures_of_flux_are_refused(in_process_host):
    from inlay.sampling import view_sampler as host

    with pytest.raises(ValueError, match="Flux model for a control picture"):
        host.check_inpaint_model(tiny_flux(32))
    controlled = [[torch.zeros(1, 4, 16), {"concat_latent_image": torch.zeros(1, 16, 8, 8)}]]
    for channels, cond, refused in ((16, controlled, True), (96, controlled, False), (16, words(1), False)):
        model = tiny_flux(channels)
        host.check_inpaint_model(model)
        guider = host.cfg_guider(model, cond, words(2), 1.0)
        if refused:
            with pytest.raises(ValueError, match="positive: it holds a control picture"):
                host.check_prompts(guider)
        else:
            host.check_prompts(guider)


@pytest.mark.parametrize("several", ["one after another", "together"])
def test_an_empty_mask_among_several_is_said(parts, several):
    masks = torch.cat([spot(), torch.zeros_like(spot())])
    output = sample(parts, picture(), masks, several_masks=several)
    assert "mask: 1 of 2 are empty" in str(output.ui)


def test_one_progress_bar_runs_through_both_stages(parts, monkeypatch):
    import comfy.utils

    seen = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda done, total, preview, **more: seen.append((done, total))
    )
    sample(parts, picture(), spot(), steps=6, close_up_share=0.5, several_masks="together")
    # the host leaves out reports that come too fast, but never the first and the last
    assert (seen[0], seen[-1]) == ((1, 6), (6, 6))
    assert seen == sorted(set(seen))
    assert {total for _, total in seen} == {6}


def test_an_interrupt_stops_within_a_step_and_leaves_the_model_usable(parts):
    import comfy.model_management

    image, mask = picture(), spot()
    clean = sample(parts, image, mask).result[0]
    stopped, watch = watched(parts)
    original = Watch.__call__

    def interrupt(self, *arguments, **more):
        comfy.model_management.interrupt_current_processing()
        return original(self, *arguments, **more)

    watch.__class__ = type("Interrupting", (Watch,), {"__call__": interrupt})
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(stopped, image, mask, steps=50)
    assert len(watch.calls) == 1
    comfy.model_management.interrupt_current_processing(False)
    assert torch.equal(sample(parts, image, mask).result[0], clean)


def advanced(parts, guider, image, mask, sampler="euler", steps=4, **more):
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    from inlay.sampling.view_sampler import sigmas_of

    sigmas = sigmas_of(parts[0], sampler, "normal", steps, 1.0)
    chosen = comfy.samplers.sampler_object(sampler)
    return execute(
        "DisentangledInpaintSamplerAdvanced",
        Noise_RandomNoise(3), guider, chosen, sigmas, parts[2], image, mask, **(NEAR | more),
    )  # fmt: skip


def test_the_advanced_twin_does_the_same_from_a_guider(parts):
    from comfy_extras.nodes_custom_sampler import CFGGuider

    image, mask = picture(), spot()
    guider = CFGGuider.execute(parts[0], words(1), words(2), 3.0)[0]
    twin = advanced(parts, guider, image, mask).result
    simple = sample(parts, image, mask, steps=4, cfg=3.0).result
    assert torch.equal(twin[0], simple[0])
    assert "concat_mask" not in guider.original_conds["positive"][0]
    assert "inlay_window" not in guider.model_options["transformer_options"]


def test_other_guiders_compose(parts):
    from comfy_extras.nodes_custom_sampler import BasicGuider, DualCFGGuider

    image, mask = picture(), spot()
    guiders = [
        BasicGuider.execute(parts[0], words(1))[0],
        DualCFGGuider.execute(parts[0], words(1), words(5), words(2), 4.0, 2.0, "regular")[0],
    ]
    results = [advanced(parts, guider, image, mask).result[0] for guider in guiders]
    assert all(torch.isfinite(result).all() for result in results)
    assert not torch.equal(*results)


def test_masked_attention_follows_the_window(parts):
    """The same graph with MaskedAttentionPatch runs, and its mask reaches both stages."""
    image, mask = picture(1, 96, 96), spot(96, 96, 40, 44, 20)
    masked = execute("MaskedAttentionPatch", parts[0], mask).result[0]
    plain = sample(parts, image, mask, steps=4, close_up_share=0.5).result[0]
    patched = sample((masked, *parts[1:]), image, mask, steps=4, close_up_share=0.5).result[0]
    assert torch.isfinite(patched).all()
    assert not torch.equal(plain, patched)
    assert torch.equal(patched[:, :20], image[:, :20])


def test_masked_attention_has_the_mask_of_the_picture_that_is_painted(parts):
    """Two pictures and two masks wired into both nodes: each is what it is with its own mask for all."""
    masks = torch.cat([spot(top=6, left=6, size=12), spot(top=34, left=36, size=11)])
    images = picture(2)

    def painted(attended):
        model = execute("MaskedAttentionPatch", parts[0], attended).result[0]
        return sample((model, *parts[1:]), images, masks, close_up_share=0.5).result[0]

    both, first, second = painted(masks), painted(masks[:1]), painted(masks[1:])
    assert torch.equal(both[0], first[0])
    assert torch.equal(both[1], second[1])
    assert not torch.equal(both[1], first[1])
    model = execute("MaskedAttentionPatch", parts[0], masks).result[0]
    with pytest.raises(ValueError, match="2 masks for 1 image"):  # all masks in one picture
        sample((model, *parts[1:]), images[:1], masks, several_masks="together")


@pytest.mark.parametrize("seed", [2**64 - 2, 2**64 - 1])
def test_the_largest_seed_has_a_second_stage(parts, seed):
    result = sample(parts, picture(), spot(), seed, steps=4, sampler="euler_ancestral", close_up_share=0.5)
    assert torch.isfinite(result.result[0]).all()


def test_a_model_whose_latents_are_no_pictures_is_refused(parts):
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.WAN21_T2V(
        {"image_model": "wan2.1", "model_type": "t2v", "dim": 128, "ffn_dim": 128, "num_heads": 1}
        | {"num_layers": 1}
    )
    config.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    film = comfy.model_patcher.ModelPatcher(config.get_model({}, ""), cpu, cpu)
    with pytest.raises(ValueError, match=r"model: the latents of WAN21_T2V models .* for pictures"):
        sample((film, *parts[1:]), picture(), spot())


def test_a_prompt_with_a_range_is_painted_in_the_close_up_alone(plain):
    """DreamMix's code removes attributes in the close-up and finishes with the plain prompt."""
    from comfy.patcher_extension import WrappersMP
    from node_helpers import conditioning_set_values

    model, _, vae = plain
    first, rest = words(1), words(5)
    ranged = [
        *conditioning_set_values(first, {"start_percent": 0.0, "end_percent": 0.45}),
        *conditioning_set_values(rest, {"start_percent": 0.45, "end_percent": 1.0}),
    ]
    seen, watched = [], model.clone()

    def watch(executor, x, t, c_concat, context, *arguments, **kwargs):
        window = kwargs.get("transformer_options", arguments[1] if len(arguments) > 1 else {})["inlay_window"]
        seen.append((window, [torch.equal(context[0].cpu(), text[0][0][0]) for text in (first, rest)]))
        return executor(x, t, c_concat, context, *arguments, **kwargs)

    watched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", watch)
    execute(
        "DisentangledInpaintSampler",
        watched, ranged, words(2), vae, picture(), spot(), 3, 4, 1.0, "euler", "normal",
        close_up_share=0.5, **NEAR,
    )  # fmt: skip
    assert len(seen) == 4
    assert [which for _, which in seen] == [[True, False]] * 2 + [[False, True]] * 2
    assert len({window for window, _ in seen[:2]}) == len({window for window, _ in seen[2:]}) == 1
    assert seen[0][0] != seen[2][0]


def test_a_lora_by_hooks_can_end_before_the_last_steps(plain):
    """DreamMix's code takes the last steps without the subject's LoRA."""
    import comfy.hooks
    import comfy.sd

    model, _, vae = plain
    generator = torch.Generator().manual_seed(0)
    name = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_v"
    lora = {
        f"{name}.lora_up.weight": 0.3 * torch.randn(320, 2, generator=generator),
        f"{name}.lora_down.weight": torch.randn(2, 768, generator=generator),
    }

    def paint(model, keyframes=None):
        prompt = words(1)
        if keyframes is not None:
            hooks = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
            group = comfy.hooks.HookKeyframeGroup()
            for strength, start in keyframes:
                group.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start))
            hooks.set_keyframes_on_hooks(group)
            prompt = [[text, values | {"hooks": hooks}] for text, values in prompt]
        return execute(
            "DisentangledInpaintSampler",
            model, prompt, words(2), vae, picture(), spot(), 3, 4, 1.0, "euler", "normal",
            close_up_share=0.5, **NEAR,
        ).result[0]  # fmt: skip

    without = paint(model)
    whole = paint(comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0])
    assert not torch.allclose(without, whole, atol=1e-3)
    assert torch.allclose(paint(model, [(0.0, 0.0)]), without, atol=1e-5)
    assert torch.allclose(paint(model, [(1.0, 0.0)]), whole, atol=1e-4)
    ended = paint(model, [(1.0, 0.0), (0.0, 0.45)])
    assert not torch.allclose(ended, whole, atol=1e-3)
    assert not torch.allclose(ended, without, atol=1e-3)
