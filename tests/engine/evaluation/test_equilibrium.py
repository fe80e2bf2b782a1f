"""The equilibrium test on models whose law is known: one that holds, one that only looks good when it is stopped early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gebm_kit.cli.results import show_evaluation
from gebm_kit.core.interfaces import Energy, OnCodes
from gebm_kit.core.model import GEBM
from gebm_kit.core.seeds import stream
from gebm_kit.engine.datasets.held_out import HeldOut
from gebm_kit.engine.evaluation import task as tasks
from gebm_kit.engine.evaluation.draw_sets import continued_sets, gebm_sets, shared_by, whole_groups
from gebm_kit.engine.evaluation.evaluation import Evaluation, score
from gebm_kit.engine.evaluation.evaluation_files import write_pictures
from gebm_kit.engine.evaluation.metrics import build_metrics
from gebm_kit.engine.evaluation.planner import Planner
from gebm_kit.engine.evaluation.settings import EvaluationSettings
from gebm_kit.engine.evaluation.task import Scores
from gebm_kit.engine.figures import run_figures
from gebm_kit.engine.process.distributed import Ranks
from gebm_kit.engine.run_directory.run_files import is_evaluation
from gebm_kit.engine.sampling.settings import SampleSettings
from gebm_kit.samplers.drs import Drs
from gebm_kit.samplers.hmc import Hmc
from gebm_kit.samplers.sir import Sir
from gebm_kit.samplers.smc import Smc
from gebm_kit.samplers.ula import Ula
from gebm_kit.testing.targets import IdentityBase, LinearEnergy

pytestmark = pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")

CPU = torch.device("cpu")
SHIFT = torch.tensor([1.0, 0.0])  # E(x) = -SHIFT . x on N(0, I): the GEBM is N(SHIFT, I)


def data(mean: Tensor = SHIFT, num: int = 1200) -> Tensor:
    return mean + torch.randn(num, 2, generator=stream(1, "data"))


def model(slope: Tensor = -SHIFT) -> GEBM:
    return GEBM(IdentityBase(2), LinearEnergy(slope))


def scored(subject: GEBM, rows: Tensor, sampler: Any, **given: Any) -> Evaluation:
    settings = given.pop("settings", SampleSettings(num_chains=75, warmup=40, steps=20, thin=10, seed=2))
    metrics = build_metrics(given.pop("metrics", ["sliced-wasserstein"]))
    asked = EvaluationSettings(given.pop("num_samples", 150), given.pop("num_sets", 4), **given)
    return score(subject, HeldOut(rows), metrics, sampler, settings, asked)


@pytest.fixture(scope="module")
def holds() -> Evaluation:
    return scored(model(), data(), Hmc())


SHORT = SampleSettings(num_chains=150, warmup=0, steps=30, thin=1)
"""Chains of 30 steps without warm-up, too few for a slow kernel."""


class TestAKnownLaw:
    def test_energies_agree_and_the_metric_holds(self, holds: Evaluation) -> None:
        found = holds.equilibrium
        assert found.agrees
        assert found.worsens is False
        assert found.model.mean == pytest.approx(-1.0, abs=0.15)  # E_Q[E] = -|SHIFT|^2
        assert found.data.mean == pytest.approx(-1.0, abs=0.15)
        assert found.base.mean == pytest.approx(0.0, abs=0.03)
        assert found.data.quantiles["q50"][0] == pytest.approx(-1.0, abs=0.2)
        assert set(found.at) == {1, 2, 4}
        assert found.length == 60  # 40 of warm-up and 20 more

    def test_the_first_length_is_the_evaluation_itself(self, holds: Evaluation) -> None:
        assert holds.equilibrium.at[1] == holds.metrics["gebm"]["sliced-wasserstein"]
        assert [found.n for found in holds.equilibrium.at.values()] == [4, 4, 4]

    def test_json_scalars_and_text(self, holds: Evaluation, capsys: pytest.CaptureFixture[str]) -> None:
        tree = json.loads(json.dumps(holds.as_dict(), allow_nan=False))
        assert is_evaluation(tree)
        wanted = {"energy_model", "energy_data", "energy_base", "metric_at_1x", "metric_at_2x", "metric_at_4x"}
        assert wanted <= set(tree["equilibrium"])
        assert set(tree["equilibrium"]["metric_at_4x"]) == {"value", "low", "high", "n"}
        assert set(tree["verdict"]) == {"sliced-wasserstein", "equilibrium"}
        assert tree["budget"]["seconds"] is None
        assert tree["budget"]["cut"] == []
        assert {"eval.equilibrium.gap", "eval.equilibrium.ratio", "eval.equilibrium.energy_model"} <= set(
            holds.scalars()
        )
        show_evaluation(tree)
        out = capsys.readouterr().out
        assert "along the chains" in out
        assert "The GEBM is better than its base by sliced-wasserstein" in out
        assert "agree within 10 %" in out

    def test_results_pass_from_the_first_rank_to_the_others(self, holds: Evaluation) -> None:
        scores = Scores(holds.metrics, holds.protocol, holds.fit, holds.equilibrium, holds.verdict, holds.budget)

        class Messenger(Ranks):
            size = 2

            def from_first(self, text: str) -> str:
                sent.append(text)
                return sent[0]

        sent: list[str] = []
        two = Messenger()
        assert Scores.from_first(scores, two) is scores
        again = Scores.from_first(None, two)
        assert again.equilibrium.as_dict() == holds.equilibrium.as_dict()
        assert again.verdict == holds.verdict

    def test_the_same_seed_gives_the_same_result(self, holds: Evaluation) -> None:
        again = scored(model(), data(), Hmc())
        assert again.equilibrium == holds.equilibrium
        assert again.verdict == holds.verdict


class TestABrokenLaw:
    """The energy's slope is five times too large. Slow chains pass the data on their way to the model's own law."""

    def test_chains_that_get_worse_are_warned_about(self) -> None:
        with pytest.warns(
            UserWarning, match="gets worse as its chains run on: sliced-wasserstein at 4x the chain length"
        ):
            found = scored(model(-5 * SHIFT), data(), Ula(step_size=0.015), settings=SHORT)
        result = found.equilibrium
        assert result.worsens
        assert result.at[4].value > 2 * result.at[1].value
        assert result.length == 30
        assert "gets worse as chains run on" in found.verdict["equilibrium"]
        assert "better than its base" in found.verdict["sliced-wasserstein"]

    def test_draws_that_have_arrived_have_too_low_energies(self) -> None:
        found = scored(model(-5 * SHIFT), data(), Hmc()).equilibrium
        assert found.agrees is False
        assert found.model.mean < found.data.mean


class TestOtherFamilies:
    def test_sir_has_larger_pools(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pools: list[int] = []

        def noted(model: GEBM, sampler: Any, *given: Any, **more: Any) -> Any:
            pools.append(sampler.num_candidates)
            return gebm_sets(model, sampler, *given, **more)

        monkeypatch.setattr(tasks, "gebm_sets", noted)
        found = scored(model(), data(), Sir(8)).equilibrium
        assert pools == [16, 32]
        assert found.unit == "the effort for a draw"
        assert set(found.at) == {1, 2, 4}
        assert found.length is None

    def test_smc_makes_more_moves(self) -> None:
        longer = Smc(num_moves=2).longer(4)
        assert longer.num_moves == 8
        assert Hmc().longer(2) is None

    def test_a_refiner_has_no_law_to_run_to(self) -> None:
        found = scored(model(), data(), Drs()).equilibrium
        assert found.ratio is None
        assert found.as_dict()["metric_at_4x"] is None
        assert "refiner" in found.reason

    def test_a_metric_without_a_direction_is_not_followed(self) -> None:
        found = scored(model(), data(), Hmc(), metrics=["kale"], num_sets=2)
        assert found.equilibrium.metric is None
        assert "no metric knows better from worse" in found.equilibrium.reason
        assert list(found.verdict) == ["equilibrium"]


class TestGroups:
    def test_continued_sets_are_those_of_one_long_run(self) -> None:
        settings = SampleSettings(num_chains=10, warmup=6, steps=8, thin=2, block_size=8)

        def sets(steps: int) -> Any:
            given = SampleSettings(num_chains=10, warmup=6, steps=steps, thin=2, block_size=8)
            return gebm_sets(model(), Hmc(), given, 20, 4, CPU, lambda p: None, keep_chains=True)

        first = sets(settings.steps)
        found = continued_sets(model(), first, 3, 14, CPU, lambda p: None)
        whole = sets(22)
        assert len(found.sets) == 3
        for part, expected in zip(found.sets, whole.sets, strict=False):
            assert sorted(map(tuple, part.tolist())) == sorted(map(tuple, expected.tolist()))

    def test_whole_blocks_are_continued(self) -> None:
        settings = SampleSettings(num_chains=10, warmup=2, steps=2, thin=1, block_size=16)
        found = gebm_sets(model(), Hmc(), settings, 10, 8, CPU, lambda p: None, keep_chains=True)
        # 80 chains in five blocks of 16: five groups are 50 chains in four blocks, which hold six groups
        assert whole_groups(found, 5) == 6
        assert shared_by(found, 5) == pytest.approx(4 / 5)


class Counting(nn.Module):
    """Counts the rows that pass through a module while it is watched."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.rows, self.active = 0, True
        module.register_forward_hook(self.count)

    def count(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.rows += len(inputs[0]) if self.active else 0


class TestSharing:
    """Base draws and their energies are made once, for metrics, calibration, log Z, equilibrium and pictures."""

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize("num_samples", [20, 300])
    def test_evaluations_of_base_draws_are_those_of_one_set(
        self, num_samples: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        subject = model()
        base, energy = Counting(subject.base), Counting(subject.energy)

        def unwatched(*given: Any, **more: Any) -> Any:
            base.active = energy.active = False
            found = gebm_sets(*given, **more)
            base.active = energy.active = True
            return found

        monkeypatch.setattr("gebm_kit.engine.evaluation.evaluation.gebm_sets", unwatched)
        monkeypatch.setattr(tasks.Task, "longer_sets", lambda *given: {})
        monkeypatch.setattr(Planner, "planned", lambda self, plan, sampling: plan)
        monkeypatch.setattr(Planner, "planned_with_chains", lambda self, asked, plan, *given: plan)
        monkeypatch.setattr(Planner, "planned_again", lambda self, plan, gebm: plan)
        for module in ("evaluation.budget", "likelihood.model_fit"):
            monkeypatch.setattr(f"gebm_kit.engine.{module}.NUM_DRAWS", 500)
        settings = SampleSettings(num_chains=20, block_size=20)
        rows, sets, padding = data(), 4 * num_samples, 20
        found = scored(subject, rows, Sir(2), num_samples=num_samples, settings=settings)
        # 1,000 base draws are wanted for log Z; evaluations are padded to blocks of one shape. The calibration needs these
        # base draws and the held-out half of the data, the other half of which is the reference.
        assert max(sets, 1000) <= base.rows <= max(sets, 1000) + padding
        assert found.calibration is not None
        assert found.calibration.rows == len(rows) // 2
        assert 1000 + len(rows) + sets <= energy.rows <= 1000 + len(rows) + sets + padding
        assert found.energies is not None
        monkeypatch.setattr(run_figures, "_energies", lambda *given: pytest.fail("computed again"))
        monkeypatch.setattr(run_figures, "point_clouds", lambda path, *given: path)
        write_pictures(tmp_path, subject, type("D", (), {"value_range": None}), found, [])  # type: ignore[arg-type]

    def test_energies_of_pictures_are_those_of_the_sets(self, holds: Evaluation) -> None:
        assert holds.energies is not None
        energy = model().energy
        for name, rows in (("data", holds.data), ("base", holds.base_draws), ("GEBM", holds.gebm_draws)):
            torch.testing.assert_close(holds.energies[name].float(), energy(rows))

    def test_an_energy_on_codes_is_evaluated_at_the_codes(self) -> None:
        class OfCodes(Energy, OnCodes):
            def __init__(self) -> None:
                super().__init__()
                self.codes = 0

            def bind(self, base: Any) -> None:
                pass

            def of_codes(self, z: Tensor) -> Tensor:
                self.codes += len(z)
                return -z[:, 0]

            def forward(self, x: Tensor) -> Tensor:
                return -x[:, 0]

        found = scored(GEBM(IdentityBase(2), OfCodes()), data(), Sir(4), num_sets=2)
        assert found.fit.log_partition.method == "importance-sampling"
        assert found.fit.log_partition.value == pytest.approx(0.5, abs=0.05)
