"""Noise levels of flow matching, min-SNR, learning rates and captions, against their definitions."""

import math

import pytest
import torch

from inlay.training.objective import draw_sigmas, min_snr_weight, target
from inlay.training.optimizers import OptimizerSpec


def test_noise_levels_are_shifted_logit_normal_or_uniform_numbers():
    count = 20000
    plain = draw_sigmas(count, torch.Generator().manual_seed(0), 0, 1.0)
    normal = torch.logit(plain.double())
    assert abs(float(normal.mean())) < 4 / math.sqrt(count)
    assert float(normal.std()) == pytest.approx(1, abs=0.03)
    uniform = draw_sigmas(count, torch.Generator().manual_seed(0), 0, 1.0, logit_normal=False)
    assert float(uniform.mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * count))
    shifted = draw_sigmas(count, torch.Generator().manual_seed(0), 0, 3.0)
    torch.testing.assert_close(shifted, 3 * plain / (1 + 2 * plain))


@pytest.mark.parametrize(("tokens", "mu"), [(256, 0.5), (4096, 1.15), (2176, 0.825)])
def test_a_shift_by_resolution_is_flux_1s(tokens, mu):
    plain = draw_sigmas(5, torch.Generator().manual_seed(0), 0, 1.0).double()
    by_size = draw_sigmas(5, torch.Generator().manual_seed(0), tokens, 0.0)
    # BFL's time_shift(mu, 1, t) = exp(mu) / (exp(mu) + (1 / t - 1))
    torch.testing.assert_close(
        by_size.double(), math.exp(mu) / (math.exp(mu) + 1 / plain - 1), rtol=1e-6, atol=0
    )


def test_min_snr_weights_are_those_of_the_paper():
    sigma = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    snr = torch.tensor([100.0, 4.0, 0.25], dtype=torch.float64)
    clipped = torch.tensor([5.0, 4.0, 0.25], dtype=torch.float64)
    torch.testing.assert_close(min_snr_weight(sigma, 5.0, "epsilon"), clipped / snr)
    torch.testing.assert_close(min_snr_weight(sigma, 5.0, "v"), clipped / (snr + 1))
    assert torch.equal(min_snr_weight(sigma, 5.0, "velocity"), torch.ones(3, dtype=torch.float64))


def test_the_velocity_leads_from_the_picture_to_the_noise():
    clean, noise = torch.randn(2, 1, 4, 2, 2)
    wanted = target(clean, noise, torch.tensor([0.3]), "velocity")
    torch.testing.assert_close(clean + wanted, noise)


def test_learning_rates_warm_up_and_fall_as_a_cosine():
    spec = OptimizerSpec(learning_rate=2.0, warmup=4, schedule="cosine")
    rates = [spec.rate_at(step, 24) for step in range(24)]
    assert rates[:4] == pytest.approx([0.4, 0.8, 1.2, 1.6])
    assert rates[4] == 2.0
    assert rates[14] == pytest.approx(1.0)
    assert 0 < rates[-1] < 0.02
    assert [OptimizerSpec(learning_rate=2.0).rate_at(step, 9) for step in (0, 8)] == [2.0, 2.0]
