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
        ({"family": "SDXL"}, "previous: sks cat was trained for SDXL but the model is SD15"),
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
