"""Negative log-likelihoods and log-densities of models with a known answer, and a user's rows."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import gebm_kit as gk
from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.interfaces import Base, Energy
from gebm_kit.core.seeds import stream
from gebm_kit.data.tensors import TensorDataset
from gebm_kit.engine.likelihood.log_densities import densities
from gebm_kit.engine.likelihood.log_partition import LogPartition
from gebm_kit.engine.likelihood.nll import Likelihood, likelihood
from gebm_kit.engine.likelihood.user_rows import as_data

A, B = 1.0, (1.0, -1.0)  # E(x) = A |x|^2 / 2 - B . x on N(0, I): the GEBM is N(B / (1 + A), I / (1 + A))
MEAN, STD = torch.tensor(B) / (1 + A), 1 / math.sqrt(1 + A)
LOG_PARTITION = -math.log(1 + A) + 2.0 / (2 * (1 + A))


class Normal(Base):
    """``x = z``, with its density."""

    def __init__(self) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = 2, (2,)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor) -> Tensor:
        return self.scale * z

    def log_prob(self, x: Tensor) -> Tensor:
        return (-0.5 * (x / self.scale).square() - self.scale.log() - 0.5 * math.log(2 * math.pi)).sum(1)


class Opaque(Base):
    """The same base without a density."""

    def __init__(self) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = 2, (2,)

    def forward(self, z: Tensor) -> Tensor:
        return z


class Quadratic(Energy):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.tensor(B))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * A * x.square().sum(1) - x @ self.b


class Measured(TensorDataset):
    """``y = (x - 3) / 2`` of measurements x in two named columns."""

    columns, log_det = ("length", "width"), -2 * math.log(2.0)

    def __init__(self, y: Tensor) -> None:
        self._fill({"train": y[:50], "valid": y[50:100], "test": y[100:]})

    def standardised(self, rows: Tensor) -> Tensor:
        return ((rows.double() - 3) / 2).float()


def model() -> gk.GEBM:
    return gk.GEBM(Normal(), Quadratic())


def data(num: int, seed: int = 0) -> Tensor:
    return MEAN + STD * torch.randn(num, 2, generator=stream(seed, "data"))


def log_q(x: Tensor) -> Tensor:
    """Compute the true log-density."""
    return (-0.5 * ((x - MEAN) / STD).square() - math.log(STD) - 0.5 * math.log(2 * math.pi)).sum(1).double()


def known(se: float, degrees: int = 10**6) -> LogPartition:
    return LogPartition(LOG_PARTITION, se, 1.0, 0.0, 1, degrees=degrees)


# --- the mean and its error ------------------------------------------------------------------------------------------


def nll_covers(se_stated: float, repeats: int = 300) -> float:
    """Compute the p-value of the 95 % interval's coverage of the true NLL.

    A is as uncertain as the mean over the rows: its standard error is 0.1, and ``se_stated`` is what the estimate says.
    """
    truth, hits = float(-log_q(data(1_000_000, 99)).mean()), 0
    normal = Normal()
    for seed in range(repeats):
        x = data(400, seed + 1000)
        with torch.no_grad():
            log_base, tilt = normal.log_prob(x).double(), Quadratic()(x).double()
        se = 0.1
        found = dataclasses.replace(
            known(se_stated), value=LOG_PARTITION + se * float(torch.randn((), generator=stream(seed)))
        )
        nll = likelihood(log_base, tilt, found, None, "standardised").gebm
        hits += nll.low <= truth <= nll.high
    return float(stats.binomtest(hits, repeats, 0.95).pvalue)


def test_the_error_has_a_part_from_log_z() -> None:
    assert nll_covers(se_stated=0.1) > 1e-5
    assert nll_covers(se_stated=0.0) < 1e-5  # a wrong twin, which leaves out the error of A


def test_errors_add_in_squares_and_degrees_follow_the_larger() -> None:
    x = data(400)
    log_base, tilt = log_q(x), torch.zeros(400, dtype=torch.float64)
    of_rows = float(log_base.std()) / 20
    alone = likelihood(log_base, tilt, known(0.0), None, "standardised")
    both = likelihood(log_base, tilt, known(3.0, 9), None, "standardised")
    assert alone.gebm.se == pytest.approx(of_rows)
    assert both.gebm.se == pytest.approx(math.hypot(of_rows, 3.0))
    assert both.base.se == pytest.approx(of_rows)  # the base needs no A
    assert both.difference.se == pytest.approx(3.0)  # the energy is flat
    assert (both.gebm.high - both.gebm.value) / both.gebm.se == pytest.approx(2.262157, rel=1e-3)  # t, 9 degrees
    assert (alone.gebm.high - alone.gebm.value) / alone.gebm.se == pytest.approx(1.966, rel=1e-3)  # t, 399


def test_raw_carries_the_jacobian() -> None:
    x = data(100)
    log_base, tilt = log_q(x), torch.ones(100, dtype=torch.float64)
    standard = likelihood(log_base, tilt, known(0.1), -1.5, "standardised")
    raw = likelihood(log_base, tilt, known(0.1), -1.5, "raw")
    for name in ("gebm", "base"):
        assert getattr(raw, name).value == pytest.approx(getattr(standard, name).value + 1.5)
        assert getattr(raw, name).se == pytest.approx(getattr(standard, name).se)
    assert raw.difference == standard.difference
    assert Likelihood.restored(dataclasses.asdict(raw)) == raw


# --- evaluate --------------------------------------------------------------------------------------------------------

QUICK: dict[str, Any] = {"num_samples": 100, "num_sets": 2, "metrics": ["mmd"]}


def test_evaluate_gives_the_nll_of_models_with_a_density() -> None:
    x = data(2000)
    found = gk.evaluate(model(), data=x, **QUICK).fit.nll
    assert found is not None
    with torch.no_grad():
        truth, of_base = -log_q(x[::2]).mean(), -Normal().log_prob(x[::2]).mean()
    assert found.gebm.value == pytest.approx(float(truth), abs=0.03)  # the same rows, so only the error of A is left
    assert found.base.value == pytest.approx(float(of_base), abs=1e-5)
    assert found.difference.value == pytest.approx(found.gebm.value - found.base.value, abs=1e-6)
    assert (found.num_rows, found.space) == (1000, "standardised")
    assert found.gebm.low < found.gebm.value < found.gebm.high
    tree = json.loads(json.dumps(gk.evaluate(model(), data=x, **QUICK).as_dict(), allow_nan=False))
    assert set(tree["nll"]) == {"gebm", "base", "difference", "space", "log_det", "num_rows"}
    assert tree["nll"]["gebm"].keys() == {"value", "se", "low", "high"}
    assert gk.evaluate(gk.GEBM(Opaque(), Quadratic()), data=x, **QUICK).as_dict()["nll"] is None


def test_another_temperature_gives_another_density() -> None:
    """At beta = 0 the GEBM is its base."""
    found = gk.evaluate(model(), data=data(200), inverse_temperature=0.0, **QUICK).fit.nll
    assert found is not None
    assert found.gebm.value == pytest.approx(found.base.value)
    assert found.difference.value == pytest.approx(0.0)


@pytest.mark.parametrize("method", ["importance-sampling", "smc"])
def test_kale_is_right_with_either_estimate_of_log_z(method: Any) -> None:
    """At the optimal energy KALE is KL(P || B); with annealing the mean over the base is 1 by definition."""
    x = data(4000)
    fit = gk.evaluate(model(), data=x, log_partition=method, **QUICK).fit
    kl = 0.5 * (float(MEAN.square().sum()) + 2 * STD**2 - 2 - 2 * math.log(STD**2))
    assert fit.kale_test == pytest.approx(kl, abs=0.08)
    assert fit.log_partition.method == method
    if method == "smc":
        with torch.no_grad():
            mean = float(Quadratic()(x[::2]).double().mean())
        assert fit.kale_test == pytest.approx(-mean - fit.log_partition.value, abs=1e-5)


def test_raw_needs_data_that_state_their_jacobian() -> None:
    with pytest.raises(UsageError, match=r"nll.space=raw .* HeldOut states none"):
        gk.evaluate(model(), data=data(200), nll_space="raw", **QUICK)
    y = data(200)
    standard = gk.evaluate(model(), data=Measured(y), **QUICK).fit.nll
    raw = gk.evaluate(model(), data=Measured(y), nll_space="raw", **QUICK).fit.nll
    assert standard is not None
    assert raw is not None
    assert raw.gebm.value == pytest.approx(standard.gebm.value + 2 * math.log(2.0))


# --- densities of rows -----------------------------------------------------------------------------------------------


def test_log_densities_are_right_up_to_log_z() -> None:
    x = data(500)
    found = gk.log_density(model(), x)
    truth = log_q(x)
    error = found.gebm - truth
    assert float(error.std()) < 1e-5  # one constant for all rows
    assert abs(float(error.mean())) < 5 * found.log_partition.se
    torch.testing.assert_close(found.base - found.tilt - found.log_partition.value, found.gebm)
    assert torch.equal(gk.log_density(model(), x).gebm, found.gebm)
    assert gk.log_density(model(), x[:1]).gebm.shape == (1,)


def test_measurements_are_standardised_and_found_by_name() -> None:
    y = data(100)
    x, dataset = 2 * y.double() + 3, Measured(data(200))
    ask: dict[str, Any] = {"inverse_temperature": 1.0, "method": "auto", "seed": 0, "device": None}
    plain = densities(model(), dataset, x, space="standardised", **ask)
    torch.testing.assert_close(plain.gebm, gk.log_density(model(), y).gebm, atol=1e-5, rtol=0)
    swapped = torch.stack([x[:, 1], torch.zeros(100), x[:, 0]], dim=1)
    named = densities(model(), dataset, swapped, space="standardised", names=("width", "id", "length"), **ask)
    torch.testing.assert_close(named.gebm, plain.gebm)
    raw = densities(model(), dataset, x, space="raw", **ask)
    torch.testing.assert_close(raw.gebm, plain.gebm - 2 * math.log(2.0))


def test_densities_are_written_completely(tmp_path: Path) -> None:
    found = gk.log_density(model(), data(7))
    found.save(tmp_path / "d.csv")
    with (tmp_path / "d.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["row"]) for row in rows] == list(range(1, 8))
    assert [float(row["log_density"]) for row in rows] == found.gebm.tolist()
    assert [float(row["log_base"]) for row in rows] == found.base.tolist()
    assert [float(row["energy"]) for row in rows] == found.tilt.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["d.csv"]
    with pytest.raises(UsageError, match="can't be written"):
        found.save(tmp_path / "nowhere" / "d.csv")


def test_models_without_a_density_say_so_before_anything_is_computed() -> None:
    with pytest.raises(UsageError, match="the base Opaque has no density"):
        gk.log_density(gk.GEBM(Opaque(), Quadratic()), torch.zeros(0, 9))
    with pytest.raises(UsageError, match="space='raw' needs a run"):
        gk.log_density(model(), data(3), space="raw")
    with pytest.raises(UsageError, match="a GEBM is needed, got int"):
        gk.log_density(3, data(3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "names", "message"),
    [
        (torch.zeros(3, 3), (), r"f.csv has 3 columns, the run was trained on 2: length, width"),
        (torch.zeros(3, 1), (), r"f.csv has 1 column, the run was trained on 2"),
        (torch.zeros(3, 2), ("length", "depth"), r"f.csv has no column 'width'; the run was trained on length, width"),
        (torch.tensor([[0.0, 1.0], [math.nan, 1.0]]), (), r"f.csv: row 2, column 'length' is missing \(NaN\)"),
        (torch.tensor([[0.0, math.inf]]), ("length", "width"), r"row 1, column 'width' holds inf"),
        (torch.zeros(2, 1, 2), (), r"array of shape \(2, 1, 2\); a table"),
        (torch.zeros(2), (), "rows of data points are needed"),
        (torch.zeros(0, 2), (), "rows of data points are needed"),
    ],
)
def test_bad_rows_are_refused_by_row_and_column(rows: Tensor, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_data(rows, names, "f.csv", model(), Measured(data(200)))


def test_rows_of_data_that_are_not_standardised() -> None:
    with pytest.raises(DataError, match="the data has 3 columns, the model was trained on 2 columns"):
        gk.log_density(model(), torch.zeros(4, 3))
    with pytest.raises(DataError, match="row 3, column 1 is missing"):
        gk.log_density(model(), torch.tensor([[0.0, 0.0], [0.0, 0.0], [math.nan, math.nan]]))
    assert gk.log_density(model(), torch.zeros(3, 1, 2)).gebm.shape == (3,)
