"""What sampling, attention and the encoders rely on in the host: one test for each seam, called after it."""

from typing import Any

import pytest
import torch

PATH = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"  # a layer of every UNet of SD 1.5's kind
KEY = f"diffusion_model.{PATH}.weight"


def test_sampling_ksampler_sigmas(parts):
    """As the node KSampler: the last steps of a longer schedule where less than everything is denoised."""
    import comfy.samplers

    from inlay.host import sampling

    whole = sampling.ksampler_sigmas(parts.model, "euler", "normal", 10, 1.0)
    assert whole.shape == (11,)
    assert whole[-1] == 0
    assert torch.equal(whole[:-1], whole[:-1].sort(descending=True).values)
    part = sampling.ksampler_sigmas(parts.model, "euler", "normal", 5, 0.5)
    longer = comfy.samplers.calculate_sigmas(parts.model.get_model_object("model_sampling"), "normal", 10)
    torch.testing.assert_close(part.cpu(), longer[-6:].cpu())


def test_sampling_flux2_sigmas(in_process_host):
    from inlay.host import sampling

    small, large = (sampling.flux2_sigmas(4, side**2) for side in (512, 1024))
    for sigmas in (small, large):
        assert sigmas.shape == (5,)
        assert (sigmas[0], sigmas[-1]) == (1, 0)
    assert (large[1:-1] > small[1:-1]).all(), "the shift no longer grows with the picture"


def test_sampling_conditions_of(parts):
    from comfy.samplers import CFGGuider

    from inlay.host import sampling

    guider: Any = CFGGuider(parts.model)
    text = torch.zeros(1, 77, 768)
    guider.set_conds([[text, {"strength": 0.5}]], [[text, {}]])
    found = sampling.conditions_of(guider)
    assert {name: len(conditions) for name, conditions in found.items()} == {"positive": 1, "negative": 1}
    assert found["positive"][0]["cross_attn"] is text, "the text has another key"
    assert found["positive"][0]["strength"] == 0.5


def test_sampling_copy_guider(parts):
    from comfy.samplers import CFGGuider

    from inlay.host import sampling

    guider: Any = CFGGuider(parts.model)
    guider.set_conds([[torch.zeros(1, 77, 768), {}]], [[torch.ones(1, 77, 768), {}]])
    before, options = sampling.conditions_of(guider), guider.model_options
    other = sampling.copy_guider(guider, {"positive": []})
    other.model_options["transformer_options"]["ours"] = True
    assert type(other) is CFGGuider
    assert other.model_patcher is guider.model_patcher
    assert sampling.conditions_of(other) == {"positive": []}
    assert sampling.conditions_of(guider) is before
    assert "ours" not in options["transformer_options"], "the options of the guider were changed"


def test_sampling_noise_schedule_of(parts):
    from inlay.host import sampling

    found = []

    def recorded(sigma, denoise_mask, extra_options):
        found.append(sampling.noise_schedule_of(extra_options))
        return denoise_mask

    model = parts.model.clone()
    model.set_model_denoise_mask_function(recorded)
    conds = [[torch.zeros(1, 77, 768), {}]]
    latent = torch.zeros(1, 4, 8, 8)
    with torch.inference_mode():
        sampling.sample_latent(
            model, conds, conds, latent, seed=0, steps=1, cfg=1.0, sampler="euler", scheduler="normal",
            noise_mask=torch.ones(1, 1, 8, 8),
        )  # fmt: skip
    assert found, "the function of the mask is no longer called"
    assert all(hasattr(schedule, "sigma_max") for schedule in found)


@pytest.fixture
def control(in_process_host):
    """The host's own base of ControlNets, with a hint and the mask of an inpainting one."""
    from comfy.controlnet import ControlBase

    class Control(ControlBase):
        def copy(self):
            other = Control()
            self.copy_to(other)
            return other

    return Control().set_cond_hint(torch.rand(1, 3, 16, 8), extra_concat=[torch.ones(1, 1, 16, 8)])


def test_control_hints_of(control):
    from inlay.host.control import hints_of

    picture, [extra], algorithm = hints_of(control)
    assert picture is not None
    assert (picture.shape, extra.shape) == ((1, 3, 16, 8), (1, 1, 16, 8))
    assert algorithm in ("nearest-exact", "bilinear"), "the host resizes hints in another way"


def test_control_previous_of(control):
    from inlay.host.control import previous_of

    assert previous_of(control) is None
    assert previous_of(control.copy().set_previous_controlnet(control)) is control


def test_control_with_hints(control):
    from inlay.host.control import hints_of, previous_of, with_hints

    before, (picture, extra) = hints_of(control), (torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8))
    copied = with_hints(control, picture, [extra], control)
    assert hints_of(copied)[:2] == (picture, [extra])
    assert previous_of(copied) is control
    assert hints_of(control) == before, "the wired ControlNet was changed"


def test_sampling_latent_previewer(parts, monkeypatch):
    from comfy.cli_args import LatentPreviewMethod, args

    from inlay.host import sampling

    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.NoPreviews)
    assert sampling.latent_previewer(parts.model) is None
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    previewer = sampling.latent_previewer(parts.model)
    kind, picture, _ = previewer.decode_latent_to_preview_image("JPEG", torch.zeros(1, 4, 6, 8))
    assert (kind, picture.size) == ("JPEG", (8, 6))


def test_sampling_progress_bar(in_process_host, monkeypatch):
    import comfy.utils

    from inlay.host import sampling

    shown = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: shown.append(value))
    bar = sampling.progress_bar(3)
    bar.update_absolute(2, 3)
    assert shown == [2]


def test_sampling_shows_progress(in_process_host, monkeypatch):
    import comfy.utils

    from inlay.host import sampling

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_ENABLED", True)  # restored after the test
    for enabled in (False, True):
        comfy.utils.set_progress_bar_enabled(enabled)
        assert sampling.shows_progress() is enabled


def test_sampling_intermediate_type(in_process_host):
    from inlay.host import sampling

    assert sampling.intermediate_type() == (torch.device("cpu"), torch.float32)


def test_sampling_is_pix2pix(parts, in_process_host):
    import comfy.model_base

    from inlay.host import sampling

    assert not sampling.is_pix2pix(parts.model)
    assert issubclass(comfy.model_base.SD15_instructpix2pix, comfy.model_base.IP2P), "another class pairs it"


def test_sampling_dual_cfg_guider(parts):
    """On denoised latents, as its docstring states."""
    from inlay.host import sampling

    first, second, negative = (torch.full((1, 4, 2, 2), value) for value in (5.0, 3.0, 2.0))
    one, two, none = ([[torch.zeros(1, 77, 768), {}]] for _ in range(3))
    guider = sampling.dual_cfg_guider(parts.model, one, two, none, 4.0, 1.5)
    assert (guider.cfg1, guider.cfg2) == (4.0, 1.5)
    guider.inner_model, guider.conds = parts.model.model, guider.original_conds
    answers = {"positive": first, "middle": second, "negative": negative}

    def predicted(model, conds, *_, **__):
        names = [name for cond in conds for name, own in guider.conds.items() if own is cond]
        return [answers[name] for name in names]

    import comfy.samplers

    kept, comfy.samplers.calc_cond_batch = comfy.samplers.calc_cond_batch, predicted
    try:
        found = guider.predict_noise(torch.zeros(1, 4, 2, 2), torch.ones(1), {}, None)
    finally:
        comfy.samplers.calc_cond_batch = kept
    torch.testing.assert_close(found, negative + 1.5 * (second - negative) + 4.0 * (first - second))


def test_encoders_casting_layers(in_process_host):
    """Weights in 16 bits, input in 32: the layer answers in the input's type."""
    from inlay.host import encoders

    layer = encoders.casting_layers().Linear(3, 2, dtype=torch.float16)
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    assert layer(torch.ones(1, 3)).dtype == torch.float32


def devices_are_pairs(name):
    from inlay.host import encoders

    assert getattr(encoders, name)() == (torch.device("cpu"),) * 2


def test_encoders_encoder_devices(in_process_host):
    devices_are_pairs("encoder_devices")


def test_encoders_network_devices(in_process_host):
    devices_are_pairs("network_devices")


def test_encoders_intermediate_device(in_process_host):
    from inlay.host import encoders

    assert encoders.intermediate_device() == torch.device("cpu")


def test_encoders_managed_module(in_process_host):
    from inlay.host import encoders

    module, cpu = torch.nn.Linear(2, 2), torch.device("cpu")
    patcher = encoders.managed_module(module, cpu, cpu)
    assert patcher.model is module
    assert (patcher.load_device, patcher.offload_device) == (cpu, cpu)


def test_encoders_load_on_device(in_process_host):
    import comfy.model_management

    from inlay.host import encoders

    cpu = torch.device("cpu")
    patcher = encoders.managed_module(torch.nn.Linear(2, 2), cpu, cpu)
    encoders.load_on_device(patcher)
    assert any(loaded.model is patcher for loaded in comfy.model_management.current_loaded_models)


def test_encoders_load_clip_vision(in_process_host):
    from inlay.host import encoders

    assert encoders.load_clip_vision({"unknown.weight": torch.zeros(1)}) is None


def named_tokenizer(name: str):
    """A CLIP whose tokenizer has a class of that name, and which records what it is given."""

    class Clip:
        def __init__(self):
            self.tokenizer = type(name, (), {})()
            self.given = []

        def tokenize(self, text, **options):
            self.given.append((text, options))
            return text

        def encode_from_tokens_scheduled(self, tokens):
            return [[tokens, {}]]

    return Clip()


def test_encoders_reads_pictures(in_process_host):
    """The names of the host's tokenizers that take pictures."""
    import comfy.text_encoders.boogu as boogu
    import comfy.text_encoders.qwen_image as qwen

    from inlay.host import encoders

    for module, name in ((qwen, encoders.QWEN), (boogu, encoders.BOOGU)):
        assert hasattr(module, name), f"{name} is no longer in {module.__name__}"
        assert encoders.reads_pictures(named_tokenizer(name))
    assert not encoders.reads_pictures(named_tokenizer("SD1Tokenizer"))


def test_encoders_negative_reads_pictures(in_process_host):
    from inlay.host import encoders

    assert encoders.negative_reads_pictures(named_tokenizer(encoders.QWEN))
    assert not encoders.negative_reads_pictures(named_tokenizer(encoders.BOOGU))


def test_encoders_reference_method(in_process_host):
    import comfy.text_encoders.krea2 as krea

    from inlay.host import encoders

    assert hasattr(krea, encoders.KREA)
    assert encoders.reference_method(named_tokenizer(encoders.KREA)) == "index_timestep_zero"
    assert encoders.reference_method(named_tokenizer("SD1Tokenizer")) == ""


def test_encoders_encode_prompt(parts):
    from inlay.host import encoders

    with torch.inference_mode():
        ((context, _),) = encoders.encode_prompt(parts.clip, "a cat", [torch.zeros(1, 8, 8, 3)])
    assert context.shape == (1, 77, 768)
    qwen = named_tokenizer(encoders.QWEN)
    encoders.encode_prompt(qwen, "a cat", [torch.zeros(1, 8, 8, 3)])
    ((text, options),) = qwen.given
    assert text == encoders.QWEN_PICTURE.format(1) + "a cat"
    assert options.keys() == {"images", "llama_template"}


def test_encoders_constant(in_process_host):
    from inlay.host import encoders

    one, other = encoders.constant("a"), encoders.constant("b")
    assert one.can_concat(encoders.constant("a"))
    assert not one.can_concat(other)
    assert one.process_cond(1).cond == "a"


def test_patches_with_object_patch(parts):
    from inlay.host import patches

    patched = patches.with_object_patch(parts.model, patches.CONCAT_KEYS, ("mask",))
    assert patched.get_model_object(patches.CONCAT_KEYS) == ("mask",)
    assert parts.model.get_model_object(patches.CONCAT_KEYS) != ("mask",), "the input was changed"
    assert hasattr(parts.model.model, patches.SCALE_KNOWN_LATENT), "scale_latent_inpaint is gone"
    again = patches.with_object_patch(patched, patches.CONCAT_KEYS, None)
    assert patches.CONCAT_KEYS not in again.object_patches


def test_patches_misfitting_patches(parts):
    from inlay.host import patches

    fits, misfits = parts.model.clone(), parts.model.clone()
    weight = dict(parts.model.model.named_parameters())[KEY]
    fits.add_patches({KEY: ("diff", (torch.zeros_like(weight),))})
    misfits.add_patches({KEY: ("diff", (torch.zeros(3, 5),))})
    assert patches.misfitting_patches(fits) == []
    assert patches.misfitting_patches(misfits) == [KEY]


def test_patches_crop_picture_patches(parts, in_process_host):
    """The classes are found by their names; tests/host/families/test_model_patches.py samples with them."""
    import comfy.ldm.anima.lllite
    import comfy_extras.nodes_model_patch as host_nodes

    from inlay.host import patches

    for name in patches.ENCODED_PICTURES:
        assert hasattr(host_nodes, name), f"{name} is no longer in nodes_model_patch.py"
    for name in (patches.PIXELS, *patches.LINKED_TO_PIXELS):
        assert hasattr(comfy.ldm.anima.lllite, name), f"{name} is no longer in anima/lllite.py"
    options = {"patches": {"post_input": [len]}}
    patches.crop_picture_patches(options, parts.model, lambda picture: picture, lambda mask: mask)
    assert options == {"patches": {"post_input": [len]}}, "a patch without a picture was changed"


def test_patches_optimized_attention(in_process_host, monkeypatch):
    """The backend is looked up at every call, because other packs replace it."""
    import comfy.ldm.modules.attention

    from inlay.host import patches

    assert patches.APPLY_MODEL == "apply_model"
    monkeypatch.setattr(comfy.ldm.modules.attention, "optimized_attention", lambda *given, **_: given)
    assert patches.optimized_attention(1, 2, 3, 4) == (1, 2, 3, 4)
