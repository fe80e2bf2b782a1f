"""Evaluation: the protocol on models whose truth is known, and bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import gebm_kit as gk
from gebm_kit.core.errors import CheckpointError, DataError, RecipeError, RunFailed, UsageError
from gebm_kit.core.interfaces import Base, Dataset, Energy, EvalContext, Info, Metric, Sampler
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import Progress
from gebm_kit.core.seeds import stream
from gebm_kit.data.digits import Digits
from gebm_kit.data.toys import TwentyFiveGaussians
from gebm_kit.engine.datasets.held_out import MAX_ROWS, HeldOut, evenly_spaced_rows, floor_sets
from gebm_kit.engine.evaluate import evaluate
from gebm_kit.engine.evaluation.draw_sets import base_sets, gebm_sets
from gebm_kit.engine.evaluation.evaluation import Evaluation, score
from gebm_kit.engine.evaluation.intervals import mean_interval
from gebm_kit.engine.evaluation.metrics import build_metrics
from gebm_kit.engine.evaluation.settings import EvaluationSettings
from gebm_kit.engine.sampling.settings import SampleSettings
from gebm_kit.metrics.mmd import Mmd

CPU = torch.device("cpu")
A, B = 1.0, (1.0, -1.0)  # E(x) = A |x|^2 / 2 - B . x on N(0, I): the GEBM is N(B / (1 + A), I / (1 + A))
MEAN, STD = torch.tensor(B) / (1 + A), 1 / math.sqrt(1 + A)
LOG_PARTITION = -math.log(1 + A) + 2.0 / (2 * (1 + A))  # two dimensions, |B|^2 = 2
QUICK: dict[str, Any] = {"num_samples": 200, "num_sets": 3}


class Identity(Base):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = 2, (2,)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, z: Tensor) -> Tensor:
        return self.scale * z


class Quadratic(Energy):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.tensor(B))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * A * x.square().sum(1) - x @ self.b


class ExactState(NamedTuple):
    position: Tensor
    value: Tensor


class Exact(Sampler):
    """A sampler with independent draws from the posterior of the model above at beta = 1."""

    def init(self, z: Tensor, potential: Any, generator: torch.Generator) -> ExactState:
        return ExactState(z, potential.value(z))

    def step(self, state: ExactState, potential: Any, generator: torch.Generator) -> tuple[ExactState, Info]:
        z = MEAN + STD * torch.randn(state.position.shape, generator=generator)
        ones = torch.ones(len(z))
        return ExactState(z, potential.value(z)), Info(ones, ones.bool(), ~ones.bool(), 0, 1)


class Coupled(Exact):
    coupled: ClassVar[bool] = True


class FirstMean(Metric):
    """The mean of the first coordinate, an unbiased metric with a known truth."""

    ratio: ClassVar[bool] = False

    def __call__(self, context: EvalContext) -> dict[str, float]:
        return {"FirstMean": float(context.samples[:, 0].double().mean())}


def model() -> GEBM:
    return GEBM(Identity(), Quadratic())


def data(num: int = 4000, seed: int = 0) -> Tensor:
    return MEAN + STD * torch.randn(num, 2, generator=stream(seed, "data"))


@pytest.fixture(scope="module")
def result() -> Evaluation:
    return evaluate(model(), data=data(), sampler=Exact(), num_samples=500, num_sets=5, seed=3)


class TestKnownTruth:
    def test_the_gebm_is_near_the_floor_and_the_base_is_not(self, result: Evaluation) -> None:
        """Fréchet distance of N(0, I) from N(m, s^2 I): |m|^2 + 2 (1 - s)^2."""
        truth = float(MEAN.square().sum()) + 2 * (1 - STD) ** 2
        assert result.metrics["base"]["frechet"].value == pytest.approx(truth, rel=0.15)
        assert abs(result.metrics["gebm"]["frechet"].value) < 0.03
        assert abs(result.metrics["data"]["frechet"].value) < 0.03
        ratio = result.metrics["ratio"]["frechet"]
        assert ratio.high is not None
        assert ratio.high < 0.1

    def test_without_tilt_nothing_is_gained(self) -> None:
        """Negative control: at beta = 0 the GEBM is its base, and the ratio's interval holds 1."""
        found = evaluate(
            model(), data=data(), inverse_temperature=0.0, metrics=["frechet"], num_samples=500, num_sets=6
        )
        ratio = found.metrics["ratio"]["frechet"]
        assert ratio.low < 1 < ratio.high  # type: ignore[operator]
        assert found.inverse_temperature == 0.0
        assert found.fit.log_partition.value == 0.0
        assert found.fit.kale_test == pytest.approx(0.0, abs=1e-6)

    def test_log_partition_and_kale(self, result: Evaluation) -> None:
        estimate = result.fit.log_partition
        assert abs(estimate.value - LOG_PARTITION) < 4.5 * estimate.se
        assert 0 < estimate.se < 0.02
        # KL(N(m, s^2 I) || N(0, I)) = (|m|^2 + d (s^2 - 1 - log s^2)) / 2
        kl = 0.5 * (float(MEAN.square().sum()) + 2 * STD**2 - 2 - 2 * math.log(STD**2))
        assert result.fit.kale_test == pytest.approx(kl, abs=0.06)
        assert result.fit.kale_train is None  # rows of a tensor are all held out

    def test_draws_and_reference_are_kept_for_pictures(self, result: Evaluation) -> None:
        assert result.data.shape == (2000, 2)
        assert result.base_draws.shape == result.gebm_draws.shape == (500, 2)

    def test_hmc_agrees_with_exact_draws(self, result: Evaluation) -> None:
        found = evaluate(model(), data=data(), metrics=["frechet"], sampler="hmc", num_samples=500, num_sets=5, seed=3)
        assert found.diagnostics.sampler == "hmc"
        assert abs(found.metrics["gebm"]["frechet"].value - result.metrics["gebm"]["frechet"].value) < 0.04

    def test_intervals_cover_the_truth(self) -> None:
        """Intervals for the mean of the first coordinate, over many evaluations of four sets with different seeds."""
        hits: dict[str, int] = {"base": 0, "gebm": 0}
        repeats = 150
        for seed in range(repeats):
            settings = SampleSettings(num_chains=20, warmup=0, steps=1, thin=1, seed=seed)
            base = base_sets(model(), settings, 40, 4, CPU).sets
            gebm = gebm_sets(model(), Exact(), settings, 40, 4, CPU, lambda p: None).sets
            for column, sets, truth in (("base", base, 0.0), ("gebm", gebm, float(MEAN[0]))):
                found = mean_interval([float(x[:, 0].mean()) for x in sets])
                hits[column] += found.low < truth < found.high  # type: ignore[operator]
        for count in hits.values():
            assert stats.binomtest(count, repeats, 0.95).pvalue > 1e-5


class TestProtocol:
    def test_json_has_the_documented_keys(self, result: Evaluation) -> None:
        tree = json.loads(json.dumps(result.as_dict(), allow_nan=False))
        assert set(tree) >= {
            "metrics", "protocol", "kale_train", "kale_train_rows", "kale_test", "log_partition", "inverse_temperature"
        }  # fmt: skip
        assert set(tree["metrics"]) == {"data", "base", "gebm", "ratio"}
        for values in tree["metrics"].values():
            assert set(values) == {"frechet", "mmd", "sliced-wasserstein"}
            for cell in values.values():
                assert set(cell) == {"value", "low", "high", "n"}
        assert tree["log_partition"]["method"] == "importance-sampling"
        assert set(tree["log_partition"]) >= {"value", "se", "method"}
        protocol = tree["protocol"]["frechet"]
        assert protocol["samples"] == 500
        assert protocol["reference"] == 2000
        assert protocol["sets"] == 5
        assert protocol["held_out_sets"] == 4  # 2,000 rows make four sets of 500
        assert protocol["features"] == "pixels"
        assert protocol["features_checksum"]
        assert protocol["reference_part"] == "test"
        assert tree["metrics"]["data"]["frechet"]["n"] == 4

    def test_the_same_seed_gives_the_same_table(self, result: Evaluation) -> None:
        torch.manual_seed(77)
        state = torch.random.get_rng_state()
        again = evaluate(model(), data=data(), sampler=Exact(), num_samples=500, num_sets=5, seed=3)
        assert again.metrics == result.metrics
        assert torch.equal(torch.random.get_rng_state(), state)
        other = evaluate(model(), data=data(), sampler=Exact(), num_samples=500, num_sets=5, seed=4)
        assert other.metrics["gebm"] != result.metrics["gebm"]
        assert other.metrics["base"] != result.metrics["base"]
        assert other.metrics["data"]["mmd"] == result.metrics["data"]["mmd"]  # this column has no draws

    def test_values_with_several_names_and_without_ratio(self) -> None:
        toy = TwentyFiveGaussians(num_train=50, num_valid=600, num_test=600)
        found = evaluate(GEBM(Identity(3.0), Quadratic()), data=toy, metrics=["modes", "kale"], **QUICK)
        assert set(found.metrics["gebm"]) == {"modes.covered", "modes.high_quality", "kale"}
        assert set(found.metrics["base"]) == {"modes.covered", "modes.high_quality"}
        assert found.metrics["ratio"] == {}
        assert found.metrics["gebm"]["kale"].n == 1
        assert found.metrics["data"]["modes.high_quality"].value > 0.98
        assert found.fit.kale_train is not None

    def test_the_number_of_rows_behind_kale_on_training_data(self, result: Evaluation) -> None:
        assert result.as_dict()["kale_train_rows"] is None  # rows of a tensor are all held out
        toy = TwentyFiveGaussians(num_train=70, num_valid=60, num_test=50)
        found = evaluate(model(), data=toy, metrics=["mmd"], sampler=Exact(), **QUICK)
        assert found.as_dict()["kale_train_rows"] == 70
        large = TwentyFiveGaussians(num_train=MAX_ROWS + 1, num_valid=60, num_test=50)
        found = evaluate(model(), data=large, metrics=["mmd"], sampler=Exact(), **QUICK)
        assert found.as_dict()["kale_train_rows"] == MAX_ROWS

    def test_default_metrics_follow_the_data(self) -> None:
        toy = TwentyFiveGaussians(num_train=50, num_valid=300, num_test=300)
        assert "modes" in evaluate(model(), data=toy, sampler=Exact(), **QUICK).protocol
        assert "modes" not in evaluate(model(), data=data(100), sampler=Exact(), **QUICK).protocol

    def test_metric_objects_keep_their_parameters(self) -> None:
        found = evaluate(model(), data=data(100), metrics=[Mmd(bandwidth_scale=2.0), FirstMean()], **QUICK)
        plain = evaluate(model(), data=data(100), metrics=["mmd"], **QUICK)
        assert found.protocol["mmd"]["bandwidth"] == pytest.approx(2 * plain.protocol["mmd"]["bandwidth"])
        assert "FirstMean" in found.metrics["gebm"]

    def test_reference_may_be_another_part(self) -> None:
        toy = TwentyFiveGaussians(num_train=70, num_valid=60, num_test=50)
        for part, size, floor in (("train", 70, 50), ("valid", 60, 50), ("test", 50, 60)):
            found = evaluate(model(), data=toy, metrics=["mmd"], sampler=Exact(), reference=part, **QUICK)  # type: ignore[arg-type]
            assert found.protocol["mmd"]["reference"] == size
            assert found.protocol["mmd"]["held_out"] == floor
            assert found.protocol["mmd"]["reference_part"] == part

    def test_progress_ends_at_its_total(self) -> None:
        seen: list[Progress] = []
        evaluate(model(), data=data(100), metrics=["mmd", "kale"], sampler=Exact(), on_progress=seen.append, **QUICK)
        steps = [(p.step, p.total) for p in seen if p.stage == "evaluate"]
        assert steps[-1] == (steps[-1][1],) * 2
        assert [step for step, _ in steps] == list(range(1, len(steps) + 1))

    def test_the_model_is_given_back_as_it_was(self) -> None:
        subject = model().train()
        weights = {name: value.clone() for name, value in subject.state_dict().items()}
        evaluate(subject, data=data(100), metrics=["mmd"], **QUICK)
        assert subject.training
        assert all(p.requires_grad and p.grad is None for p in subject.parameters())
        assert all(torch.equal(v, weights[k]) or v.isnan().all() for k, v in subject.state_dict().items())

    def test_double_precision_models(self) -> None:
        found = evaluate(model().double(), data=data(100), sampler="mala", **QUICK)
        assert found.gebm_draws.dtype == torch.float64
        assert math.isfinite(found.metrics["gebm"]["frechet"].value)

    def test_images_use_the_classifier_of_labelled_data(self) -> None:
        from gebm_kit.bases.mlp import MlpBase
        from gebm_kit.energies.mlp import MlpEnergy

        base = MlpBase(latent_dim=4, data_shape=(1, 8, 8), value_range=(-1.0, 1.0))
        subject = GEBM(base, MlpEnergy(data_shape=(1, 8, 8)))
        found = evaluate(subject, data=Digits(), metrics=["frechet"], num_samples=130, num_sets=2)
        protocol = found.protocol["frechet"]
        assert protocol["features"] == "classifier"
        assert protocol["dimension"] == 16
        assert len(protocol["features_checksum"]) == 64
        # Held-out digits against held-out digits: near zero beside an untrained base.
        assert abs(found.metrics["data"]["frechet"].value) < 0.05 * found.metrics["base"]["frechet"].value

    def test_scalars_for_loggers(self, result: Evaluation) -> None:
        scalars = result.scalars()
        assert scalars["eval.gebm.frechet"] == result.metrics["gebm"]["frechet"].value
        assert {"eval.kale_test", "eval.log_partition", "eval.ratio.mmd"} <= set(scalars)


class TestDrawSets:
    def test_sets_are_independent_groups_of_chains(self) -> None:
        settings = SampleSettings(num_chains=30, warmup=0, steps=2, thin=1)
        found = gebm_sets(model(), Exact(), settings, 100, 3, CPU, lambda p: None)
        assert [tuple(x.shape) for x in found.sets] == [(100, 2)] * 3
        rows = [{row.numpy().tobytes() for row in x} for x in found.sets]
        assert len(set.union(*rows)) == 300
        assert found.diagnostics is not None
        assert found.diagnostics.num_chains == 90

    def test_a_chain_never_serves_two_sets(self) -> None:
        """A sampler that never moves leaves one value per chain, so each value must appear in one set only."""

        class Still(Exact):
            def step(self, state: ExactState, potential: Any, generator: torch.Generator) -> tuple[ExactState, Info]:
                ones = torch.ones(len(state.position))
                return state, Info(ones, ones.bool(), ~ones.bool(), 0)

        settings = SampleSettings(num_chains=20, warmup=0, steps=1, thin=1)
        sets = gebm_sets(model(), Still(), settings, 50, 3, CPU, lambda p: None).sets
        values = [{row.numpy().tobytes() for row in x} for x in sets]
        assert [len(v) for v in values] == [20, 20, 20]
        assert len(set.union(*values)) == 60

    def test_coupled_samplers_run_once_for_each_set(self) -> None:
        settings = SampleSettings(num_chains=30, warmup=0, steps=2, thin=1)
        found = gebm_sets(model(), Coupled(), settings, 60, 3, CPU, lambda p: None)
        assert found.diagnostics is not None
        assert found.diagnostics.num_chains == 30
        rows = [{row.numpy().tobytes() for row in x} for x in found.sets]
        assert len(set.union(*rows)) == 180

    def test_more_chains_than_draws(self) -> None:
        settings = SampleSettings(num_chains=500, warmup=0, steps=1)
        assert [len(x) for x in gebm_sets(model(), Exact(), settings, 7, 2, CPU, lambda p: None).sets] == [7, 7]

    def test_base_draws_follow_the_base(self) -> None:
        sets = base_sets(GEBM(Identity(2.0), Quadratic()), SampleSettings(), 5000, 2, CPU).sets
        assert stats.kstest((sets[0][:, 0] / 2).numpy(), "norm").pvalue > 1e-5
        assert not torch.equal(sets[0], sets[1])


class TestHeldOut:
    def test_floor_sets_are_disjoint_and_no_larger_than_asked(self) -> None:
        rows = torch.arange(1003.0)[:, None]
        sets = floor_sets(rows, 100, 8)
        assert [len(s) for s in sets] == [100] * 8
        assert len(torch.cat(sets).unique()) == 800
        assert [len(s) for s in floor_sets(rows, 100, 20)] == [100] * 10
        assert [len(s) for s in floor_sets(rows, 2000, 8)] == [1003]

    def test_large_parts_are_thinned_evenly(self) -> None:
        class Counting(HeldOut):
            pass

        split = Counting(torch.arange(5000.0)[:, None]).split("test")  # 0, 2, 4, ...
        rows = evenly_spaced_rows(split, "data", limit=100)
        assert len(rows) == 100
        assert torch.equal(rows[:, 0], torch.arange(100) * 50.0)

    def test_reference_and_floor_share_no_row(self) -> None:
        held = HeldOut(torch.arange(11.0)[:, None])
        test, floor = held.split("test").first(99), held.split("valid").first(99)
        assert len(test) == 6
        assert len(floor) == 5
        assert not set(test[:, 0].tolist()) & set(floor[:, 0].tolist())


class TestBadInput:
    def test_a_model_without_data(self) -> None:
        with pytest.raises(UsageError, match=r"data=\.\.\."):
            evaluate(model())

    @pytest.mark.parametrize("subject", [3, None, Identity()])
    def test_something_that_is_not_a_model(self, subject: Any) -> None:
        with pytest.raises(UsageError, match="a run, its path or a GEBM"):
            evaluate(subject, data=data(10))

    def test_a_path_that_is_not_a_run(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="does not exist"):
            evaluate(tmp_path / "nothing")
        with pytest.raises(CheckpointError, match="not a run directory"):
            evaluate(str(tmp_path))

    def test_data_of_another_kind(self) -> None:
        with pytest.raises(
            UsageError,
            match=r"data frame of rows .*, or the path of a file, or a pair \(rows, labels\), or a Dataset, got list",
        ):
            evaluate(model(), data=[1, 2])  # type: ignore[arg-type]

    def test_data_of_another_shape(self) -> None:
        with pytest.raises(DataError, match=r"shape \(3,\), the model makes \(2,\)"):
            evaluate(model(), data=torch.zeros(10, 3))

    @pytest.mark.parametrize("rows", [torch.zeros(3, 2), torch.zeros(10), torch.zeros(0, 2)])
    def test_too_little_data(self, rows: Tensor) -> None:
        with pytest.raises(DataError, match="at least 4 rows"):
            evaluate(model(), data=rows)

    @pytest.mark.parametrize("row", [4, 5])
    def test_data_that_is_not_finite(self, row: int) -> None:
        rows = data(20)
        rows[row, 1] = math.nan
        with pytest.raises(DataError, match=f"row {row // 2} holds a value that is not finite"):
            evaluate(model(), data=rows, **QUICK)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"num_samples": 1},
            {"num_samples": 2.5},
            {"num_sets": 0},
            {"num_sets": True},
            {"inverse_temperature": -1.0},
            {"inverse_temperature": math.nan},
            {"seed": -1},
            {"device": "cuda:99"},
            {"metrics": ["mmd", "mmd"]},
            {"metrics": [3]},
            {"sampler": 3},
        ],
    )
    def test_values_out_of_range(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(UsageError):
            evaluate(model(), data=data(20), **{**QUICK, **arguments})

    def test_misspelt_names(self) -> None:
        with pytest.raises(RecipeError, match="did you mean frechet"):
            evaluate(model(), data=data(20), metrics=["frechett"])
        with pytest.raises(RecipeError, match="did you mean mala"):
            evaluate(model(), data=data(20), sampler="malla")

    def test_modes_without_modes(self) -> None:
        with pytest.raises(UsageError, match="whose modes are known"):
            evaluate(model(), data=data(20), metrics=["modes"], sampler=Exact(), **QUICK)

    def test_classifier_without_labels(self) -> None:
        from gebm_kit.metrics.frechet import Frechet

        with pytest.raises(UsageError, match="dataset with labels"):
            evaluate(model(), data=data(20), metrics=[Frechet(features="classifier")], sampler=Exact(), **QUICK)

    def test_unknown_features(self) -> None:
        with pytest.raises(RecipeError, match="did you mean pixels"):
            evaluate(model(), data=data(20), metrics=[Mmd(features="pixel")], sampler=Exact(), **QUICK)

    def test_a_base_that_makes_values_that_are_not_finite(self) -> None:
        class Broken(Identity):
            def forward(self, z: Tensor) -> Tensor:
                return torch.where(z[:, :1] > 2.5, torch.full_like(z, math.nan), z)

        with pytest.raises(RunFailed, match="not finite"):
            evaluate(GEBM(Broken(), Quadratic()), data=data(100), metrics=["mmd"], num_samples=2000, num_sets=2)


def test_build_metrics_names_them_as_registered() -> None:
    assert list(build_metrics(["frechet", Mmd(), FirstMean()])) == ["frechet", "mmd", "FirstMean"]


def test_score_is_what_evaluate_calls() -> None:
    dataset: Dataset = HeldOut(data(200))
    settings = SampleSettings(seed=5)
    first = score(model(), dataset, build_metrics(["mmd"]), Exact(), settings, EvaluationSettings(100, 2))
    second = evaluate(model(), data=dataset, metrics=["mmd"], sampler=Exact(), num_samples=100, num_sets=2, seed=5)
    assert first.metrics == second.metrics


RECIPE = """
schema: 1
data: {name: eight-gaussians, num_train: 500, num_valid: 300, num_test: 300}
base: {name: mlp, latent_dim: 2, hidden: [16]}
energy: {name: mlp, hidden: [16]}
loss: {name: kale}
train: {steps: 3, batch_size: 32, start_steps: 0, energy_steps: 1}
sample: {num_chains: 50, warmup: 10, steps: 5}
eval: {metrics: [{name: mmd, bandwidth_scale: 0.5}], num_samples: 100, num_sets: 2, seed: 9}
"""


def test_a_trained_run(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    run = gk.train(tmp_path / "tiny.yaml", out=tmp_path / "run")
    found = gk.evaluate(run)
    assert list(found.protocol) == ["mmd"]
    assert found.protocol["mmd"]["samples"] == 100
    assert found.metrics["gebm"]["mmd"].n == 2
    assert found.fit.kale_train is not None
    assert gk.evaluate(tmp_path / "run").metrics == found.metrics
    assert gk.evaluate(str(tmp_path / "run"), num_sets=3, metrics=["modes"]).metrics["gebm"]["modes.covered"].n == 3
    assert run.evaluation is not None
    assert run.evaluation["metrics"]["data"] == found.as_dict()["metrics"]["data"]
    assert gk.evaluate(run, data=data(100)).protocol["mmd"]["reference"] == 50
