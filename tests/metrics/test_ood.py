"""The area under the ROC curve of another dataset: its value, its scores, its preprocessing, what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from gebm_kit.core.errors import DataError, RecipeError, UsageError
from gebm_kit.core.interfaces import Base, Dataset, Energy, EvalContext
from gebm_kit.core.model import GEBM
from gebm_kit.core.seeds import stream
from gebm_kit.data.tabular import RedWine, Tabular
from gebm_kit.data.toys import TwoMoons
from gebm_kit.metrics.ood import OodAuroc, auroc


class Plain(Base):
    """``G(z) = z`` of D dimensions, without its density."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = dim, (dim,)

    def forward(self, z: Tensor) -> Tensor:
        return z


class Normal(Plain):
    def log_prob(self, x: Tensor) -> Tensor:
        return -0.5 * (x.square() + math.log(2 * math.pi)).sum(1)


class First(Energy):
    """``E(x) = x_1``."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


def context(dataset: Dataset | None, model: GEBM | None) -> EvalContext:
    rows = torch.zeros(2, 2) if dataset is None else dataset.split("test").first(10_000)
    return EvalContext(rows, rows, dataset, {}.__getitem__, stream(0, "test"), model)


def table(path: Path, rows: np.ndarray, header: str) -> str:
    path.write_text("\n".join([header, *(",".join(map(repr, map(float, row))) for row in rows)]) + "\n")
    return str(path)


def test_the_area_is_that_of_all_pairs_ties_counted_half() -> None:
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 8, 37).astype(float), rng.integers(3, 10, 53).astype(float)
    pairs = outside[:, None] - inside[None, :]
    expected = ((pairs > 0).sum() + 0.5 * (pairs == 0).sum()) / pairs.size
    assert auroc(torch.tensor(inside), torch.tensor(outside)) == pytest.approx(expected)
    whitney = stats.mannwhitneyu(outside, inside).statistic / pairs.size
    assert auroc(torch.tensor(inside), torch.tensor(outside)) == pytest.approx(whitney)
    assert auroc(torch.zeros(5), torch.ones(4)) == 1.0
    assert auroc(torch.ones(5), torch.zeros(4)) == 0.0
    assert auroc(torch.ones(5), torch.ones(4)) == 0.5


def test_each_score_is_told_apart(tmp_path: Path) -> None:
    """The other rows lie at x_1 = -3 of the standardised data: typical for the energy, far out for the base's density."""
    rng = np.random.default_rng(0)
    data = Tabular(table(tmp_path / "own.csv", rng.normal(size=(400, 2)) * [1, 50] + [0, 900], "a,b"))
    others = np.stack([rng.normal(900, 50, 300), rng.normal(-3, 0.1, 300)], axis=1)
    metric = OodAuroc("tabular", [f"path={table(tmp_path / 'other.csv', others, 'b,a')}"])
    metric.check(data)
    values = metric(context(data, GEBM(Normal(2), First())))
    assert set(values) == {"ood-auroc.energy", "ood-auroc.density", "ood-auroc.base"}
    assert values["ood-auroc.energy"] < 0.05
    assert values["ood-auroc.base"] > 0.95
    # E - log b = x_1 + x_1^2 / 2 + x_2^2 / 2 + ... is 1.5 at -3, and has a minimum of -1/2 at -1
    assert 0.5 < values["ood-auroc.density"] < values["ood-auroc.base"]
    alone = metric(context(data, GEBM(Plain(2), First())))
    assert alone == {"ood-auroc": values["ood-auroc.energy"]}
    assert metric.protocol(context(data, None)) == {"dataset": "tabular", "reference": 40, "rows": 30}


def test_data_are_not_told_from_themselves() -> None:
    wine = RedWine()
    rows = OodAuroc("redwine", ["seed=0"]).rows(wine)
    torch.testing.assert_close(rows, wine.split("test").first(10_000), atol=1e-4, rtol=0)  # single precision
    values = OodAuroc("redwine")(context(wine, GEBM(Normal(11), First())))
    assert all(value == pytest.approx(0.5, abs=1e-3) for value in values.values())


def test_the_number_of_rows_is_kept() -> None:
    toy = TwoMoons(num_train=50, num_valid=10, num_test=60)
    metric = OodAuroc("rings", num_rows=20)
    assert len(metric.rows(toy)) == 20
    assert metric.protocol(context(toy, None))["reference"] == 20


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"dataset": "ringz"}, RecipeError, "did you mean rings"),
        ({"dataset": "tabular", "options": ["pth=x.csv"]}, RecipeError, "no option 'pth=x.csv'; did you mean path"),
        ({"dataset": "tabular", "options": ["x.csv"]}, RecipeError, "write key=value"),
        ({"dataset": "tabular", "options": ["path={"]}, RecipeError, "can't be read"),
        ({"dataset": "rings", "num_rows": 1}, UsageError, "num_rows"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        OodAuroc(**arguments)  # type: ignore[arg-type]


def test_data_that_do_not_fit(tmp_path: Path) -> None:
    toy = TwoMoons(num_train=50, num_valid=10, num_test=60)
    with pytest.raises(DataError, match=r"have shape \(1, 8, 8\), but the model's data have \(2,\)"):
        OodAuroc("digits").check(toy)
    with pytest.raises(DataError, match="does not exist"):
        OodAuroc("tabular", [f"path={tmp_path / 'none.csv'}"]).check(toy)
    with pytest.raises(RecipeError, match="can't be built"):
        OodAuroc("tabular").check(toy)
    own = Tabular(table(tmp_path / "own.csv", np.random.default_rng(0).normal(size=(50, 2)), "a,b"))
    with pytest.raises(DataError, match="'redwine' has 11 columns, but the model has 2: a, b"):
        OodAuroc("redwine").check(own)
    with pytest.raises(UsageError, match="there is none"):
        OodAuroc("rings")(context(toy, None))
    with pytest.raises(UsageError, match="the dataset that the model was trained on"):
        OodAuroc("rings")(context(None, GEBM(Plain(2), First())))
