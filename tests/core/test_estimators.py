"""Estimates from energies, against closed forms and against what is known of their bias and error."""

import math

import pytest
import torch

from gebm_kit.core import estimators

GENERATOR = torch.Generator


def normal(num: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, generator=GENERATOR().manual_seed(seed), dtype=torch.float64)


def test_log_mean_exp_is_stable_and_counts_its_terms():
    values = torch.tensor([1e4, 1e4, 1e4 + math.log(2)], dtype=torch.float64)
    assert estimators.log_mean_exp(values).item() == pytest.approx(1e4 + math.log(4 / 3))
    # A single term is its own log-mean-exp: an accumulator that starts at zero would add a phantom sample.
    assert estimators.log_mean_exp(torch.tensor([-50.0])).item() == -50.0


def test_log_partition_of_a_gaussian_tilt():
    """E(x) = a x under N(0, 1): A(beta) = beta^2 a^2 / 2."""
    energy = 0.7 * normal(400_000)
    for beta in (0.5, 1.0, 2.0):
        error = estimators.log_partition_se(energy, beta)
        assert abs(estimators.log_partition(energy, beta) - (0.7 * beta) ** 2 / 2) < 5 * error


def test_standard_error_is_the_spread_of_the_estimate():
    energy = 0.7 * normal(2_000 * 500).reshape(500, 2_000)
    estimates = torch.stack([estimators.log_partition(row) for row in energy])
    errors = torch.stack([estimators.log_partition_se(row) for row in energy])
    # The standard deviation of 500 values is known to 3 %.
    assert (errors.mean() / estimates.std()).item() == pytest.approx(1.0, abs=0.16)


def test_kale_at_the_optimal_log_partition_is_donsker_varadhan():
    data, base = normal(1000) - 1.0, normal(800, 1)
    best = estimators.log_partition(base)
    dv = -data.mean() - best
    assert estimators.kale(data, base, best).item() == pytest.approx(dv.item(), rel=1e-12)
    for shift in (-0.5, 0.1, 2.0):  # a lower bound at every other A
        assert estimators.kale(data, base, best + shift) < dv


def test_kale_of_the_true_energy_is_the_divergence():
    """P = N(m, 1), B = N(0, 1): E = -log p/b = m^2/2 - m x, A = 0, KL = m^2/2."""
    m, num = 1.2, 400_000
    data, base = normal(num) + m, normal(num, 1)
    value = estimators.kale(m**2 / 2 - m * data, m**2 / 2 - m * base, torch.tensor(0.0))
    deviation = math.sqrt((m**2 + math.exp(m**2) - 1) / num)
    assert abs(value.item() - m**2 / 2) < 5 * deviation


def test_effective_sample_size():
    assert estimators.effective_sample_size(torch.zeros(50)).item() == pytest.approx(50)
    assert estimators.effective_sample_size(torch.tensor([0.0, -1e4, -1e4])).item() == pytest.approx(1.0)
    weights = torch.rand(100, generator=GENERATOR().manual_seed(0), dtype=torch.float64)
    expected = weights.sum() ** 2 / weights.square().sum()
    assert estimators.effective_sample_size(weights.log() + 300.0).item() == pytest.approx(expected.item())
