"""The best checkpoint by a metric is kept, is known after any interruption, and can be loaded by name."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Annotated, Any

import pytest
import torch
from torch import Tensor, nn

import gebm_kit as gk
from gebm_kit.cli.app import main
from gebm_kit.config.build import build_dataset
from gebm_kit.config.load import load_recipe
from gebm_kit.core.components import Component, Injected, Registered
from gebm_kit.core.errors import CheckpointError, Interrupted, RecipeError, UsageError
from gebm_kit.core.interfaces import Base
from gebm_kit.core.plugins import installed
from gebm_kit.core.progress import GebmKitWarning, Progress
from gebm_kit.engine.evaluation.metrics import build_metrics, metrics_of
from gebm_kit.engine.run_directory.checkpoint import list_checkpoints, read_state
from gebm_kit.engine.run_directory.run import Run, load_run
from gebm_kit.engine.train import train
from gebm_kit.engine.training import loop as module
from gebm_kit.engine.training.best_checkpoint import BestCheckpoint

RECIPE = """\
schema: 1
data: {name: eight-gaussians, num_train: 200, num_valid: 50, num_test: 50}
base: {name: mlp, latent_dim: 2, hidden: [8]}
energy: {name: mlp, hidden: [8]}
loss: {name: kale}
train: {steps: 10, energy_steps: 1, start_steps: 0, batch_size: 16, checkpoint_every: 2, keep_checkpoints: 1, eval_every: 3,
        log_every: 1, final: {steps: 2}, keep_best: {metric: mmd}}
sample: {num_samples: 40, num_chains: 20, warmup: 4, steps: 4, thin: 2}
eval: {metrics: [mmd, modes], num_samples: 40, num_sets: 2}
"""

VALUES = {3: 0.5, 6: 0.2, 9: 0.3, 12: 0.4}
"""Metric values that the made-up evaluations return, by step."""

pytestmark = pytest.mark.filterwarnings("ignore:the chains have not mixed", "ignore:the effective sample size")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replace evaluations by made-up ones, and return the list of steps at which one was requested."""
    found: list[int] = []

    def look(self: Any) -> Any:
        step = self.trainer.step
        found.append(step)
        values = {"mmd": VALUES[step], "modes.covered": 1 / VALUES[step], "modes.high_quality": float("nan")}
        gebm = {name: SimpleNamespace(value=value, low=None, high=None) for name, value in values.items()}
        return SimpleNamespace(metrics={"gebm": gebm}, classes={}, scalars=lambda: {"eval.gebm.mmd": VALUES[step]})

    class Job(module.TrainingRun):
        def look(self) -> None:
            step = self.trainer.step
            module.score_recipe = lambda *_, **__: look(self)
            try:
                super().look()
            finally:
                module.score_recipe = real
            assert self.best.looked == step

    real = module.score_recipe
    monkeypatch.setattr(module, "TrainingRun", Job)
    monkeypatch.setattr(module, "write_pictures", lambda *_, **__: [])
    monkeypatch.setattr(Job, "evaluate", lambda self: None)
    return found


def steps(run: Run) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in list_checkpoints(run.checkpoints)]


def test_the_best_stays_besides_the_last(recipe: Path, tmp_path: Path, looks: list[int]) -> None:
    run = train(recipe, out=tmp_path / "run")
    assert looks == [3, 6, 9, 12]
    assert steps(run) == [6, 12]
    best = {"metric": "mmd", "value": 0.2, "step": 6}
    assert run.status["best"] == best
    assert [read_state(path)["best"] for path in list_checkpoints(run.checkpoints)] == [best, best]
    assert load_run(run.path).step == 12
    assert load_run(run.path, "best").step == 6
    assert load_run(run.path, checkpoint="step-12").step == 12
    best_weights, last_weights = (next(load_run(run.path, word).model.parameters()) for word in ("best", "last"))
    assert not torch.equal(best_weights, last_weights)


def test_the_metric_says_which_way_is_better(recipe: Path, tmp_path: Path, looks: list[int]) -> None:
    run = train(recipe, ["train.keep_best.metric=modes.covered"], out=tmp_path / "run")
    assert run.status["best"] == {"metric": "modes.covered", "value": 5.0, "step": 6}  # the highest


def test_what_is_not_a_number_is_never_the_best(recipe: Path, tmp_path: Path, looks: list[int]) -> None:
    run = train(recipe, ["train.keep_best.metric=modes.high_quality"], out=tmp_path / "run")
    assert "best" not in run.status
    assert steps(run) == [12]
    with pytest.raises(CheckpointError, match="has no best checkpoint") as caught:
        _ = load_run(run.path, "best").model
    assert "train.keep_best.metric=NAME" in caught.value.hint


@pytest.mark.parametrize("step", [3, 4, 6, 7, 9])
def test_a_run_that_is_stopped_knows_its_best(recipe: Path, tmp_path: Path, looks: list[int], step: int) -> None:
    """A run stopped between a cycle and its evaluation makes that evaluation first when it resumes."""

    def stop(progress: Progress) -> None:
        if progress.stage == "train" and progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(recipe, out=tmp_path / "run", on_progress=stop)
    run = train(recipe, out=tmp_path / "run", resume=True)
    assert looks == [3, 6, 9, 12]
    assert steps(run) == [6, 12]
    assert run.status["best"]["step"] == 6


def test_without_it_nothing_changes(recipe: Path, tmp_path: Path, looks: list[int]) -> None:
    run = train(recipe, ["train.keep_best.metric=null"], out=tmp_path / "run")
    assert looks == [3, 6, 9]
    assert steps(run) == [12]
    assert "best" not in run.status


def test_what_can_not_be_the_best_is_refused_before_training(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train.keep_best.metric: needs evaluations during training"):
        train(recipe, ["train.eval_every=0"], out=tmp_path / "run")
    with pytest.raises(UsageError, match=r"'frechet' is not one of the recipe's metrics: mmd, modes"):
        train(recipe, ["train.keep_best.metric=frechet"], out=tmp_path / "run")
    with pytest.raises(UsageError, match="'kale' has no direction: neither lower nor higher is better"):
        train(recipe, ["eval.metrics=[kale]", "train.keep_best.metric=kale"], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_commands_take_the_checkpoint_that_is_asked_for(
    recipe: Path, tmp_path: Path, looks: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    run = train(recipe, out=tmp_path / "run")

    def asked(*words: str) -> Any:
        capfd.readouterr()
        code = main([*words, "--json", "--quiet"])
        return code, json.loads(capfd.readouterr().out)

    code, found = asked("sample", str(run.path), "--checkpoint", "best")
    assert code == 0
    assert found["checkpoint"].endswith("step-0000006")
    code, found = asked("sample", str(run.path))
    assert found["checkpoint"].endswith("step-0000012")
    code, found = asked("sample", str(run.path), "--checkpoint", "step-9")
    assert code == 2
    assert "has no checkpoint of step 9; there are: step-0000006, step-0000012" in found["error"]["message"]
    code, found = asked("eval", str(run.path), "--checkpoint", "newest")
    assert code == 2
    assert "allowed: last, best, step-N" in found["error"]["message"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_sampling_takes_the_newest_whole_checkpoint_with_a_warning(
    recipe: Path, tmp_path: Path, looks: list[int], damage: str
) -> None:
    run = train(recipe, ["train.keep_checkpoints=2"], out=tmp_path / "run")
    newest = list_checkpoints(run.checkpoints)[-1]
    for file in sorted(newest.iterdir()):
        content = file.read_bytes()
        if damage == "truncate":
            file.write_bytes(content[: len(content) // 2])
        elif damage == "flip":
            place = len(content) // 2
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        else:
            file.unlink()
        with pytest.warns(GebmKitWarning, match=rf"{file.name}.*; checkpoint step-0000010 is used instead.*--resume"):
            assert gk.load_run(run.path).step == 10
        file.write_bytes(content)
        assert gk.load_run(run.path).step == 12


def test_a_signal_during_an_evaluation_does_not_wait_for_its_end(
    recipe: Path, tmp_path: Path, looks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint was saved before the evaluation; the resumed run evaluates again."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_pictures", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(60))
        with pytest.raises(Interrupted) as caught:
            train(recipe, out=tmp_path / "run")
    assert caught.value.exit_code == 143
    assert load_run(tmp_path / "run").step == 3
    run = train(recipe, out=tmp_path / "run", resume=True)
    assert looks == [3, 3, 6, 9, 12]
    assert run.status["best"]["step"] == 6


class Gaussian(Base):
    """``G(z) = m + s z`` with its density."""

    def __init__(self, *, data_shape: Annotated[tuple[int, ...], Injected]) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = data_shape[0], data_shape
        self.mean, self.scale = nn.Parameter(torch.ones(data_shape)), nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor) -> Tensor:
        return self.mean + self.scale * z

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.distributions.Normal(self.mean, self.scale.abs()).log_prob(x).sum(1)


@pytest.fixture
def gaussian(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("gebm_kit_test_best")
    module.Gaussian = Gaussian  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    record = Registered(Component("base", "test-gaussian", f"{module.__name__}:Gaussian", "From a test"), "a-test", "1")
    monkeypatch.setitem(installed().registry._records, ("base", "test-gaussian"), [record])


@pytest.mark.usefixtures("gaussian")
def test_the_best_by_likelihood_is_that_of_the_validation_part(recipe: Path, tmp_path: Path) -> None:
    words = ["base={name: test-gaussian}", "train.keep_best.metric=nll", "train.keep_checkpoints=9"]
    run = train(recipe, words, out=tmp_path / "run")
    logged = {row["step"]: row["eval.nll"] for row in run.metrics() if "eval.nll" in row}
    best = run.status["best"]
    found = load_run(run.path, "best")
    assert found.step == best["step"]
    model = found.model
    rows = {part: run.dataset.split(part).first(50) for part in ("valid", "test")}
    with torch.no_grad():
        nll = {part: float((model.energy(x) - model.base.log_prob(x)).mean()) for part, x in rows.items()}
    shift = best["value"] - nll["valid"]  # A, estimated from the evaluation's own draws
    assert shift == pytest.approx(float(model.log_partition), abs=0.02)
    assert abs(nll["valid"] - nll["test"]) > 0.1  # otherwise this test would show nothing
    assert best["step"] == 12 or logged[best["step"]] == pytest.approx(best["value"])
    assert all(value >= best["value"] for step, value in logged.items() if step < 12)


def test_a_likelihood_with_a_log_partition_not_to_be_trusted_is_never_the_best(recipe: Path) -> None:
    checked = load_recipe(recipe, ["train.keep_best.metric=nll"])
    tracker = BestCheckpoint(checked, build_metrics(metrics_of(checked, build_dataset(checked))))

    def seen(value: float, pareto_k: float) -> Any:
        fit = SimpleNamespace(
            nll=SimpleNamespace(gebm=SimpleNamespace(value=value)), log_partition=SimpleNamespace(pareto_k=pareto_k)
        )
        return SimpleNamespace(metrics={"gebm": {}}, fit=fit)

    tracker.look(3, seen(2.0, 0.3))
    with pytest.warns(GebmKitWarning, match="step 6 is skipped"):
        tracker.look(6, seen(-5.0, 0.8))
    tracker.look(9, seen(1.5, 0.69))
    assert tracker.best_step == 9


def test_a_likelihood_that_there_is_none_of_can_not_be_the_best(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nll needs a base with a density"):
        train(recipe, ["train.keep_best.metric=nll"], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("gaussian")
def test_looks_during_training_do_not_see_the_test_part(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = module.score_recipe

    def noted(*args: Any, **kwargs: Any) -> Any:
        evaluation = real(*args, **kwargs)
        seen.append({entry["reference_part"] for entry in evaluation.protocol.values()})
        return evaluation

    monkeypatch.setattr(module, "score_recipe", noted)
    train(recipe, out=tmp_path / "run")
    assert seen == [{"valid"}] * 4 + [{"test"}]
