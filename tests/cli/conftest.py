"""Fixtures that run the command line in this process, and a small trained run that tests copy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gebm_kit.cli.app import main

RECIPE = """\
# A recipe that trains in no time
schema: 1
data: {name: digits}
base: {name: mlp, latent_dim: 2, hidden: [16]}
energy: {name: mlp, hidden: [16]}
loss: {name: kale}
train: {steps: 6, energy_steps: 1, start_steps: 0, batch_size: 32, log_every: 2, checkpoint_every: 2}
sampler: {name: mala, step_size: 0.05}
sample: {num_samples: 60, num_chains: 30, warmup: 8, steps: 10, thin: 2}
eval: {metrics: [{name: mmd}], num_samples: 60, num_sets: 2}
device: cpu
"""


@dataclass(frozen=True)
class Result:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Parse stdout, which must be one JSON object on one line."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


Cli = Callable[..., Result]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """Return a function that runs ``gebm-kit WORDS`` in this process."""

    def run(*words: object) -> Result:
        capfd.readouterr()
        code = main([str(word) for word in words])
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run directory; copy it before changing it."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = folder / "tiny.yaml"
    recipe.write_text(RECIPE)
    assert main(["train", str(recipe), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a finished run that the test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a recipe file in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path
