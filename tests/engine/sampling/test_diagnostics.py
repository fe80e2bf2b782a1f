"""Diagnostics against what is known of simple traces."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from gebm_kit.core.interfaces import Info
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.engine.sampling import recorder
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.recorder import (
    Recorder,
    convergence,
    equipartition,
    equipartition_sums,
    mean_acceptance,
    quantities,
    side_by_side,
    summarise,
    total_divergences,
)
from gebm_kit.samplers.mala import MalaState
from gebm_kit.testing.host_sync import forbid_host_sync

GOOD = Diagnostics("mala", 10, 5, 20, 30, 0.6, 0, 1.01, 400.0, 0.1, 400, 0, 1.5, 1.0, 0)


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _autoregressive(steps: int, chains: int, correlation: float) -> torch.Tensor:
    noise, rows = _noise(steps, chains, 1), []
    x = noise[0]
    for step in noise:
        x = correlation * x + math.sqrt(1 - correlation**2) * step
        rows.append(x)
    return torch.stack(rows)


def test_independent_draws() -> None:
    found = convergence(_noise(100, 50, 3))
    assert found.rhat_max < 1.01
    assert 4000 < found.ess_min < 7000


def test_effective_sample_size_of_an_autoregressive_chain() -> None:
    found = convergence(_autoregressive(2000, 20, 0.8))
    assert found.ess_min == pytest.approx(2000 * 20 * 0.2 / 1.8, rel=0.15)


def test_chains_that_disagree() -> None:
    trace = _noise(100, 20, 1) + torch.linspace(-2, 2, 20, dtype=torch.float64)[None, :, None]
    assert convergence(trace).rhat_max > 1.3
    wider = _noise(100, 20, 1) * torch.linspace(0.2, 3, 20, dtype=torch.float64)[None, :, None]
    assert convergence(wider).rhat_max > 1.1  # the folded half of R-hat sees scales


def test_chains_that_never_move() -> None:
    found = convergence(_noise(1, 20, 2).expand(50, 20, 2))
    assert found.rhat_max == math.inf
    assert found.ess_min == 0.0


def test_a_flat_tilt_says_nothing() -> None:
    trace = _noise(100, 50, 3)
    trace[..., -1] = 0.0
    found = convergence(trace)
    assert found.rhat_max < 1.01
    assert found.ess_min > 4000


def test_too_few_steps_say_nothing() -> None:
    assert math.isnan(convergence(_noise(3, 20, 1)).rhat_max)
    assert math.isnan(convergence(_noise(7, 1, 1)).ess_min)


def test_a_single_chain_is_cut_in_two() -> None:
    assert convergence(_noise(2000, 1, 1)).rhat_max < 1.02
    drifting = _noise(2000, 1, 1) + torch.linspace(0, 3, 2000, dtype=torch.float64)[:, None, None]
    assert convergence(drifting).rhat_max > 1.2


def test_error_of_the_mean_is_that_of_the_worst_coordinate() -> None:
    slow, fast = _autoregressive(1000, 20, 0.8), _noise(1000, 20, 1)
    found = convergence(torch.cat([slow, fast, slow], dim=2))
    assert found.mcse_max == pytest.approx(math.sqrt(1.8 / 0.2 / 20_000), rel=0.1)
    assert convergence(torch.cat([fast, fast, slow], dim=2)).mcse_max == pytest.approx(math.sqrt(1 / 20_000), rel=0.1)


def test_some_chains_that_never_move() -> None:
    trace = _noise(50, 20, 2)
    trace[:, 3:5] = trace[0, 3:5]
    found = convergence(trace)
    assert found.stuck_chains == 2
    assert math.isfinite(found.rhat_max)
    assert convergence(_noise(1, 20, 2).expand(50, 20, 2)).stuck_chains == 20


def test_modes_along_no_coordinate_are_seen() -> None:
    """Every coordinate alone passes; the direction of the modes, found among the chains' means, does not."""
    along = torch.nn.functional.normalize(_noise(30), dim=0)
    begun = torch.randn(400, 31, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    trace = _noise(60, 400, 31)
    trace[..., :-1] += 4 * (begun[:, :-1] @ along).sign()[:, None] * along
    found = convergence(trace, begun)
    assert found.nested_rhat_max > 1.4
    assert convergence(_noise(60, 400, 31), begun).nested_rhat_max < 1.01


# --- recorder --------------------------------------------------------------------------------------------------------


def _run(noise: torch.Tensor, acceptance: float = 0.5, **options: Any) -> Recorder:
    """A recorder of chains whose states are the rows of ``noise`` (N, C, Z), half of whose first step diverged."""
    recorder = Recorder(len(noise), _state(noise[0]), **options)
    for i, row in enumerate(noise):
        recorder.add(_state(row), _info(row, acceptance, diverged=i == 0))
    return recorder


def _state(row: torch.Tensor) -> MalaState:
    return MalaState(row, row[:, 0] + 1, row)


def _info(row: torch.Tensor, acceptance: float, *, diverged: bool) -> Info:
    half = torch.arange(len(row)) % 2 == 0
    return Info(torch.full((len(row),), acceptance), half, half & diverged, 1)


def test_quantities_are_coordinates_and_the_value() -> None:
    row = _noise(6, 3)
    torch.testing.assert_close(quantities(_state(row)), torch.cat([row, row[:, :1] + 1], dim=1))
    wide = quantities(_state(_noise(6, 500)))
    assert wide.shape == (6, 33)
    torch.testing.assert_close(wide[:, [0, 31]], _noise(6, 500)[:, [0, 499]])


def test_blocks_add_up_to_the_whole() -> None:
    noise, begun = _noise(40, 70, 3), _noise(70, 4)
    whole = [_run(noise, start=begun).tensors()]
    cuts = [(0, 30), (30, 70)]
    blocks = [
        _run(noise[:, a:b], num_chains=70, first_chain=a, start=begun[a:b], acceptance=0.5).tensors() for a, b in cuts
    ]
    assert summarise(blocks, 70) == summarise(whole, 70)
    assert summarise(whole, 70).nested_rhat_max > 1
    assert mean_acceptance(blocks) == mean_acceptance(whole) == pytest.approx(0.5)
    assert total_divergences(blocks) == total_divergences(whole) == 35
    twice = summarise(whole, 140)
    assert twice.ess_min == pytest.approx(2 * summarise(whole, 70).ess_min)
    assert twice.mcse_max == pytest.approx(summarise(whole, 70).mcse_max / math.sqrt(2))
    assert math.isnan(summarise([_run(noise).tensors()], 70).nested_rhat_max)


def test_mean_acceptance_weighs_chains() -> None:
    blocks = [_run(_noise(5, 10, 2), 0.2).tensors(), _run(_noise(5, 30, 2), 0.6).tensors()]
    assert mean_acceptance(blocks) == pytest.approx(0.5)


def test_recorders_bound_their_traces_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "MAX_TRACE_STEPS", 20)
    monkeypatch.setattr(recorder, "MAX_TRACE_COORDINATES", 4)
    monkeypatch.setattr(recorder, "MAX_TRACE_NUMBERS", 20 * 5 * 25)
    noise = _noise(100, 60, 9)
    records = [
        _run(noise[:, a : a + 7], num_chains=60, first_chain=a, start=_noise(60, 5)[a : a + 7]).tensors()
        for a in range(0, 60, 7)
    ]
    trace, start = side_by_side(records)
    assert trace.shape == (20, 20, 5)  # every third chain, every fifth step
    torch.testing.assert_close(trace[:, :, :-1], noise[4::5, ::3][..., [0, 3, 5, 8]])
    torch.testing.assert_close(start, _noise(60, 5)[::3])
    found = summarise(records, 60)
    assert found.rhat_max < 1.06
    assert found.ess_min == pytest.approx(20 * 60, rel=0.5)


def test_a_recorder_goes_on_from_its_tensors() -> None:
    noise, begun = _noise(30, 20, 3), _noise(20, 4)
    whole = _run(noise, start=begun)
    first = Recorder(30, _state(noise[0]), start=begun)
    for i, row in enumerate(noise[:13]):
        first.add(_state(row), _info(row, 0.5, diverged=i == 0))
    saved = load(save(first.tensors()))
    first.add(_state(noise[0]), _info(noise[0], 0.9, diverged=True))  # leaves what was saved alone
    second = Recorder(30, _state(noise[0])).load(saved)
    for row in noise[13:]:
        second.add(_state(row), _info(row, 0.5, diverged=False))
    assert second.acceptance == pytest.approx(whole.acceptance)
    assert second.divergences == whole.divergences == 10
    for name, tensor in whole.tensors().items():
        assert torch.equal(second.tensors()[name], tensor), name
    with pytest.raises(ValueError, match="does not fit"):
        Recorder(30, _state(noise[0, :5])).load(saved)


def test_recording_never_waits_for_the_device() -> None:
    noise = _noise(12, 5, 3)
    recorder = Recorder(12, _state(noise[0]))
    with forbid_host_sync():
        for row in noise:
            recorder.add(_state(row), _info(row, 0.5, diverged=False))


def test_equipartition() -> None:
    z = _noise(20_000, 3)
    scale = torch.tensor([0.5, 1.0, 3.0])
    sums = sum(equipartition_sums(a, b) for a, b in zip((z * scale).split(3000), (z / scale).split(3000), strict=True))
    found = equipartition(sums, math.inf)
    assert found.mean == pytest.approx(1.0, abs=0.03)
    assert found.se == pytest.approx(math.sqrt(2 / 3 / 20_000), rel=0.05)  # of a mean of three squares
    assert equipartition(sums, 100.0).se == pytest.approx(math.sqrt(2 / 3 / 100), rel=0.05)
    assert math.isnan(equipartition(sums, math.nan).se)


# --- verdict ---------------------------------------------------------------------------------------------------------


def test_json_has_no_infinities() -> None:
    rows = replace(GOOD, rhat_max=math.inf, ess_min=math.nan).as_dict()
    assert rows["rhat_max"] is None
    assert rows["ess_min"] is None
    assert rows["acceptance"] == 0.6
    assert rows["converged"] is False
    assert rows["problems"] == replace(GOOD, rhat_max=math.inf, ess_min=math.nan).problems
    assert GOOD.as_dict()["converged"] is True


def test_nothing_is_said_of_good_draws() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GOOD.warn()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rhat_max": 1.2}, r"R-hat is 1\.200 \(at most 1\.05"),
        ({"rhat_max": math.inf}, "do not move"),
        ({"rhat_max": math.nan}, "30 steps are too few"),
        ({"rhat_max": 1.01, "nested_rhat_max": 1.2}, r"nested R-hat is 1\.200 \(at most 1\.05"),
        ({"rhat_max": 1.6, "nested_rhat_max": 1.01}, r"R-hat is 1\.600 \(at most 1\.5 is wanted, even of many"),
        ({"rhat_max": 1.6, "nested_rhat_max": 1.2}, r"nested R-hat is 1\.200"),
        ({"stuck_chains": 2}, r"2 of 5 chains never moved after warm-up \(at most 1%"),
        ({"divergences": 3}, r"3 steps diverged \(2\.0% of all"),
        ({"ess_min": 99.0}, r"effective sample size is 99 \(at least 100"),
        ({"ess_tail_min": 42.2}, r"of a 5 % or 95 % quantile is 42\.2 \(at least 100"),
        (
            {"equipartition": 1.2, "equipartition_se": 0.01},
            r"equipartition is 1\.2 where 1 is exact \(at most 0\.1 off",
        ),
        (
            {"equipartition": 0.5, "equipartition_se": 0.09},
            r"equipartition is 0\.5 where 1 is exact \(at most 0\.45 off",
        ),
        ({"family": "population", "pareto_k": 0.8}, r"Pareto k 0\.80, below 0\.7"),
        ({"family": "population", "ess_min": 4.0}, r"effective sample size is 4 \(at least 5"),
        ({"family": "population", "ess_min": 99.0, "num_samples": 1000}, r"is 99 \(at least 100"),
        ({"family": "refiner", "details": {"exhausted": 3, "islands": 2}, "ess_min": 9.0}, "3 of 10 draws passed no"),
        ({"family": "refiner", "details": {"violations": 3}, "ess_min": 9.0}, "3 proposals had an energy below"),
    ],
)
def test_bad_draws_are_named_in_words(change: dict, words: str) -> None:
    bad = replace(GOOD, **change)
    assert len(bad.problems) == 1
    assert re.search(words, bad.problems[0])
    assert not bad.converged
    with pytest.warns(GebmKitWarning, match=words):
        bad.warn()


@pytest.mark.parametrize(
    "change",
    [
        {"rhat_max": 1.4, "nested_rhat_max": 1.01},  # of many short chains, no single one has to see everything
        {"equipartition": 1.3},  # of unknown error
        {"equipartition": 1.3, "equipartition_se": 0.07},
        {"equipartition": 1.05, "equipartition_se": 0.001},
        {"stuck_chains": 1, "num_chains": 100},
        {"family": "population", "rhat_max": math.nan, "ess_min": math.nan},
        {"family": "population", "ess_min": 9.0},  # of ten draws
        {"family": "refiner", "details": {"exhausted": 0, "violations": 0, "islands": 2}},
        {"family": "refiner", "rhat_max": 2.0, "ess_min": math.nan, "equipartition": 3.0, "equipartition_se": 0.1},
    ],
)
def test_what_is_no_problem(change: dict) -> None:
    assert replace(GOOD, **change).problems == []


def test_the_smaller_size_speaks_for_both() -> None:
    bad = replace(GOOD, ess_min=50.0, ess_tail_min=40.0)
    assert [check.name for check in bad.checks() if not check.ok] == ["ess_min", "ess_tail_min"]
    assert len(bad.problems) == 1
    assert "is 40 " in bad.problems[0]


def test_arviz_is_imported_when_needed_only() -> None:
    code = "import sys, gebm_kit.engine.sample; sys.exit('arviz_stats' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
