"""The objective against the equations, written out in float64 with alphas, row by row, pixel by pixel."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from inlay.training.finetune.data import BucketedExamples, Examples, rows_of_step
from inlay.training.finetune.lora import attach_adapter
from inlay.training.finetune.recipes import DREAMCOM, DREAMMIX, DREAMMIX_RELEASED, AdapterSpec
from inlay.training.finetune.trainer import ProcessGroup, TrainableModel, Trainer, loss_of_pass
from inlay.training.objective import (
    NoiseSchedule,
    generator_at,
    noised,
    reconstruction,
    region_weight,
    target,
)

SIGMAS = torch.linspace(0.03, 14.6, 50)


class Network(torch.nn.Module):
    """The host's signature on two layers: enough for every input to reach the output."""

    def __init__(self):
        super().__init__()
        self.inside = torch.nn.Linear(9, 8)
        self.to_k = torch.nn.Linear(6, 8)
        self.to_v = torch.nn.Linear(8, 4)

    def forward(self, x, t, context, y, transformer_options):
        hidden = self.inside(x.movedim(1, -1)) + self.to_k(context).mean(1)[:, None, None]
        return self.to_v(torch.tanh(hidden + 0.01 * t.view(-1, 1, 1, 1).to(x))).movedim(-1, 1)


def make_examples(count, seed, dtype=torch.float64, size=(6, 5)):
    g = torch.Generator().manual_seed(seed)
    mask = (torch.rand(count, 1, *size, generator=g) > 0.6).to(dtype)
    valid = (torch.rand(count, 1, *size, generator=g) > 0.2).to(dtype)
    latent, masked = (torch.randn(count, 4, *size, generator=g, dtype=dtype) for _ in range(2))
    return Examples(latent, mask, masked, valid, torch.randn(1, 7, 6, generator=g, dtype=dtype))


def make_trainee(prediction, dtype=torch.float64):
    torch.manual_seed(0)
    network = Network().to(dtype).requires_grad_(False)
    adapter = attach_adapter(
        network, AdapterSpec(rank=2, targets=("to_k", "to_v"), init="gaussian"), dtype, 3
    )
    for p in adapter.parameters:  # B starts at zero, which would hide half of the gradients
        p.data += 0.1 * torch.randn(p.shape, generator=generator_at(5, 0), dtype=dtype)
    return TrainableModel(network, NoiseSchedule(SIGMAS, prediction), adapter, dtype, torch.device("cpu"))


def reference_loss(trainee, recipe, subject, regular, seed, k):
    """The rows' mean of the losses, plus beta times the regular one."""
    batch = recipe.batch_size
    rows = [(subject, i) for i in rows_of_step(len(subject), batch, k, seed).tolist()]
    rows += [(regular, i) for i in rows_of_step(len(regular), batch, k, seed).tolist()] if regular else []
    losses = reference_losses(trainee, recipe, rows, generator_at(seed, k))
    total = sum(losses[:batch]) / batch
    return total + recipe.beta * sum(losses[batch:]) / batch if regular else total


def reference_losses(trainee, recipe, rows, g):
    """The loss of each row, tau * |prediction - wanted|^2 over valid pixels; all rows have one size."""
    height, width = rows[0][0].latent.shape[-2:]
    times = torch.randint(len(SIGMAS), (len(rows),), generator=g)
    noises = torch.randn(len(rows), 4, height, width, generator=g).double()
    losses = []
    for (data, i), t, noise in zip(rows, times, noises, strict=True):
        alpha = 1 / (1 + SIGMAS[t].double() ** 2)
        z0, m = data.latent[i], data.mask[i, 0]
        zt = alpha.sqrt() * z0 + (1 - alpha).sqrt() * noise
        wanted = (
            noise
            if trainee.diffusion.prediction == "epsilon"
            else alpha.sqrt() * noise - (1 - alpha).sqrt() * z0
        )
        x = torch.cat([zt, data.mask[i], data.masked[i]])[None]
        predicted = trainee.unet(
            x, t[None].float(), context=data.context[:1], y=None, transformer_options={}
        )[0]
        inside, outside = recipe.weight_inside, recipe.weight_outside
        loss, seen = 0.0, 0
        for row in range(height):
            for column in range(width):
                if data.valid[i, 0, row, column]:
                    tau = inside if m[row, column] else outside
                    if recipe.weights_squared:
                        tau = tau * tau
                    loss += tau * ((predicted[:, row, column] - wanted[:, row, column]) ** 2).sum() / 4
                    seen += 1
        losses.append(loss / seen)
    return losses


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize(
    ("recipe", "with_regular"),
    [
        (replace(DREAMCOM, batch_size=3), False),
        (replace(DREAMMIX, batch_size=3), False),
        (replace(DREAMMIX, batch_size=2), True),
        (replace(DREAMMIX, batch_size=2, weights_squared=True), True),
    ],
    ids=["eq1", "eq7", "eq8", "eq8-squared"],
)
def test_loss_and_gradients_equal_the_equations(recipe, with_regular, prediction):
    trainee, subject = make_trainee(prediction), make_examples(5, 1)
    regular = make_examples(4, 2) if with_regular else None
    ours = loss_of_pass(trainee, recipe, subject, regular, seed=11, k=3)
    reference = reference_loss(trainee, recipe, subject, regular, seed=11, k=3)
    torch.testing.assert_close(ours, reference, rtol=1e-6, atol=0)
    gradients = torch.autograd.grad(ours, trainee.adapter.parameters)
    expected = torch.autograd.grad(reference, trainee.adapter.parameters)
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert wanted.norm() > 0
        assert (gradient - wanted).norm() <= 1e-6 * wanted.norm()


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_loss_and_gradients_over_buckets_equal_the_equations(prediction):
    """Of two sizes of the subject's pictures and regular pictures of one of them."""
    recipe, trainee, seed = replace(DREAMMIX, batch_size=2), make_trainee(prediction), 11
    subject = BucketedExamples((make_examples(3, 1), make_examples(2, 2, size=(4, 8))))
    regular, joined = make_examples(4, 3), []
    for k in range(5):
        rows, others = subject.rows(2, k, seed), regular.rows(2, k, seed)
        parts = [[(part, i) for i in range(2)] for part in (rows, others)]
        joined.append(rows.latent.shape == others.latent.shape)
        if joined[-1]:
            losses = reference_losses(trainee, recipe, parts[0] + parts[1], generator_at(seed, k))
        else:
            losses = reference_losses(trainee, recipe, parts[0], generator_at(seed, k))
            losses += reference_losses(trainee, recipe, parts[1], generator_at(seed, k, 3))
        reference = torch.stack(losses[:2]).mean() + recipe.beta * torch.stack(losses[2:]).mean()
        ours = loss_of_pass(trainee, recipe, subject, regular, seed, k)
        torch.testing.assert_close(ours, reference, rtol=1e-6, atol=0)
        gradients = torch.autograd.grad(ours, trainee.adapter.parameters)
        expected = torch.autograd.grad(reference, trainee.adapter.parameters)
        for gradient, wanted in zip(gradients, expected, strict=True):
            assert (gradient - wanted).norm() <= 1e-6 * wanted.norm()
    assert Counter(joined) == {True: 3, False: 2}  # as many passes of each size as it has pictures


def test_the_label_is_that_of_the_size_of_the_bucket():
    trainee, seen = make_trainee("epsilon"), []

    def network(x, t, context, y, transformer_options):
        seen.append(y)
        return trainee.unet(x, t, context, y, transformer_options)

    def label_at(label, height, width):
        return label + torch.tensor([[height, width]])

    examples = replace(make_examples(3, 1, size=(4, 8)), pooled=torch.zeros(1, 2, dtype=torch.float64))
    loss_of_pass(replace(trainee, unet=network, label_at=label_at), DREAMCOM, examples, None, 0, 0)
    assert seen[0].tolist() == [[32, 64]] * DREAMCOM.batch_size


def test_a_regular_chance_takes_passes_on_regular_data_alone():
    """DreamMix's code: with probability 0.3 a pass is on regular data, else on the subject."""
    recipe = replace(DREAMMIX_RELEASED, batch_size=2)
    trainee, subject, regular = make_trainee("epsilon"), make_examples(5, 1), make_examples(4, 2)
    chosen = []
    for k in range(200):
        ours = loss_of_pass(trainee, recipe, subject, regular, seed=11, k=k).item()
        both = [float(reference_loss(trainee, recipe, data, None, 11, k)) for data in (subject, regular)]
        (which,) = [i for i, wanted in enumerate(both) if abs(ours - wanted) <= 1e-6 * wanted]
        chosen.append(which)
    assert 0.2 < sum(chosen) / len(chosen) < 0.4
    alone = loss_of_pass(trainee, recipe, subject, None, seed=11, k=chosen.index(1))
    wanted = reference_loss(trainee, recipe, subject, None, 11, chosen.index(1))
    torch.testing.assert_close(alone, wanted, rtol=1e-6, atol=0)


def test_float32_keeps_to_the_reference():
    subject = make_examples(5, 1)
    single = Examples(
        *(
            part.float()
            for part in (subject.latent, subject.mask, subject.masked, subject.valid, subject.context)
        )
    )
    exact, close = make_trainee("epsilon"), make_trainee("epsilon", torch.float32)
    for p, q in zip(close.adapter.parameters, exact.adapter.parameters, strict=True):
        p.data.copy_(q.data)
    wanted = reference_loss(exact, DREAMCOM, subject, None, 0, 0)
    torch.testing.assert_close(
        loss_of_pass(close, DREAMCOM, single, None, 0, 0).double(), wanted, rtol=1e-6, atol=0
    )


def test_noised_is_variance_preserving_and_v_turns_it_back():
    g = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=g, dtype=torch.float64)
    sigma = torch.tensor([0.03, 1.0, 14.6], dtype=torch.float64)
    x, v = noised(clean, noise, sigma), target(clean, noise, sigma, "v")
    alpha = (1 / (1 + sigma**2)).view(-1, 1, 1, 1)
    torch.testing.assert_close(alpha.sqrt() * x - (1 - alpha).sqrt() * v, clean)
    torch.testing.assert_close((1 - alpha).sqrt() * x + alpha.sqrt() * v, noise)


def test_the_ring_changes_nothing():
    g = torch.Generator().manual_seed(0)
    predicted, wanted = torch.randn(2, 2, 4, 6, 6, generator=g)
    valid = torch.zeros(2, 1, 6, 6)
    valid[..., 1:5, 1:5] = 1
    loss = reconstruction(predicted, wanted, valid)
    torch.testing.assert_close(loss, (predicted - wanted)[..., 1:5, 1:5].square().mean((1, 2, 3)))
    predicted[..., 0, :] = 1e6
    assert torch.equal(loss, reconstruction(predicted, wanted, valid))


def test_region_weight_is_the_readmes_square():
    mask = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    assert region_weight(mask, 1.5, 0.7).flatten().tolist() == pytest.approx([1.5, 0.7])
    assert region_weight(mask, 1.5, 0.6, squared=True).flatten().tolist() == pytest.approx([2.25, 0.36])


@pytest.mark.parametrize("with_regular", [False, True])
def test_the_shares_of_a_group_make_up_the_whole_batch(with_regular):
    recipe, subject = replace(DREAMMIX, batch_size=4), make_examples(5, 1)
    regular = make_examples(4, 2) if with_regular else None
    trainee = make_trainee("epsilon")
    p = trainee.adapter.parameters
    whole = loss_of_pass(trainee, recipe, subject, regular, 11, 3)
    parts = [loss_of_pass(trainee, recipe, subject, regular, 11, 3, ProcessGroup(n, 2)) for n in range(2)]
    torch.testing.assert_close(sum(parts) / 2, whole, rtol=1e-12, atol=0)
    shares = zip(*(torch.autograd.grad(part, p) for part in parts), strict=True)
    for gradient, (first, second) in zip(torch.autograd.grad(whole, p), shares, strict=True):
        torch.testing.assert_close((first + second) / 2, gradient, rtol=1e-9, atol=1e-15)


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="batch_size: 3 pictures cannot be shared evenly among 2 processes"):
        Trainer(make_trainee("v"), replace(DREAMCOM, batch_size=3), 0, ProcessGroup(0, 2))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_stated_share_of_pictures_has_the_empty_caption_drawn_from_seed_and_step(share):
    seen, levels = [], []

    def host_pass(rows, noise, sigma):
        seen.append(rows.caption)
        levels.append(sigma)
        return rows.latent

    trainee = replace(make_trainee("epsilon"), host_pass=host_pass, blank=2)
    recipe = replace(DREAMCOM, batch_size=20, caption_dropout=share)
    data = replace(make_examples(6, 1), caption=torch.tensor([0, 1] * 3))

    def captions(steps, seed=7, recipe=recipe, group=None):
        seen.clear()
        levels.clear()
        for k in steps:
            loss_of_pass(trainee, recipe, data, None, seed, k, group or ProcessGroup())
        return torch.cat(seen)

    drawn = captions(range(100))
    dropped = drawn == 2
    assert abs(float(dropped.float().mean()) - share) <= 4 * (share * (1 - share) / 2000) ** 0.5
    noise_levels = torch.cat(levels)
    own = captions(range(100), recipe=replace(recipe, caption_dropout=0.0))
    assert torch.equal(drawn[~dropped], own[~dropped])  # the others keep theirs
    assert torch.equal(torch.cat(levels), noise_levels)  # and all keep their noise
    assert torch.equal(captions(range(80, 100)), drawn[1600:])  # as a run that is resumed at step 80
    assert torch.equal(captions(range(100), seed=8), drawn) == (share == 1.0)
    two = [captions(range(4), group=ProcessGroup(number, 2)).view(40) for number in range(2)]
    assert torch.equal(torch.stack(two, 1).flatten(), drawn[:80])
