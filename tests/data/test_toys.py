"""Toys: the draws follow the stated density."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from gebm_kit.core.interfaces import HasDensity, HasModes
from gebm_kit.data.curve import LOBES, Curve
from gebm_kit.data.toys import Checkerboard, EightGaussians, Pinwheel, Rings, TwentyFiveGaussians, TwoMoons

ALPHA = 1e-5


def points(toy: object, part: str = "test") -> torch.Tensor:
    return toy.split(part).first(10**6).double()  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [EightGaussians, TwentyFiveGaussians, Checkerboard, Rings])
def test_mean_log_density_matches_its_expectation(kind: type) -> None:
    """The mean of log p over the draws is minus the entropy, found by quadrature on a grid."""
    toy = kind(num_test=20_000, num_train=1, num_valid=1)
    edge, cells = 6.0, 960
    line = (torch.arange(cells, dtype=torch.float64) + 0.5) * (2 * edge / cells) - edge
    area = (2 * edge / cells) ** 2
    first, second, mass = 0.0, 0.0, 0.0
    for row in line.split(100):
        log_p = toy.log_prob(torch.cartesian_prod(row, line))
        p = log_p.exp()
        finite = torch.where(p > 0, log_p, torch.zeros_like(p))
        first += float((p * finite).sum()) * area
        second += float((p * finite.square()).sum()) * area
        mass += float(p.sum()) * area
    assert mass == pytest.approx(1.0, abs=2e-3)
    values = toy.log_prob(points(toy))
    assert torch.isfinite(values).all()
    spread = math.sqrt(max(second - first**2, 0.0) / len(values))
    assert abs(float(values.mean()) - first) < 4.5 * spread + 2e-3


def test_grid_of_twenty_five() -> None:
    toy = TwentyFiveGaussians()
    assert isinstance(toy, HasModes)
    assert isinstance(toy, HasDensity)
    expected = {(float(a), float(b)) for a in (-4, -2, 0, 2, 4) for b in (-4, -2, 0, 2, 4)}
    assert {tuple(c) for c in toy.mode_centres.tolist()} == expected
    assert toy.mode_std == 0.05
    distance, mode = torch.cdist(points(toy).float(), toy.mode_centres).min(1)
    assert stats.chisquare(torch.bincount(mode, minlength=25)).pvalue > ALPHA
    # |x - c|^2 / std^2 is chi-square with two degrees of freedom
    assert stats.kstest((distance.double() / 0.05).square().numpy(), "chi2", args=(2,)).pvalue > ALPHA


def test_eight_gaussians_on_their_circle() -> None:
    toy = EightGaussians(radius=3.0)
    assert torch.allclose(toy.mode_centres.norm(dim=1), torch.full((8,), 3.0))
    gaps = torch.cdist(toy.mode_centres, toy.mode_centres).fill_diagonal_(9.0).min(1).values
    assert torch.allclose(gaps, gaps[0].expand(8))


def test_checkerboard_is_uniform_on_dark_squares() -> None:
    x = points(Checkerboard())
    square = torch.floor((x + 4) / 2).long()
    assert bool((square.sum(1) % 2 == 0).all())
    counts = torch.bincount(square[:, 0] * 4 + square[:, 1], minlength=16)
    assert stats.chisquare(counts[counts > 0]).pvalue > ALPHA
    assert int((counts > 0).sum()) == 8
    inside = (x + 4) / 2 - square
    for axis in (0, 1):
        assert stats.kstest(inside[:, axis].numpy(), "uniform").pvalue > ALPHA


def test_rings_have_their_radii_and_no_preferred_direction() -> None:
    toy = Rings(num_rings=3, std=0.05)
    x = points(toy)
    ring = torch.bincount(x.norm(dim=1).round().long(), minlength=4)
    assert stats.chisquare(ring[1:], f_exp=[len(x) * share / 6 for share in (1, 2, 3)]).pvalue > ALPHA
    assert int(ring[0]) == 0
    turn = torch.atan2(x[:, 1], x[:, 0]) / (2 * math.pi) + 0.5
    assert stats.kstest(turn.numpy(), "uniform").pvalue > ALPHA


def test_two_moons_lie_on_half_circles() -> None:
    x = points(TwoMoons(noise=0.0))
    upper = (x - torch.tensor([-0.5, -0.25])).norm(dim=1) - 1
    lower = (x - torch.tensor([0.5, 0.25])).norm(dim=1) - 1
    assert float(torch.minimum(upper.abs(), lower.abs()).max()) < 1e-6
    share = float((upper.abs() < 1e-6).double().mean())
    assert abs(share - 0.5) < 4.5 * 0.5 / math.sqrt(len(x))


def test_pinwheel_has_the_symmetry_of_its_arms() -> None:
    x = points(Pinwheel(arms=5, num_test=20_000))
    z = torch.complex(x[:, 0], x[:, 1])
    # A fifth of a turn leaves the law unchanged, so the first four moments vanish; the fifth does not.
    for power in (1, 2, 3, 4):
        moment = (z**power).mean().abs() / (z**power).abs().square().mean().sqrt()
        assert float(moment) < 4.5 / math.sqrt(len(x))
    assert float((z**5).mean().abs()) > 0.05


def test_a_parts_size_leaves_the_other_parts_unchanged() -> None:
    first, second = EightGaussians(num_train=10, num_valid=50), EightGaussians(num_train=999, num_valid=50)
    assert torch.equal(points(first, "valid"), points(second, "valid"))


def test_seeds_give_unrelated_draws() -> None:
    first, second = points(EightGaussians(seed=0)), points(EightGaussians(seed=1))
    assert not torch.equal(first, second)
    correlation = torch.corrcoef(torch.stack([first[:, 0], second[:, 0]]))[0, 1]
    assert abs(float(correlation)) < 4.5 / math.sqrt(len(first))


class TestCurve:
    def test_points_lie_on_the_curve_in_every_dimension(self) -> None:
        for dimension in (2, 3, 10, 17):
            curve = Curve(num_test=500, dimension=dimension)
            x = points(curve)
            assert x.shape == (500, dimension)
            assert torch.allclose(curve.point(curve.position(x)), x, atol=1e-5)

    def test_positions_follow_the_density(self) -> None:
        curve = Curve(contrast=0.8)
        t = curve.position(points(curve))
        assert stats.kstest(curve.cumulative(t).numpy(), "uniform").pvalue > ALPHA
        assert stats.kstest(t.numpy(), "uniform").pvalue < ALPHA  # uneven, as asked
        lobes = torch.histc(t, bins=2 * LOBES * 10)
        assert float(lobes.max()) > 3 * float(lobes.min())

    def test_density_is_the_derivative_of_the_cumulative(self) -> None:
        curve = Curve(num_test=1, num_train=1, num_valid=1)
        t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
        slope = (curve.cumulative(t + 1e-6) - curve.cumulative(t - 1e-6)) / 2e-6
        assert torch.allclose(slope, curve.density(t), atol=1e-6)

    def test_support_is_one_dimensional(self) -> None:
        """Twice the radius of a small ball holds twice the points (not 2^D times), away from the density's dips."""
        curve = Curve(num_test=20_000, contrast=0.0)
        distance = torch.cdist(points(curve)[:300], points(curve))
        near, far = (distance < 0.15).double().sum(1).mean(), (distance < 0.3).double().sum(1).mean()
        assert 1.8 < float(far / near) < 2.3

    def test_noise_has_the_stated_size(self) -> None:
        quiet, noisy = Curve(noise=0.0), Curve(noise=0.1)
        gap = points(noisy) - points(quiet)
        assert float(gap.std()) == pytest.approx(0.1, rel=0.02)
