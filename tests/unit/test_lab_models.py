"""The trainings of the tiny world: holes, captions, resuming, and the shapes of what they train."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from inlay.lab import scenes
from inlay.lab.models import autoencoders, captions, flux, latents, runs, scene_data, train_all
from inlay.lab.models.scene_data import EMPTY, UNCLEAR

RED_MUG = {"kind": "mug", "colour": "red", "pattern": "striped", "accessory": "hat"}
BLUE_CAT = {"kind": "cat", "colour": "blue", "pattern": "plain", "accessory": "none"}


def picture(seed: int) -> scenes.Picture:
    return scenes.render(scenes.sample_scene(np.random.default_rng(seed)))


def test_four_of_ten_random_holes_are_empty():
    rng, shown, contents = np.random.default_rng(0), [picture(seed) for seed in range(6)], []
    for index in range(120):
        hole, content = scene_data.random_hole(rng, shown[index % 6])
        contents.append(content)
        covered = [float((mask * hole).sum()) / mask.sum() for mask in shown[index % 6].masks]
        if content == EMPTY:
            assert max(covered) < 0.02
        elif content >= 0:
            assert covered[content] > 0.75
    # 48 of 120 expected, three standard errors of a binomial are 16
    assert abs(contents.count(EMPTY) - 48) <= 16
    assert UNCLEAR in contents


def test_a_hole_about_a_thing_covers_it():
    rng = np.random.default_rng(1)
    for seed in range(5):
        shown = picture(seed)
        for _ in range(6):
            hole = scene_data.object_hole(rng, shown, 0)
            assert (hole & (shown.mask > 0.5)).sum() == (shown.mask > 0.5).sum()


def test_packed_holes_come_back():
    rng = np.random.default_rng(2)
    holes = rng.random((3, 2, scenes.SIZE, scenes.SIZE)) < 0.5
    packed = torch.from_numpy(np.packbits(holes.reshape(3, 2, -1), -1))
    assert (scene_data.unpacked(packed)[:, :, 0].numpy() == holes).all()


def test_a_snapped_hole_is_whole_cells_and_covers_the_hole():
    hole = torch.zeros(1, 1, 32, 32)
    hole[..., 9:12, 17] = 1
    grown = latents.snapped(hole)
    assert grown.sum() == 64
    assert grown[..., 8:16, 16:24].all()


def test_prompts_speak_of_the_hole_or_of_the_picture():
    rng = np.random.default_rng(3)
    things = [RED_MUG, BLUE_CAT]
    about = {content: [captions.prompt(rng, things, content) for _ in range(300)] for content in (1, EMPTY)}
    assert all("mug" not in text or text.endswith("in a room") for text in about[1])
    assert any(text == "a photo of a blue cat" for text in about[1])
    assert not any(text.startswith("a photo of a blue") for text in about[EMPTY])
    assert any("mug" in text and "cat" in text for text in about[EMPTY])
    free = sum(text == "" for text in about[1])
    assert 12 <= free <= 54  # a tenth of 300, three standard errors are 16


def test_prompts_of_a_short_batch_fit_its_tokens():
    """A short batch speaks of the hole alone; a long one also of the whole picture."""
    rng = np.random.default_rng(6)
    things = [{name: getattr(t, name) for name in scene_data.WORDS}
              for t in scenes.sample_scene(rng, others=2).things]  # fmt: skip
    for content in (0, EMPTY, UNCLEAR):
        short, long = (
            [captions.batch_prompt(rng, things, content, long) for _ in range(200)] for long in (False, True)
        )
        # a word is a token here; two more mark the beginning and the end
        assert max(len(text.split()) for text in short) + 2 <= flux.SHORT
        assert not any(text.endswith("in a room") for text in short)
        assert any(text.endswith("in a room") for text in long)


def test_every_word_of_a_caption_is_trained():
    rng, known = np.random.default_rng(4), {*captions.VOCABULARY, *captions.FILLERS}
    for seed in range(300):
        scene = scenes.sample_scene(np.random.default_rng(seed))
        things = [{name: getattr(t, name) for name in scene_data.WORDS} for t in scene.things]
        for content in (0, EMPTY, UNCLEAR):
            assert set(captions.prompt(rng, things, content).split()) <= known


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)


def fit_line(
    path: Path, total: int, stop: int | None = None, muon: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit a line, return its weights and their mean; `stop` interrupts it after that many steps."""
    line = Line()
    hidden = list(line.parameters())[:1] if muon else []  # the matrix
    fit = runs.Fit(path, {"line": line}, total, 0.05, average=0.9, hidden=hidden, hidden_rate=0.05)

    def loss_at(step: int):
        rng, generator = runs.draws(7, step)
        x = torch.randn(8, 3, generator=generator) + float(rng.normal())
        if step == stop:
            raise KeyboardInterrupt
        return (line.layer(x) - x.sum(1, keepdim=True)).square().mean(), {}

    fit.run(loss_at, save_every=0.0)
    with runs.Averaged(fit):
        mean = line.layer.weight.detach().clone()
    return line.layer.weight.detach(), mean


@pytest.mark.parametrize("muon", [False, True])
def test_an_interrupted_training_ends_where_the_other_one_does(tmp_path, muon):
    whole = fit_line(tmp_path / "whole.pt", 40, muon=muon)
    with pytest.raises(KeyboardInterrupt):
        fit_line(tmp_path / "parts.pt", 40, stop=23, muon=muon)
    assert not runs.finished(tmp_path / "parts.pt")
    parts = fit_line(tmp_path / "parts.pt", 40, muon=muon)
    assert runs.finished(tmp_path / "parts.pt")
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])
    assert not torch.equal(whole[1], whole[0])
    assert list(tmp_path.glob("*.partial")) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM that a process can handle")
def test_sigterm_saves_the_state_first(tmp_path):
    line = Line()
    fit = runs.Fit(tmp_path / "line.pt", {"line": line}, 10, 0.05)

    def loss_at(step: int):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return line.layer(torch.ones(1, 3)).square().mean(), {}

    with pytest.raises(SystemExit, match="143"):
        fit.run(loss_at)
    again = runs.Fit(tmp_path / "line.pt", {"line": Line()}, 10, 0.05)
    assert again.step == 4
    assert not runs.finished(tmp_path / "line.pt")


def test_a_finished_training_takes_no_step(tmp_path):
    fit_line(tmp_path / "line.pt", 5)
    fit = runs.Fit(tmp_path / "line.pt", {"line": Line()}, 5, 0.05, average=0.9)
    fit.run(lambda step: pytest.fail("A step was taken."))
    assert fit.step == 5


def test_the_rate_rises_and_falls():
    rates = [runs.cosine(step, 1000) for step in range(1001)]
    assert rates[0] == pytest.approx(1 / 200, rel=0.05)
    assert max(rates) > 0.9
    assert rates[-1] == pytest.approx(0.02)


def test_a_window_holds_its_hole_and_all_its_parts_show_the_same_place():
    rng = np.random.default_rng(5)
    for _ in range(20):
        top, left = (int(v) for v in rng.integers(0, 9, 2))
        hole = torch.zeros(1, 1, 16, 16)
        hole[..., top : top + 7, left : left + 5] = 1
        places = torch.arange(256.0).view(1, 1, 16, 16)
        pixels = places.repeat_interleave(8, -1).repeat_interleave(8, -2)
        cut = flux.windows_of(rng, {"hole": hole, "latent": places, "pixels": pixels}, 12)
        assert cut["hole"].shape == cut["latent"].shape == (1, 1, 12, 12)
        assert cut["hole"].sum() == hole.sum()
        first = int(cut["latent"][0, 0, 0, 0])
        assert first // 16 % 2 == first % 2 == 0  # whole tokens
        assert torch.equal(cut["pixels"][..., ::8, ::8], cut["latent"])


def test_a_window_of_a_picture_without_a_hole_is_in_the_picture():
    rng = np.random.default_rng(6)
    cut = flux.windows_of(rng, {"hole": torch.zeros(2, 1, 16, 16)}, 12)
    assert cut["hole"].shape == (2, 1, 12, 12)


def test_a_share_of_the_recipe_shortens_every_stage(tmp_path):
    whole, half = train_all.stages(), train_all.stages(0.5)
    assert [stage.name for stage in whole] == [stage.name for stage in half]
    for long, short in zip(whole, half, strict=True):
        assert short.steps == round(long.steps / 2)
    assert train_all.shards(0.5) * 2 == train_all.shards(1.0)
    assert not any(stage.done(tmp_path) for stage in whole)


def test_stages_start_when_what_they_need_is_there(tmp_path):
    def ready() -> set[str]:
        return {s.name for s in train_all.stages(0.001) if s.ready(tmp_path) and not s.done(tmp_path)}

    def shards_in(folder: str) -> None:
        (tmp_path / folder).mkdir()
        for index in range(train_all.shards(0.001)):
            (tmp_path / folder / f"{index:05d}.safetensors").touch()

    assert ready() == {"scenes", "autoencoder4", "autoencoder16"}
    shards_in("scenes")
    assert ready() == {"autoencoder4", "autoencoder16", "classifier"}
    for name, then in {
        "autoencoder4": {"autoencoder16", "latents4", "classifier"},
        "autoencoder16": {"latents4", "latents16", "classifier"},
        "classifier": {"latents4", "latents16"},
    }.items():
        (tmp_path / f"{name}.done").touch()
        assert ready() == then
    shards_in("latents16")
    assert ready() == {"latents4", "fill"}
    shards_in("latents4")
    assert ready() == {"fill"}
    (tmp_path / "text_encoder.pt").touch()
    assert ready() == {"fill", "unet"}
    (tmp_path / "fill.done").touch()
    (tmp_path / "unet.done").touch()
    assert ready() == {"edit", "decoder4"}


def test_components_of_patches_are_the_principal_ones_with_unit_variance():
    """Compared with a singular value decomposition in float64."""
    generator = torch.Generator().manual_seed(8)
    mix = torch.randn(192, 192, generator=generator, dtype=torch.float64) / 14
    patches = torch.randn(6, 5, 5, 192, generator=generator, dtype=torch.float64) @ mix
    images = nn.functional.pixel_shuffle(patches.movedim(-1, 1), 8).float()
    found = autoencoders.PatchComponents(images, count=4)
    flat = autoencoders.PatchComponents.patches(images).flatten(0, 2).double()
    _, singular, rows = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    assert torch.allclose(found.deviation.double(), singular[:4] / (len(flat) - 1) ** 0.5, rtol=1e-4)
    alike = (found.basis.double().T @ rows[:4].T).abs()
    assert torch.allclose(alike, torch.eye(4, dtype=torch.float64), atol=1e-3)
    own = found(images)
    assert own.shape == (6, 4, 5, 5)
    assert own.abs().max() < 3
    unbounded = 3 * (own.double() / 3).atanh()
    assert torch.allclose(unbounded.movedim(1, -1).flatten(0, 2).std(0), torch.ones(4).double(), rtol=1e-3)
