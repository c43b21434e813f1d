"""What a base is known by: all that decides a result counts, and nothing else does."""

import math
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inlay import dev


@pytest.fixture(scope="module")
def model_fingerprint(parts):
    """Of the parts, or of others wired in their place."""
    from inlay.training.finetune.pipeline import Pipeline, encode_captions, pipeline_fingerprint

    def identify(**other):
        pipeline = Pipeline(**vars(parts) | other)
        with torch.inference_mode():
            return pipeline_fingerprint(pipeline, encode_captions(pipeline, ["a photo of sks cat"], 64))

    return identify


def test_a_prediction_of_another_kind_is_another_base(parts, model_fingerprint):
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    def predicting(kind):
        return ModelSamplingDiscrete().patch(parts.model, kind, False)[0]

    assert model_fingerprint(model=predicting("eps")) == model_fingerprint()
    assert model_fingerprint(model=predicting("v_prediction")) != model_fingerprint()


def test_a_text_encoder_that_stops_at_another_layer_is_another_base(parts, model_fingerprint):
    def stopping(layer):
        clip = parts.clip.clone()
        clip.clip_layer(layer)
        return clip

    # The tiny encoder's layers are all zeros, so that stopping earlier changes nothing: no other base.
    assert model_fingerprint(clip=stopping(-2)) == model_fingerprint()
    with changed(parts.clip.patcher, "clip_l.transformer.text_model.encoder.layers.11.mlp.fc2.bias"):
        assert model_fingerprint(clip=stopping(-2)) == model_fingerprint(clip=stopping(-2))
        assert model_fingerprint(clip=stopping(-2)) != model_fingerprint()


@pytest.mark.parametrize("kind", ["ModelMergeSimple", "ModelSubtract"])
def test_the_same_merge_made_twice_is_the_same_base(parts, random_tiny, model_fingerprint, kind):
    from comfy_extras import nodes_model_merging

    def merged(share, other=None):
        return getattr(nodes_model_merging, kind)().merge(parts.model, other or random_tiny(9)[0], share)[0]

    assert model_fingerprint(model=merged(0.5)) == model_fingerprint(model=merged(0.5))
    assert (
        model_fingerprint(model=merged(0.25)) != model_fingerprint(model=merged(0.5)) != model_fingerprint()
    )
    # A merge of a merge: what was merged into the other model counts as well.
    twice = [merged(0.5, merged(share, parts.model)) for share in (0.5, 0.5, 0.25)]
    assert (
        model_fingerprint(model=twice[0])
        == model_fingerprint(model=twice[1])
        != model_fingerprint(model=twice[2])
    )
    assert model_fingerprint(model=merged(0.5, parts.model)) != model_fingerprint(model=merged(0.5))


def changed(patcher, key):
    """A context in which one weight of a model holds other numbers."""
    from contextlib import contextmanager

    @contextmanager
    def change():
        weight = dict(patcher.model.named_parameters())[key]
        with torch.inference_mode():
            before = weight.clone()
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
            yield
            weight.copy_(before)

    return change()


@pytest.mark.parametrize(
    ("part", "key", "decides"),
    [
        # The host leaves this one uninitialised: files in SD 1.5's layout lack it.
        ("clip", "clip_l.transformer.text_projection.weight", False),
        ("clip", "clip_l.transformer.text_model.encoder.layers.0.mlp.fc2.bias", True),
        ("clip", "clip_l.transformer.text_model.final_layer_norm.weight", True),
        ("vae", "taesd_decoder.1.weight", False),
        ("vae", "taesd_encoder.0.weight", True),
        ("model", "diffusion_model.input_blocks.1.0.in_layers.2.weight", True),
    ],
)
def test_a_weight_counts_where_it_decides_the_result(parts, model_fingerprint, part, key, decides):
    wired = getattr(parts, part)
    before = model_fingerprint()
    with changed(getattr(wired, "patcher", wired), key):
        assert (model_fingerprint() != before) == decides
    assert model_fingerprint() == before


@pytest.mark.parametrize("count", [3, pytest.param(50, marks=pytest.mark.repeats)])
def test_every_reload_is_the_same_base(parts, random_checkpoint, model_fingerprint, count):
    import comfy.model_management
    import comfy.sd

    before = model_fingerprint()
    for number in range(count):
        junk = [torch.full((768, 768), float("nan")) for _ in range(20)]  # what freed memory may hold
        del junk
        with torch.inference_mode():
            loaded: Any = comfy.sd.load_checkpoint_guess_config(str(random_checkpoint))
            model, clip, vae, _ = loaded
            projection = clip.cond_stage_model.clip_l.transformer.text_projection.weight
            projection.fill_(number)
        assert model_fingerprint(model=model, clip=clip, vae=vae) == before
        comfy.model_management.unload_all_models()
        comfy.model_management.cleanup_models_gc()


PRINT_STORED_NAME = dev.PACK / "tests" / "programs" / "print_stored_name.py"


@pytest.mark.parametrize("count", [2, pytest.param(20, marks=pytest.mark.repeats)])
def test_every_restart_finds_one_name(random_checkpoint, comfyui_path, tmp_path, count):
    """New processes, the checkpoint in another folder under another name, one thread or two."""
    names = []
    for number in range(count):
        moved = tmp_path / f"{number} moved.safetensors"
        shutil.copyfile(random_checkpoint, moved)
        environment = os.environ | {
            "COMFYUI_PATH": str(comfyui_path),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path != str(comfyui_path)),
            "OMP_NUM_THREADS": str(1 + number % 2),
            "MALLOC_PERTURB_": str(17 * number % 255),  # what unused memory holds
        }
        done = subprocess.run(
            [sys.executable, str(PRINT_STORED_NAME), str(moved)],
            env=environment,
            text=True,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        names.append(done.stdout.splitlines()[-1])
        moved.unlink()
    assert len(set(names)) == 1, names


def test_the_fingerprint_that_the_released_version_gave(in_process_host):
    """Written down from the code of 0.1.0 for these weights, a LoRA and a merge with a patch of its own."""
    from comfy.model_patcher import ModelPatcher
    from comfy.model_sampling import EPS, ModelSamplingDiscrete
    from comfy.weight_adapter import LoRAAdapter

    from inlay.training.finetune.pipeline import released_fingerprints

    def patcher(scale) -> Any:
        model: Any = torch.nn.Module()
        for number, name in enumerate(("weight", "text_projection")):
            values = torch.arange(300.0).view(20, 15) * (scale + number)
            model.register_parameter(name, torch.nn.Parameter(values, requires_grad=False))
        return ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))

    class Sampling(ModelSamplingDiscrete, EPS):
        pass

    model, clip, vae = (patcher(scale) for scale in (1, 10, 100))
    model.model.model_sampling = Sampling()
    model.model.model_sampling.set_sigmas(torch.arange(1.0, 9.0))
    # the last bit of torch's logarithm depends on the CPU; these are the ones of the CPU that wrote it down
    logarithms = torch.tensor([math.log(sigma) for sigma in range(1, 9)])
    logarithms[6] = torch.nextafter(logarithms[6], torch.tensor(2.0))
    model.model.model_sampling.log_sigmas = logarithms
    lora = LoRAAdapter(set(), (torch.ones(20, 2), torch.full((2, 15), 3.0), 2.0, None, None, None))
    diff = (0.25, ("diff", (torch.full((20, 15), 5.0),)), 1.0, None, None)
    merged = [(torch.full((20, 15), 7.0), lambda weight, **_: weight), diff]
    model.patches = {"weight": [(0.5, lora, 1.0, None, None), (0.75, merged, 0.5, None, None)]}
    pipeline: Any = SimpleNamespace(
        model=model, clip=SimpleNamespace(patcher=clip, layer_idx=-2), vae=SimpleNamespace(patcher=vae)
    )
    assert released_fingerprints(pipeline)[0] == "5dde57a7a74e8ecb"


def test_a_result_stored_by_the_released_version_is_found(parts, pictures, store_folder, run, monkeypatch):
    """Under its name of then: a hash of all weights, those of the text encoder that take no part included."""
    from inlay.training.finetune import finetune_subject

    names: list[str] = []
    stored_names = finetune_subject.stored_names
    monkeypatch.setattr(finetune_subject, "stored_names", lambda *a: names.extend(stored_names(*a)) or names)
    with changed(parts.clip.patcher, "clip_l.transformer.text_projection.weight"):
        first = run(*pictures)
        assert first[3].lora == f"inlay/{names[0]}.safetensors"
        for file in list(store_folder.iterdir()):
            file.rename(file.with_name(f"{names[1]}{file.suffix}"))
        monkeypatch.setattr(finetune_subject, "train_lora", lambda *_, **__: pytest.fail("trained again"))
        names.clear()
        again = run(*pictures)
    assert all(torch.equal(first[1][key], again[1][key]) for key in first[1])
    assert len(names) == 3  # today's, and two of then: with this projection and with one of zeros


def test_a_run_that_the_released_version_left_goes_on(parts, pictures, store_folder, run, monkeypatch):
    import comfy.model_management

    from inlay.nodes import subject_finetune
    from inlay.training.finetune import finetune_subject

    names: list[str] = []
    stored_names = finetune_subject.stored_names
    monkeypatch.setattr(finetune_subject, "stored_names", lambda *a: names.extend(stored_names(*a)) or names)
    whole = run(*pictures)
    for stored in list(store_folder.iterdir()):
        stored.unlink()
    names.clear()
    taken = []

    class Interrupting(subject_finetune.NodeProgress):
        def __call__(self, step, loss):
            taken.append(step)
            if step == 2 and len(taken) == 2:
                comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(subject_finetune, "NodeProgress", Interrupting)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(*pictures)
    (file,) = store_folder.iterdir()
    file.rename(file.with_name(f"{names[1]}.resume"))
    names.clear()
    resumed = run(*pictures)
    assert taken == [1, 2, 3]
    assert all(torch.equal(whole[1][key], resumed[1][key]) for key in whole[1])
    assert whole[2] == resumed[2]
    assert sorted(file.suffix for file in store_folder.iterdir()) == [".json", ".safetensors"]
