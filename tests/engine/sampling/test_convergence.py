"""Batched diagnostics against arviz-stats, which computes them one quantity after the other, and against what is known."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gebm_kit.engine.sampling import convergence
from gebm_kit.engine.sampling.convergence import (
    ess_bulk,
    ess_mean,
    ess_tail,
    mcse_mean,
    measure,
    nested_rhat,
    ranks,
    rhat,
    slowest_direction,
    superchains,
)
from gebm_kit.engine.sampling.diagnostics import NESTED_RHAT_LIMIT
from gebm_kit.testing.statistics import confirmed


def autoregressive(steps: int, chains: int, num: int, correlation: float, seed: int = 0) -> Tensor:
    """Stationary AR(1) chains (N, C, Q) with standard normal marginals."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(steps, chains, num, generator=generator, dtype=torch.float64)
    rows = [noise[0]]
    for step in noise[1:]:
        rows.append(correlation * rows[-1] + math.sqrt(1 - correlation**2) * step)
    return torch.stack(rows)


def arviz(name: str, trace: Tensor, **options: Any) -> Tensor:
    from arviz_stats.base.array import array_stats

    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = getattr(array_stats, name)(trace.numpy(), chain_axis=1, draw_axis=0, **options)
    return torch.from_numpy(np.asarray(found))


def agree(trace: Tensor) -> None:
    expected = {
        "ess_bulk": arviz("ess", trace, method="bulk"),
        "ess_tail": arviz("ess", trace, method="tail", prob=(0.05, 0.95)),
        "ess_mean": arviz("ess", trace, method="mean"),
        "mcse_mean": arviz("mcse", trace, method="mean"),
    }
    if trace.shape[1] > 1:
        expected["rhat"] = arviz("rhat", trace, method="rank")
    found = measure(trace)
    for name, values in expected.items():
        torch.testing.assert_close(getattr(found, name), values, rtol=1e-10, atol=0, equal_nan=True, msg=name)
        alone = getattr(convergence, name)(trace)
        torch.testing.assert_close(alone, values, rtol=1e-10, atol=0, equal_nan=True, msg=f"{name} alone")


@pytest.mark.parametrize("correlation", [-0.9, -0.5, 0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(("steps", "chains"), [(4, 3), (5, 20), (6, 1), (7, 2), (9, 64), (50, 1), (101, 2), (200, 20)])
def test_the_numbers_of_arviz(steps: int, chains: int, correlation: float) -> None:
    trace = autoregressive(steps, chains, 3, correlation, seed=steps)
    agree(trace)
    agree((4 * trace).round() / 4)  # ties all over
    stays = torch.rand(steps, chains, 1, generator=torch.Generator().manual_seed(1)) < 0.6
    for before, now, stay in zip(trace, trace[1:], stays[1:], strict=False):
        now.copy_(torch.where(stay, before, now))  # ties in time, as rejections make them
    agree(trace)


def test_what_arviz_says_of_odd_traces() -> None:
    trace = autoregressive(40, 6, 3, 0.5)
    trace[:, :, 0] = 1.5  # constant
    trace[3, 2, 1] = math.nan
    trace[:, 0, 2] = trace[0, 0, 2]  # a chain that stands still
    agree(trace)
    trace[:, :, 0] = trace[0, :, 0] + torch.arange(6)  # every chain stands still somewhere else
    assert bool(torch.isinf(rhat(trace)[0]))
    assert math.isnan(rhat(trace)[1])


def test_chains_that_disagree_in_place_or_in_scale() -> None:
    trace = autoregressive(100, 20, 2, 0.3)
    spread = torch.linspace(-1, 1, 20, dtype=torch.float64)
    agree(trace + 2 * spread[:, None])
    agree(trace * (1.5 + spread)[:, None])
    assert bool((rhat(trace * (1.5 + spread)[:, None]) > 1.05).all())


def test_single_precision_is_widened_first() -> None:
    trace = autoregressive(60, 8, 3, 0.6).float()
    torch.testing.assert_close(ess_tail(trace), ess_tail(trace.double()))
    assert rhat(trace).dtype == torch.float64


def test_known_effective_sizes() -> None:
    trace = autoregressive(1000, 40, 4, 0.8)
    assert (ess_mean(trace) / (1000 * 40 * 0.2 / 1.8)).tolist() == pytest.approx([1] * 4, rel=0.15)
    independent = autoregressive(200, 40, 4, 0.0)
    assert (ess_bulk(independent) / 8000).tolist() == pytest.approx([1] * 4, rel=0.15)
    assert mcse_mean(independent).tolist() == pytest.approx([8000**-0.5] * 4, rel=0.1)


def test_memory_is_bounded_by_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    trace, sizes = autoregressive(30, 70, 7, 0.5), []
    start = trace[0]
    whole = measure(trace, start)
    monkeypatch.setattr(convergence, "SLICE_NUMBERS", 2 * 30 * 70 + 1)
    sorted_rows = convergence._sorted
    monkeypatch.setattr(convergence, "_sorted", lambda flat: (sizes.append(flat.shape), sorted_rows(flat))[1])
    parts = measure(trace, start)
    assert sizes == [(2, 2100)] * 3 + [(1, 2100)]
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)


def test_too_few_steps_say_nothing() -> None:
    found = measure(autoregressive(3, 100, 2, 0.0), torch.zeros(100, 2))
    assert all(bool(torch.isnan(values).all()) and values.shape == (2,) for values in found)


# --- nested R-hat ----------------------------------------------------------------------------------------------------


def test_superchains_are_neighbours_of_one_size() -> None:
    for chains, shape in {64: (4, 16), 100: (4, 25), 500: (15, 33), 1000: (16, 62)}.items():
        start = torch.randn(2, chains, generator=torch.Generator().manual_seed(chains))
        groups = superchains(start)
        assert groups.shape == (2, *shape)
        for row, values in zip(groups, start, strict=True):
            assert len(row.unique()) == row.numel()
            assert bool((values[row].amax(1)[:-1] < values[row].amin(1)[1:]).all())
            assert values[row].min() < values.quantile(0.05)
            assert values[row].max() > values.quantile(0.95)


def test_the_nested_rhat_of_arviz() -> None:
    """Its plain formula, given the same normal scores and superchains, without its own splitting."""
    from arviz_stats.base.array import array_stats

    trace = autoregressive(40, 100, 3, 0.9)
    groups = superchains(trace[0].T)
    for i in range(3):
        order = groups[i].flatten()
        expected = array_stats.rhat_nested(
            trace[:, order, i].numpy(), np.repeat(np.arange(4), 25), method="identity", chain_axis=1, draw_axis=0
        )
        superchain = trace[:, order, i].T.reshape(1, 4, 25, 40)
        assert float(convergence.grouped_rhat(superchain)) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("chains", [64, 128, 500])
@pytest.mark.parametrize(("steps", "correlation"), [(20, 0.0), (100, 0.5), (100, 0.9)])
def test_stationary_chains_raise_no_alarm(chains: int, steps: int, correlation: float) -> None:
    """Though each has seen too little for split R-hat: of the slowest, five independent draws."""

    def attempt(seed: int) -> dict[str, float]:
        trace = autoregressive(steps, chains, 60, correlation, seed)
        start = autoregressive(1, chains, 60, 0.0, seed + 1000)[0]
        worst = float(nested_rhat(trace, start).max())
        return {"nested R-hat": worst} if worst > NESTED_RHAT_LIMIT else {}

    assert not confirmed(attempt)
    if correlation == 0.9:
        assert bool((rhat(autoregressive(steps, chains, 5, correlation)) > 1.1).all())


@pytest.mark.parametrize("chains", [64, 500])
def test_the_null_distribution(chains: int) -> None:
    """(nR-hat² - 1) M N is about chi²(K-1)/(K-1) of mean 1; of location and scale the larger is returned."""
    num, size = superchains(torch.zeros(1, chains)).shape[1:]
    trace = autoregressive(50, chains, 300, 0.0, seed=3)
    grouped = trace[:, : num * size].permute(2, 1, 0).reshape(300, num, size, 50)
    ratio = (convergence.grouped_rhat(grouped).square() - 1) * size * 50
    assert float(ratio.mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / (num - 1) / 300))
    assert float(ratio.var()) == pytest.approx(2 / (num - 1), rel=0.5)


@pytest.mark.parametrize("chains", [64, 500])
def test_chains_stuck_in_two_modes_are_seen(chains: int) -> None:
    start = autoregressive(1, chains, 2, 0.0, seed=5)[0]
    trace = autoregressive(100, chains, 2, 0.3) + 2 * start.sign()
    assert bool((nested_rhat(trace, start) > 1.3).all())
    assert float(nested_rhat(trace.flip(1), start).max()) < NESTED_RHAT_LIMIT  # other chains' starts tell nothing


@pytest.mark.parametrize("chains", [64, 500])
def test_slow_chains_are_seen(chains: int) -> None:
    start = 3 * autoregressive(1, chains, 3, 0.0, seed=5)[0]
    left = torch.exp(-torch.arange(100) / 100)[:, None, None]
    trace = autoregressive(100, chains, 3, 0.3) + left * start
    trace[..., 1] = autoregressive(100, chains, 1, 0.3)[..., 0] + 2 * left[..., 0]  # a drift that all chains share
    scale = 0.3 + (start[..., 2].abs() > 2)  # chains that started outside stay wide
    trace[..., 2] = autoregressive(100, chains, 1, 0.3, seed=1)[..., 0] * scale
    assert bool((nested_rhat(trace, start) > NESTED_RHAT_LIMIT).all())


def test_few_chains_have_none() -> None:
    trace = autoregressive(40, 63, 2, 0.5)
    assert bool(torch.isnan(nested_rhat(trace, trace[0])).all())
    assert bool(torch.isnan(measure(autoregressive(40, 64, 2, 0.5)).nested_rhat).all())
    start = torch.full((64, 2), math.inf)
    assert bool(torch.isnan(nested_rhat(autoregressive(40, 64, 2, 0.5), start)).all())


# --- the slowest direction -------------------------------------------------------------------------------------------


def test_it_is_the_leading_generalised_eigenvector() -> None:
    from scipy.linalg import eigh

    trace = autoregressive(40, 50, 4, 0.8) @ torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).double()
    means = trace.mean(0)
    between = np.cov(means.T.numpy())
    within = sum(np.cov(chain.T.numpy()) for chain in trace.transpose(0, 1)) / 50
    expected = eigh(between, between + within)[1][:, -1]
    found = slowest_direction(trace).numpy()
    assert abs(found @ expected) / np.linalg.norm(expected) == pytest.approx(1, abs=1e-6)
    assert abs(float(slowest_direction(trace * torch.tensor([1.0, 1e3, 1e-3, 1.0]))[2])) > 0.9  # units don't matter


def test_modes_along_no_coordinate_show_in_it() -> None:
    along = torch.nn.functional.normalize(torch.randn(30, generator=torch.Generator().manual_seed(2)).double(), dim=0)
    start = autoregressive(1, 400, 30, 0.0, seed=5)[0]
    trace = autoregressive(60, 400, 30, 0.3) + 4 * (start @ along).sign()[:, None] * along
    assert float(nested_rhat(trace, start).max()) < 1.1
    found = slowest_direction(trace)
    assert abs(float(found @ along)) > 0.9
    assert float(nested_rhat((trace @ found).unsqueeze(2), (start @ found).unsqueeze(1))) > 1.4


def test_it_raises_no_alarm_of_its_own() -> None:
    def attempt(seed: int) -> dict[str, float]:
        worst = 0.0
        for i in range(20):
            trace = autoregressive(60, 100, 30, 0.8, seed=100 * seed + i)
            start = autoregressive(1, 100, 30, 0.0, seed=100 * seed + 50 + i)[0]
            found = slowest_direction(trace)
            worst = max(worst, float(nested_rhat((trace @ found).unsqueeze(2), (start @ found).unsqueeze(1))))
        return {"nested R-hat": worst} if worst > NESTED_RHAT_LIMIT else {}

    assert not confirmed(attempt)


def test_ranks_share_ties() -> None:
    rows = torch.tensor([[3.0, 1.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    assert ranks(rows).tolist() == [[3.5, 1, 3.5, 2], [2.5, 2.5, 2.5, 2.5]]
