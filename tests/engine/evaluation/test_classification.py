"""A model with classes as a classifier, by hand and on Gaussian classes; longer chains, one beta and budgets of classes."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import gebm_kit as gk
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Base, Dataset, Energy, HasLabels, Split, SplitName
from gebm_kit.engine.evaluation.calibration import Part, calibrate, calibrate_parts
from gebm_kit.engine.evaluation.classification import BINS, bins_of, classified, share_interval
from gebm_kit.engine.likelihood.class_densities import ClassRows

K = 3
MEANS = torch.tensor([[1.2, 0.0], [-0.6, 1.0], [-0.6, -1.0]])
SCALE = 0.6
SHARES = (0.5, 0.3, 0.2)

pytestmark = pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")


def rows_of(probabilities: Tensor) -> ClassRows:
    """Rows whose class probabilities are given, (N, K)."""
    count = probabilities.shape[1]
    weights = torch.full((count,), 1 / count, dtype=torch.float64)
    return ClassRows(-probabilities.double().log(), None, torch.zeros(count), weights, "bayes")


# --- by hand ---------------------------------------------------------------------------------------------------------
def test_values_by_hand() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])
    labels = torch.tensor([0, 1, 1, 2])
    found = classified(rows_of(probabilities), labels)
    assert found is not None
    assert (found.rows, found.accuracy.value, found.majority) == (4, 0.75, 0.5)
    assert found.nll is not None
    assert found.nll.value == pytest.approx(-(math.log(0.7) + math.log(0.2) + math.log(0.5) + math.log(0.8)) / 4)
    assert found.brier is not None
    brier = (0.09 + 0.04 + 0.01) + (0.49 + 0.64 + 0.01) + (0.04 + 0.25 + 0.09) + (0.01 + 0.01 + 0.04)
    assert found.brier.value == pytest.approx(brier / 4)
    # confidences 0.7, 0.7 (half of them right), 0.5 and 0.8 (right)
    assert found.calibration_error == pytest.approx((2 * 0.2 + 0.5 + 0.2) / 4)
    assert found.of_classes == {"0": 1.0, "1": 0.5, "2": 1.0}
    assert sum(one.rows for one in found.bins) == 4
    assert (found.bins[10].rows, found.bins[10].accuracy) == (2, 0.5)
    record = found.as_dict()
    assert set(record) == {
        "law", "reason", "rows", "undefined", "accuracy", "majority", "nll", "brier", "calibration_error", "bins",
    }  # fmt: skip
    assert len(record["bins"]) == BINS


def test_bins_hold_their_upper_end() -> None:
    confidence = torch.tensor([1 / BINS, 2 / BINS, 1.0, 0.0], dtype=torch.float64)
    found = bins_of(confidence, torch.tensor([True] * 4))
    assert [place for place, one in enumerate(found) if one.rows] == [0, 1, BINS - 1]
    assert found[0].rows == 2
    assert found[5].confidence is None


def test_the_interval_of_a_share() -> None:
    found = share_interval(10, 10)
    assert (found.value, found.high) == (1.0, pytest.approx(1.0))
    assert found.low == pytest.approx(0.7225, abs=1e-4)  # Wilson, 10 of 10
    generator = torch.Generator().manual_seed(0)
    hits = (torch.rand(2000, 50, generator=generator) < 0.9).sum(1).tolist()
    covered = [one.low <= 0.9 <= one.high for one in (share_interval(hit, 50) for hit in hits)]
    assert 0.92 < sum(covered) / 2000 < 0.98


def test_a_calibrated_classifier_has_a_small_error_and_an_overconfident_one_a_large_one() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 1.5 * torch.randn(20_000, 4, generator=generator, dtype=torch.float64)
    probabilities = torch.softmax(logits, 1)
    labels = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
    right, wrong = (classified(rows_of(torch.softmax(c * logits, 1)), labels) for c in (1.0, 3.0))
    assert right is not None
    assert wrong is not None
    assert right.accuracy == wrong.accuracy
    assert right.calibration_error < 0.02 < 0.1 < wrong.calibration_error
    assert right.nll.value < wrong.nll.value
    assert right.brier.value < wrong.brier.value
    entropy = float(-(probabilities * probabilities.log()).sum(1).mean())
    assert right.nll.low < entropy < right.nll.high


def test_rows_that_no_class_can_have_made_are_counted_and_left_out() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.0, 0.0], [0.2, 0.8]])
    found = classified(rows_of(probabilities), torch.tensor([0, 0, 1]))
    assert found is not None
    assert (found.rows, found.undefined, found.accuracy.value) == (2, 1, 1.0)
    assert classified(rows_of(torch.zeros(2, 2)), torch.tensor([0, 1])) is None


def test_without_probabilities_there_is_the_accuracy_of_the_energy_alone() -> None:
    rows = replace(rows_of(torch.tensor([[0.9, 0.1], [0.6, 0.4]])), law="energy-part")
    found = classified(rows, torch.tensor([0, 1]))
    assert found is not None
    assert (found.nll, found.brier, found.calibration_error, found.bins) == (None, None, None, ())
    assert found.accuracy.value == 0.5
    assert "there are no class probabilities" in str(found.reason)


# --- evaluations of Gaussian classes ---------------------------------------------------------------------------------
class Plain(Base):
    latent_dim, data_shape = 2, (2,)

    def forward(self, z: Tensor) -> Tensor:
        return z


class Moved(Base):
    conditional, num_classes = True, K
    latent_dim, data_shape = 2, (2,)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return SCALE * z + MEANS[labels]


class MovedDensity(Moved):
    def log_prob(self, x: Tensor, labels: Tensor) -> Tensor:
        z = (x - MEANS[labels]) / SCALE
        return -0.5 * z.square().sum(1) - 2 * math.log(SCALE) - math.log(2 * math.pi)


class Right(Energy):
    """``factor`` times the energy that makes N(m_y, s^2 I) of the base N(0, I)."""

    conditional, num_classes = True, K

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.factor * 0.5 * (((x - MEANS[labels]) / SCALE).square().sum(1) - x.square().sum(1))


class Flat(Energy):
    conditional, num_classes = True, K

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return 0.01 * x[:, 0] * (labels == 1)


class Rows(Split):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor) -> Tensor:
        return self.x[indices]


class Classes(Dataset):
    """Gaussian classes in their shares."""

    data_shape, num_classes, value_range = (2,), K, None

    def __init__(self, num: int = 600) -> None:
        self.parts = {}
        for seed, name in enumerate(("train", "valid", "test")):
            generator = torch.Generator().manual_seed(seed)
            labels = torch.multinomial(torch.tensor(SHARES), num, replacement=True, generator=generator)
            x = MEANS[labels] + SCALE * torch.randn(num, 2, generator=generator)
            self.parts[name] = (Rows(x), labels)

    def split(self, name: SplitName) -> Split:
        return self.parts[name][0]

    def labels(self, name: SplitName) -> Tensor:
        return self.parts[name][1]


def evaluated(base: Base, energy: Energy, sampler: Any = "imh", **options: Any) -> Any:
    model = gk.GEBM(base, energy)
    model.class_weights.copy_(torch.tensor(SHARES))
    dataset = Classes()
    assert isinstance(dataset, HasLabels)
    place: dict[str, Any] = {"num_samples": 120, "num_sets": 5, "metrics": ["mmd"], "seed": 3, **options}
    return gk.evaluate(model, data=dataset, sampler=sampler, **place)


def exact() -> Tensor:
    """log p(y | x) of the test rows, (N, K)."""
    x = Classes().split("test").batch(torch.arange(600))
    logits = -0.5 * ((x[:, None] - MEANS) / SCALE).square().sum(2) + torch.tensor(SHARES).log()
    return torch.log_softmax(logits.double(), 1)


@pytest.mark.parametrize(("base", "energy"), [(Plain(), Right()), (MovedDensity(), Flat())])
def test_a_model_that_is_right_is_the_bayes_classifier(base: Base, energy: Energy) -> None:
    found, labels = evaluated(base, energy), Classes().labels("test")
    tells, known = found.classifier, exact()
    assert tells["law"] == "bayes"
    assert tells["rows"] == 600
    right = known.argmax(1) == labels
    assert tells["accuracy"]["value"] == pytest.approx(float(right.double().mean()), abs=0.01)
    assert tells["nll"]["value"] == pytest.approx(float(-known.gather(1, labels[:, None]).mean()), abs=0.02)
    assert tells["calibration_error"] < 0.06
    for label in range(K):
        recall = float(right[labels == label].double().mean())
        assert found.classes[str(label)]["accuracy"] == pytest.approx(recall, abs=0.03)
    assert set(found.as_dict()) >= {"classes", "classifier"}
    assert found.scalars()["eval.classifier.accuracy"] == tells["accuracy"]["value"]


def test_a_broken_twin_is_worse_by_every_value() -> None:
    right, wrong = (evaluated(Plain(), Right(factor)).classifier for factor in (1.0, 3.0))
    assert wrong["nll"]["value"] > right["nll"]["high"]
    assert wrong["calibration_error"] > right["calibration_error"] + 0.03


def test_a_base_with_classes_and_no_density_has_no_probabilities() -> None:
    found = evaluated(Moved(), Flat()).classifier
    assert found["law"] == "energy-part"
    assert (found["nll"], found["brier"], found["calibration_error"], found["bins"]) == (None, None, None, [])
    assert found["accuracy"]["value"] < 0.75 < float((exact().argmax(1) == Classes().labels("test")).double().mean())


def test_a_density_gives_the_likelihood_of_rows_given_their_class() -> None:
    found = evaluated(MovedDensity(), Flat())
    expected = 1 + 2 * math.log(SCALE) + math.log(2 * math.pi)  # entropy of N(m_y, s^2 I)
    assert found.fit.nll is not None
    assert found.fit.nll.num_rows == 600
    assert abs(found.fit.nll.gebm.value - expected) < 4 * found.fit.nll.gebm.se
    assert found.classes["0"]["nll"]["gebm"]["value"] == pytest.approx(expected, abs=0.3)
    assert evaluated(Plain(), Right()).fit.nll is None


@pytest.mark.parametrize("sampler", ["hmc", "smc"])
def test_chains_are_continued(sampler: str) -> None:
    found = evaluated(Plain(), Right(), sampler, num_sets=3).equilibrium
    assert found.metric == "mmd"
    assert set(found.at) == {1, 2, 4}
    assert found.reason == ""
    assert found.ratio is not None
    assert found.unit == ("the chain length" if sampler == "hmc" else "the effort for a draw")
    assert all(estimate.n == 3 for estimate in found.at.values())


def test_a_refiner_is_not_continued() -> None:
    found = evaluated(Plain(), Right(), "drs", num_sets=2).equilibrium
    assert set(found.at) == {1}
    assert "refiner" in found.reason


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_one_beta_is_calibrated_for_all_classes(factor: float) -> None:
    found = evaluated(Plain(), Right(factor)).calibration
    assert found.rows == 600
    assert found.draws == 600
    assert found.stderr is not None
    assert abs(found.inverse_temperature - 1 / factor) < 4 * found.stderr + 0.05


def test_the_calibrated_beta_is_taken() -> None:
    found = evaluated(Plain(), Right(2.0), inverse_temperature="calibrated")
    assert found.inverse_temperature == found.calibration.applied
    assert found.classifier["calibration_error"] < evaluated(Plain(), Right(2.0)).classifier["calibration_error"]


def test_parts_of_one_class_are_calibrated_as_one() -> None:
    generator = torch.Generator().manual_seed(0)
    data, base = (torch.randn(num, generator=generator, dtype=torch.float64) - 0.5 * (num == 300) for num in (300, 900))
    whole = calibrate(data, base)
    assert calibrate_parts([Part(data, base)]) == whole
    assert calibrate_parts([Part(data, base), Part(data[:0], base)]) == whole
    twice = calibrate_parts([Part(data, base), Part(data, base)])
    assert twice.inverse_temperature == pytest.approx(whole.inverse_temperature)
    assert twice.stderr == pytest.approx(whole.stderr / math.sqrt(2))
    # a shift of one class's energies moves its A_y alone, so that beta stays
    moved = calibrate_parts([Part(data, base), Part(data + 5, base + 5)])
    assert moved.inverse_temperature == pytest.approx(whole.inverse_temperature)
    assert calibrate_parts([]).reason == "energies are not finite"


def test_a_budget_cuts() -> None:
    found = evaluated(Plain(), Right(), "hmc", budget=0.01)
    assert found.budget["cut"]
    assert set(found.equilibrium.at) == {1}
    assert found.metrics["gebm"]["mmd"].n == 3
    assert found.budget["estimated"]["total"] > 0
    ample = evaluated(Plain(), Right(), "hmc", budget=1e6)
    assert ample.budget["cut"] == []
    assert ample.metrics == evaluated(Plain(), Right(), "hmc").metrics


def on_a_rank(rank: int, folder: str) -> None:
    """Evaluate on one of two ranks, and write what the rank returns."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    warnings.simplefilter("ignore")
    found = evaluated(Plain(), Right(2.0), "hmc", num_samples=30, num_sets=2, inverse_temperature="calibrated")
    torch.save((comparable(found), found.gebm_draws), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def comparable(found: Any) -> dict[str, Any]:
    record = found.as_dict()
    return {name: record[name] for name in ("metrics", "classes", "classifier", "calibration", "equilibrium")}


def test_two_ranks_return_what_one_process_returns(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(on_a_rank, args=(str(tmp_path),), nprocs=2)
    (first, drawn), (second, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    alone = evaluated(Plain(), Right(2.0), "hmc", num_samples=30, num_sets=2, inverse_temperature="calibrated")
    torch.testing.assert_close(drawn, alone.gebm_draws, rtol=1e-5, atol=1e-6)
    expected = comparable(alone)
    assert first["classifier"]["nll"]["value"] == pytest.approx(expected["classifier"]["nll"]["value"])
    assert first["calibration"]["applied"] == pytest.approx(expected["calibration"]["applied"])
    for name in ("metric_at_1x", "metric_at_4x"):
        ours, theirs = first["equilibrium"][name], expected["equilibrium"][name]
        assert ours["value"] == pytest.approx(theirs["value"], rel=1e-4)


def test_labels_go_with_the_pictures() -> None:
    found = evaluated(Plain(), Right())
    assert found.labels is not None
    assert torch.equal(found.labels["data"], Classes().labels("test"))
    near = torch.cdist(found.gebm_draws, MEANS).argmin(1)
    assert float((near == found.labels["GEBM"]).double().mean()) > 0.7
    assert torch.bincount(found.labels["base"]).tolist() == [60, 36, 24]


def test_data_without_labels_are_refused() -> None:
    with pytest.raises(UsageError, match="has no labels"):
        gk.evaluate(gk.GEBM(Plain(), Right()), data=torch.zeros(20, 2), metrics=["mmd"])


def test_metrics_of_the_energy_are_those_of_each_class_and_their_mean() -> None:
    found = evaluated(MovedDensity(), Flat(), metrics=["kale", "mmd"]).as_dict()
    each = [found["classes"][label]["metrics"]["gebm"]["kale"]["value"] for label in found["classes"]]
    weights = [found["classes"][label]["share"] for label in found["classes"]]
    mean = sum(w * v for w, v in zip(weights, each, strict=True)) / sum(weights)
    assert found["metrics"]["gebm"]["kale"]["value"] == pytest.approx(mean)
    assert "kale" not in found["metrics"]["base"]
    assert "mmd" in found["classes"]["0"]["metrics"]["ratio"]
    assert found["protocol"]["kale"]["mean"] == "over classes, by their weights"
    assert abs(mean) < 0.05  # a flat energy tilts nothing
