"""What training relies on in the host: one test for each seam, called after it."""

import copy
import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest
import torch

PATH = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"  # a layer of every UNet of SD 1.5's kind
KEY = f"diffusion_model.{PATH}.weight"
DIFFUSERS = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def lora():
    key = "lora_unet_" + DIFFUSERS.replace(".", "_")
    generator = torch.Generator().manual_seed(0)
    return {
        f"{key}.lora_up.weight": torch.randn(320, 2, generator=generator),
        f"{key}.lora_down.weight": torch.randn(2, 320, generator=generator),
        f"{key}.alpha": torch.tensor(1.0),
    }


def test_models_network_of(parts):
    from inlay.host import models

    assert models.network_of(parts.model) is parts.model.get_model_object("diffusion_model")


def test_models_unet_of(parts):
    from inlay.host import models

    assert models.unet_of(parts.model) is parts.model.model.diffusion_model, "diffusion_model moved"
    other = SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Linear(1, 1)))
    assert models.unet_of(other) is None


def test_models_input_channels(parts, random_tiny):
    from inlay.host import models

    assert [models.input_channels(model) for model in (parts.model, random_tiny(4)[0])] == [9, 4]


def test_models_network_config(parts, random_tiny):
    from inlay.host import models

    found = [models.network_config(model) for model in (parts.model, random_tiny(4)[0])]
    assert [config["in_channels"] for config in found] == [9, 4]


def test_models_unet_levels(parts):
    from inlay.host import models

    assert models.unet_levels(parts.model) == len(parts.model.model.model_config.unet_config["channel_mult"])


def test_models_concat_keys(parts, random_tiny):
    from inlay.host import models

    assert models.concat_keys(parts.model) == ("mask", "masked_image")
    assert models.concat_keys(random_tiny(4)[0]) == ()


def test_models_prediction_of(parts):
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    from inlay.host import models

    wired = {
        kind: ModelSamplingDiscrete().patch(parts.model, kind, False)[0] for kind in ("eps", "v_prediction")
    }
    assert {kind: models.prediction_of(model) for kind, model in wired.items()} == {
        "eps": "epsilon",
        "v_prediction": "v",
    }


def test_models_noise_levels(parts):
    from inlay.host import models

    sigmas = models.noise_levels(parts.model)
    assert sigmas.shape == (1000,)
    assert (sigmas.diff() > 0).all(), "the table of noise levels is no longer sorted"


def test_models_inference_dtype(parts):
    from inlay.host import models

    assert models.inference_dtype(parts.model).is_floating_point


def test_models_largest_sigma(parts):
    from inlay.host import models

    levels = models.noise_levels(parts.model)
    assert models.largest_sigma(parts.model) == levels.max().item(), "the schedule no longer has sigma_max"
    other = copy.deepcopy(parts.model.get_model_object("model_sampling"))
    other.set_sigmas(2 * levels)
    patched = parts.model.clone()
    patched.add_object_patch("model_sampling", other)  # as ModelSamplingDiscrete and others do
    assert models.largest_sigma(patched) == 2 * levels.max().item()


def test_models_block_modules(parts):
    from inlay.host import models

    blocks = models.block_modules(parts.model.model.diffusion_model)
    assert {type(block).__name__ for block in blocks} == {"ResBlock", "BasicTransformerBlock"}
    inside = {id(part) for block in blocks for part in list(block.modules())[1:]}
    assert not any(id(block) in inside for block in blocks), "a block lies inside another"


def test_models_pytorch_attention(in_process_host):
    from inlay.host import models

    q, k, v = (torch.randn(1, 5, 8, requires_grad=True) for _ in range(3))
    query, key, value = (x.view(1, 5, 2, 4).transpose(1, 2) for x in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    found = models.pytorch_attention(q, k, v, 2)
    torch.testing.assert_close(found, expected)
    assert torch.autograd.grad(found.sum(), q)[0].abs().sum() > 0


def test_models_weights_of(parts, lora):
    from inlay.host import models

    before = {key: weight.clone() for key, weight in models.weights_of(parts.model)}
    assert KEY in before
    patched = models.load_fully(models.apply_lora(parts.model, lora))
    after = dict(models.weights_of(patched))
    assert not torch.equal(patched.model.state_dict()[KEY], before[KEY]), (
        "the host no longer patches in place"
    )
    assert torch.equal(after[KEY], before[KEY]), "patcher.backup no longer holds the unpatched weight"
    models.load_fully(parts.model)


def test_models_patches_of(parts, lora):
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    from inlay.host import models

    ((key, patch),) = models.patches_of(models.apply_lora(parts.model, lora, 0.5))
    assert key == KEY
    assert patch.facts[0] == 0.5, "the strength is no longer the first of a patch"
    assert "lora" in patch.facts
    assert 1.0 in patch.facts, "alpha"
    for tensor in (value for name, value in lora.items() if not name.endswith("alpha")):
        assert any(torch.equal(tensor, held) for held in patch.tensors)
    merged = ModelMergeSimple().merge(parts.model, models.apply_lora(parts.model, lora), 0.25)[0]
    assert any("merged" in patch.facts for _, patch in models.patches_of(merged))


def test_models_patch_names_as_released(parts, lora):
    from inlay.host import models

    names = [name for name, _ in models.patch_names_as_released(models.apply_lora(parts.model, lora, 0.5))]
    rest = "['LoRAAdapter', 1.0, None, None, None]"
    assert names == [f"{KEY} 0 0.5 1.0 None {i} {rest}" for i in range(2)]


def test_models_trainable_copy(parts):
    from inlay.host import models

    before = {key: weight.clone() for key, weight in parts.model.model.state_dict().items()}
    network: Any = models.trainable_copy(parts.model, torch.float32)
    own, copied = (net.get_submodule(PATH).weight for net in (parts.model.model.diffusion_model, network))
    assert own.data_ptr() == copied.data_ptr(), "the copy no longer shares its weights"
    assert own is not copied
    layer = network.get_submodule(PATH)
    layer.weight = torch.nn.Parameter(layer.weight.clone())
    found = network(torch.randn(1, 9, 8, 8), torch.zeros(1), context=torch.randn(1, 77, 768))
    (gradient,) = torch.autograd.grad(found.square().sum(), layer.weight)
    assert gradient.abs().sum() > 0
    assert all(torch.equal(weight, before[key]) for key, weight in parts.model.model.state_dict().items())
    half = models.trainable_copy(parts.model, torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    # --novram leaves weights in the computer's memory; the copy goes to the device all the same
    moved: Any = models.trainable_copy(parts.model, torch.float32, torch.device("meta"))
    assert {t.device.type for t in (*moved.parameters(), *moved.buffers())} == {"meta"}


def test_models_outside_inference_mode(in_process_host):
    from inlay.host import models

    with torch.inference_mode():
        made = torch.arange(6.0).view(2, 3).mT
    ordinary = models.outside_inference_mode(made)
    assert made.is_inference()
    assert not ordinary.is_inference()
    assert torch.equal(ordinary, made)
    assert ordinary.data_ptr() == made.data_ptr()


def test_models_model_around(parts):
    from inlay.host import models

    network = models.trainable_copy(parts.model, torch.float32)
    around = models.model_around(parts.model, network, torch.float32)
    assert around.model.diffusion_model is network
    assert parts.model.model.diffusion_model is not network, "the wired-in MODEL was changed"
    x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 768)
    told = {"c_concat": torch.randn(1, 5, 8, 8), "c_crossattn": context}
    with torch.inference_mode():
        answers = [m.model.apply_model(x, torch.tensor([1.0]), **told) for m in (parts.model, around)]
    torch.testing.assert_close(*answers)


def test_models_load_fully(parts, lora):
    from inlay.host import models

    patched = models.load_fully(models.apply_lora(parts.model, lora))
    up, down, alpha = lora.values()
    delta = up @ down * alpha / 2
    difference = patched.model.state_dict()[KEY] - dict(models.weights_of(patched))[KEY]
    torch.testing.assert_close(difference, delta, rtol=1e-4, atol=1e-5)
    models.load_fully(parts.model)


def test_models_label_embedding(parts):
    from inlay.host import models

    assert models.label_embedding(parts.model, torch.zeros(1, 768), 64, torch.device("cpu")) is None


def test_models_label_at_size(parts):
    from inlay.host import models

    label = torch.zeros(1, 8)
    assert models.label_at_size(parts.model, label, 64, 96) is label  # SDXL: in finetune/test_families.py


def test_models_latent_in(parts):
    from inlay.host import models

    latent = torch.randn(1, 4, 8, 8)
    scaled, twice = models.latent_in(parts.model, latent), models.latent_in(parts.model, 2 * latent)
    zero = models.latent_in(parts.model, 0 * latent)
    torch.testing.assert_close(twice - zero, 2 * (scaled - zero), msg="it is no longer scale and shift")


def test_models_latent_out(parts):
    from inlay.host import models

    latent = torch.randn(1, 4, 8, 8)
    again = models.latent_out(parts.model, models.latent_in(parts.model, latent))
    torch.testing.assert_close(again, latent, msg="latent_out no longer undoes latent_in")


def test_models_latent_format_of(parts):
    from inlay.host import models

    found = models.latent_format_of(parts.model)
    facts = found.latent_channels, found.latent_dimensions, found.spacial_downscale_ratio
    assert facts == (4, 2, 8)


def test_models_load_checkpoint(host_work, parts, tmp_path):
    from safetensors.torch import save_file

    from inlay.host import models

    with torch.inference_mode():
        loaded = models.load_checkpoint(host_work / "random" / "9.safetensors")
    assert loaded is not None
    assert None not in loaded
    save_file({"a": torch.zeros(1)}, tmp_path / "none.safetensors")
    with pytest.raises(RuntimeError, match=r"none\.safetensors"):  # the host names the file
        models.load_checkpoint(tmp_path / "none.safetensors")


def test_models_lora_targets(parts):
    from inlay.host import models

    targets = models.lora_targets(parts.model)
    for name in (PATH, DIFFUSERS):
        assert targets["lora_unet_" + name.replace(".", "_")] == PATH
    layers = {name for name, _ in parts.model.model.diffusion_model.named_modules() if name.endswith("to_k")}
    assert set(targets.values()) >= layers


def test_models_diffusers_paths(parts):
    from inlay.host import models

    assert models.diffusers_paths(parts.model)[PATH] == DIFFUSERS


def test_models_apply_lora(parts, lora):
    from inlay.host import models

    patched = models.apply_lora(parts.model, lora)
    assert list(patched.patches) == [KEY]
    assert not parts.model.patches


def test_models_load_fully_offloaded(parts):
    """The MODEL keeps its device; its weights are in the computer's memory."""
    from inlay.host import models

    loaded = models.load_fully(parts.model, offload=True)
    assert loaded is not parts.model
    assert loaded.load_device == parts.model.load_device
    assert {p.device.type for p in loaded.model.parameters()} == {"cpu"}


def test_devices_has_own_memory(in_process_host):
    from inlay.host import devices

    assert devices.has_own_memory(torch.device("cuda"))
    assert not devices.has_own_memory(torch.device("cpu"))


def test_models_can_load_fully(parts):
    import comfy.model_patcher

    from inlay.host import models

    assert models.can_load_fully(parts.model)
    assert parts.model.cached_patcher_init is not None, "core loaders no longer say how to load a copy"
    paged = type("Paged", (comfy.model_patcher.ModelPatcher,), {"is_dynamic": lambda self: True})
    cpu = torch.device("cpu")
    assert not models.can_load_fully(paged(parts.model.model, cpu, cpu))


def test_devices_prefers_bfloat16(in_process_host):
    from inlay.host import devices

    assert devices.prefers_bfloat16(torch.device("cpu"))


def test_devices_free_memory_for(parts):
    from inlay.host import devices

    assert devices.free_memory_for(parts.model, 1) > 2**20


def test_devices_raise_if_interrupted(in_process_host):
    import comfy.model_management

    from inlay.host import devices

    devices.raise_if_interrupted()
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        devices.raise_if_interrupted()
    devices.raise_if_interrupted()


@pytest.fixture
def scene(parts):
    """A latent, its masked copy, the hole, and two conditionings."""
    from inlay.host import sampling

    generator = torch.Generator().manual_seed(0)
    latent, masked = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 2:6] = 1
    with torch.inference_mode():
        positive, negative = (sampling.condition(parts.clip, text) for text in ("a cat", ""))
    return SimpleNamespace(latent=latent, masked=masked, mask=mask, positive=positive, negative=negative)


HOW = {"seed": 3, "steps": 2, "cfg": 2.0, "sampler": "euler", "scheduler": "normal"}


def test_sampling_condition(parts):
    from inlay.host import sampling

    with torch.inference_mode():
        ((context, values),) = sampling.condition(parts.clip, "a cat", concat_mask="a mask")
    assert context.shape == (1, 77, 768)
    assert values["concat_mask"] == "a mask"


def test_sampling_sample_latent(parts, scene):
    from inlay.host import sampling

    seen = []
    with torch.inference_mode():
        values = {"concat_latent_image": scene.masked, "concat_mask": scene.mask}
        positive, negative = ([[c, v | values] for c, v in cond] for cond in (scene.positive, scene.negative))
        found = sampling.sample_latent(
            parts.model,
            positive,
            negative,
            scene.latent,
            scene.mask,
            **HOW,
            callback=lambda step, *_: seen.append(step),
        )
    assert seen == [0, 1]
    outside = scene.mask.expand_as(found) == 0
    torch.testing.assert_close(found[outside], scene.latent[outside])


def test_sampling_resident_guider(parts, scene, monkeypatch):
    """A run of the host's sampler that loads nothing and gives what its own guider gives."""
    import comfy.sampler_helpers
    import comfy.samplers

    from inlay.host import models, sampling

    model = models.load_fully(parts.model)
    sigmas = sampling.ksampler_sigmas(model, "euler", "normal", 2, 1.0)
    noise, euler = torch.randn(scene.latent.shape), comfy.samplers.sampler_object("euler")
    found = []
    for kind in (comfy.samplers.CFGGuider, sampling.ResidentGuider):
        guider = kind(model)
        guider.set_conds(scene.positive, scene.negative)
        guider.set_cfg(2.0)
        with torch.inference_mode():
            found.append(guider.sample(noise, scene.latent, euler, sigmas, disable_pbar=True, seed=3))
        refuse = lambda *_, **__: pytest.fail("the host's sampler loads its model elsewhere")  # noqa: E731
        monkeypatch.setattr(comfy.sampler_helpers, "prepare_sampling", refuse)
    torch.testing.assert_close(*found)


def test_sampling_sample_resident(parts, scene):
    """The same picture as the host's own run of a model that is loaded."""
    import comfy.sample

    from inlay.host import models, sampling

    model = models.load_fully(parts.model)
    base = model.model
    with torch.inference_mode():
        found = sampling.sample_resident(
            model, scene.positive, scene.negative, scene.latent, scene.masked, scene.mask, **HOW
        )
        hole = {"concat_latent_image": base.process_latent_out(scene.masked), "concat_mask": scene.mask}
        positive, negative = ([[c, v | hole] for c, v in cond] for cond in (scene.positive, scene.negative))
        noise = torch.randn(scene.latent.shape, generator=torch.Generator().manual_seed(3))
        expected = comfy.sample.sample(
            model, noise, 2, 2.0, "euler", "normal", positive, negative,
            base.process_latent_out(scene.latent), noise_mask=scene.mask, disable_pbar=True, seed=3,
        )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process at once")
def test_devices_delayed_termination(in_process_host):
    """What follows the block, the end of the process, is in finetune/test_sigterm.py."""
    import comfy.model_management

    from inlay.host import devices

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with devices.DelayedTermination() as held:
            held.check()
            signal.raise_signal(signal.SIGTERM)
            with pytest.raises(comfy.model_management.InterruptProcessingException):
                held.check()
            held.came = False
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_devices_in_main_thread(in_process_host):
    import asyncio
    import threading
    from concurrent.futures import ThreadPoolExecutor

    import server as server_module

    from inlay.host import devices

    pages: Any = server_module.PromptServer
    ran = []

    def call():
        ran.append(threading.current_thread())

    assert devices.in_main_thread(call)
    with ThreadPoolExecutor() as pool:
        assert not pool.submit(devices.in_main_thread, call).result(), "a loop that does not run was asked"

        async def with_loop():
            loop = asyncio.get_running_loop()
            pages.instance = SimpleNamespace(loop=loop)  # where the host keeps it
            return await loop.run_in_executor(pool, devices.in_main_thread, call)

        kept = getattr(pages, "instance", None)
        try:
            assert asyncio.run(with_loop())
        finally:
            pages.instance = kept
            if kept is None:
                del pages.instance
    assert ran == [threading.main_thread()] * 2


def test_vae_encoder_weights(parts):
    from inlay.host import vae

    names = [name for name, _ in vae.encoder_weights(parts.vae)]
    assert any(name.startswith("taesd_encoder.") for name in names)
    assert not any("decoder" in name for name in names)


def test_vae_picture_vae(parts, in_process_host):
    """A VAE with a time axis reads a batch as a film; its pictures are encoded one by one."""
    from inlay.host import vae
    from inlay.lab.models.tiny_transformers import tiny_vae

    pictures = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        own = vae.PictureVae(parts.vae)
        assert torch.equal(own.encode(pictures), parts.vae.encode(pictures))
        assert own.encode(pictures).shape[-2:] == (64 // own.grid, 64 // own.grid)
        film = tiny_vae("qwen-image")
        latents = vae.PictureVae(film).encode(pictures)
        assert latents.shape[0] == 2, "latent_dim or not_video no longer states what is a film"
        assert torch.equal(latents[1:], film.encode(pictures[1:]))
        assert vae.PictureVae(film).decode(latents).shape == pictures.shape


def test_vae_encode_distribution(parts):
    """TAESD has none; `finetune/test_bases.py` compares an AutoencoderKL's with its log variance."""
    from inlay.host import vae

    pictures = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        mean, deviation = vae.encode_distribution(parts.vae, pictures)
        assert torch.equal(mean, parts.vae.encode(pictures))
    assert not deviation.any()


def test_training_training_switches(in_process_host):
    """The host's flag for fused operations without gradients; LayerNorms keep their input unchanged."""
    import comfy.model_management

    from inlay.host import training

    network, x = torch.nn.Sequential(torch.nn.LayerNorm(4)), torch.randn(2, 4, requires_grad=True)
    before = comfy.model_management.in_training
    with training.training_switches(network):
        assert comfy.model_management.in_training
        inner = x * 1
        out = network(inner)
        inner.add_(1)  # as some of the host's networks do
        out.sum().backward()
    assert comfy.model_management.in_training is before
    assert not network[0]._forward_pre_hooks


def test_training_blocks_of(in_process_host):
    import comfy.ldm.flux.model as flux
    from comfy.ops import disable_weight_init

    from inlay.host import training

    network = flux.Flux(
        in_channels=16, out_channels=16, vec_in_dim=8, context_in_dim=8, hidden_size=64, mlp_ratio=2.0,
        num_heads=2, depth=2, depth_single_blocks=3, axes_dim=[8, 12, 12], theta=100, patch_size=2,
        qkv_bias=True, guidance_embed=False, txt_ids_dims=[], operations=disable_weight_init,
        dtype=torch.float32,
    )  # fmt: skip
    assert training.blocks_of(network) == [*network.double_blocks, *network.single_blocks]
    assert training.blocks_of(torch.nn.Linear(1, 1)) == []


def test_training_text_values(parts):
    from inlay.host import sampling, training

    with torch.inference_mode():
        conditioning = sampling.condition(parts.clip, "a cat", guidance=3.5)
    values = training.text_values(conditioning)
    assert values["cross_attn"].shape == (1, 77, 768)
    assert values["guidance"] == 3.5


def quantised_linear():
    """One of the host's tensors of fewer than 16 bits in a linear layer, as its loader makes them."""
    from comfy.quant_ops import QuantizedTensor

    layer = torch.nn.Linear(32, 32, bias=False)
    weight = QuantizedTensor.from_float(layer.weight.detach(), "TensorCoreFP8Layout", scale=torch.tensor(0.1))
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    return layer


def test_training_is_quantised(in_process_host):
    from inlay.host import training

    assert training.is_quantised(quantised_linear())
    assert not training.is_quantised(torch.nn.Linear(2, 2))
    assert not training.is_quantised(torch.nn.LayerNorm(2))


def test_training_stays_frozen(in_process_host):
    import comfy.ops

    from inlay.host import training

    own = comfy.ops.mixed_precision_ops().Linear(2, 3)
    own.weight = torch.nn.Parameter(torch.zeros(3, 2))
    assert training.stays_frozen(own), "the host's layer for mixed files is a torch.nn.Linear now"
    assert training.stays_frozen(quantised_linear())
    assert not training.stays_frozen(torch.nn.Linear(2, 2))


def test_training_is_special(in_process_host):
    from inlay.host import training

    assert training.is_special(quantised_linear().weight)
    assert not training.is_special(torch.nn.Linear(2, 2).weight)


def test_training_has_special_weights(in_process_host):
    from inlay.host import training

    assert training.has_special_weights(torch.nn.Sequential(torch.nn.Linear(2, 2), quantised_linear()))
    assert not training.has_special_weights(torch.nn.Linear(2, 2))


def test_training_unreadable_format(parts):
    from inlay.host import training

    class Packed(torch.Tensor):
        pass

    assert training.unreadable_format(parts.model.model.diffusion_model) == ""
    assert training.unreadable_format(quantised_linear()) == "", "quantised tensors have no own dequantize"
    layer = torch.nn.Linear(2, 2)
    layer.weight = torch.nn.Parameter(torch.zeros(2, 2).as_subclass(Packed), requires_grad=False)
    assert training.unreadable_format(layer) == "Packed"
    setattr(layer, "get_weight", lambda weight, dtype: weight)  # noqa: B010 - no attribute of its class
    assert training.unreadable_format(layer) == ""
    layer = torch.nn.Linear(2, 2)
    layer.weight = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.uint8), requires_grad=False)
    assert training.unreadable_format(layer) == "torch.uint8"


def test_training_plain_weight(in_process_host):
    from inlay.host import training

    layer: Any = quantised_linear()
    weight = training.plain_weight(layer, layer.weight, torch.float64)
    assert weight.dtype == torch.float64
    assert type(weight) is torch.Tensor
    torch.testing.assert_close(weight.float(), layer.weight.dequantize().float())
    assert training.plain_weight(layer, torch.ones(3), torch.bfloat16).dtype == torch.bfloat16


def test_training_bytes_of(in_process_host):
    from inlay.host import training

    assert training.bytes_of(torch.zeros(3, 5)) == 60
    assert training.bytes_of(quantised_linear().weight) == 32 * 32, "quantised tensors have no _qdata"


def test_training_bytes_in_use(in_process_host):
    """A quantised layer is widened when it is used; a plain one of the same precision is not."""
    from inlay.host import training

    layers = [
        training.FrozenLinear(layer, torch.float32) for layer in (quantised_linear(), torch.nn.Linear(64, 64))
    ]
    assert [training.bytes_in_use(layer) for layer in layers] == [32 * 32 * 4, 0]
    assert training.bytes_in_use(torch.nn.ModuleList(layers)) == 32 * 32 * 4
    assert training.bytes_in_use(torch.nn.Linear(4, 4)) == 0


def test_training_frozen_copy(parts):
    """Without quantised layers it is `trainable_copy`: the same weights under the same names."""
    from inlay.host import training

    copy, own = training.frozen_copy(parts.model, torch.float32), parts.model.model.diffusion_model
    assert dict(copy.named_parameters()).keys() == dict(own.named_parameters()).keys()


def test_training_frozen_linear(in_process_host):
    """A linear layer of the widened weight, whose gradient with respect to its input is exact."""
    from inlay.host import training

    layer: Any = quantised_linear()
    frozen, x = training.FrozenLinear(layer, torch.float32), torch.randn(4, 32, requires_grad=True)
    weight = layer.weight.dequantize().float()
    out = frozen(x)
    torch.testing.assert_close(out, x @ weight.T)
    assert not any(part.requires_grad or part.numel() for part in frozen.parameters())
    way = torch.randn(4, 32)
    torch.testing.assert_close(torch.autograd.grad(out, x, way)[0], way @ weight)


def test_training_host_pass(parts):
    """The network's prediction at the noise level, from which the host's `apply_model` makes its x_0."""
    from inlay.host import models, training

    network: Any = models.trainable_copy(parts.model, torch.float32)
    made = training.HostPass(parts.model, network, torch.float32, time_axis=False)
    generator = torch.Generator().manual_seed(0)
    latent, noise = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
    sigma, base = torch.tensor([3.0]), parts.model.model
    values = {
        "cross_attn": torch.randn(1, 77, 768, generator=generator),
        "concat_latent_image": torch.randn(1, 4, 8, 8, generator=generator),
        "concat_mask": torch.ones(1, 1, 8, 8),
    }
    x = base.model_sampling.noise_scaling(sigma, noise, latent)
    with torch.no_grad():
        found = made(latent, noise, sigma, values)
        denoised = base.apply_model(x, sigma, **made.conditions(x, values))
    torch.testing.assert_close(found, (x - denoised) / sigma, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made.raw(base.process_latent_in(latent)), latent)


def test_training_load_layers(in_process_host):
    from inlay.host import training

    layers = [training.FrozenLinear(quantised_linear(), torch.float32) for _ in range(7)]
    network = torch.nn.Sequential(*layers)
    assert training.offloaded_layers(network) == []
    for layer in layers:
        layer.offloaded = True
    in_use = 1024 + 4096  # as it is stored, and in float32
    assert training.load_layers(network, 1024 + in_use) == (6 * 1024, in_use)
    assert training.offloaded_layers(network) == layers[1:]
    assert training.load_layers(network, 6 * 1024) == (0, 0)


def test_training_offloaded_layers(in_process_host):
    from inlay.host import training

    layer = training.FrozenLinear(quantised_linear(), torch.float32)
    layer.offloaded = True
    assert training.offloaded_layers(torch.nn.Sequential(layer, torch.nn.Linear(2, 2))) == [layer]


def test_training_weight_bytes(in_process_host):
    from inlay.host import training

    assert training.weight_bytes(torch.nn.Linear(3, 5)) == 4 * (15 + 5)


def test_models_load_parts(in_process_host):
    """The types of text encoders are names of the host's enumeration."""
    import comfy.sd

    from inlay.host import models

    with pytest.raises(KeyError):
        models.load_parts("network", [], "no such type", "vae")
    assert {"STABLE_DIFFUSION", "FLUX", "FLUX2", "QWEN_IMAGE"} <= set(comfy.sd.CLIPType.__members__)
    assert callable(comfy.sd.load_diffusion_model)


def test_models_lora_names_of(parts):
    from inlay.host import models

    assert {"lora_unet_" + DIFFUSERS.replace(".", "_"), f"diffusion_model.{PATH}"} <= models.lora_names_of(
        parts.model
    )


def test_models_diffusers_layers():
    from inlay.host import models

    config = SimpleNamespace(unet_config={"depth": 1, "depth_single_blocks": 1, "hidden_size": 8})
    model = SimpleNamespace(model=SimpleNamespace(model_config=config))
    layers = models.diffusers_layers(model, "flux_to_diffusers")
    attention = "transformer_blocks.0.attn."
    assert layers[f"{attention}to_q"] == ("double_blocks.0.img_attn.qkv", 0, 8), "flux_to_diffusers changed"
    assert layers[f"{attention}to_k"] == ("double_blocks.0.img_attn.qkv", 8, 8)
    assert layers[f"{attention}to_out.0"] == ("double_blocks.0.img_attn.proj", 0, None)
