"""Less memory without another result, and the estimate against what a training takes."""

import gc
import shutil
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch

SHAPES = {
    "tiny": {},
    "mid-size": {
        "channel_mult": (1, 2), "num_res_blocks": [1, 1], "transformer_depth": [1, 1],
        "transformer_depth_output": [1, 1, 1, 1],
    },
}  # fmt: skip


# The CPU's kernels copy the largest convolution's weights in the backward pass; the estimate leaves it out.
LAID_OUT_ANEW = 16 * 2**20


@pytest.mark.parametrize("recipe", ["DreamCom", "DreamMix"])
def test_checkpointing_changes_no_bit_of_the_result(pictures, store_folder, run, recipe):
    plain = run(*pictures, recipe=recipe)
    shutil.rmtree(store_folder)
    twice = run(*pictures, recipe=recipe, gradient_checkpointing="on")
    assert plain[3].lora == twice[3].lora
    assert all(torch.equal(plain[1][key], twice[1][key]) for key in plain[1])


@pytest.mark.parametrize("memory", ["24 GB", "16 GB", "12 GB", "8 GB"])
def test_a_preset_trains_the_same_batch_in_parts(pictures, store_folder, run, memory):
    model, lora, loss, subject, _ = run(*pictures, memory=memory, batch_size=2, steps=2)
    assert len(loss["loss"]) == 2
    assert all(torch.isfinite(torch.tensor(loss["loss"])))
    assert len(model.patches) == len(lora) // 3 > 0
    assert subject.steps == 2


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_precision_of_the_arithmetic(pictures, store_folder, run, predict, parts, precision):
    model, lora, loss, *_ = run(*pictures, precision=precision, steps=4, learning_rate=1e-3)
    exact = run(*pictures, steps=4, learning_rate=1e-3)
    assert all(tensor.dtype == torch.float32 for tensor in lora.values())
    torch.testing.assert_close(
        torch.tensor(loss["loss"]),
        torch.tensor(exact[2]["loss"]),
        rtol=0 if precision == "fp32" else 0.05,
        atol=0,
    )
    assert not torch.equal(predict(model), predict(parts.model))
    rounded = (
        torch.equal(t, t.to(torch.float16)) or torch.equal(t, t.bfloat16()) for t in lora.values() if t.ndim
    )
    assert not any(rounded)


@pytest.mark.parametrize("choice", [{"optimiser": "Adafactor"}, {"ema_decay": 0.9}])
def test_optimiser_and_running_mean_reach_the_result(pictures, store_folder, run, choice):
    plain, chosen = run(*pictures), run(*pictures, **choice)
    assert plain[3].lora != chosen[3].lora
    assert not all(torch.equal(plain[1][key], chosen[1][key]) for key in plain[1])


@pytest.mark.parametrize(("optimiser", "kind"), [("preset", "AdamW8bit"), ("AdamW", "AdamW")])
def test_a_preset_leaves_an_optimiser_that_was_chosen(pictures, run, monkeypatch, tmp_path, optimiser, kind):
    from inlay.training import optimizers as optimisers
    from inlay.training.finetune import finetune_subject, spec
    from inlay.training.finetune import toml_config as config
    from inlay.training.finetune.trainer import SINGLE_PROCESS

    def told(recipe):
        raise InterruptedError(recipe.optimiser.kind)

    for place in (optimisers, finetune_subject):
        monkeypatch.setattr(place, "eight_bit_installed", lambda: True)
    monkeypatch.setattr(spec, "spec_from_node", lambda pipeline, recipe, *_: told(recipe))
    with pytest.raises(InterruptedError, match=f"^{kind}$"):
        run(*pictures, memory="12 GB", optimiser=optimiser)
    monkeypatch.setattr(finetune_subject, "split_batch", lambda recipe, size: told(recipe))
    file, named = tmp_path / "cat.toml", "" if optimiser == "preset" else f'optimiser.kind = "{optimiser}"'
    file.write_text(
        f'checkpoint = "a"\nreferences = "b"\nclass_name = "cat"\nmemory = "8 GB"\n[recipe]\n{named}',
        encoding="utf-8",
    )
    with pytest.raises(InterruptedError, match=f"^{kind}$"):
        finetune_subject.finetune_from_config(config.read_toml(file), SINGLE_PROCESS, lambda *_: None)


def test_what_will_not_fit_is_said_before_the_first_step(pictures, store_folder, run, monkeypatch):
    import comfy.model_management

    from inlay.training.finetune import pipeline

    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: 2**20)
    monkeypatch.setattr(pipeline, "Trainer", lambda *_, **__: pytest.fail("work began"))
    with pytest.raises(ValueError, match=r"memory: this training will not fit: it needs about .* GB besides"):
        run(*pictures)
    assert not list(store_folder.glob("*.resume"))


def test_a_smaller_preset_is_named_when_it_fits(parts, pictures, store_folder, run, monkeypatch, caplog):
    import comfy.model_management

    with caplog.at_level("INFO"):
        run(*pictures, batch_size=8, resolution=128, steps=1)
    said = next(m for m in caplog.messages if m.startswith("Inlay finetune: about"))
    activations = float(said.split("activations ")[1].split()[0]) * 2**30
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: int(activations * 0.75))
    with pytest.raises(ValueError, match=r'will not fit: .*; use the memory preset "(24|16) GB" and leave'):
        run(*pictures, batch_size=8, resolution=128, steps=1, seed=8)


def peak_of(work):
    """The most bytes that torch held at once while `work` ran, over what it held before."""
    gc.collect()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    held, peak = 0, 0
    profiler: Any = profile.profiler
    for event in profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def test_what_was_trained_leaves_the_memory_with_the_training(run, pictures, store_folder, monkeypatch):
    """The sampler that follows needs the room; Python looks for cycles later than that."""
    from inlay.training.finetune import pipeline

    kept = []

    def seen(blocks, **options):
        kept.extend(weakref.ref(block) for block in blocks)
        return recompute(blocks, **options)

    recompute = pipeline.recompute
    monkeypatch.setattr(pipeline, "recompute", seen)
    gc.collect()
    gc.disable()
    try:
        run(*pictures, gradient_checkpointing="on")
        assert kept
        assert [ref() for ref in kept] == [None] * len(kept)
    finally:
        gc.enable()


def estimate_and_peak(model, size, checkpointing, recipe):
    """The estimate of a training of two steps, besides what is loaded, and its measured peak, in bytes."""
    from inlay.host.models import block_modules
    from inlay.training.finetune.checks import check_step_fits, precision_of
    from inlay.training.finetune.data import Examples
    from inlay.training.finetune.memory import recompute
    from inlay.training.finetune.pipeline import trainable_model
    from inlay.training.finetune.trainer import Trainer

    grid, generator = size // 8, torch.Generator().manual_seed(0)
    mask = torch.zeros(4, 1, grid, grid)
    mask[..., grid // 4 : -grid // 4, grid // 4 : -grid // 4] = 1
    latent, masked = (torch.randn(4, 4, grid, grid, generator=generator) for _ in range(2))
    examples = Examples(latent, mask, masked, torch.ones_like(mask), torch.randn(1, 77, 768))
    dtype = precision_of(model, recipe)
    with torch.inference_mode(False), torch.enable_grad():
        trainee = trainable_model(model, recipe, dtype, 0)
        blocks = block_modules(trainee.unet)
        need = check_step_fits(model, trainee, recipe, [examples], blocks, checkpointing)
        if checkpointing:
            recompute(blocks)
        return need.missing, peak_of(lambda: Trainer(trainee, recipe, 0).fit(examples))


@pytest.fixture(scope="module")
def unets(in_process_host, memory_turn, tmp_path_factory):
    """MODELs of random weights in two sizes."""
    import comfy.sd

    from inlay.lab.models.assemble import random_checkpoint, write_checkpoint
    from inlay.lab.models.inpainting_unet import SHALLOW, new_unet

    folder = tmp_path_factory.mktemp("unets")
    loaded = {}
    for name, changes in SHAPES.items():
        parts = random_checkpoint(0) | {"unet": new_unet(0, **{**SHALLOW, **changes}).state_dict()}
        with torch.inference_mode():
            path = str(write_checkpoint(folder / f"{name}.safetensors", parts))
            loaded[name] = comfy.sd.load_checkpoint_guess_config(path, output_vae=False, output_clip=False)[0]
    return loaded


def test_a_process_among_four_needs_room_for_its_share(unets):
    from inlay.host.models import block_modules
    from inlay.training.finetune.checks import check_step_fits, precision_of
    from inlay.training.finetune.data import Examples
    from inlay.training.finetune.pipeline import trainable_model
    from inlay.training.finetune.recipes import DREAMCOM
    from inlay.training.finetune.trainer import ProcessGroup

    # With accumulation, all gradients are there before a pass and none is taken off.
    model, recipe = next(iter(unets.values())), replace(DREAMCOM, batch_size=4, accumulation=2)
    mask = torch.ones(1, 1, 8, 8)
    examples = Examples(torch.zeros(1, 4, 8, 8), mask, torch.zeros(1, 4, 8, 8), mask, torch.zeros(1, 77, 768))
    with torch.inference_mode(False), torch.enable_grad():
        trainee = trainable_model(model, recipe, precision_of(model, recipe), 0)
        blocks = block_modules(trainee.unet)
        alone, shared = (
            check_step_fits(model, trainee, recipe, [examples], blocks, False, group)
            for group in (ProcessGroup(), ProcessGroup(3, 4))
        )
    assert shared.activations == pytest.approx(alone.activations / 4, rel=1e-6)
    assert shared.optimiser == alone.optimiser


def test_a_pass_on_one_of_two_sets_needs_room_for_one(unets):
    from inlay.host.models import block_modules
    from inlay.training.finetune.checks import check_step_fits, precision_of
    from inlay.training.finetune.data import Examples
    from inlay.training.finetune.pipeline import trainable_model
    from inlay.training.finetune.recipes import DREAMCOM

    model, mask = next(iter(unets.values())), torch.ones(1, 1, 8, 8)
    examples = Examples(torch.zeros(1, 4, 8, 8), mask, torch.zeros(1, 4, 8, 8), mask, torch.zeros(1, 77, 768))
    with torch.inference_mode(False), torch.enable_grad():
        trainee = trainable_model(model, DREAMCOM, precision_of(model, DREAMCOM), 0)
        blocks = block_modules(trainee.unet)
        together, chance = (
            replace(DREAMCOM, accumulation=2, beta=0.4),
            replace(DREAMCOM, accumulation=2, regular_chance=0.3),
        )
        alone, both, one_of_them = (
            check_step_fits(model, trainee, recipe, [examples] * sets, blocks, False).activations
            for recipe, sets in ((together, 1), (together, 2), (chance, 2))
        )
    assert both == pytest.approx(2 * alone, rel=1e-6)
    assert one_of_them == alone


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("recipe", "size", "batch"),
    [("DreamCom", 128, 1), ("DreamCom", 256, 2), ("DreamCom (full UNet)", 128, 1)],
)
def test_the_estimate_is_what_a_training_takes(unets, name, checkpointing, recipe, size, batch, capsys):
    from inlay.training.finetune.recipes import RECIPES

    chosen = replace(RECIPES[recipe], steps=2, batch_size=batch)
    estimate, peak = estimate_and_peak(unets[name], size, checkpointing, chosen)
    with capsys.disabled():
        print(
            f"\n{name}, {recipe}, {size} px, batch {batch}, checkpointing {checkpointing}: estimate"
            f" {estimate / 2**20:.0f} MB, peak {peak / 2**20:.0f} MB, {estimate / peak - 1:+.0%}"
        )
    assert 0.9 * peak - LAID_OUT_ANEW < estimate < 1.2 * peak
