"""Measured units: `measured` undoes the preprocessing of tables, on the grid of each column."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gebm_kit.core.interfaces import HasMeasured, HasStandardisation, TableUnits
from gebm_kit.core.units import nearest_multiple
from gebm_kit.data.arrays import Arrays
from gebm_kit.data.tabular import RedWine, Tabular

PARTS = ("train", "valid", "test")

KINDS = ("normal", "tiny", "huge offset", "tenths", "hundredths", "whole", "counts", "binary", "time", "mostly zero")


def column(kind: str, num: int, rng: np.random.Generator) -> np.ndarray:
    """Make a column of one kind, as a file with decimals would hold it."""
    normal = rng.normal(size=num)
    return {
        "normal": normal,
        "tiny": 1e-7 * normal,
        "huge offset": 1.7e9 + 10 * normal,
        "tenths": np.round(8 + normal, 1),
        "hundredths": np.round(np.exp(normal), 2),
        "whole": np.round(1e4 * normal),
        "counts": rng.poisson(3, num).astype(float),
        "binary": rng.integers(0, 2, num).astype(float),
        "time": np.round(1.7e9 + 1000 * normal),
        "mostly zero": np.round(np.where(rng.random(num) < 0.8, 0.0, np.exp(normal)), 3),
    }[kind]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", ["tabular", "standardised arrays", "arrays"])
def test_there_and_back(tmp_path: Path, seed: int, name: str) -> None:
    rng = np.random.default_rng(seed)
    kinds = [KINDS[place] for place in rng.integers(0, len(KINDS), 1 + seed % 6)]
    if name == "arrays":  # which keeps its numbers in single precision, and refuses what that would spoil
        kinds = ["tenths" if kind in ("huge offset", "time") else kind for kind in kinds]
    rows = np.stack([column(kind, 60 + 40 * seed, rng) for kind in kinds], axis=1)
    path = tmp_path / "t.npy"
    np.save(path, rows)
    data = Tabular(str(path)) if name == "tabular" else Arrays(str(path), standardise=name != "arrays")
    given = torch.from_numpy(rows)
    seen = data.standardised(given)
    assert seen.dtype == torch.float32
    back = data.measured(seen)
    assert (back.dtype, back.shape) == (torch.float64, given.shape)
    scale = given.std(0) + (given.abs() if name == "arrays" else given.abs() * 1e-9)
    assert ((back - given).abs() <= 4e-7 * scale * (1 + seen.abs())).all()
    for place, kind in enumerate(kinds):
        if kind in ("tenths", "hundredths", "counts", "binary", "time", "mostly zero"):
            assert torch.equal(back[:, place], given[:, place]), kind  # to the last bit
        draws = data.measured(seen + 0.3 * torch.randn(seen.shape, generator=torch.Generator().manual_seed(seed)))
        if kind in ("whole", "counts", "binary", "time"):
            assert torch.equal(draws[:, place], draws[:, place].round())
            assert data.units.whole[place]
        if kind in ("tenths", "hundredths"):
            step = data.units.resolution[place]
            assert step > 0
            assert torch.equal(draws[:, place], nearest_multiple(draws[:, place], step))


def test_the_rows_of_the_parts_are_measurements_again() -> None:
    data = RedWine()
    assert isinstance(data, HasMeasured)
    assert isinstance(data, HasStandardisation)
    found = torch.cat([data.measured(data.split(part).first(10_000)) for part in PARTS])
    assert found.shape == (1599, 11)
    assert data.units.resolution == tuple(data.resolution.tolist())
    for place, step in enumerate(data.units.resolution):
        odd = set(data.units.off_grid[place])
        on = torch.tensor([value for value in found[:, place].tolist() if value not in odd], dtype=torch.float64)
        assert torch.equal(on, nearest_multiple(on, step))


def test_few_values_off_the_grid_come_back_and_draws_lie_on_it(tmp_path: Path) -> None:
    rows = np.round(np.random.default_rng(0).normal(10, 1, (400, 1)), 1)
    rows[:3] = [[9.53333333333333], [10.0333333333333], [9.23333333333333]]
    np.save(tmp_path / "t.npy", rows)
    data = Tabular(str(tmp_path / "t.npy"))
    given = torch.from_numpy(rows)
    assert torch.equal(data.measured(data.standardised(given)), given)
    assert sorted(data.units.off_grid[0]) == sorted(rows[:3, 0].tolist())
    draws = data.measured(torch.randn(1000, 1, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(draws, nearest_multiple(draws, 0.1))


def test_nothing_is_clipped(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.random.default_rng(0).integers(0, 5, (200, 2)).astype(float))
    data = Tabular(str(tmp_path / "t.npy"))
    assert data.measured(torch.full((1, 2), -9.0)).max() < 0
    assert data.measured(torch.full((1, 2), 9.0)).min() > 5


def test_grey_levels_of_points_come_back(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (100, 3)).astype(np.uint8)
    np.save(tmp_path / "t.npy", rows)
    for standardise in (False, True):
        data = Arrays(str(tmp_path / "t.npy"), pixels="byte", standardise=standardise)
        found = torch.cat([data.measured(data.split(part).first(100)) for part in PARTS])
        assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, rows.astype(float).tolist()))


@pytest.mark.parametrize("step", [0.1, 0.2, 0.05, 0.01, 1e-9, 1.0, 5.0, 100.0])
def test_multiples_are_what_their_decimals_are_read_as(step: float) -> None:
    numbers = torch.arange(-50.0, 51.0, dtype=torch.float64)
    found = nearest_multiple(numbers * step * (1 + 1e-12), step)
    assert found.tolist() == [float(f"{int(k) * step:.9f}") + 0.0 for k in numbers.tolist()]
    assert not any(str(value) == "-0.0" for value in found.tolist())


def test_units_of_earlier_versions_are_read() -> None:
    old = {"columns": ["a", "b"], "mean": [1.0, 2.0], "std": [0.5, 2.0]}
    units = TableUnits.from_dict(old)
    assert units.as_dict() == old
    assert units.measured(torch.ones(1, 2)).tolist() == [[1.5, 4.0]]
    new = RedWine().units
    assert TableUnits.from_dict(json.loads(json.dumps(new.as_dict()))) == new
    for key in ("off_grid", "whole"):
        damaged = {name: value for name, value in new.as_dict().items() if name != key}
        with pytest.raises(KeyError):
            TableUnits.from_dict(damaged)
