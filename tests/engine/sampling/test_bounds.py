"""Tests of counts out of bounds, of memory and disk room that draws would need, and of draws whose type numpy lacks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gebm_kit as gk
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Base
from gebm_kit.engine.process import memory
from gebm_kit.engine.process.devices import resolve_device
from gebm_kit.engine.sampling.settings import SampleSettings
from gebm_kit.testing.targets import linear_gaussian

QUICK: dict[str, Any] = {"num_samples": 20, "num_chains": 10, "warmup": 5, "steps": 5}
COUNTS = ("num_samples", "num_chains", "warmup", "steps", "thin", "seed", "block_size")

pytestmark = pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [-1, 10**30, True, np.True_, 3.5, np.float64(2), math.nan, "5", [3], np.zeros(3)])
def test_counts_out_of_bounds(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"^{name} must be (a whole number >= [01]|at most [0-9,]+), got ") as caught:
        SampleSettings(**{name: value})
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("name", COUNTS)
def test_whole_numbers_of_numpy_are_pythons(name: str) -> None:
    found = getattr(SampleSettings(**{name: np.int64(7)}), name)
    assert (found, type(found)) == (7, int)


@pytest.mark.parametrize("value", [True, "1", -1, math.inf, math.nan, torch.tensor(1.0), None, [1.0]])
def test_inverse_temperatures_that_are_none(value: Any) -> None:
    with pytest.raises(UsageError, match="must be a finite number >= 0"):
        SampleSettings(inverse_temperature=value)


def test_numbers_of_numpy_as_inverse_temperature() -> None:
    assert SampleSettings(inverse_temperature=np.float32(0.5)).inverse_temperature == 0.5


def test_draws_that_memory_cannot_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is evaluated before the refusal."""
    model = linear_gaussian().model
    monkeypatch.setattr(model.energy, "forward", None)
    with pytest.raises(UsageError, match=r"^1,000,000,000,000 draws take [0-9.]+ TB of memory, and .* are free$"):
        gk.sample(model, **QUICK | {"num_samples": 10**12})
    with pytest.raises(UsageError, match=r"^1,000,000,000,000 draws take [0-9.]+ TB on the disk"):
        gk.sample(model, out=tmp_path / "draws", **QUICK | {"num_samples": 10**12})
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    with pytest.raises(UsageError, match=r"^10,000,000 chains take"):
        gk.sample(model, **QUICK | {"num_samples": 10**7, "num_chains": 10**7})
    with pytest.raises(UsageError, match=r"^1,000,000 sets of 1,000 draws take"):
        gk.evaluate(model, data=torch.randn(100, *model.data_shape), num_samples=1000, num_sets=10**6, metrics=["mmd"])


@pytest.mark.parametrize("device", ["meta", torch.device("meta"), 3, ["cpu"], "nowhere"])
def test_devices_that_hold_no_numbers(device: Any) -> None:
    with pytest.raises(UsageError, match="device"):
        resolve_device(device)


class HalfBase(Base):
    """A base whose output is of a narrow type."""

    latent_dim = 2
    data_shape = (2,)

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(2, dtype=dtype))

    def forward(self, z: Tensor) -> Tensor:
        return z.to(self.weight.dtype) @ self.weight


class Wide(gk.core.interfaces.Energy):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().square().sum(1)


@pytest.mark.parametrize(("dtype", "kept"), [(torch.bfloat16, np.float32), (torch.float16, np.float16)])
def test_narrow_draws_are_written_without_a_change(dtype: torch.dtype, kept: type, tmp_path: Path) -> None:
    draws = gk.sample(gk.GEBM(HalfBase(dtype), Wide()), "hmc", **QUICK)
    assert draws.x.dtype == dtype
    for suffix in (".npz", ".safetensors", ".csv"):
        draws.save(tmp_path / f"draws{suffix}")
    with np.load(tmp_path / "draws.npz", allow_pickle=False) as file:
        assert file["x"].dtype == kept
        assert np.array_equal(file["x"].astype(np.float64), draws.x.double().numpy())
    assert torch.equal(gk.load_draws(tmp_path / "draws.safetensors").x, draws.x)
    assert gk.load_draws(tmp_path / "draws.npz").x.double().equal(draws.x.double())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["draws.csv", "draws.npz", "draws.safetensors"]
