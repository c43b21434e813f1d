"""Bases whose layers hold packed weights, as those of ComfyUI-GGUF do."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inlay.lab.models.tiny_transformers import RandomText, tiny_transformer, tiny_vae

from .test_transformers import random_examples


def raw(model) -> dict[str, torch.Tensor]:
    """A copy of the memory of all weights of a MODEL."""
    from inlay.host.models import outside_inference_mode

    return {key: outside_inference_mode(weight).clone() for key, weight in model.model.named_parameters()}


@pytest.fixture(scope="module")
def packed_base(in_process_host):
    """MODEL with packed weights, CLIP and VAE of a family, and an ordinary MODEL of the same numbers."""
    from inlay.tests.packed_layers import PackedOperations, PackedPatcher, pack_state

    made: dict[str, SimpleNamespace] = {}

    def make(name: str) -> SimpleNamespace:
        if name not in made:
            with torch.inference_mode():
                plain = tiny_transformer(name, seed=1)
                stored, numbers = pack_state(plain.model.diffusion_model.state_dict())
                for key, weight in plain.model.diffusion_model.named_parameters():
                    weight.data = numbers[key].float()
                model = tiny_transformer(name, operations=PackedOperations)
                model.model.diffusion_model.load_state_dict(stored)
                model = PackedPatcher(model.model, model.load_device, model.offload_device)
            made[name] = SimpleNamespace(
                model=model, plain=plain, numbers=numbers, clip=RandomText(name), vae=tiny_vae(name)
            )
        return made[name]

    return make


def step_of(model, network, text, dtype):
    """Loss and gradients of one step of a LoRA on a network of the MODEL."""
    from inlay.host.training import training_switches
    from inlay.training.finetune.diffusion_transformers import (
        resolved_recipe,
        transformer_pass,
        transformer_schedule,
    )
    from inlay.training.finetune.lora import attach_adapter
    from inlay.training.finetune.recipes import RECIPES
    from inlay.training.finetune.trainer import TrainableModel, per_sample_loss

    recipe = resolved_recipe(RECIPES["DreamCom"].with_choices(rank=4), model)
    adapter: Any = attach_adapter(network, recipe.adapter, dtype, 0)
    generator = torch.Generator().manual_seed(8)
    for layer in adapter.layers.values():  # B starts at 0, which hides A's gradient
        up = layer.lora_B["default"].weight
        up.data = 0.05 * torch.randn(up.shape, generator=generator).to(dtype)
    host_pass = transformer_pass(model, network, dtype, recipe, [text])
    schedule = transformer_schedule(model, recipe)
    trainable = TrainableModel(network, schedule, adapter, dtype, torch.device("cpu"), host_pass=host_pass)
    rows = random_examples(trainable, 2, dtype=dtype).take(torch.arange(2))
    with training_switches(network):
        loss = per_sample_loss(trainable, recipe, rows, torch.Generator().manual_seed(4)).mean()
        return loss.detach(), torch.autograd.grad(loss, adapter.parameters, allow_unused=True)


@pytest.mark.parametrize("name", ["flux2-klein", "z-image"])
def test_loss_and_gradients_are_those_of_the_numbers_in_float64(name, packed_base):
    from inlay.host.models import trainable_copy
    from inlay.host.training import FrozenLinear, frozen_copy, text_values, weight_bytes
    from inlay.training.finetune.pipeline import ordinary

    base = packed_base(name)
    with torch.inference_mode(False), torch.enable_grad():
        text = ordinary(text_values(base.clip.encode_from_tokens_scheduled("a photo of sks cat")))
        frozen, reference = (
            frozen_copy(base.model, torch.float64),
            trainable_copy(base.plain, torch.float64),
        )
        for key, weight in reference.named_parameters():
            weight.data = base.numbers[key].clone()
        kept = [layer for layer in frozen.modules() if isinstance(layer, FrozenLinear)]
        assert len(kept) > 10
        assert weight_bytes(frozen) < 0.4 * weight_bytes(reference)
        loss, found = step_of(base.model, frozen, text, torch.float64)
        wanted, gradients = step_of(base.plain, reference, text, torch.float64)
    assert abs(float(loss - wanted)) < 1e-9 * float(wanted)
    for gradient, expected in zip(found, gradients, strict=True):
        assert (gradient is None) == (expected is None)
        if expected is not None:
            assert expected.norm() > 0
            assert (gradient - expected).norm() < 1e-9 * expected.norm()


def test_the_node_trains_on_packed_weights_and_leaves_them(packed_base, run, pictures, store_folder):
    base = packed_base("flux2-klein")
    before, wired = raw(base.model), {"clip": base.clip, "vae": base.vae, "batch_size": 1}
    model, lora, loss, subject, _ = run(*pictures, model=base.model, **wired, preview_every=2)
    plain = run(*pictures, model=base.plain, **wired)
    assert subject.lora != plain[3].lora  # both were trained
    assert loss["loss"] == pytest.approx(plain[2]["loss"], rel=1e-4)
    assert len(model.patches) == len(lora) // 3 > 0
    assert all(torch.equal(weight, before[key]) for key, weight in raw(base.model).items())
    assert run(*pictures, model=base.model, **wired)[3] == subject  # it was not trained again


def test_the_users_lora_on_a_packed_base_takes_part_and_outlives_its_unloading(
    packed_base, run, pictures, store_folder, monkeypatch
):
    from inlay.host.models import apply_lora
    from inlay.training.finetune import pipeline

    base = packed_base("flux2-klein")
    wired = {"clip": base.clip, "vae": base.vae, "batch_size": 1, "preview_every": 0}
    _, lora, loss, *_ = run(*pictures, model=base.model, **wired)
    with torch.inference_mode():
        packed, plain = (apply_lora(model, lora, 20.0) for model in (base.model, base.plain))

    made = pipeline.trainable_model

    def unloaded(model, *args, **kwargs):
        trainable = made(model, *args, **kwargs)
        model.detach()  # as the host does when a preview needs the memory
        return trainable

    wanted = run(*pictures, model=plain, **wired)[2]["loss"]
    monkeypatch.setattr(pipeline, "trainable_model", unloaded)
    found = run(*pictures, model=packed, **wired)[2]["loss"]
    assert found == pytest.approx(wanted, rel=1e-4)
    assert abs(found[0] - loss["loss"][0]) > 1e-3


@pytest.fixture(scope="module")
def packed_unet(random_checkpoint):
    """The tiny inpainting UNet with packed weights, and an ordinary MODEL of the same numbers."""
    import comfy.sd
    from safetensors.torch import load_file

    from inlay.tests.packed_layers import PackedOperations, PackedPatcher, pack_state

    start = "model.diffusion_model."
    state = {
        key.removeprefix(start): weight
        for key, weight in load_file(random_checkpoint).items()
        if key.startswith(start)
    }
    stored, numbers = pack_state(state)
    with torch.inference_mode():
        made: Any = comfy.sd.load_diffusion_model_state_dict(
            stored, model_options={"custom_operations": PackedOperations}
        )
        numbers = {key: weight.float() for key, weight in numbers.items()}
        plain = comfy.sd.load_diffusion_model_state_dict(numbers)
    return PackedPatcher(made.model, made.load_device, made.offload_device), plain


def test_a_unet_with_packed_weights_trains_as_its_numbers(packed_unet, run, pictures, store_folder):
    packed, plain = packed_unet
    before = raw(packed)
    model, lora, loss, *_ = run(*pictures, model=packed, batch_size=1, preview_every=2)
    assert loss["loss"] == pytest.approx(run(*pictures, model=plain, batch_size=1)[2]["loss"], rel=1e-4)
    assert len(model.patches) == len(lora) // 3 > 0
    assert all(torch.equal(weight, before[key]) for key, weight in raw(packed).items())


def test_a_recipe_for_every_weight_is_refused_on_packed_weights(packed_unet, run, pictures):
    with pytest.raises(ValueError, match=r"^recipe: DreamCom \(full UNet\) trains every weight, and this"):
        run(*pictures, model=packed_unet[0], recipe="DreamCom (full UNet)")
