"""The tiny world's identity training in miniature: examples, a few steps of each stage, resume, the files."""

import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def work(in_process_host, tmp_path_factory):
    """A folder with a few examples of every kind."""
    from inlay.lab.models import autoencoders, object_cache

    folder = tmp_path_factory.mktemp("lab")
    (folder / "objects").mkdir()
    model = autoencoders.trained_autoencoder(folder, 4)  # the shipped one
    for kind in object_cache.KINDS:
        tensors = object_cache.shard(kind, model, np.random.default_rng(3), 4)
        save_file(tensors, folder / "objects" / f"{kind}-00000.safetensors")
    return folder


def loaded(path: Path) -> dict[str, Any]:
    """A training's state."""
    from inlay.lab.models import runs

    state = runs.load(path)
    assert state
    return state


@pytest.fixture(autouse=True)
def gradients(inference):
    """Training needs what the host's inference mode takes away."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def test_examples_show_the_object_its_hole_and_its_scene(work):
    shapes = {}
    for path in sorted((work / "objects").glob("*.safetensors")):
        tensors = load_file(path)
        shapes[path.name.split("-")[0]] = {name: tuple(value.shape[1:]) for name, value in tensors.items()}
        assert tensors["object"].amax() > 60
    common = {"object": (84, 84, 3), "latent": (4, 16, 16), "look": (16, 16, 16), "caption": (77,)}
    assert shapes == {
        "views": common | {"latent": (4, 10, 10), "look": (16, 10, 10)},
        "compositions": common | {"beside": (5, 16, 16)},
        "insertions": common | {"beside": (4, 16, 16)},
        "same_view": common | {"beside": (5, 16, 16)},
        "objects": {"object": (84, 84, 3), "caption": (77,)},
    }
    compositions = load_file(work / "objects" / "compositions-00000.safetensors")
    hole, around = compositions["beside"][:, :1] > 0, compositions["beside"][:, 1:]
    assert hole.flatten(1).any(1).all()
    far = torch.nn.functional.max_pool2d(hole.float(), 7, 1, 3) == 0  # cells that see nothing of the hole
    assert (around - compositions["latent"]).float().masked_select(far.expand_as(around)).abs().max() < 0.1
    insertions = load_file(work / "objects" / "insertions-00000.safetensors")
    assert insertions["beside"].float().std() > 3 * insertions["latent"].float().std()  # not scaled


def test_an_inserted_thing_stands_where_nothing_else_did(in_process_host):
    from inlay.lab import scenes
    from inlay.lab.models.object_cache import covered

    thing = scenes.sample_thing(np.random.default_rng(0)).posed(z=0.3, scale=0.7)
    room = scenes.sample_room(np.random.default_rng(1))
    assert covered(scenes.Scene(room, thing)) == 0
    assert covered(scenes.Scene(room, thing, (thing.posed(z=-0.4, scale=0.5),))) > 0.9
    assert covered(scenes.Scene(room, thing.posed(x=-0.7), (thing.posed(x=0.7, scale=0.4),))) == 0


def call(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
    module.main()


@pytest.fixture(scope="module")
def trained(in_process_host, work):
    """Both trainings through all stages in a few steps, the first of them in two goes."""
    from inlay.lab.models import train_imprint, train_pix2pix

    for module in (train_imprint, train_pix2pix):
        patch = pytest.MonkeyPatch()
        patch.setattr(module, "BATCH", dict.fromkeys(module.BATCH, 2))
        steps = [f"--{stage}=2" for stage in module.STEPS]
        with patch.context(), torch.inference_mode(False), torch.enable_grad():
            if module is train_imprint:
                call(patch, module, "--work", work, *steps, "--minutes", 0)
                assert loaded(work / "imprint_dino_words.pt")["step"] < 2
            call(patch, module, "--work", work, *steps)
        patch.undo()
    return work


def test_the_stages_train_what_they_should(trained):
    words, views, compose, insert = (
        loaded(trained / f"{name}.pt")
        for name in ("imprint_dino_words", "imprint_dino_views", "imprint_two_stage", "pix2pix_optimizer")
    )
    assert [state["step"] for state in (words, views, compose, insert)] == [2] * 4
    key = "encoder.encoder.layer.0.norm1.weight"
    assert not torch.equal(words["learned"][key], views["learned"][key])
    assert not any(name.startswith("encoder.") for name in [*compose["learned"], *insert["learned"]])
    unet = {name.split(".")[1] for name in views["learned"] if name.startswith("unet.")}
    assert unet == {"output_blocks", "out"}
    assert not any(name.endswith("base_layer.weight") for name in compose["learned"])
    assert "unet.input_blocks.0.0.weight" in insert["learned"]
    shipped = load_file(trained / "imprint_two_stage.safetensors")
    assert torch.equal(shipped[key], views["mean"][key])


def test_a_projection_learns_its_words_on_the_encoder_that_knows_them(trained, monkeypatch):
    from inlay.lab.models import train_imprint

    monkeypatch.setattr(train_imprint, "BATCH", dict.fromkeys(train_imprint.BATCH, 2))
    monkeypatch.setattr(train_imprint, "ON_FROZEN", 1)
    steps = [f"--{stage}=2" for stage in train_imprint.STEPS]
    call(monkeypatch, train_imprint, "--work", trained, *steps, "--variant", "linear")
    words, foundation = (loaded(trained / f"imprint_{name}_words.pt") for name in ("linear", "dino"))
    assert not any(name.startswith("encoder.") for name in words["learned"])
    views = loaded(trained / "imprint_linear_views.pt")
    key = "encoder.encoder.layer.0.norm1.weight"
    assert torch.allclose(views["learned"][key], foundation["mean"][key], atol=1e-3), "goes on from there"
    assert not torch.equal(views["learned"][key], foundation["mean"][key])


def test_what_was_trained_ships_small_and_loads_in_the_host(kit, in_process_host, trained, tmp_path):
    """The files in the repository's form, the host's files made of them, and the nodes with those."""
    import shutil

    import comfy.sd
    import comfy.utils

    from inlay.lab.models import files, identity, shipped

    weights = tmp_path / "weights"
    shutil.copytree(files.WEIGHTS, weights)
    identity.ship(trained, weights)
    assert sum((weights / f"{name}.safetensors").stat().st_size for name in identity.SHIPPED) < 15e6
    paths = identity.install(in_process_host.models, weights)
    before = paths["pix2pix"].stat().st_mtime_ns
    assert identity.install(in_process_host.models, weights)["pix2pix"].stat().st_mtime_ns == before

    with torch.inference_mode():
        adapter, encoder, _ = kit.execute("InlayLoadAdapter", identity.IDENTITY)
        optimizer, its_encoder, _ = kit.execute("InlayLoadAdapter", identity.OPTIMIZER)
        model, _, vae = comfy.sd.load_checkpoint_guess_config(str(paths["pix2pix"]))[:3]
        images, mask = kit.object_picture()
        positive, negative, seen = kit.execute(
            "IdentityEncoderDINOv2", [encoder], [adapter], [images], [mask]
        )
        assert positive[0][0].shape == negative[0][0].shape == (1, 41, 768)
        latent = kit.execute(
            "ImageConditionedPix2Pix", model, vae, its_encoder, optimizer, kit.picture(64), seen
        )[2]
        assert latent["samples"].shape == (1, 4, 8, 8)

    [tiny] = [path for path in shipped.install(tmp_path / "models") if path.parent.name == "checkpoints"]
    base = comfy.sd.load_checkpoint_guess_config(str(tiny))[0]
    lora = comfy.utils.load_torch_file(str(paths["lora"]))
    patched: Any = comfy.sd.load_lora_for_models(base, None, lora, 1.0, 0)[0]
    assert len(patched.patches) == len(lora) // 2  # the host knew every name


def test_the_tables_are_made_and_not_made_twice(trained, monkeypatch, tmp_path, capsys):
    """Of networks that have learned nothing, by the commands themselves."""
    import json

    from inlay.lab.studies import imprint, pix2pix

    common = "--work", trained, "--minutes", 0, "--steps", 2
    few = "--rows", "caption", "words", "two_stage", "--subjects", 2, "--scenes", 1
    for module, name, own in (
        (imprint, "imprint", few),
        (pix2pix, "pix2pix", ("--rows", "optimizer", "--scenes", 3, "--guidance-scenes", 0)),
    ):
        out = tmp_path / name
        call(monkeypatch, module, *common, *own, "--out", out)
        made = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
        table = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        counts = {cell["n"] for row in table["rows"].values() for cell in row.values()}
        assert counts <= {1, 2, 3}
        shown = np.asarray(Image.open(out / f"{name}.jpg").convert("L"))
        assert len(np.unique(shown)) > 20  # pictures, no empty page
        call(monkeypatch, module, *common, *own, "--out", out)
        assert made == {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    assert "two stages against the picture's words alone" in capsys.readouterr().out


def test_stages_are_compared_seed_by_seed(trained, monkeypatch, tmp_path):
    """Of trainings of two steps, each with its own files; the same command reads back what is there."""
    import json

    from inlay.lab.models import train_imprint
    from inlay.lab.studies import stages

    monkeypatch.setattr(train_imprint, "BATCH", dict.fromkeys(train_imprint.BATCH, 2))
    monkeypatch.setattr(stages, "EXAMPLES", {})
    steps = [f"--{stage}=2" for stage in train_imprint.STEPS]
    few = (
        "--seeds",
        2,
        "--subjects",
        2,
        "--sampling-steps",
        2,
        "--pairs",
        3,
        "--ways",
        "single_stage",
        "two_stage",
    )
    arguments = "--work", trained, *steps, *few, "--out", tmp_path
    call(monkeypatch, stages, *arguments)
    one, both = (
        loaded(trained / f"imprint_{name}_3pairs_seed1.pt") for name in ("single_stage", "two_stage")
    )
    assert (one["step"], both["step"]) == (4, 2), "one stage is as long as both"
    assert (trained / "imprint_dino_views_seed1.pt").exists()
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    table = json.loads((tmp_path / "stages.json").read_text(encoding="utf-8"))
    assert len(table["rows"]) == 6  # two ways from two sides, the caption, the truth
    text = (tmp_path / "stages.md").read_text(encoding="utf-8")
    assert "two stages, sequential against one stage" in text
    assert "over 2 seeds" in text
    assert "the same side against another one" in text
    call(monkeypatch, stages, *arguments)
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}


def test_a_subject_is_shown_from_another_side_and_from_the_same(in_process_host):
    """The photos of both sides show one thing, and the sides differ by what was asked."""
    from inlay.lab.studies import stages

    turns = []

    def kept(rng, thing, yaw):
        turns.append((thing, yaw))
        return torch.zeros(84, 84, 3)

    patch = pytest.MonkeyPatch()
    patch.setattr(stages, "photo_of", kept)
    subjects = [stages.subject_of(index) for index in range(12)]
    patch.undo()
    for subject, (thing, new), (same_thing, same) in zip(subjects, turns[::2], turns[1::2], strict=True):
        assert thing == same_thing
        assert subject.task.thing.yaw == same
        away = abs((new - same + np.pi) % (2 * np.pi) - np.pi)
        assert stages.AWAY - 1e-9 <= away <= np.pi
    photo = stages.subject_of(0).seen
    assert not torch.equal(photo["new"], photo["same"])


def test_the_change_between_ways_is_told_by_seed():
    """Two seeds of two subjects: the mean, and both errors by hand."""
    from inlay.lab.studies.stages import seed_change
    from inlay.lab.studies.subjects import SIMILARITY

    def seeds(*values):
        return [[{SIMILARITY: value} for value in seed] for seed in values]

    text = seed_change(seeds((0.5, 0.7), (0.4, 0.6)), seeds((0.4, 0.5), (0.4, 0.4)), "a against b")
    # by seed .15 and .10; by subject .05 and .20
    assert "+0.125 (by seed +0.150, +0.100), +- 0.025 over 2 seeds, +- 0.075 over 2 subjects" in text


def test_the_order_of_the_rates_is_the_papers_or_reversed():
    from inlay.lab.models.train_imprint import RATES, stage_of
    from inlay.training.adapters.identity_stages import rate_at

    def rates(order):
        stage = stage_of("compose", order)
        return [rate_at(stage, part, step, 1000) for part in ("adapter", "unet") for step in (400, 900)]

    adapter, unet = RATES["adapter"], RATES["unet"]
    assert rates("sequential") == pytest.approx([adapter, adapter * 0.1, unet * 0.1, unet])
    assert rates("reversed") == pytest.approx([adapter * 0.1, adapter, unet, unet * 0.1])
    assert rates("joint") == pytest.approx([adapter, adapter, unet, unet])


def test_a_change_is_what_was_attached(in_process_host):
    from inlay.lab.models import low_rank
    from inlay.lab.models.inpainting_unet import new_unet

    unet = new_unet(0)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    low_rank.attach(unet, rank=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02, generator=generator)
    x, t, rows = torch.randn(1, 9, 8, 8), torch.tensor([500.0]), torch.randn(1, 3, 768)
    plain = new_unet(0)
    plain.load_state_dict(low_rank.changed(before, low_rank.change_of(unet.state_dict())))
    with torch.no_grad():
        wanted, got = unet(x, t, context=rows), plain(x, t, context=rows)
    assert torch.allclose(got, wanted, atol=1e-4)
    assert not torch.allclose(plain.state_dict()["out.2.weight"], before["out.2.weight"])


def test_a_source_is_read_as_the_surroundings_of_a_hole_were(in_process_host):
    from inlay.lab.models import files, quantised
    from inlay.lab.models.assemble import SD_SCALE
    from inlay.lab.models.object_training import shipped_unet

    x, source = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    state = quantised.load(files.WEIGHTS / "unet.safetensors")
    unet = cast(Any, shipped_unet(8, hole=1.0))
    eight = unet.input_blocks[0][0]
    first = torch.nn.Conv2d(9, 320, 3, padding=1)
    first.load_state_dict({k: state[f"input_blocks.0.0.{k}"] for k in ("weight", "bias")})
    with torch.no_grad():
        wanted = first(torch.cat([x, torch.ones(1, 1, 8, 8), SD_SCALE * source], 1))
        got = eight(torch.cat([x, source], 1))
    assert torch.allclose(got[..., 1:-1, 1:-1], wanted[..., 1:-1, 1:-1], atol=1e-3)  # padding has no hole


def test_windows_hold_what_is_painted():
    from inlay.lab.models.object_training import cut, painted

    hole = torch.zeros(2, 1, 16, 16)
    hole[0, :, 2:6, 7:12] = 1
    hole[1, :, 1:13, 3:5] = 1  # larger than the window
    latent = torch.arange(2 * 4 * 256.0).view(2, 4, 16, 16)
    batch = {"latent": latent, "look": latent.repeat(1, 4, 1, 1), "beside": torch.cat([hole, latent], 1)}
    for seed in range(20):
        small = cut(batch, 10, np.random.default_rng(seed))
        assert small["latent"].shape == (2, 4, 10, 10)
        assert painted(small)[0].sum() == hole[0].sum()
        assert painted(small)[1].sum() == 10 * 2
        assert torch.equal(small["latent"], small["beside"][:, 1:])


def test_the_weight_of_an_error_favours_the_hole_and_grows_with_the_noise(in_process_host):
    """Of a network that predicts zeros the error is the noise's; it counts 1 / sqrt(a)."""
    from inlay.encoders.content_adapter import IMAGENET, AdapterConfig, ContentAdapter
    from inlay.lab.models.inpainting_unet import alphas_cumprod, new_unet
    from inlay.lab.models.object_training import TinyTrainee, inputs_of, tiny_sigmas
    from inlay.lab.models.train_imprint import ENCODER_SPEC
    from inlay.training.adapters.identity_stages import COMPOSE
    from inlay.training.objective import NoiseSchedule

    hole = torch.zeros(2, 1, 4, 4)
    hole[..., :2] = 1
    latent, look = torch.randn(2, 4, 4, 4), torch.zeros(2, 16, 4, 4)
    batch = {"latent": latent, "look": look, "object": torch.rand(2, 84, 84, 3)}
    batch["beside"] = torch.cat([hole, latent], 1)
    inputs = inputs_of(batch, COMPOSE, IMAGENET, torch.Generator().manual_seed(0))
    assert inputs["weight"].unique().tolist() == pytest.approx([0.2, 1.0])
    adapter = ContentAdapter(AdapterConfig(ENCODER_SPEC, width=192, depth=0))
    trainee = TinyTrainee(
        torch.nn.Identity(),
        adapter,
        new_unet(0),
        NoiseSchedule(tiny_sigmas(), "epsilon"),
        lambda unet, x, t, c: 0 * x[:, :4],
    )
    trainee.context = lambda pixels, keep: torch.zeros(0)
    trainee.look.forward = lambda look, weight: torch.zeros(())
    a = alphas_cumprod()[inputs["t"]].view(-1, 1, 1, 1)
    wanted = (inputs["weight"] * inputs["noise"].square() / a.sqrt()).mean()
    assert trainee(inputs).item() == pytest.approx(wanted.item(), rel=1e-4)
