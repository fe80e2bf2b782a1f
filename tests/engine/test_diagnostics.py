"""Diagnostics against what is known of simple traces."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch

from gebm_kit.core.interfaces import Info
from gebm_kit.engine import diagnostics
from gebm_kit.engine.diagnostics import Diagnostics, Recorder, convergence, equipartition
from gebm_kit.engine.progress import GebmKitWarning
from gebm_kit.samplers.mala import MalaState

GOOD = Diagnostics("mala", 10, 5, 20, 30, 0.6, 0, 1.01, 40.0, 0.1, 400, 0, 1.5, 1.0, 0)


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


def test_many_chains_are_judged_on_some(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = convergence(_noise(50, 400, 1))
    monkeypatch.setattr(diagnostics, "MAX_RHAT_NUMBERS", 5000)
    part = convergence(_noise(50, 400, 1))
    assert part.ess_min == pytest.approx(whole.ess_min, rel=0.1)


def test_recorder_bounds_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics, "MAX_TRACE_STEPS", 20)
    monkeypatch.setattr(diagnostics, "MAX_TRACE_COORDINATES", 4)
    monkeypatch.setattr(diagnostics, "MAX_TRACE_NUMBERS", 20 * 5 * 30)
    noise = _noise(100, 60, 9)
    recorder = Recorder(100, MalaState(noise[0], noise[0, :, 0], noise[0]))
    yes = torch.ones(60, dtype=torch.bool)
    for row in noise:
        recorder.add(MalaState(row, row[:, 0], row), Info(0.5 * yes.double(), yes, ~yes, 1))
    assert recorder._trace.shape == (20, 30, 5)
    assert recorder.acceptance == pytest.approx(0.5)
    assert recorder.divergences == 0
    found = recorder.convergence(60)
    assert found.rhat_max < 1.05
    assert found.ess_min == pytest.approx(20 * 60, rel=0.5)


def test_equipartition() -> None:
    z = _noise(20_000, 3)
    scale = torch.tensor([0.5, 1.0, 3.0])
    assert equipartition(z * scale, z / scale) == pytest.approx(1.0, abs=0.03)


def test_json_has_no_infinities() -> None:
    rows = replace(GOOD, rhat_max=math.inf, ess_min=math.nan).as_dict()
    assert rows["rhat_max"] is None
    assert rows["ess_min"] is None
    assert rows["acceptance"] == 0.6


def test_nothing_is_said_of_good_draws() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GOOD.warn()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rhat_max": 1.2}, "R-hat is 1.200"),
        ({"rhat_max": math.inf}, "do not move"),
        ({"divergences": 3}, r"3 steps diverged \(2.0% of all\)"),
    ],
)
def test_bad_draws_are_named_in_words(change: dict, words: str) -> None:
    with pytest.warns(GebmKitWarning, match=words):
        replace(GOOD, **change).warn()


def test_arviz_is_imported_when_needed_only() -> None:
    code = "import sys, gebm_kit.engine.sample; sys.exit('arviz_stats' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
