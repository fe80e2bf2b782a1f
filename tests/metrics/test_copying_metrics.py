"""CMMD, Vendi score, authenticity and data-copying against second implementations in numpy and against known truths."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu
from torch import Tensor

from gebm_kit.core.errors import PluginError, RecipeError, RunFailed, UsageError
from gebm_kit.core.interfaces import Dataset, EvalContext, SplitName
from gebm_kit.core.seeds import stream
from gebm_kit.data.digits import Digits
from gebm_kit.data.tensors import TensorDataset
from gebm_kit.data.toys import TwoMoons
from gebm_kit.features.pixels import Pixels
from gebm_kit.metrics import cells as cells_module, mmd as mmd_module, neighbours as neighbours_module
from gebm_kit.metrics.authenticity import Authenticity
from gebm_kit.metrics.cells import cell_of, centres
from gebm_kit.metrics.cmmd import Cmmd
from gebm_kit.metrics.data_copying import DataCopying, copying, mann_whitney
from gebm_kit.metrics.feature_space import normalised
from gebm_kit.metrics.neighbours import nearest
from gebm_kit.metrics.vendi import Vendi, vendi
from gebm_kit.testing import check_metric

F64 = torch.float64
Array = NDArray[np.float64]
TOLERANCE = 1e-4


def normal(num: int, dim: int, seed: int, mean: float = 0.0) -> Tensor:
    return mean + torch.randn(num, dim, generator=stream(seed, "normal", num, dim), dtype=F64)


def context(
    samples: Tensor, reference: Tensor, train: Tensor | None = None, dataset: Dataset | None = None
) -> EvalContext:
    return EvalContext(samples, reference, dataset, lambda name: Pixels(), stream(0, "test"), None, train)


class Parts(TensorDataset):
    """Given training data; the other parts are two rows each."""

    def __init__(self, train: Tensor) -> None:
        parts: dict[SplitName, Tensor] = {"train": train, "valid": train[:2] + 0.5, "test": train[:2] - 0.5}
        self._fill(parts)


def distances(x: Array, y: Array) -> Array:
    return np.linalg.norm(x[:, None] - y[None], axis=2)


def cmmd_in_numpy(x: Array, y: Array) -> float:
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))

    def mean(a: Array, b: Array) -> float:
        return float(np.exp(-(distances(a, b) ** 2) / (2 * 10.0**2)).mean())

    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


def vendi_in_numpy(x: Array) -> float:
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(x @ x.T / len(x))
    values = values[values > 0]
    return float(np.exp(-(values * np.log(values)).sum()))


def authenticity_in_numpy(x: Array, train: Array) -> float:
    count = 0
    for row in x:
        to_train = np.linalg.norm(train - row, axis=1)
        near = int(to_train.argmin())
        others = np.linalg.norm(np.delete(train, near, axis=0) - train[near], axis=1)
        count += to_train[near] > others.min()
    return count / len(x)


def copying_in_numpy(x: Array, held_out: Array, train: Array, middle: Array, least: int) -> float:
    x_cell, held_cell, train_cell = (distances(rows, middle).argmin(1) for rows in (x, held_out, train))
    total = weight = 0.0
    for cell in range(len(middle)):
        draws, real, known = x[x_cell == cell], held_out[held_cell == cell], train[train_cell == cell]
        if len(draws) <= least or len(real) == 0:
            continue
        m, n = len(draws), len(real)
        u = mannwhitneyu(distances(draws, known).min(1), distances(real, known).min(1), alternative="less").statistic
        total += n * (u - (n * m / 2 - 0.5)) / math.sqrt(n * m * (n + m + 1) / 12)
        weight += n
    return total / weight


class TestCmmd:
    @pytest.mark.parametrize(("num", "other", "dim"), [(40, 30, 5), (7, 90, 64), (120, 120, 2)])
    def test_against_the_published_formula(self, num: int, other: int, dim: int) -> None:
        x, y = normal(num, dim, 0, mean=0.5), normal(other, dim, 1)
        value = Cmmd("pixels")(context(x, y))["cmmd"]
        assert value == pytest.approx(cmmd_in_numpy(x.numpy(), y.numpy()), abs=TOLERANCE)
        assert value > 0

    def test_by_hand(self) -> None:
        """Two rows at right angles, of lengths that must not matter: k = exp(-2 / 200) between them."""
        x, y = torch.tensor([[3.0, 0.0], [5.0, 0.0]]), torch.tensor([[0.0, 2.0], [0.0, 0.1]])
        assert Cmmd("pixels")(context(x, y))["cmmd"] == pytest.approx(2000 * (1 - math.exp(-0.01)))
        assert Cmmd("pixels")(context(x, x))["cmmd"] == pytest.approx(0.0, abs=1e-9)

    def test_bias_under_equal_laws_is_what_the_documentation_says(self) -> None:
        num, dim = 100, 16  # directions of mean 0 have variance 1
        values = [Cmmd("pixels")(context(normal(num, dim, s), normal(num, dim, 50 + s)))["cmmd"] for s in range(40)]
        assert np.mean(values) == pytest.approx(10 * (1 / num + 1 / num), rel=0.1)

    def test_a_row_of_zeros_is_not_nan(self) -> None:
        assert math.isfinite(Cmmd("pixels")(context(torch.eye(3) - torch.eye(3)[0], torch.eye(3)))["cmmd"])

    def test_blocks_do_not_change_the_value(self, monkeypatch: pytest.MonkeyPatch) -> None:
        case = context(normal(50, 3, 0), normal(40, 3, 1))
        whole = Cmmd("pixels")(case)["cmmd"]
        monkeypatch.setattr(mmd_module, "KERNEL_ROWS", 7)
        assert Cmmd("pixels")(case)["cmmd"] == pytest.approx(whole, abs=1e-9)

    def test_the_default_features_are_those_of_clip(self) -> None:
        assert Cmmd().features == "clip"
        protocol = Cmmd("pixels").protocol(context(normal(5, 2, 0), normal(4, 2, 1)))
        assert (protocol["bandwidth"], protocol["scale"], protocol["features"]) == (10.0, 1000.0, "pixels")

    def test_without_the_plugin_the_message_names_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from gebm_kit.core.plugins import installed

        monkeypatch.setenv("GEBM_KIT_LOAD_PLUGINS", "")
        installed.cache_clear()
        with pytest.raises((RecipeError, PluginError)) as caught:
            Cmmd().check(Digits())
        assert "gebm-kit-inception" in f"{caught.value.message} {caught.value.hint}"
        monkeypatch.undo()
        installed.cache_clear()


class TestVendi:
    @pytest.mark.parametrize(("num", "dim"), [(30, 5), (5, 30), (40, 40)])
    def test_against_the_published_formula(self, num: int, dim: int) -> None:
        x = normal(num, dim, 0, mean=0.3)
        assert Vendi()(context(x, x))["vendi"] == pytest.approx(vendi_in_numpy(x.numpy()), abs=TOLERANCE)

    @pytest.mark.parametrize("num", [1, 2, 17])
    def test_equal_rows_count_once_and_orthogonal_rows_each(self, num: int) -> None:
        for dim in (num, 3 * num):
            rows = torch.linalg.qr(normal(dim, dim, 1)).Q[:num] * torch.arange(1.0, num + 1).double()[:, None]
            assert Vendi()(context(rows, rows))["vendi"] == pytest.approx(num)
        same = normal(1, 6, 0).expand(num, 6)
        assert Vendi()(context(same, same))["vendi"] == pytest.approx(1.0)

    def test_groups_of_equal_rows_by_hand(self) -> None:
        """Shares 1/2, 1/4, 1/4 have the entropy 1.5 log 2."""
        rows = torch.eye(3)[[0, 0, 1, 2]]
        assert Vendi()(context(rows, rows))["vendi"] == pytest.approx(2**1.5)

    def test_both_matrices_have_the_same_score(self) -> None:
        rows = normalised(normal(20, 8, 0))
        wide = torch.cat([rows, torch.zeros(20, 30, dtype=F64)], 1)
        assert float(vendi(rows)) == pytest.approx(float(vendi(wide)), abs=1e-9)

    def test_looks_at_draws_alone(self) -> None:
        x = normal(20, 3, 0)
        assert Vendi()(context(x, normal(5, 3, 1))) == Vendi()(context(x, normal(9, 3, 2)))
        assert "reference" not in Vendi().protocol(context(x, x))


class TestAuthenticity:
    @pytest.mark.parametrize(("num", "rows", "dim"), [(60, 40, 2), (40, 90, 10), (25, 2, 3)])
    def test_against_the_definition(self, num: int, rows: int, dim: int) -> None:
        x, train = normal(num, dim, 0), normal(rows, dim, 1)
        expected = authenticity_in_numpy(x.numpy(), train.numpy())
        assert Authenticity()(context(x, x, train))["authenticity"] == pytest.approx(expected, abs=TOLERANCE)

    def test_by_hand(self) -> None:
        """On a line the radii of 0, 1, 5 are 1, 1, 4; a draw on the ball is not outside of it."""
        train = torch.tensor([[0.0], [1.0], [5.0]])
        x = torch.tensor([[-0.5], [-1.0], [-1.5], [9.0], [9.5], [5.0]])
        assert Authenticity()(context(x, x, train))["authenticity"] == pytest.approx(2 / 6)

    def test_copies_are_found_and_fresh_rows_are_not(self) -> None:
        train, fresh = normal(400, 3, 0), normal(300, 3, 1)
        for copies in (train[:300], train[:300] + 1e-6 * normal(300, 3, 2), train[:300].float()):
            assert Authenticity()(context(copies, fresh, train))["authenticity"] == 0.0
        assert 0.3 < Authenticity()(context(fresh, fresh, train))["authenticity"] < 0.7
        assert Authenticity()(context(100 + fresh, fresh, train))["authenticity"] == 1.0

    def test_copies_of_rows_that_occur_twice(self) -> None:
        train = normal(50, 3, 0).repeat(2, 1)
        assert Authenticity()(context(train[:50], train, train))["authenticity"] == 0.0

    def test_copies_far_from_the_origin(self) -> None:
        train = 1e7 + normal(200, 3, 0)
        assert Authenticity()(context(train[:100], train, train))["authenticity"] == 0.0

    def test_training_data_are_the_datasets_unless_they_are_given(self) -> None:
        train, x = normal(80, 2, 0).float(), normal(60, 2, 1).float()
        metric, expected = Authenticity(), authenticity_in_numpy(x.double().numpy(), train.double().numpy())
        for _ in range(2):
            assert metric(context(x, x[:5], None, Parts(train)))["authenticity"] == pytest.approx(expected)
        assert metric(context(x, train))["authenticity"] == pytest.approx(expected)  # nothing but the reference
        other = authenticity_in_numpy(x.double().numpy(), x.double().numpy() + 1)
        with pytest.warns(UserWarning, match="60 of 80 training rows"):
            assert metric(context(x, train, x + 1, Parts(train)))["authenticity"] == pytest.approx(other)


class TestDataCopying:
    @pytest.mark.parametrize(("cells", "least"), [(1, 0), (3, 20), (5, 10), (8, 0)])
    def test_against_the_published_formula(self, cells: int, least: int) -> None:
        train, held_out, x = normal(300, 3, 0), normal(150, 3, 1), normal(160, 3, 2, mean=0.4)
        metric = DataCopying(cells=cells, min_draws=least)
        middle = centres(train, cells, 0).numpy()
        expected = copying_in_numpy(x.numpy(), held_out.numpy(), train.numpy(), middle, least)
        for _ in range(2):  # what is kept of the training data gives the same value
            found = metric(context(x, held_out, train))["data-copying"]
            assert found == pytest.approx(expected, abs=TOLERANCE)
        assert len(middle) == cells

    def test_by_hand(self) -> None:
        """Distances 0, 1 (draws) and 1, 2, 3 (held out): no pair is above and one is a tie, so that U = 1/2."""
        train = torch.zeros(2, 1)
        x, held_out = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0], [-3.0]])
        value = DataCopying(cells=1, min_draws=0)(context(x, held_out, train))["data-copying"]
        assert value == pytest.approx((0.5 - 3 + 0.5) / math.sqrt(6 * 6 / 12))

    def test_statistic_is_scipys(self) -> None:
        x, y = normal(30, 1, 0).round(decimals=1)[:, 0], normal(40, 1, 1).round(decimals=1)[:, 0]
        u = mannwhitneyu(x, y).statistic
        assert mann_whitney(x, y) == pytest.approx((u - 600 + 0.5) / math.sqrt(1200 * 71 / 12))

    def test_copies_are_found_and_fresh_rows_are_not(self) -> None:
        train, held_out, fresh = normal(600, 3, 0), normal(300, 3, 1), normal(300, 3, 2)
        values = [
            DataCopying()(context(x, held_out, train))["data-copying"]
            for x in (train[:300], train[:300] + 0.01 * fresh, fresh, 3 * fresh)
        ]
        assert values[0] < -10
        assert values[1] < -10
        assert abs(values[2]) < 4
        assert values[3] > 5

    def test_mean_and_spread_under_equal_laws(self) -> None:
        values = []
        for seed in range(60):
            sets = (normal(80, 2, 1000 * part + seed) for part in range(3))
            values.append(DataCopying(cells=1)(context(*sets))["data-copying"])
        assert abs(np.mean(values)) < 4.5 * np.std(values) / math.sqrt(60)
        # the held-out rows and the draws share the training data, which correlates nothing but adds to the spread
        assert 0.6 < np.std(values) < 1.8

    def test_weights_are_shares_of_held_out_rows_and_empty_cells_do_not_count(self) -> None:
        near, far, none = torch.zeros(4, dtype=F64), torch.full((4,), 2.0, dtype=F64), torch.zeros(0, dtype=F64)
        one = torch.ones(3, dtype=F64)
        low, high = mann_whitney(near, one[:1]), mann_whitney(far, one)
        assert copying([near, far, near], [one[:1], one, none], 3) == pytest.approx((low + 3 * high) / 4)
        assert copying([near, far], [one, one], 4) != copying([near, far], [one, one], 3)
        assert math.isnan(copying([near, none], [none, one], 0))

    def test_draws_far_from_all_held_out_rows_have_no_value_and_a_warning_says_so(self) -> None:
        train = torch.cat([normal(50, 2, 0), 100 + normal(50, 2, 1)])
        metric = DataCopying(cells=2)
        with pytest.warns(UserWarning, match="data-copying has no value"):
            value = metric(context(100 + normal(60, 2, 2), normal(60, 2, 3), train))["data-copying"]
        assert math.isnan(value)

    def test_needs_enough_draws_for_one_cell(self) -> None:
        assert DataCopying().least_rows == 61
        with pytest.raises(UsageError, match="data-copying needs at least 61 draws, got 60"):
            DataCopying()(context(normal(60, 2, 0), normal(80, 2, 1), normal(9, 2, 2)))
        for bad in ({"cells": 0}, {"min_draws": -1}):
            with pytest.raises(UsageError):
                DataCopying(**bad)


class TestCells:
    def test_groups_that_are_far_apart_are_the_cells(self) -> None:
        rows = torch.cat([normal(30 * (k + 1), 2, k) + 50 * k for k in range(4)])
        found = cell_of(rows, centres(rows, 4, 0))
        assert sorted(len({int(c) for c in part}) for part in found.split([30, 60, 90, 120])) == [1, 1, 1, 1]
        assert found.bincount().sort().values.tolist() == [30, 60, 90, 120]

    def test_no_more_cells_than_different_rows(self) -> None:
        rows = normal(3, 2, 0).repeat_interleave(5, 0)
        assert len(centres(rows, 7, 0)) == 3
        assert len(centres(torch.zeros(6, 2, dtype=F64), 4, 0)) == 1

    def test_are_the_same_for_the_same_seed(self) -> None:
        rows = normal(200, 3, 0)
        assert torch.equal(centres(rows, 5, 1), centres(rows, 5, 1))

    def test_no_worse_than_any_assignment_of_few_rows(self) -> None:
        """All partitions of seven rows into two cells are tried."""
        rows = normal(7, 2, 3)
        middle = centres(rows, 2, 0)
        found = float((rows - middle[cell_of(rows, middle)]).square().sum())
        spreads = []
        for labels in itertools.product([False, True], repeat=7):
            mask = torch.tensor(labels)
            if mask.any() and not mask.all():
                parts = (rows[mask], rows[~mask])
                spreads.append(sum(float((part - part.mean(0)).square().sum()) for part in parts))
        assert found == pytest.approx(min(spreads))


def test_nearest_rows_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(50, 4, 0), normal(70, 4, 1)
    expected = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    own = torch.cdist(y, y).fill_diagonal_(torch.inf).min(1)
    for size in (7, 1024):
        monkeypatch.setattr(neighbours_module, "DISTANCE_ROWS", size)
        monkeypatch.setattr(cells_module, "ROWS_AT_ONCE", size)
        found, others = nearest(x, y), nearest(y, y, others=True)
        assert torch.equal(found.row, expected.indices)
        assert torch.allclose(found.distance, expected.values)
        assert torch.equal(others.row, own.indices)
        assert torch.equal(cell_of(x, y), expected.indices)


class TestTrainingRows:
    @pytest.mark.parametrize("metric", [Authenticity(), DataCopying(min_draws=0)])
    def test_too_few_are_refused_before_anything_is_trained(self, metric: Any) -> None:
        assert metric.needs_train
        with pytest.raises(UsageError, match="at least 2 rows of training data, got 1"):
            metric.check(Parts(torch.zeros(1, 2)))
        with pytest.raises(UsageError, match="at least 2 rows of training data, got 1"):
            metric(context(normal(9, 2, 0), normal(9, 2, 1), normal(1, 2, 2)))

    def test_data_copying_without_any(self) -> None:
        with pytest.raises(UsageError, match="data-copying compares draws with training data, and there are none here"):
            DataCopying()(context(normal(99, 2, 0), normal(99, 2, 1)))

    @pytest.mark.parametrize("metric", [Authenticity(), DataCopying(min_draws=0)])
    def test_a_warning_says_that_some_are_left_out(self, metric: Any) -> None:
        train = normal(40, 2, 0).float()
        case = context(normal(9, 2, 1).float(), normal(9, 2, 2).float(), train[::2], Parts(train))
        with pytest.warns(UserWarning, match="looks at 20 of 40 training rows") as caught:
            metric(case)
        assert "eval.num_reference to 40" in str(caught[0].message)
        assert metric.protocol(case)["train_rows"] == 20
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            metric(case)  # once is enough
            type(metric)()(context(normal(99, 2, 1).float(), normal(99, 2, 2).float(), train, Parts(train)))


@pytest.mark.parametrize("metric", [Cmmd("pixels"), Vendi(), Authenticity(), DataCopying()])
def test_is_a_metric_like_any_other(metric: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* training rows, evenly spaced")
        check_metric(metric)
    bad = TwoMoons().split("test").first(80)
    bad[3, 1] = math.nan
    with pytest.raises(RunFailed, match="not finite"):
        metric(context(bad, TwoMoons().split("test").first(80), bad[10:]))
