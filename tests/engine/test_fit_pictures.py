"""A run of own modules has its pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import gebm_kit as gk


@pytest.mark.pictures
@pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")
def test_a_fit_draws_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEBM_KIT_REPORT", "1")
    rows = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    run = gk.fit(
        nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1)), rows, steps=2, out=tmp_path / "run",
        train={"energy_steps": 1, "start_steps": 0}, eval={"metrics": ["mmd"], "num_samples": 20, "num_sets": 2},
        sample={"num_samples": 20, "num_chains": 10, "warmup": 2, "steps": 2}, sampler="imh",
    )  # fmt: skip
    assert {"clouds.png", "energies.png", "curves.png"} <= {path.name for path in run.figures.iterdir()}
    page = (run.path / "report.html").read_text()
    assert "held-out data: 40 of 40 points" in page
    assert "gk.load_run" in page  # how to open it again: no command can
    again = gk.report(run.path, tmp_path / "without.html").read_text()
    assert "was trained on Python objects" in again
