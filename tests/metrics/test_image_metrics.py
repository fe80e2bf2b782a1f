"""FID, KID, Inception Score and PRDC against the values of published code and against answers in closed form.

The published values, the features they were computed from and the program that made them are in files/.
"""

from __future__ import annotations

import json
import math
import resource
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import EvalContext, HasLogits
from gebm_kit.core.seeds import stream
from gebm_kit.data.digits import Digits
from gebm_kit.data.toys import TwoMoons
from gebm_kit.features.pixels import Pixels
from gebm_kit.metrics import prdc as prdc_module
from gebm_kit.metrics.feature_space import FeatureSpace, OfReference
from gebm_kit.metrics.frechet import Fid, Frechet
from gebm_kit.metrics.inception_score import InceptionScore, score
from gebm_kit.metrics.kid import Kid, kernel_sum
from gebm_kit.metrics.prdc import Prdc, balls, prdc, squared_distances

F64 = torch.float64
FILES = Path(__file__).parent / "files"
ANSWERS: dict[str, Any] = json.loads((FILES / "known_answers.json").read_text())
CASES = sorted(ANSWERS["fid"])
TOLERANCE = 1e-4


class Given(Pixels):
    """A feature map that returns its input as features and as logits."""

    def __init__(self, checksum: str = "identity") -> None:
        self.checksum = checksum

    def logits(self, features: Tensor) -> Tensor:
        return features


def context(samples: Tensor, reference: Tensor) -> EvalContext:
    return EvalContext(samples, reference, None, lambda name: Given(), stream(0, "test"))


def stored(name: str) -> Tensor:
    with np.load(FILES / "known_answers.npz", allow_pickle=False) as arrays:
        return torch.from_numpy(arrays[name])


def case(name: str) -> EvalContext:
    return context(stored(f"{name}_x"), stored(f"{name}_y"))


def normal(num: int, dim: int, seed: int) -> Tensor:
    return torch.randn(num, dim, generator=stream(seed, "normal", num, dim), dtype=F64)


class TestPublishedValues:
    @pytest.mark.parametrize("name", CASES)
    def test_fid(self, name: str) -> None:
        assert Fid()(case(name))["fid"] == pytest.approx(ANSWERS["fid"][name], abs=TOLERANCE)

    @pytest.mark.parametrize("name", CASES)
    def test_kid(self, name: str) -> None:
        answer = ANSWERS["kid"][name]
        metric = Kid(subsets=answer["subsets"], subset_size=answer["subset_size"])
        for _ in range(2):  # values kept of the reference are the same as computed ones
            assert metric(case(name))["kid"] == pytest.approx(answer["value"], abs=TOLERANCE)

    @pytest.mark.parametrize("name", sorted(ANSWERS["inception-score"]))
    def test_inception_score(self, name: str) -> None:
        logits = stored(f"logits_{name}")
        for answer in ANSWERS["inception-score"][name]:
            metric = InceptionScore("classifier", splits=answer["splits"])
            value = metric(context(logits, logits))["inception-score"]
            assert value == pytest.approx(answer["value"], abs=TOLERANCE)

    @pytest.mark.parametrize("name", CASES)
    def test_prdc(self, name: str) -> None:
        for answer in ANSWERS["prdc"][name]:
            values = Prdc(nearest_k=answer["nearest"])(case(name))
            for part in ("precision", "recall", "density", "coverage"):
                assert values[f"prdc.{part}"] == pytest.approx(answer[part], abs=TOLERANCE), part


class TestFid:
    def test_gaussians_in_closed_form(self) -> None:
        """Rows whose sample moments are exactly m and S: the value is sum m_i^2 + sum (s_i - 1)^2 for diagonal S."""
        white = normal(400, 5, 0)
        white = white - white.mean(0)
        white = white @ torch.linalg.inv(torch.linalg.cholesky(white.T @ white / 399)).T
        std, mean = torch.tensor([1.0, 2, 0.5, 3, 0]).double(), torch.tensor([1.0, 0, 0, -2, 0]).double()
        value = Fid()(context(white * std + mean, white))["fid"]
        assert value == pytest.approx(5.0 + float((std - 1).square().sum()), abs=1e-6)

    def test_has_a_name_of_its_own_and_is_never_extrapolated(self) -> None:
        many = context(normal(500, 2, 0), normal(500, 2, 1))
        protocol = Fid().protocol(many)
        assert protocol["extrapolated"] is False
        assert (protocol["samples"], protocol["reference"], protocol["resize"]) == (500, 500, "none")
        assert Fid.against_train

    def test_of_one_reference_after_another(self) -> None:
        """Values kept of one reference are not used for another."""
        metric, x, a, b = Fid(), normal(60, 3, 0), normal(80, 3, 1), 2 * normal(80, 3, 2)
        values = [metric(context(x, y))["fid"] for y in (a, b, a + 1, a, b)]
        assert values == [Fid()(context(x, y))["fid"] for y in (a, b, a + 1, a, b)]
        assert len(set(values)) == 3


class TestKid:
    def test_against_the_definition(self) -> None:
        x, y = normal(7, 3, 0), normal(5, 3, 1)

        def k(a: Tensor, b: Tensor) -> Tensor:
            return (a @ b.T / 3 + 1) ** 3

        off = ~torch.eye(5, dtype=torch.bool)
        # with five draws and five rows the only subset is everything; their order does not matter
        expected = k(x[:5], x[:5])[off].mean() + k(y, y)[off].mean() - 2 * k(x[:5], y).mean()
        assert Kid()(context(x[:5], y))["kid"] == pytest.approx(float(expected), abs=1e-12)
        protocol = Kid(subset_size=4).protocol(context(x, y))
        assert (protocol["subsets"], protocol["subset_size"], protocol["subset_seed"]) == (100, 4, 2020)
        assert Kid().protocol(context(x, y))["subset_size"] == 5

    def test_mean_is_the_squared_mmd_of_normals(self) -> None:
        """In one dimension, for N(m, 1) and N(0, 1) with independent x, y: E (xy + 1)^3 follows from their moments,
        1 + 3 E x E y + 3 E x^2 E y^2 + E x^3 E y^3."""
        shift, size = 0.5, 40

        def expected(first: float, second: float) -> float:
            moments = [(m, m**2 + 1, m**3 + 3 * m) for m in (first, second)]
            return (
                1
                + 3 * moments[0][0] * moments[1][0]
                + 3 * moments[0][1] * moments[1][1]
                + moments[0][2] * moments[1][2]
            )

        truth = expected(shift, shift) + expected(0, 0) - 2 * expected(shift, 0)
        for attempt in range(2):  # alpha 1e-5, one retry
            seeds = range(1000 * attempt, 1000 * attempt + 300)
            values = torch.tensor([
                Kid(subset_size=size)(context(normal(size, 1, s) + shift, normal(size, 1, 10_000 + s)))["kid"]
                for s in seeds
            ])  # fmt: skip
            if abs(float(values.mean()) - truth) < 4.42 * float(values.std()) / math.sqrt(300):
                return
        raise AssertionError(f"mean {float(values.mean())}, expected {truth}")

    def test_equal_sets_are_below_zero(self) -> None:
        """Without the diagonal, rows of a set are less alike than rows of the set and its copy."""
        x = normal(50, 4, 0)
        assert Kid()(context(x, x.clone()))["kid"] < 0

    def test_blocks_do_not_change_the_sum(self) -> None:
        x, y = normal(2100, 2, 0), normal(700, 2, 1)
        assert kernel_sum(x, y) == pytest.approx(float((x @ y.T / 2 + 1).pow(3).sum()), rel=1e-12)


class TestInceptionScore:
    @pytest.mark.parametrize("splits", [1, 5])
    def test_between_one_and_the_number_of_classes(self, splits: int) -> None:
        """1 if all draws have the same probabilities; K if each is certain and the classes are equally frequent."""

        def value(logits: Tensor) -> float:
            return InceptionScore("classifier", splits=splits)(context(logits, logits))["inception-score"]

        assert value(torch.zeros(100, 7)) == pytest.approx(1.0, abs=1e-12)
        same = torch.zeros(100, 7)
        same[:, 2] = 50.0
        assert value(same) == pytest.approx(1.0, abs=1e-12)
        impossible = torch.full((100, 7), -math.inf, dtype=F64).index_fill(1, torch.tensor([3]), 0.0)
        assert float(score(impossible)) == pytest.approx(1.0)
        one_hot = 1e4 * torch.eye(7).repeat(100 * splits, 1)
        # in parts of the shuffled draws the classes are not exactly equally frequent
        assert value(one_hot) == pytest.approx(7.0, abs=1e-9 if splits == 1 else 0.1)

    def test_of_two_groups_in_closed_form(self) -> None:
        """A share w of the draws is certainly of one class, the others of another: exp of the entropy of w."""
        w = 0.3
        logits = 1e3 * torch.eye(2)[(torch.arange(1000) < 300).long()]
        entropy = -w * math.log(w) - (1 - w) * math.log(1 - w)
        value = InceptionScore("classifier", splits=1)(context(logits, logits))["inception-score"]
        assert value == pytest.approx(math.exp(entropy), abs=1e-9)

    def test_fewer_draws_than_splits(self) -> None:
        with pytest.raises(UsageError, match="10 splits, but gets only 9"):
            InceptionScore("classifier")(context(torch.zeros(9, 3), torch.zeros(9, 3)))

    def test_features_without_classes_are_refused_before_and_after(self) -> None:
        metric = InceptionScore("pixels")
        with pytest.raises(UsageError, match="needs class probabilities, which features 'pixels' don't have"):
            metric.check(Digits())
        with pytest.raises(UsageError, match="needs class probabilities"):
            InceptionScore().check(TwoMoons(num_train=1, num_valid=1, num_test=1))
        InceptionScore().check(Digits())
        x = normal(20, 2, 0)
        with pytest.raises(UsageError, match="needs class probabilities"):
            metric(EvalContext(x, x, None, lambda name: Pixels(), stream(0)))
        assert not isinstance(Pixels(), HasLogits)

    def test_no_ratio_and_higher_is_better(self) -> None:
        assert not InceptionScore.ratio
        assert InceptionScore.lower_is_better is False
        assert not InceptionScore.against_train


class TestPrdc:
    @pytest.mark.parametrize("nearest_k", [1, 5])
    def test_equal_sets(self, nearest_k: int) -> None:
        """The ball around a row holds the row itself and k - 1 others: density is exactly 1."""
        x = normal(2500, 4, 0)  # more than two blocks
        values = Prdc(nearest_k=nearest_k)(context(x, x.clone()))
        assert values == {f"prdc.{name}": pytest.approx(1.0) for name in ("precision", "recall", "density", "coverage")}

    def test_sets_far_apart(self) -> None:
        x = normal(50, 3, 0)
        values = Prdc()(context(x + 1e4, x))
        assert set(values.values()) == {0.0}

    def test_on_a_line(self) -> None:
        """Reference 0, 1, 2, 10 with k = 1: radii 1, 1, 1, 8. Draws 0.5, 0.75, 30 with radii 0.25, 0.25, 29.25."""
        y, x = torch.tensor([[0.0], [1], [2], [10]]).double(), torch.tensor([[0.5], [0.75], [30]]).double()
        values = Prdc(nearest_k=1)(context(x, y))
        # 0.5 and 0.75 lie in B(0) and B(1), 30 in no ball; 2 is 1.25 from the nearest draw, and 10 is 9.25
        assert values["prdc.precision"] == pytest.approx(2 / 3)
        assert values["prdc.density"] == pytest.approx(4 / 3)
        assert values["prdc.coverage"] == pytest.approx(2 / 4)
        assert values["prdc.recall"] == pytest.approx(3 / 4)  # 1, 2 and 10 lie in the ball of 30, which reaches 0.75

    def test_blocks_do_not_change_the_values(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x, y = normal(300, 5, 0), 1.1 * normal(200, 5, 1)
        whole = prdc(balls(y, y.mean(0), 3), x, 3)
        monkeypatch.setattr(prdc_module, "DISTANCE_ROWS", 7)
        assert prdc(balls(y, y.mean(0), 3), x, 3) == whole

    def test_far_from_the_origin(self) -> None:
        x, y = normal(200, 2, 0), normal(150, 2, 1)
        assert Prdc()(context(x + 1e6, y + 1e6)) == Prdc()(context(x, y))

    def test_distances(self) -> None:
        x, y = normal(9, 4, 0), normal(6, 4, 1)
        assert torch.allclose(squared_distances(x, y), torch.cdist(x, y).square())

    def test_fewer_rows_than_neighbours(self) -> None:
        with pytest.raises(UsageError, match="at least 6 reference rows, got 5"):
            Prdc()(context(normal(9, 2, 0), normal(5, 2, 0)))

    def test_thousands_of_rows_never_hold_the_distance_matrix(self) -> None:
        """Three such matrices would take 512 MB each; the process must not grow by nearly as much as one."""
        x, y = normal(8_000, 4, 0), normal(8_000, 4, 1)
        prdc(balls(y[:2000], y.mean(0), 5), x[:2000], 5)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        prdc(balls(y, y.mean(0), 5), x, 5)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 350 * 1024  # in KiB


def test_what_is_derived_of_a_reference_is_derived_once_for_each_of_two() -> None:
    calls: list[Tensor] = []
    derived = OfReference(lambda rows: calls.append(rows) or len(calls))
    x, (a, b, c) = normal(5, 2, 0), (normal(6, 2, seed) for seed in range(3))
    space, other = FeatureSpace("given", Given()), FeatureSpace("given", Given("another"))
    assert [derived(space, context(x, y)) for y in (a, b, a, b, a)] == [1, 2, 1, 2, 1]
    assert derived(other, context(x, a)) == 3  # of other features
    assert derived(space, context(x, c)) == 4
    assert derived(space, context(x, b)) == 5  # forgotten meanwhile


# --- too few rows ------------------------------------------------------------------------------------------------------


def _warned(metric: Any, num: int, dim: int, rows: int | None = None) -> list[str]:
    """Score twice, and return what was warned of."""
    draws = torch.rand(num, dim, generator=torch.Generator().manual_seed(0))
    reference = torch.rand(rows or num, dim, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            metric(context(draws, reference))
    return [str(warning.message) for warning in seen]


@pytest.mark.parametrize("make", [Frechet, Fid])
@pytest.mark.parametrize(("num", "rows"), [(20, 200), (200, 20), (30, 30)])
def test_a_covariance_without_full_rank_is_named_once(make: Any, num: int, rows: int) -> None:
    (text,) = _warned(make("pixels"), num, 30, rows)
    assert f"metric {make.name}: {min(num, rows)} rows" in text
    assert f"30 features, whose rank is at most {min(num, rows) - 1}" in text
    assert "bias" in text


def test_enough_rows_bring_no_warning() -> None:
    for metric in (Frechet("pixels"), Fid("pixels"), Kid("pixels"), Prdc("pixels")):
        assert not _warned(metric, 200, 30)


def test_few_rows_of_kid_and_prdc_are_named() -> None:
    (text,) = _warned(Kid("pixels"), 60, 30)
    assert "metric kid: subsets of 60 rows" in text
    (text,) = _warned(Prdc("pixels"), 40, 30)
    assert "metric prdc: with 40 rows" in text
    assert "At least 50 rows are wanted" in text


def test_splits_smaller_than_the_classes_are_named() -> None:
    (text,) = _warned(InceptionScore("classifier", splits=5), 40, 10)
    assert "parts of 8 draws are smaller than the 10 classes" in text
    assert not _warned(InceptionScore("classifier", splits=2), 40, 10)
