"""Adapter training in miniature: what learns, how fast, what is left out; whole runs through the command."""

import json
import re
import signal
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from inlay.encoders.content_adapter import AdapterConfig, ContentAdapter, EncoderSpec
from inlay.encoders.dinov2 import DinoConfig, DinoV2
from inlay.headless import train_cli
from inlay.tests.adapter_training import common, cut, losses, options, pack_shards, unet, write_world
from inlay.training.adapters import identity_stages as adapters
from inlay.training.adapters import run_checkpoints as runs
from inlay.training.adapters.identity_stages import (
    COMPOSE,
    INSERT,
    VIEWS_STAGE,
    TrainableAdapter,
    conditioning_dropout,
    denoise_with_diffusers,
    freeze,
    prepare_batch,
)
from inlay.training.adapters.pretrained import (
    check_encoder_matches,
    load_diffusion,
    load_object_encoder,
    load_unet,
    read_adapter,
)
from inlay.training.objective import NoiseSchedule, generator_at

DINO = DinoConfig(32, 1, 2, 64, False, 4, grid=4)
READS = EncoderSpec(width=32, size=28)


def trainee(channels=4, uncond="learned") -> Any:
    net = unet(channels)
    config = AdapterConfig(replace(READS, uncond=uncond), width=16, depth=1, heads=2, context=16)
    return TrainableAdapter(
        DinoV2(DINO), ContentAdapter(config), net, load_diffusion(None), denoise_with_diffusers
    )


class Pixels:
    """An autoencoder whose latents are the picture's own pixels, averaged over 4 x 4, and their mean."""

    def mode(self, pictures, scaled):
        small = torch.nn.functional.avg_pool2d(2 * pictures.movedim(-1, 1) - 1, 4)
        return torch.cat([small, small.mean(1, keepdim=True)], 1) * (0.5 if scaled else 1.0)

    def sample(self, pictures, noise):
        return self.mode(pictures, True) + 0.01 * noise


def batch(count=3, start=0, side=16):
    generator = generator_at(0, start)
    pictures = torch.rand(count, side, side, 3, generator=generator)
    hole = torch.zeros(count, side, side)
    hole[:, 4:12, 4:12] = 1
    shown = torch.rand(count, 28, 28, 3, generator=generator)
    return {
        "target": pictures, "source": pictures.flip(1), "hole": hole, "object": shown,
        "number": torch.arange(start, start + count),
    }  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    write_world(root)
    return root


@pytest.fixture(scope="module")
def packed(world):
    pack_shards(world)
    return world


# -- stages


def test_the_context_agnostic_stage_trains_encoder_adapter_and_decoder():
    module = trainee()
    parts = freeze(module.parts, VIEWS_STAGE)
    assert set(parts) == {"encoder", "adapter", "unet"}
    learns = {name for name, p in module.named_parameters() if p.requires_grad}
    assert "unet.up_blocks.0.resnets.0.conv1.weight" in learns
    assert "unet.conv_out.weight" in learns
    assert not any(name.startswith(("unet.down_blocks", "unet.mid_block", "unet.conv_in")) for name in learns)
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad and "unet" not in name}
    assert frozen == {"encoder.embeddings.mask_token"}


def test_the_compositing_stage_freezes_the_encoder():
    module = trainee(9)
    assert set(freeze(module.parts, COMPOSE)) == {"adapter", "unet"}
    assert not any(p.requires_grad for p in module.encoder.parameters())
    assert all(p.requires_grad for p in [*module.unet.parameters(), *module.adapter.parameters()])


def test_insertion_trains_the_cross_attention_alone():
    module = trainee(8)
    freeze(module.parts, INSERT)
    learns = [name for name, p in module.unet.named_parameters() if p.requires_grad]
    assert learns
    assert all(".attn2." in name for name in learns)
    with pytest.raises(ValueError, match=r"--unet: it has no weights that stage 'insert' trains"):
        freeze({"unet": torch.nn.Linear(2, 2)}, INSERT)


def test_the_original_names_of_a_unet_are_known_too():
    attention = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    names = ("output_blocks.0.0.in_layers.0.weight", "out.2.weight", attention)
    assert [adapters.is_trained(name, "decoder") for name in names] == [True, True, False]
    assert [adapters.is_trained(name, "cross_attention") for name in names] == [False, False, True]


def test_rates_swap_halfway_after_the_warm_up():
    stage = replace(COMPOSE, warm_up=10)
    rates = [tuple(adapters.rate_at(stage, part, k, 100) for part in ("adapter", "unet")) for k in range(100)]
    assert rates[0] == (adapters.HIGH / 10, adapters.LOW / 10)
    assert all(rate == (adapters.HIGH, adapters.LOW) for rate in rates[10:50])
    assert all(rate == (adapters.LOW, adapters.HIGH) for rate in rates[50:])


def test_conditions_are_left_out_as_often_as_said():
    r = torch.arange(0, 1, 1e-4) + 5e-5
    objects, pictures = conditioning_dropout(INSERT, r)
    p = 0.05
    assert torch.equal(~objects, r < 2 * p)
    assert torch.equal(~pictures, (r >= p) & (r < 3 * p))
    assert (~objects & ~pictures).float().mean().item() == pytest.approx(p, abs=1e-3)
    objects, pictures = conditioning_dropout(VIEWS_STAGE, r)
    assert (~objects).float().mean().item() == pytest.approx(0.05, abs=1e-3)
    assert pictures.all()


# -- the loss


@pytest.mark.parametrize(
    ("stage", "channels"),
    [(VIEWS_STAGE, 4), (replace(VIEWS_STAGE, channels=9), 9), (COMPOSE, 9), (INSERT, 8)],
)
def test_the_loss_is_the_error_of_the_predicted_noise(stage, channels):
    module = trainee(channels)
    inputs = prepare_batch(stage, Pixels(), READS, batch(), seed=4, levels=1000)
    assert inputs["latent"].shape == (3, 4, 4, 4)
    got = module(inputs)
    a = 1 / (1 + module.diffusion.sigmas[inputs["t"]].double() ** 2)
    a = a.view(-1, 1, 1, 1)
    x = (a.sqrt() * inputs["latent"] + (1 - a).sqrt() * inputs["noise"]).float()
    if channels > 4:
        x = torch.cat([x, inputs["beside"]], 1)
    assert x.shape[1] == channels
    context = module.adapter(module.encoder(inputs["pixels"]))
    context = torch.where(inputs["keep"].view(-1, 1, 1) > 0, context, module.adapter.nothing)
    predicted = module.unet(x, inputs["t"], context).sample
    expected = (predicted - inputs["noise"]).square().mean((1, 2, 3))
    assert torch.allclose(got, expected, atol=1e-5)


def test_what_is_beside_the_noise():
    pictures = batch()
    compose = prepare_batch(COMPOSE, Pixels(), READS, pictures, 0, 1000)["beside"]
    small = torch.nn.functional.interpolate(pictures["hole"][:, None], (4, 4), mode="nearest")
    assert torch.equal(compose[:, :1], small)
    grey = pictures["target"] * (1 - pictures["hole"][..., None]) + 0.5 * pictures["hole"][..., None]
    assert torch.allclose(compose[:, 1:], Pixels().mode(grey, True), atol=1e-6)
    whole = prepare_batch(replace(VIEWS_STAGE, channels=9), Pixels(), READS, {**pictures}, 0, 1000)
    assert torch.equal(whole["beside"][:, :1], small)  # a hole that is given is used
    del pictures["hole"]
    whole = prepare_batch(replace(VIEWS_STAGE, channels=9), Pixels(), READS, pictures, 0, 1000)["beside"]
    assert torch.equal(whole[:, :1], torch.ones(3, 1, 4, 4))
    insert = prepare_batch(INSERT, Pixels(), READS, pictures, 0, 1000)
    seen = conditioning_dropout(INSERT, torch.stack([draw(0, k) for k in range(3)]))[1]
    expected = Pixels().mode(pictures["source"], False) * seen.view(-1, 1, 1, 1)
    assert torch.equal(insert["beside"], expected)


def draw(seed, number):
    """The share that decides what a record leaves out: its fourth draw."""
    generator = generator_at(seed, number, adapters.NOISE)
    for _ in range(2):
        torch.randn(4, 4, 4, generator=generator)
    torch.randint(1000, (), generator=generator)
    return torch.rand((), generator=generator)


def test_an_example_draws_the_same_numbers_in_any_batch():
    together = prepare_batch(VIEWS_STAGE, Pixels(), READS, batch(4), 7, 1000)
    whole = batch(4)
    for row in range(4):
        single = {name: part[row : row + 1] for name, part in whole.items()}
        alone = prepare_batch(VIEWS_STAGE, Pixels(), READS, single, 7, 1000)
        for name in ("noise", "t", "keep", "latent"):
            assert torch.equal(alone[name][0], together[name][row])


@pytest.mark.parametrize("uncond", ["learned", "picture", "zeros"])
def test_a_dropped_object_gives_the_unconditional_context(uncond):
    module = trainee(uncond=uncond)
    pixels = torch.randn(2, 3, 28, 28)
    rows = module.context(pixels, torch.tensor([1.0, 0.0]))
    assert torch.allclose(rows[0], module.adapter(module.encoder(pixels))[0], atol=1e-6)
    if uncond == "learned":
        assert torch.allclose(rows[1], module.adapter.nothing[0].expand_as(rows[1]))
    elif uncond == "zeros":
        assert not rows[1].any()
    else:
        other = module.context(torch.randn(1, 3, 28, 28), torch.zeros(1))
        assert torch.allclose(rows[1], other[0], atol=1e-6)


@pytest.mark.parametrize("tokens", ["last", "normed", "pooled"])
def test_clip_is_read_in_any_version_of_transformers(world, tokens):
    clip: Any = load_object_encoder(world / "clip")
    pixels = torch.randn(2, 3, 28, 28)
    got = adapters.read_tokens(clip, EncoderSpec("clip", 32, 0, 28, tokens), pixels)
    output = clip(pixel_values=pixels)
    if tokens == "pooled":
        assert torch.allclose(got[:, 0], output.pooler_output, atol=1e-6)
    else:
        norm = (
            getattr(clip, "vision_model", clip).post_layernorm if tokens == "normed" else torch.nn.Identity()
        )
        assert torch.equal(got, norm(output.last_hidden_state))


def test_a_widened_unet_predicts_what_it_did(tmp_path):
    plain = unet(4)
    plain.save_pretrained(tmp_path)
    wide: Any = load_unet(tmp_path, 9)
    assert wide.config.in_channels == 9
    x, context = torch.randn(1, 9, 4, 4), torch.randn(1, 3, 16)
    assert torch.allclose(wide(x, 5, context).sample, plain(x[:, :4], 5, context).sample, atol=1e-6)
    wide.save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match=r"--unet: it reads 9 channels, but this stage gives it 4"):
        load_unet(tmp_path / "wide", 4)


def test_the_noise_is_stable_diffusions(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    ours: NoiseSchedule = load_diffusion(None)
    a = 1 / (1 + ours.sigmas**2)
    assert torch.allclose(a, theirs.alphas_cumprod, atol=1e-5)
    theirs.register_to_config(prediction_type="v_prediction")
    theirs.save_pretrained(tmp_path)
    assert load_diffusion(tmp_path).prediction == "v"


# -- the command


@pytest.mark.parametrize("missing", ["pictures", "--encoder", "--unet"])
def test_a_folder_that_is_not_there_is_one_sentence(world, packed, tmp_path, capsys, missing):
    nowhere = tmp_path / "nowhere"
    if missing == "pictures":
        asked = ["pack", nowhere, tmp_path / "shards"]
    else:
        asked = ["views", *common(packed, "shards", tmp_path / "a.safetensors"), "--encoder", packed / "dino"]
        asked[asked.index(missing) + 1] = nowhere
    assert train_cli.main(options(*asked)) == train_cli.WRONG
    assert "nowhere" in capsys.readouterr().err


def read(path) -> Any:
    return read_adapter(path)


def test_both_stages_and_the_files_they_leave(packed, tmp_path):
    from inlay.encoders import checkpoint_layouts as layouts

    first, second = tmp_path / "views.safetensors", tmp_path / "compose.safetensors"
    stage = ["views", *common(packed, "shards", first), "--encoder", packed / "dino", "--steps", 3]
    assert train_cli.main(options(*stage)) == 0
    adapter, encoder = read(first)
    assert adapter.config.encoder_spec == EncoderSpec(width=32, registers=4, size=28)
    start = load_file(packed / "dino" / "model.safetensors")
    key = "encoder.layer.0.norm1.weight"
    assert not torch.equal(encoder.state_dict()[key], start[key])  # it was trained

    stage = ["compose", *common(packed, "shards", second), "--adapter", first, "--steps", 3]
    assert train_cli.main(options(*stage)) == 0
    assert len(losses(second)) == 3
    later, same = read(second)
    assert torch.equal(same.state_dict()[key], encoder.state_dict()[key])  # frozen
    assert not torch.equal(later.state_dict()["proj_out.weight"], adapter.state_dict()["proj_out.weight"])
    unet_state = load_file(tmp_path / "compose.unet.safetensors")
    assert unet_state["conv_in.weight"].shape == (8, 9, 3, 3)
    from safetensors import safe_open

    with safe_open(second, "pt") as file:
        facts = json.loads(file.metadata()["inlay.training"])
        assert layouts.METADATA in file.metadata()
    assert facts == {"stage": "compose", "steps": 3, "batch": 4, "seed": 0, "data": "shards"}


def test_insertion_trains_an_embedding_optimizer(packed, tmp_path):
    out = tmp_path / "insert.safetensors"
    stage = ["insert", *common(packed, "triplets", out, "pix2pix"), "--encoder", packed / "clip"]
    assert train_cli.main(options(*stage, "--steps", 2)) == 0
    state = load_file(out)
    assert state["adapter.queries"].shape == (77, 16)
    assert read(out)[0].config.encoder_spec == EncoderSpec(
        "clip", 32, 0, 28, background="original", uncond="zeros"
    )
    assert not any(name.startswith("encoder.") for name in state)  # CLIP stays where it is
    unet_state = load_file(tmp_path / "insert.unet.safetensors")
    start = load_unet(packed / "pix2pix", 8).state_dict()
    moved = {name for name in start if not torch.equal(unet_state[name], start[name])}
    assert moved
    assert all(".attn2." in name for name in moved)


def test_a_stopped_run_goes_on_as_if_it_had_not(packed, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"

    def stage(out):
        return ["views", *common(packed, "shards", out), "--encoder", packed / "dino", "--steps", 5]

    assert train_cli.main(options(*stage(whole))) == 0
    from inlay.training.adapters import trainer as accelerated

    def fail(accelerator, run, step, loss):
        log(accelerator, run, step, loss)
        if step == 3:
            raise KeyboardInterrupt

    log = accelerated._log
    monkeypatch.setattr(accelerated, "_log", fail)
    assert train_cli.main(options(*stage(stopped), "--save-every", 2)) == train_cli.STOPPED
    monkeypatch.undo()
    folder = stopped.with_suffix(".run")
    assert [step for step, _ in runs.checkpoints(folder)] == [2]
    (folder / "partial-000004").mkdir()  # what a kill in the middle of saving leaves
    assert train_cli.main(options(*stage(stopped), "--save-every", 2)) == 0
    assert losses(stopped) == losses(whole)
    one, two = load_file(whole), load_file(stopped)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_of_the_step_it_came_in(packed, tmp_path, monkeypatch, number):
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"

    def stage(out):
        return ["views", *common(packed, "shards", out), "--encoder", packed / "dino", "--steps", 4]

    assert train_cli.main(options(*stage(whole))) == 0
    from inlay.training.adapters import trainer as accelerated

    def tap(accelerator, run, step, loss):
        log(accelerator, run, step, loss)
        if step == 0:
            signal.raise_signal(number)

    log, before = accelerated._log, signal.getsignal(number)
    monkeypatch.setattr(accelerated, "_log", tap)
    assert train_cli.main(options(*stage(stopped))) == train_cli.STOPPED
    monkeypatch.undo()
    assert signal.getsignal(number) is before
    assert [step for step, _ in runs.checkpoints(stopped.with_suffix(".run"))] == [2]  # told after the first
    assert not stopped.exists()
    assert train_cli.main(options(*stage(stopped))) == 0
    assert losses(stopped) == losses(whole)
    one, two = load_file(whole), load_file(stopped)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_failed_export_is_made_good_without_another_step(packed, tmp_path, monkeypatch, capsys):
    from inlay.training.adapters import trainer as accelerated

    out = tmp_path / "out.safetensors"
    stage = ["views", *common(packed, "shards", out), "--encoder", packed / "dino", "--steps", 3]

    def full(state, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(accelerated, "save_file", full)
    assert train_cli.main(options(*stage)) == train_cli.FAILED
    assert re.search(r"No space left on device\); see that the disk has room", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["out.run"]
    monkeypatch.undo()

    def another(*_):
        pytest.fail("it has taken a step again")

    monkeypatch.setattr(accelerated, "_log", another)
    assert train_cli.main(options(*stage)) == 0
    monkeypatch.undo()
    read(out)
    whole = tmp_path / "whole.safetensors"
    assert train_cli.main(options(*[whole if part == out else part for part in stage])) == 0
    one, two = load_file(whole), load_file(out)
    assert all(torch.equal(one[name], two[name]) for name in one)


def empty(path):
    path.write_bytes(b"")


def zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def test_a_damaged_checkpoint_is_put_aside_for_the_one_before_it(packed, tmp_path, caplog, capsys):
    whole, damaged = tmp_path / "whole.safetensors", tmp_path / "damaged.safetensors"

    def again(out, steps):
        stage = ["views", *common(packed, "shards", out), "--encoder", packed / "dino", "--save-every", 2]
        return train_cli.main(options(*stage, "--steps", steps))

    assert again(whole, 5) == again(damaged, 4) == 0
    folder = damaged.with_suffix(".run")
    newest = folder / "step-000004"
    files = [path for path in newest.iterdir() if path.is_file()]
    assert len(files) >= 3  # weights, optimiser, random numbers
    assert runs.is_complete(newest)
    for file in files:
        before = file.read_bytes()
        for damage in (cut, empty, zeros):
            damage(file)
            assert not runs.is_complete(newest), (file.name, damage)
        file.write_bytes(before)
    assert runs.is_complete(newest)
    cut(newest / "model.safetensors")
    with caplog.at_level("INFO"):
        assert again(damaged, 5) == 0
    assert "step-000004 is damaged and was renamed to damaged-step-000004" in caplog.text
    assert "Resuming from step 2." in caplog.text
    assert losses(damaged) == losses(whole)
    one, two = load_file(whole), load_file(damaged)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [step for step, _ in runs.checkpoints(folder)] == [4, 5]
    for _, path in runs.checkpoints(folder):
        empty(path / "model.safetensors")
    assert again(damaged, 6) == train_cli.WRONG
    assert "--out: no checkpoint in" in capsys.readouterr().err


def test_a_run_goes_on_only_with_what_it_was_started_with(packed, tmp_path, capsys):
    out = tmp_path / "out.safetensors"

    def again(*more):
        stage = ["views", *common(packed, "shards", out), "--encoder", packed / "dino", "--save-every", 2]
        return train_cli.main(options(*stage, *more))

    assert again("--steps", 5) == 0
    for change, says in (
        (("--seed", 1), "--seed: the run in "),
        (("--batch", 2), "was started with 4, not with 2"),
        (("--rate", 1e-2), "--rate: the run in "),
        (("--data", packed / "triplets"), "--data: the run in "),
    ):
        assert again("--steps", 5, *change) == train_cli.WRONG
        assert says in capsys.readouterr().err
    assert again("--steps", 3) == train_cli.WRONG
    assert "--steps: the run in " in capsys.readouterr().err
    assert len(losses(out)) == 5
    assert again("--steps", 6, "--passes", 2) == 0  # it may grow, and in other portions
    assert len(losses(out)) == 6


def test_the_weights_are_gathered_while_the_processes_are_together(packed, tmp_path, monkeypatch):
    """Under FSDP gathering talks to the other processes, which the end of the training takes leave of."""
    from accelerate import Accelerator

    said = []
    for name in ("get_state_dict", "end_training"):
        own = getattr(Accelerator, name)
        monkeypatch.setattr(
            Accelerator, name, lambda *a, own=own, name=name, **k: said.append(name) or own(*a, **k)
        )
    stage = ["views", *common(packed, "shards", tmp_path / "out.safetensors"), "--encoder", packed / "dino"]
    assert train_cli.main(options(*stage, "--steps", 1)) == 0
    assert said[-2:] == ["get_state_dict", "end_training"]


def test_compose_takes_a_clip_that_stays_as_it_is(packed, tmp_path):
    out = tmp_path / "compose.safetensors"
    stage = ["compose", *common(packed, "shards", out), "--encoder", packed / "clip", "--steps", 1]
    assert train_cli.main(options(*stage)) == 0
    adapter, encoder = read(out)
    assert adapter.config.encoder_spec == EncoderSpec("clip", 32, 0, 28, "normed")
    assert encoder is None


def test_an_adapter_is_trained_on_with_its_own_encoder(packed, tmp_path, capsys):
    own, bare = tmp_path / "own.safetensors", tmp_path / "bare.safetensors"
    dino = "--encoder", packed / "dino"
    assert train_cli.main(options("views", *common(packed, "shards", own), *dino, "--steps", 1)) == 0
    clip = "--encoder", packed / "clip"
    assert train_cli.main(options("compose", *common(packed, "shards", bare), *clip, "--steps", 1)) == 0
    for adapter, encoder, says in (
        (own, dino, "own.safetensors holds the encoder it was trained with; leave --encoder out"),
        (bare, dino, "--encoder: its encoder is dinov2, but the adapter was made for clip"),
    ):
        stage = ["compose", *common(packed, "shards", tmp_path / "next.safetensors"), "--adapter", adapter]
        assert train_cli.main(options(*stage, *encoder, "--steps", 1)) == train_cli.WRONG
        assert says in capsys.readouterr().err


def test_an_adapter_of_another_unet_is_named():
    module = trainee()
    check_encoder_matches(module.encoder, module.adapter, 16)
    with pytest.raises(ValueError, match="--adapter: its context is 16 wide, but the UNet reads 24"):
        check_encoder_matches(module.encoder, module.adapter, 24)


def test_passes_add_up_to_the_same_step(packed, tmp_path):
    curves = []
    for passes in (1, 2):
        out = tmp_path / f"{passes}.safetensors"
        stage = ["views", *common(packed, "shards", out), "--encoder", packed / "dino", "--steps", 3]
        assert train_cli.main(options(*stage, "--passes", passes)) == 0
        curves.append(losses(out))
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--encoder", "{root}/unet"], "holds a nameless model; give a DINOv2 or a CLIP"),
        ([], "--encoder: there is none"),
        (["--encoder", "{root}/dino", "--data", "{root}/photos"], "neither WebDataset shards"),
        (["--encoder", "{root}/dino", "--batch", 5, "--passes", 2], "--batch: 5 is no multiple of 1"),
        (["--encoder", "{root}/dino", "--unet", "{root}/pix2pix"], "--unet: it reads 8 channels"),
        (["--encoder", "{root}/clip"], "--encoder: stage 'views' trains the encoder, and only a DINOv2"),
    ],
)
def test_what_is_wrong_is_said(packed, tmp_path, capsys, change, says):
    change = [str(part).format(root=packed) for part in change]
    stage = ["views", *common(packed, "shards", tmp_path / "out.safetensors"), "--steps", 1, *change]
    assert train_cli.main(options(*stage)) == train_cli.WRONG
    assert says in capsys.readouterr().err
