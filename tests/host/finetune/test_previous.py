"""Going on from an earlier subject."""

from dataclasses import replace

import pytest
import torch


@pytest.fixture
def subject(pictures, store_folder, run):
    """A trained subject, and its file's tensors."""
    _, lora, _, subject, *_ = run(*pictures)
    return subject, lora


def test_no_step_at_all_gives_the_previous_weights_back(pictures, run, subject):
    again = run(*pictures, steps=1, learning_rate=1e-12, previous=subject[0])
    assert again[3].previous == subject[0].lora != again[3].lora
    for key, tensor in subject[1].items():
        torch.testing.assert_close(again[1][key], tensor, rtol=1e-5, atol=1e-9)


def test_it_learns_from_where_the_other_stopped(pictures, run, subject):
    alone, on_top = run(*pictures, seed=8), run(*pictures, seed=8, previous=subject[0])
    assert alone[3].lora != on_top[3].lora
    assert alone[2]["loss"] != on_top[2]["loss"]
    moved = {key for key, tensor in subject[1].items() if not torch.equal(tensor, on_top[1][key])}
    assert moved == {key for key in subject[1] if not key.endswith(".alpha")}


def test_a_full_finetuning_goes_on_as_well(pictures, store_folder, run):
    full = {"recipe": "DreamCom (full UNet)", "rank": 0, "steps": 1, "learning_rate": 1e-4}
    _, first, _, subject, *_ = run(*pictures, **full)
    again = run(*pictures, **full | {"learning_rate": 1e-12}, previous=subject)[1]
    assert max(tensor.abs().max() for tensor in first.values()) > 5e-5
    for key, tensor in first.items():
        torch.testing.assert_close(again[key], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "sdxl"}, r"previous: sks cat was trained for SDXL but the model is SD 1\.5"),
        ({"lora": "inlay/gone.safetensors"}, r"previous: its weights, inlay/gone.safetensors, are not in"),
        ({"lora": "../../secret.safetensors"}, "previous: its weights"),
    ],
)
def test_a_subject_that_does_not_fit_is_refused(pictures, run, subject, monkeypatch, changes, message):
    from inlay.training.finetune import pipeline

    monkeypatch.setattr(pipeline, "encode_examples", lambda *_: pytest.fail("work began"))
    with pytest.raises(ValueError, match=message):
        run(*pictures, previous=replace(subject[0], **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 8}, "trained with rank 4 but this run asks for rank 8; set rank to 4"),
        ({"recipe": "DreamMix"}, r"trained on other layers .* choose its recipe \(DreamCom\)"),
        ({"recipe": "DreamCom (full UNet)"}, "trained on other layers"),
    ],
)
def test_another_rank_or_other_layers_are_refused(pictures, run, subject, monkeypatch, changes, message):
    from inlay.training.finetune import pipeline

    monkeypatch.setattr(pipeline, "encode_examples", lambda *_: pytest.fail("work began"))
    with pytest.raises(ValueError, match=message):
        run(*pictures, previous=subject[0], **changes)


def test_damaged_weights_are_named(pictures, run, subject, store_folder):
    path = store_folder.parent / subject[0].lora
    path.write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        run(*pictures, previous=subject[0], steps=2)


LAYOUTS = {
    "PEFT": ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight"),
    "DreamMix": ("unet.{}.lora.down.weight", "unet.{}.lora.up.weight"),
    "before 0.22": ("{}.processor.{}_lora.down.weight", "{}.processor.{}_lora.up.weight"),
}


def in_layout(lora, paths, layout):
    """A LoRA of ours as diffusers writes it; the scale alpha / rank is 1 there."""
    renamed = {}
    for path in paths:
        key = "lora_unet_" + path.replace(".", "_")
        if f"{key}.alpha" not in lora:
            continue
        for part, form in zip(("lora_down", "lora_up"), LAYOUTS[layout], strict=True):
            owner, _, leaf = path.removesuffix(".0").rpartition(".")
            names = (owner, leaf) if layout == "before 0.22" else (path,)
            renamed[form.format(*names)] = lora[f"{key}.{part}.weight"]
    return renamed


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_lora_in_diffusers_layout_can_be_gone_on_from(parts, pictures, run, subject, store_folder, layout):
    from safetensors.torch import save_file

    from inlay.host.models import diffusers_paths

    theirs = in_layout(subject[1], diffusers_paths(parts.model).values(), layout)
    assert len(theirs) == 2 * len(subject[1]) // 3
    save_file(theirs, store_folder / "theirs.safetensors")
    foreign = replace(subject[0], lora="inlay/theirs.safetensors", recipe="", rank=0, losses=[])
    again = run(*pictures, steps=1, learning_rate=1e-12, previous=foreign)
    for key, tensor in subject[1].items():
        torch.testing.assert_close(again[1][key], tensor, rtol=1e-5, atol=1e-9)


def test_diffusers_names_of_an_sdxl_model_are_ours(in_process_host):
    """SDXL files name the original blocks, diffusers its own."""
    from types import SimpleNamespace

    import comfy.supported_models
    import comfy.utils

    from inlay.training.finetune.lora_formats import lora_names, with_own_names

    shape = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
        "channel_mult": [1, 2], "transformer_depth": [0, 2], "transformer_depth_output": [0, 0, 2, 2],
        "transformer_depth_middle": 2, "context_dim": 48, "use_spatial_transformer": True,
        "use_linear_in_transformer": True, "num_classes": "sequential", "adm_in_channels": 64,
        "num_head_channels": 64, "legacy": False, "dtype": torch.float32,
    }  # fmt: skip
    config = comfy.supported_models.SDXL(shape)
    base = config.get_model({}, "", device=torch.device("meta"))
    model = SimpleNamespace(model=base)
    ours = {theirs: key for key, theirs in comfy.utils.unet_to_diffusers(shape).items()}
    path = next(path for path in ours if path.endswith("attn1.to_q.weight")).removesuffix(".weight")
    key = "lora_unet_" + ours[f"{path}.weight"].removesuffix(".weight").replace(".", "_")
    named = with_own_names(model, {f"{key}.lora_down.weight": torch.ones(4, 8), "other": torch.ones(1)})
    own = lora_names(model)(path)
    assert own != key
    assert set(named) == {f"{own}.lora_down.weight", f"{own}.alpha", "other"}
    assert named[f"{own}.alpha"] == 4
    assert with_own_names(model, named).keys() == named.keys()


@pytest.mark.parametrize("options", [{"adapter": "DoRA"}, {"layers": "attention"}])
def test_another_adapter_or_other_layers_of_a_transformer_are_named(train, store_folder, options):
    first = train("flux2-klein", steps=1, preview_every=0)[3]
    with pytest.raises(ValueError, match=r"choose the layers and the adapter \(LoRA, DoRA or LoKr\) that"):
        train("flux2-klein", options=options, previous=first)


@pytest.mark.parametrize("adapter", ["LoRA", "DoRA", "LoKr"])
@pytest.mark.parametrize("name", ["flux2-klein", "flux1-fill"])
def test_a_transformers_subject_is_gone_on_from(name, adapter, train, store_folder):
    choices = {"preview_every": 0, "options": {"adapter": adapter}}
    _, lora, _, first, *_ = train(name, **choices, learning_rate=1e-2)
    again = train(name, **choices, steps=1, learning_rate=1e-12, previous=first, seed=8)
    assert again[3].previous == first.lora != again[3].lora
    for key, tensor in lora.items():
        torch.testing.assert_close(again[1][key], tensor, rtol=1e-5, atol=1e-8)
