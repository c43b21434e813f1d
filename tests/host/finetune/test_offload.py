"""Weights in the computer's memory, and what a memory preset chooses for a transformer."""

import shutil
from typing import Any

import pytest
import torch

from .test_packed_bases import packed_base, raw, step_of

__all__ = ["packed_base"]  # a fixture


@pytest.mark.parametrize("kind", ["packed", "plain"])
def test_offloaded_layers_train_as_those_on_the_device(kind, packed_base):
    from inlay.host.models import trainable_copy
    from inlay.host.training import (
        blocks_of,
        frozen_copy,
        load_layers,
        offloaded_layers,
        text_values,
        weight_bytes,
    )
    from inlay.training.finetune.pipeline import ordinary

    base = packed_base("flux2-klein")
    model = base.model if kind == "packed" else base.plain
    with torch.inference_mode(False), torch.enable_grad():
        text = ordinary(text_values(base.clip.encode_from_tokens_scheduled("a photo of sks cat")))
        network = frozen_copy(model, torch.float64, offload=True)
        layers = offloaded_layers(network)
        inside = [m for block in blocks_of(network) for m in block.modules() if hasattr(m, "in_features")]
        assert {id(layer) for layer in layers} == {id(layer) for layer in inside}
        assert len(layers) > 8
        before, room = weight_bytes(network), layers[0].nbytes() + layers[1].nbytes()
        in_use = max(layer.bytes_in_use() for layer in layers)
        rest = layers[2:]
        if kind == "packed":  # the largest layer, widened, is more than all of them are packed
            room, rest = sum(layer.nbytes() for layer in layers) - 1 - in_use, layers
        stays, largest = load_layers(network, room + in_use)
        assert offloaded_layers(network) == rest
        assert stays == sum(layer.nbytes() for layer in rest)
        assert largest == max(layer.bytes_in_use() for layer in rest)
        assert weight_bytes(network) == before
        reference = trainable_copy(base.plain, torch.float64)
        if kind == "packed":  # the plain base has the packed numbers in float32
            for key, weight in reference.named_parameters():
                weight.data = base.numbers[key].clone()
        loss, found = step_of(model, network, text, torch.float64)
        wanted, gradients = step_of(base.plain, reference, text, torch.float64)
    assert abs(float(loss - wanted)) < 1e-9 * float(wanted)
    for gradient, expected in zip(found, gradients, strict=True):
        if expected is not None:
            assert gradient is not None
            assert (gradient - expected).norm() < 1e-9 * expected.norm()
    assert load_layers(network, before) == (0, 0)  # all of them fit


def test_an_offloaded_weight_goes_to_the_device_for_each_use(in_process_host):
    """With a stand-in for a second device, which refuses to mix tensors of both."""
    from inlay.host.training import FrozenLinear
    from inlay.tests.host.fuzz.test_other_device import MARK, SecondDevice, mark, marked

    linear = torch.nn.Linear(8, 4)
    x = torch.randn(3, 8)
    expected = linear(x).detach()
    layer: Any = FrozenLinear(linear, torch.float32)
    setattr(layer.weight, MARK, True)
    layer.offloaded = True
    with torch.no_grad(), SecondDevice():
        there = mark(x.clone())
        assert marked(layer.widened())
        assert not marked(layer.frozen[0])
        found = layer(there)
        layer.load()
        assert marked(layer.frozen[0])
        assert not layer.offloaded
        torch.testing.assert_close(found.cpu(), expected)


def test_a_preset_leaves_in_the_computers_memory_what_its_card_cannot_hold(
    packed_base, run, pictures, store_folder, monkeypatch, caplog
):
    from inlay.host import devices
    from inlay.training.finetune import checks, memory, pipeline

    base, needs = packed_base("flux2-klein"), []

    def recorded(*args, **kwargs):
        needs.append(checks.check_step_fits(*args, **kwargs))
        return needs[-1]

    monkeypatch.setattr(pipeline, "check_step_fits", recorded)
    wired = {"model": base.plain, "clip": base.clip, "vae": base.vae, "batch_size": 1, "memory": "12 GB"}
    wired |= {"precision": "fp32", "optimiser": "AdamW"}
    whole, before = run(*pictures, **wired), raw(base.plain)
    shutil.rmtree(store_folder)
    room = needs[0].total - needs[0].weights // 8
    for place in (checks, memory):
        monkeypatch.setattr(place, "room_on", lambda card: room)
    monkeypatch.setattr(devices, "has_own_memory", lambda device: True)
    monkeypatch.setattr(pipeline, "needs_offload", lambda *_: True)
    with caplog.at_level("INFO"):
        parted = run(*pictures, **wired, preview_every=2)
    assert any("of weights stay in the computer's memory" in message for message in caplog.messages)
    assert needs[0].checkpointing
    assert needs[1].checkpointing
    assert needs[1].total <= room < needs[0].total
    assert needs[1].weights < needs[0].weights
    assert parted[3].lora == whole[3].lora  # memory decides no result
    assert parted[2]["loss"] == pytest.approx(whole[2]["loss"], rel=1e-5)
    assert all(torch.equal(weight, before[key]) for key, weight in raw(base.plain).items())


@pytest.mark.parametrize(
    ("memory", "spare", "turned_on"), [("24 GB", 1, False), ("24 GB", -1, True), ("recipe", -1, False)]
)
def test_checkpointing_is_turned_on_where_the_card_needs_it(
    memory, spare, turned_on, packed_base, run, pictures, store_folder, monkeypatch
):
    from inlay.training.finetune import checks, pipeline
    from inlay.training.finetune import memory as forecast

    base, needs, switched = packed_base("flux2-klein"), [], []

    def recorded(*args, **kwargs):
        needs.append(checks.check_step_fits(*args, **kwargs))
        return needs[-1]

    monkeypatch.setattr(pipeline, "check_step_fits", recorded)
    monkeypatch.setattr(pipeline, "recompute", lambda *_, **__: switched.append(True) or switched.copy)
    wired = {"model": base.plain, "clip": base.clip, "vae": base.vae, "batch_size": 1, "steps": 1}
    run(*pictures, **wired, memory=memory)
    shutil.rmtree(store_folder)
    monkeypatch.setattr(forecast, "room_on", lambda card: needs[0].total + spare)
    run(*pictures, **wired, memory=memory)
    assert needs[1].checkpointing == turned_on
    assert switched == [True] * turned_on


def test_weights_beyond_half_of_the_card_are_not_loaded_to_it(packed_base, monkeypatch):
    from dataclasses import replace

    from inlay.host import devices
    from inlay.host.training import bytes_of
    from inlay.training.finetune import checks
    from inlay.training.finetune.recipes import DREAMCOM

    model = packed_base("flux2-klein").model
    weights = sum(bytes_of(weight) for weight in model.model.diffusion_model.parameters())
    monkeypatch.setattr(checks, "room_on", lambda card: card)
    assert not checks.needs_offload(model, DREAMCOM, weights)  # the CPU has no memory of its own
    monkeypatch.setattr(devices, "has_own_memory", lambda device: True)
    assert checks.needs_offload(model, DREAMCOM, 2 * weights - 2)
    assert not checks.needs_offload(model, DREAMCOM, 2 * weights)
    assert not checks.needs_offload(model, DREAMCOM, 0)
    dora = replace(DREAMCOM, adapter=replace(DREAMCOM.adapter, dora=True))
    assert not checks.needs_offload(model, dora, weights)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("chroma", "flux1", "qwen-image", "krea2")]


@pytest.mark.parametrize("name", ["flux2-klein", "z-image", "flux1-fill", *SLOW])
def test_every_preset_has_room_for_the_full_size_family(name, in_process_host):
    """On tensors without memory, at 512 px with an fp8 base."""
    from inlay.tests.benchmarks import memory as bench
    from inlay.training.finetune.memory import GIGABYTE

    step = bench.step_of(name, 512, fp8=True)
    cells = bench.preset_cells(step)
    assert len(cells) == 4
    assert "does not fit" not in cells
    assert 0.8 * step.frozen < step.offloadable < step.frozen
    on_card = [float(cell.split()[0]) for cell in cells]
    assert all(total <= card - 2 for total, card in zip(on_card, (24, 16, 12, 8), strict=True))
    whole = step.need(True).total / GIGABYTE
    assert ("+" in cells[-1]) == (whole > 6.05)  # 8 GB: what does not fit stays in the computer's memory
    for cell in cells:
        if "+" in cell:
            assert sum(map(float, cell.replace("GB", "").replace("c", "").split("+"))) == pytest.approx(
                whole, abs=0.7
            )
