"""The loss on a held-out picture: it changes no bit, stays with the subject, and goes on after a stop."""

import shutil

import pytest
import torch


@pytest.fixture(scope="module")
def five(pictures):
    """Five references with their masks."""
    images, masks = pictures
    return [*images, *images[:2]], [*masks, *(mask.flip(2) for mask in masks[:2])]


CHOICES = {"steps": 4, "learning_rate": 1e-2, "options": {"held_out": True}}


def test_it_changes_no_bit_and_stays_with_the_subject(five, store_folder, run):
    images, masks = five
    four = run(images[:4], masks[:4], steps=4, learning_rate=1e-2)
    shutil.rmtree(store_folder)
    watched = run(*five, **CHOICES)
    points = watched[3].held_out
    assert [step for step, _ in points] == [0, 1, 2, 3, 4]
    assert len({loss for _, loss in points}) == 5
    assert all(torch.equal(four[1][key], watched[1][key]) for key in four[1])
    assert watched[3].losses == four[3].losses
    again = run(*five, **CHOICES)  # out of the store
    assert again[3] == watched[3]
    assert torch.equal(again[4], watched[4])
    assert not torch.equal(watched[4], four[4])


def test_a_stopped_training_goes_on_with_its_points(five, store_folder, run, stopped_in_step):
    whole = run(*five, **CHOICES)
    shutil.rmtree(store_folder)

    with stopped_in_step(2):
        run(*five, **CHOICES)
    resumed = run(*five, **CHOICES)
    assert resumed[3] == whole[3]
    assert all(torch.equal(whole[1][key], resumed[1][key]) for key in whole[1])


def test_with_fewer_than_five_pictures_all_are_trained_on(pictures, store_folder, run, caplog):
    plain = run(*pictures, steps=1)
    asked = run(*pictures, steps=1, options={"held_out": True})  # the same key
    assert asked[3] == plain[3]
    assert "held_out: it takes 5 pictures or more and there are 3" in caplog.text


@pytest.mark.parametrize("name", ["DreamCom", "DreamMix"])
def test_the_loss_is_that_of_the_equations(parts, name):
    """Eq. 1, with tau of eq. 7, at the middles of eight equal parts of the noise levels."""
    from inlay.training.finetune.data import Examples
    from inlay.training.finetune.pipeline import trainable_model
    from inlay.training.finetune.recipes import RECIPES
    from inlay.training.finetune.trainer import HeldOutLoss
    from inlay.training.objective import generator_at

    generator, recipe = torch.Generator().manual_seed(2), RECIPES[name]
    latent, masked = (torch.randn(8, 4, 8, 8, generator=generator).double() for _ in range(2))
    mask, valid = torch.zeros(8, 1, 8, 8).double(), torch.ones(8, 1, 8, 8).double()
    mask[:, :, 2:6, 3:7], valid[0, :, :2] = 1, 0
    context = torch.randn(1, 77, 768, generator=generator).double()
    shown = []
    with torch.inference_mode(False):
        trainable = trainable_model(parts.model, recipe, torch.float64, 0)
        rows = Examples(latent, mask, masked, valid, context)
        held_out = HeldOutLoss(rows, 100, lambda step, loss: shown.append((step, loss)))
        for step in range(12):
            held_out.measure(trainable, recipe, step)
        noises = torch.randn(8, 4, 8, 8, generator=generator_at(0, 0)).double()
        losses = []
        with torch.no_grad():
            for i, t in enumerate((62, 187, 312, 437, 562, 687, 812, 937)):
                alpha = 1 / (1 + trainable.diffusion.sigmas[t].double() ** 2)
                zt = alpha.sqrt() * latent[i] + (1 - alpha).sqrt() * noises[i]
                x = torch.cat([zt, mask[i], masked[i]])[None]
                one = rows.take(torch.tensor([i]))
                options = {} if trainable.options is None else trainable.options(one)
                found = trainable.unet(
                    x, torch.tensor([float(t)]), context=context, transformer_options=options
                )[0]
                tau = recipe.weight_inside * mask[i] + recipe.weight_outside * (1 - mask[i])
                error = (tau * (found - noises[i]) ** 2).mean(0, keepdim=True)
                losses.append(float((error * valid[i]).sum() / valid[i].sum()))
    assert [step for step, _ in shown] == [0, 5, 10]
    assert held_out.points == shown
    assert shown[0][1] == pytest.approx(sum(losses) / 8, rel=1e-6)
