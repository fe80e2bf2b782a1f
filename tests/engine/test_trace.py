"""Quality along the chain: known curves, costs, sweeps, populations, files, bad input."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import gebm_kit as gk
from gebm_kit.core.errors import DataError, RecipeError, RunFailed, UsageError
from gebm_kit.core.interfaces import Base, Dataset, Energy, EvalContext, Info, Metric, Sampler, Split
from gebm_kit.core.model import GEBM
from gebm_kit.core.plugins import discover
from gebm_kit.core.progress import GebmKitWarning, Progress
from gebm_kit.core.seeds import stream
from gebm_kit.data.toys import TwoMoons
from gebm_kit.engine.evaluation import trace_chains as along_chains
from gebm_kit.engine.evaluation.trace_chains import Scored, aligned
from gebm_kit.engine.evaluation.trace_result import Trace, check_trace_output, evals_to_reach, improvement

MEAN, STD = torch.tensor([0.5, -0.5]), math.sqrt(0.5)  # of the posterior of `model` at beta = 1
RATE = 0.5
SMALL: dict[str, Any] = {"num_samples": 40, "num_sets": 3, "num_chains": 20, "warmup": 6, "steps": 3}


class Identity(Base):
    def __init__(self) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = 2, (2,)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, z: Tensor) -> Tensor:
        return self.scale * z


class Quadratic(Energy):
    """The energy ``|x|^2 / 2 - 2 MEAN x``, which counts the rows it sees, with and without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.with_gradient = self.without = 0

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            self.with_gradient += len(x)
        else:
            self.without += len(x)
        return 0.5 * x.square().sum(1) - 2 * x @ MEAN.to(x)


class Nearer(NamedTuple):
    position: Tensor
    value: Tensor
    steps: Tensor


class Autoregressive(Sampler):
    """The kernel ``z' = m + r (z - m) + s sqrt(1 - r^2) xi``; t steps from the prior, the mean is ``m (1 - r^t)``."""

    def init(self, z: Tensor, potential: Any, generator: torch.Generator) -> Nearer:
        return Nearer(z, potential.value(z), torch.zeros(()))

    def step(self, state: Nearer, potential: Any, generator: torch.Generator) -> tuple[Nearer, Info]:
        noise = torch.randn(state.position.shape, generator=generator)
        z = MEAN + RATE * (state.position - MEAN) + STD * math.sqrt(1 - RATE**2) * noise
        ones = torch.ones(len(z))
        return Nearer(z, potential.value(z), state.steps + 1), Info(ones, ones.bool(), ~ones.bool(), 0, 1)


class Population(Autoregressive):
    """A sampler that finishes after four to eight steps; its first random number says which."""

    family: ClassVar[Any] = "population"
    coupled: ClassVar[bool] = True

    def init(self, z: Tensor, potential: Any, generator: torch.Generator) -> Nearer:
        steps = -torch.randint(4, 9, (), generator=generator).float()
        return super().init(z, potential, generator)._replace(steps=steps)

    def finished(self, state: Nearer) -> Tensor:
        return state.steps >= 0


class Endless(Population):
    def finished(self, state: Nearer) -> Tensor:
        return state.steps > 1e9


class FirstMean(Metric):
    """The signed distance of the first coordinate's mean from the truth, positive for the base."""

    def __call__(self, context: EvalContext) -> dict[str, float]:
        return {"FirstMean": float(MEAN[0] - context.samples[:, 0].double().mean())}


class TwoMeans(Metric):
    """The means of both coordinates; higher is better."""

    lower_is_better: ClassVar[bool | None] = False

    def __call__(self, context: EvalContext) -> dict[str, float]:
        first, second = context.samples.double().mean(0).tolist()
        return {"means.first": first, "means.second": second}


class NoDirection(FirstMean):
    lower_is_better: ClassVar[bool | None] = None


def model() -> GEBM:
    return GEBM(Identity(), Quadratic())


def data(num: int = 400) -> Tensor:
    return MEAN + STD * torch.randn(num, 2, generator=stream(0, "data"))


def trace(metric: str | Metric = "mmd", **options: Any) -> Trace:
    return gk.trace_quality(model(), metric, data=data(), **{**SMALL, **options})


def values(found: Trace, name: str, curve: int = 0) -> list[float]:
    return [point.values[name].value for point in found.curves[curve].points]


class Copies(FirstMean):
    """Counts the training rows that it is given."""

    needs_train: ClassVar[bool] = True

    def __call__(self, context: EvalContext) -> dict[str, float]:
        assert context.train is not None
        return {"Copies": float(len(context.train))}


def test_a_metric_that_needs_training_data_gets_it() -> None:
    found = gk.trace_quality(model(), Copies(), data=TwoMoons(num_train=70, num_valid=30, num_test=40), **SMALL)
    assert set(values(found, "Copies")) == {70.0}
    assert found.floor["Copies"].value == 70.0
    with pytest.raises(UsageError, match="compares draws with training data, and these rows came without any"):
        trace(Copies())


@pytest.fixture(scope="module")
def swept() -> Trace:
    return trace("frechet", sampler="mala", inverse_temperature=[1, 0, 20])


class TestTheNumberToReachAShare:
    @pytest.mark.parametrize(
        ("values", "share", "answer"),
        [
            ([10, 5, 1, 0.4, 0.2, 0], 0.95, 4),
            ([10, 0.5, 0], 0.95, 1),  # exactly at the level
            ([10, 0.51, 0], 0.95, 2),
            ([10, -3, 5, 0], 0.95, 1),  # the first time counts
            ([10, 9, 8, 7], 1.0, 4),
            ([10, 9, 8, 7], 0.3, 1),
            ([-1, -2, -2.96, -3], 0.95, 2),
            ([10, 5, 10], 0.95, None),
            ([10, 5, 11], 0.95, None),
            ([10, 5, math.nan], 0.95, None),
        ],
    )
    def test_examples(self, values: list[float], share: float, answer: int | None) -> None:
        """The answer is the first of the costs 0, 1, 2, 4, 8, ... whose value is at most base - share (base - final)."""
        evals = [0, 1, 2, 4, 8, 16][: len(values)]
        assert evals_to_reach(evals, values, share) == answer

    def test_against_another_curves_end(self) -> None:
        assert evals_to_reach([0, 1, 2, 4], [10, 5, 1, 0], final=6) == 1
        assert evals_to_reach([0, 1, 2, 4], [10, 5, 1, 0], final=-2) is None
        assert evals_to_reach([0, 1, 2, 4], [10, 5, 1, 0], final=10) is None

    def test_a_larger_metric_may_be_the_better_one(self) -> None:
        found = trace(TwoMeans(), sampler=Autoregressive(), num_samples=2000, steps=40, warmup=0)
        (curve,) = found.curves
        first = [point.values["means.first"].value for point in curve.points]
        assert curve.improvement["means.first"].value == pytest.approx(first[-1] - first[0])
        # the mean of the first coordinate rises to 0.5 as 1 - 2^-t; the second mean falls, so it does not improve
        assert found.evals_to_95(curve, "means.first") in (5, 9)  # steps 4 and 8, and one value at the start
        assert found.evals_to_95(curve, "means.second") is None

    def test_an_unclear_gain_is_not_an_improvement(self) -> None:
        assert trace(sampler="mala", inverse_temperature=0).curves[0].improvement["mmd"].low < 0  # type: ignore[operator]
        found = trace(sampler="mala", inverse_temperature=0, seed=4)
        assert all(found.evals_to_95(curve, "mmd") is None for curve in found.curves)

    def test_without_direction_there_is_none(self) -> None:
        found = trace(NoDirection(), sampler=Autoregressive(), num_samples=1000)
        assert found.curves[0].improvement == {}
        assert found.evals_to_95(found.curves[0], "FirstMean") is None
        assert improvement([{"a": 1.0}], [{"a": 0.0}], None) == {}


class TestTheCurve:
    def test_a_known_relaxation(self) -> None:
        """Every point is within five standard errors of ``m (1 - r^t)``, and the start is the base."""
        found = trace(FirstMean(), sampler=Autoregressive(), num_samples=5000, num_sets=4, steps=10, warmup=0)
        (curve,) = found.curves
        assert [point.step for point in curve.points] == [0, 1, 2, 4, 8, 10]
        for point in curve.points:
            error = 5 / math.sqrt(4 * 5000)
            assert point.values["FirstMean"].value == pytest.approx(float(MEAN[0]) * RATE**point.step, abs=error)
        assert curve.improvement["FirstMean"].value == pytest.approx(0.5, abs=5 * 2 / math.sqrt(20000))
        assert found.evals_to_95(curve, "FirstMean") in (5, 9)

    def test_a_real_sampler_goes_from_the_base_to_the_floor(self) -> None:
        """The Fréchet distance of N(0, I) from N(m, s^2 I) is |m|^2 + 2 (1 - s)^2; the model's distance is zero."""
        found = trace("frechet", sampler="hmc", num_samples=500, warmup=60, steps=4, at_steps=[1, 20])
        truth = float(MEAN.square().sum()) + 2 * (1 - STD) ** 2
        start, _, end = values(found, "frechet")
        assert start == pytest.approx(truth, rel=0.25)
        assert abs(end) < 0.05
        assert abs(found.floor["frechet"].value) < 0.1
        assert found.base["frechet"].value == start

    def test_points_carry_students_intervals_over_groups(self) -> None:
        found = trace(FirstMean(), sampler=Autoregressive(), num_sets=3)
        rows = [[FirstMean()(_context(z))["FirstMean"] for z in _groups(step)] for step in (0, 1)]
        for row, point in zip(rows, found.curves[0].points, strict=False):
            estimate = point.values["FirstMean"]
            assert estimate.value == pytest.approx(np.mean(row))
            half = 4.302653 * np.std(row, ddof=1) / math.sqrt(3)
            assert (estimate.low, estimate.high) == pytest.approx((np.mean(row) - half, np.mean(row) + half))
            assert estimate.n == 3

    def test_chosen_steps(self) -> None:
        found = trace(FirstMean(), sampler=Autoregressive(), at_steps=[3, 7, 5])
        assert [point.step for point in found.curves[0].points] == [0, 3, 5, 7]

    def test_the_same_seed_gives_the_same_trace(self) -> None:
        torch.manual_seed(1)
        first = trace("mmd", sampler="hmc").as_dict()
        torch.manual_seed(2)
        assert trace("mmd", sampler="hmc").as_dict() == first
        assert trace("mmd", sampler="hmc", seed=1).as_dict()["points"] != first["points"]
        blocks = trace("mmd", sampler="hmc", block_size=16).as_dict()
        for one, other in zip(blocks["points"], first["points"], strict=True):
            assert one["value"] == pytest.approx(other["value"], abs=1e-5)

    def test_the_model_comes_back_as_it_was(self) -> None:
        gebm = model().train()
        gk.trace_quality(gebm, "mmd", data=data(), **SMALL)
        assert gebm.training
        assert all(parameter.requires_grad for parameter in gebm.parameters())


class TestCost:
    @pytest.mark.parametrize(
        ("sampler", "grads", "values"),
        [("mala", 1, 0), ("hmc", 4, 0), ("pcn", 0, 1), ("isir", 2, 7)],
    )
    def test_what_the_energy_saw(self, sampler: str, grads: int, values: int) -> None:
        """The energy sees as many rows as trace and warm-up report, including one evaluation at the start."""
        gebm = model()
        energy = gebm.energy
        assert isinstance(energy, Quadratic)
        found = gk.trace_quality(gebm, FirstMean(), data=data(), sampler=sampler, **SMALL)
        (curve,) = found.curves
        last, tuning = curve.points[-1], curve.tuning
        groups, chains = SMALL["num_samples"] * SMALL["num_sets"], SMALL["num_chains"]
        assert energy.with_gradient == groups * last.grad_evals + chains * tuning.grad_evals
        assert energy.without == groups * last.forward_evals + chains * tuning.forward_evals
        assert (curve.points[0].grad_evals, curve.points[0].forward_evals) == (0, 0)
        steps = np.diff([(point.step, point.grad_evals, point.forward_evals) for point in curve.points[1:]], axis=0)
        assert (steps[:, 1] == grads * steps[:, 0]).all()
        assert (steps[:, 2] == values * steps[:, 0]).all()
        assert found.axis == ("grad_evals" if grads else "forward_evals")
        assert found.evals(last) == (last.grad_evals if grads else last.forward_evals)
        assert tuning.steps == SMALL["warmup"]
        assert max(tuning.grad_evals, tuning.forward_evals) > SMALL["warmup"]

    def test_chains_are_run_with_the_tuned_sampler(self) -> None:
        tuned, as_given = trace(sampler="mala", warmup=50), trace(sampler="mala", warmup=0, steps=53)
        assert [len(found.curves[0].points) for found in (tuned, as_given)] == [8, 8]
        assert tuned.curves[0].tuning.step_size != pytest.approx(as_given.curves[0].tuning.step_size, rel=0.1)
        assert tuned.curves[0].acceptance == pytest.approx(0.574, abs=0.1)
        tuning = as_given.curves[0].tuning
        assert (tuning.steps, tuning.chains, tuning.grad_evals, tuning.forward_evals) == (0, 0, 0, 0)

    def test_a_sampler_without_tuning_costs_none(self) -> None:
        (curve,) = trace(sampler="imh").curves
        assert curve.tuning.grad_evals == curve.tuning.forward_evals == curve.tuning.steps == 0
        assert math.isnan(curve.tuning.step_size)


class TestSweep:
    def test_one_curve_for_each_beta_all_from_the_same_base(self, swept: Trace) -> None:
        assert [curve.inverse_temperature for curve in swept.curves] == [1, 0, 20]
        starts = [curve.points[0] for curve in swept.curves]
        assert starts[0] == starts[1] == starts[2]
        step_sizes = [curve.tuning.step_size for curve in swept.curves]
        assert step_sizes[1] > step_sizes[0] > step_sizes[2]

    def test_a_curve_is_what_it_would_be_alone(self, swept: Trace) -> None:
        alone = trace("frechet", sampler="mala", inverse_temperature=20)
        assert alone.curves[0] == swept.curves[2]
        assert alone.base == swept.base

    def test_beta_moves_the_chains(self) -> None:
        """A long chain reaches the posterior's mean at beta, m 2 beta / (1 + beta)."""
        found = trace(
            FirstMean(), sampler="hmc", inverse_temperature=[0, 3], num_samples=2000, warmup=40, at_steps=[30]
        )
        assert values(found, "FirstMean", 0)[-1] == pytest.approx(0.5, abs=0.1)
        assert values(found, "FirstMean", 1)[-1] == pytest.approx(0.5 - 0.75, abs=0.1)


class TestPopulations:
    def test_a_population_runs_until_it_has_finished(self) -> None:
        reports: list[Progress] = []
        found = trace(
            FirstMean(), sampler=Population(), num_samples=2000, num_sets=4, num_chains=500, on_progress=reports.append
        )
        (curve,) = found.curves
        assert curve.tuning.steps == 0
        assert 5 <= curve.points[-1].step <= 9  # the start counts as a step
        assert curve.points[0].values == curve.points[1].values
        assert [point.step for point in curve.points][:4] == [0, 1, 2, 4]
        assert abs(curve.points[-1].values["FirstMean"].value) < 0.06
        assert [(report.step, report.total) for report in reports] == [(1, 4), (2, 4), (3, 4), (4, 4)]

    @pytest.mark.usefixtures("unchecked")
    def test_coupled_chains_run_in_islands_of_the_size_that_draws_have(self) -> None:
        sizes: list[int] = []

        class Counting(Population):
            def init(self, z: Tensor, potential: Any, generator: torch.Generator) -> Nearer:
                sizes.append(len(z))
                return super().init(z, potential, generator)

        class Alone(Counting):
            coupled: ClassVar[bool] = False

        options: dict[str, Any] = {"num_samples": 40, "num_chains": 15, "num_sets": 2}
        assert trace(FirstMean(), sampler=Counting(), **options).protocol["samples"] == 40
        assert sizes == [15] * 6
        sizes.clear()
        assert trace(FirstMean(), sampler=Alone(), **options).protocol["samples"] == 40
        assert sizes == [40] * 2

    def test_groups_that_finished_count_with_their_last_value(self) -> None:
        def mark(step: int, value: float) -> Any:
            return Scored(step, 10 * step, step, {"a": value})

        short = [mark(0, 5.0), mark(1, 4.0), mark(2, 3.0), mark(3, 1.0)]
        long = [mark(0, 5.0), mark(1, 4.0), mark(2, 3.0), mark(4, 2.0), mark(6, 0.0)]
        points = aligned([short, long])
        assert [point.step for point in points] == [0, 1, 2, 4, 6]
        assert [point.values["a"].value for point in points] == [5.0, 4.0, 3.0, 1.5, 0.5]
        assert [point.grad_evals for point in points] == [0, 10, 20, 35, 45]

    def test_what_never_finishes_is_stopped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(along_chains, "MAX_STEPS", 20)
        with pytest.raises(RunFailed, match="'Endless' has not finished after 20 steps"):
            trace(FirstMean(), sampler=Endless())


NAMES = [record.component.name for record in discover({}, []).registry.of_kind("sampler")]


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"auto"}))
def test_every_sampler_has_a_trace(name: str) -> None:
    """A trace of any family starts at the base at no cost, has growing costs, and ends."""
    found = trace(FirstMean(), sampler=name, num_samples=64, num_chains=64, num_sets=2, warmup=4)
    (curve,) = found.curves
    base = trace(FirstMean(), sampler=Autoregressive(), num_samples=64, num_sets=2).base
    assert found.sampler == name
    assert found.base == base
    costs = [found.evals(point) for point in curve.points]
    assert costs[0] == 0
    assert (np.diff(costs) > 0).all()
    assert curve.points[-1].values["FirstMean"].value != base["FirstMean"].value


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"inverse_temperature": []}, "at least one value"),
            ({"inverse_temperature": [1, 2, 1.0]}, "inverse_temperature 1 is listed twice"),
            ({"inverse_temperature": [1, -1]}, ">= 0, got -1"),
            ({"inverse_temperature": [1, math.nan]}, "finite number >= 0, got nan"),
            ({"inverse_temperature": [1, True]}, "got True"),
            ({"inverse_temperature": "10"}, "got '10'"),
            ({"num_samples": 1}, "num_samples must be a whole number >= 2"),
            ({"num_sets": 0}, "num_sets must be a whole number >= 1"),
            ({"at_steps": []}, "a step after 0"),
            ({"at_steps": [0]}, "a step after 0"),
            ({"at_steps": [1.5]}, "whole numbers >= 0, got 1.5"),
            ({"metric": "kale"}, "'kale' is a property of the model and does not depend on draws"),
            ({"metric": "modes"}, "modes"),
            ({"metric": 3}, "metrics must be names, nodes {name: ...} or Metric objects, got int"),
            ({"sampler": 3}, "sampler must be a name, a node {name: ...} or a Sampler"),
        ],
    )
    def test_one_clear_message(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            trace(**options)

    def test_unknown_metric(self) -> None:
        with pytest.raises((RecipeError, UsageError), match="did you mean frechet"):
            trace("frechett")

    def test_data_that_does_not_fit(self) -> None:
        with pytest.raises(DataError, match=r"shape \(3,\)"):
            gk.trace_quality(model(), data=torch.zeros(10, 3))
        with pytest.raises(UsageError, match="held-out rows"):
            gk.trace_quality(model())

    def test_a_warning_reports_divergences(self) -> None:
        class Diverging(Autoregressive):
            def step(self, state: Nearer, potential: Any, generator: torch.Generator) -> tuple[Nearer, Info]:
                state, info = super().step(state, potential, generator)
                return state, info._replace(diverged=torch.arange(len(state.position)) < 10)

        with pytest.warns(GebmKitWarning, match=r"steps diverged at inverse_temperature 1 \(25.0% of all\)"):
            found = trace(FirstMean(), sampler=Diverging())
        assert found.curves[0].divergences == 10 * 9 * 3


class TestFiles:
    def test_json_and_csv_hold_the_same_rows(self, swept: Trace, tmp_path: Path) -> None:
        whole = json.loads(swept.save(tmp_path / "new" / "trace.json").read_text())
        assert whole["schema"] == 1
        assert len(whole["points"]) == 3 * len(swept.curves[0].points)
        assert set(whole["points"][0]) == {
            "inverse_temperature", "name", "step", "grad_evals", "forward_evals", "value", "low", "high", "n",
        }  # fmt: skip
        assert whole["points"][0]["value"] == swept.base["frechet"].value
        with open(swept.save(tmp_path / "trace.csv"), newline="") as file:
            rows = list(csv.DictReader(file))
        assert [{key: str(value) for key, value in row.items()} for row in whole["points"]] == rows
        curve = whole["curves"][0]
        assert curve["warmup_grad_evals"] == swept.curves[0].tuning.grad_evals
        assert curve["evals_to_95"] == {"frechet": swept.evals_to_95(swept.curves[0], "frechet")}

    @pytest.mark.parametrize("name", ["trace.txt", "trace", "trace.npz"])
    def test_other_suffixes_are_refused(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"\.json or \.csv"):
            check_trace_output(tmp_path / name)
        (tmp_path / "folder.csv").mkdir()
        with pytest.raises(UsageError, match="is a directory"):
            check_trace_output(tmp_path / "folder.csv")

    @pytest.mark.pictures
    @pytest.mark.parametrize("names", [1, 2, 5])
    def test_a_picture_has_a_panel_for_each_value(self, swept: Trace, names: int, tmp_path: Path) -> None:
        def spread(point: Any) -> Any:
            return dataclasses.replace(point, values={str(i): point.values["frechet"] for i in range(names)})

        curves = [dataclasses.replace(c, points=tuple(map(spread, c.points)), improvement={}) for c in swept.curves]
        floor = {str(i): swept.floor["frechet"] for i in range(names)}
        found = dataclasses.replace(swept, curves=tuple(curves), floor=floor)
        path = found.draw(tmp_path / "new" / "along.png")
        with Image.open(path) as image:
            assert image.format == "PNG"
            width, height = image.size
        one = Image.open(swept.draw(tmp_path / "one.png")).size
        assert (width > one[0]) == (names > 1)
        assert (height > one[1]) == (names > 3)

    @pytest.mark.pictures
    def test_a_single_group_and_no_gradients_are_drawn_too(self, tmp_path: Path) -> None:
        found = trace(FirstMean(), sampler="pcn", num_sets=1)
        assert found.curves[0].points[0].values["FirstMean"].low is None
        assert found.draw(tmp_path / "along.png").stat().st_size > 10_000
        assert trace(FirstMean(), sampler="isir").draw(tmp_path / "mixed.png").exists()


def _groups(step: int) -> list[Tensor]:
    """Compute the groups' positions after ``step`` steps of `Autoregressive` by hand."""
    found = []
    for index in range(3):
        generator = torch.Generator().manual_seed(stream(0, "trace", index, 0).initial_seed())
        z = torch.randn(40, 2, generator=generator)
        for _ in range(step):
            z = MEAN + RATE * (z - MEAN) + STD * math.sqrt(1 - RATE**2) * torch.randn(z.shape, generator=generator)
        found.append(z)
    return found


def _context(samples: Tensor) -> EvalContext:
    return EvalContext(samples, samples, None, None, stream(0), None)  # type: ignore[arg-type]


# --- classes ---------------------------------------------------------------------------------------------------------
class Steps(Dataset):
    """Rows of class y around 4 y."""

    data_shape, num_classes, value_range = (1,), 2, None

    def split(self, name: str) -> Split:
        labels = self.labels(name)
        return Held(4.0 * labels[:, None] + torch.linspace(-1, 1, len(labels))[:, None])

    def labels(self, name: str) -> Tensor:
        return torch.arange(40) % 2


class Held(Split):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor) -> Tensor:
        return self.x[indices]


class Shifted(Base):
    conditional, num_classes = True, 2
    latent_dim, data_shape = 1, (1,)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return z + 4.0 * labels[:, None]


class Bowl(Energy):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (x[:, 0] - 4.0).square()


@pytest.mark.parametrize("label", [0, 1])
def test_a_trace_of_a_class_is_that_of_its_model_against_its_rows(label: int) -> None:
    model, quick = GEBM(Shifted(), Bowl()), {"num_samples": 30, "num_sets": 2, "warmup": 4, "steps": 4, "seed": 1}
    found = gk.trace_quality(model, "mmd", label=label, data=Steps(), sampler="hmc", **quick)
    rows = Steps().split("test").batch((torch.arange(40) % 2 == label).nonzero().squeeze(1))
    alone = gk.trace_quality(model.given(label), "mmd", data=rows.repeat_interleave(2, 0), sampler="hmc", **quick)
    assert found.protocol["class"] == label
    assert found.curves[0].points == alone.curves[0].points


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "a trace follows the chains of one class, and the model has 2 classes"),
        (2, "there is no class 2"),
        (-1, "label must be a whole number >= 0, got -1"),
        ("1", "label must be a whole number >= 0, got '1'"),
    ],
)
def test_classes_that_can_not_be_traced(label: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        gk.trace_quality(GEBM(Shifted(), Bowl()), "mmd", label=label, data=Steps(), sampler="hmc")
    with pytest.raises(UsageError, match="no classes"):
        gk.trace_quality(GEBM(Shifted(), Bowl()).given(0), "mmd", label=0, data=Steps(), sampler="hmc")
