"""Three ways to train a base with its own loss: an energy on top, both after pretraining, both from the start."""

from __future__ import annotations

import itertools
import math
import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated

import pytest
import torch
from torch import Tensor, nn

import gebm_kit as gk
from gebm_kit.core.components import Component, Injected, Registered
from gebm_kit.core.errors import Interrupted, UsageError
from gebm_kit.core.interfaces import Base
from gebm_kit.core.plugins import installed
from gebm_kit.core.progress import Progress
from gebm_kit.engine.run_directory.checkpoint import read_checkpoint
from gebm_kit.engine.run_directory.record import read_record

RECIPE = """\
schema: 1
data: {name: eight-gaussians, num_train: 400, num_valid: 50, num_test: 50}
base: {name: test-affine}
energy: {name: mlp, hidden: [8]}
loss: {name: kale}
train:
  pretrain: {steps: 60, optimizer: {lr: 1.0e-1, schedule: linear}}
  steps: 20
  part: base-then-energy
  energy_steps: 1
  start_steps: 2
  start_energy_steps: 3
  batch_size: 200
  log_every: 1
  checkpoint_every: 10
  keep_checkpoints: 50
  final: {steps: 10}
ema: {decay: 0.9}
sample: {num_samples: 20, num_chains: 20, warmup: 2, steps: 4, thin: 4}
eval: {metrics: [mmd], num_samples: 20, num_sets: 2}
"""


class Affine(Base):
    """``G(z) = m + e^s z`` with its exact likelihood."""

    def __init__(self, *, data_shape: Annotated[tuple[int, ...], Injected]) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = data_shape[0], data_shape
        self.mean, self.log_scale = nn.Parameter(torch.ones(data_shape)), nn.Parameter(torch.zeros(data_shape))

    def forward(self, z: Tensor) -> Tensor:
        return self.mean + self.log_scale.exp() * z

    def pretraining_loss(self, x: Tensor) -> Tensor:
        z = (x - self.mean) * torch.exp(-self.log_scale)
        return (0.5 * z.square().sum(1) + self.log_scale.sum() + 0.5 * self.latent_dim * math.log(2 * math.pi)).mean()


class Plain(Base):
    """A base without its own loss."""

    def __init__(self, *, data_shape: Annotated[tuple[int, ...], Injected]) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = data_shape[0], data_shape
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor) -> Tensor:
        return self.scale * z


@pytest.fixture(autouse=True)
def bases(no_pictures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("gebm_kit_test_pretraining")
    module.Affine, module.Plain = Affine, Plain  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name, kind in {"test-affine": "Affine", "test-plain": "Plain"}.items():
        record = Registered(Component("base", name, f"{module.__name__}:{kind}", "From a test"), "a-test", "1")
        monkeypatch.setitem(installed().registry._records, ("base", name), [record])


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "affine.yaml"
    path.write_text(RECIPE)
    return path


def base_at(run: gk.Run, step: int, part: str = "model") -> dict[str, Tensor]:
    tensors = read_checkpoint(run.checkpoints / f"step-{step:07d}").tensors[part]
    return {name: value for name, value in tensors.items() if name.startswith("base.") and "num_updates" not in name}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_an_energy_on_top_of_the_finished_base(recipe: Path, tmp_path: Path) -> None:
    run = gk.train(recipe, out=tmp_path / "run")
    assert run.step == 90
    assert read_record(run.path).total_steps == 90
    data = run.dataset.split("train").first(400)
    torch.testing.assert_close(run.model.base.mean, data.mean(0), atol=0.15, rtol=0)
    rows = {row["step"]: row for row in run.metrics() if "energy_loss" in row or "base_loss" in row}
    assert all("energy_loss" not in rows[step] and "base_loss" in rows[step] for step in range(1, 61))
    assert all("energy_loss" in rows[step] and "base_loss" not in rows[step] for step in range(61, 91))
    assert rows[60]["base_loss"] < rows[1]["base_loss"]
    # the main phase starts from the averaged base of the pretraining phase and leaves it fixed
    assert same(base_at(run, 70), base_at(run, 60, "ema"))
    assert same(base_at(run, 90), base_at(run, 70))


def test_both_from_a_pretrained_base(recipe: Path, tmp_path: Path) -> None:
    run = gk.train(recipe, ["train.part=base-then-both"], out=tmp_path / "run")
    rows = {row["step"]: row for row in run.metrics() if "base_loss" in row}
    assert "energy_loss" not in rows[60]
    assert all("energy_loss" in rows[step] for step in range(61, 81))
    assert not same(base_at(run, 80), base_at(run, 60, "ema"))
    updates = read_checkpoint(run.checkpoints / "step-0000070").state["energy_updates"]
    assert updates == 2 * 3 + 8  # the start cycles, with more energy steps, belong to the main phase


def test_without_it_nothing_changes(recipe: Path, tmp_path: Path) -> None:
    run = gk.train(recipe, ["train.part=both"], out=tmp_path / "run")
    assert run.step == 30
    assert all("energy_loss" in row for row in run.metrics() if "base_loss" in row)


@pytest.mark.parametrize(
    ("part", "word", "at"),
    [
        *itertools.product(["base-then-energy", "base-then-both"], ["loss=kale"], [35, 60, 61, 75, 85]),
        *itertools.product(["base-then-energy"], ["loss=pcd"], [35, 61]),  # pcd also keeps chains
        *itertools.product(["base-then-energy"], ["train.pretrain.eval_every=7"], [35, 60, 61]),
    ],
)
def test_resumed_in_every_phase_it_ends_at_the_same_weights(
    recipe: Path, tmp_path: Path, at: int, part: str, word: str
) -> None:
    words = [f"train.part={part}", word]
    straight = gk.train(recipe, words, out=tmp_path / "straight")

    def stop(progress: Progress) -> None:
        if progress.stage == "train" and progress.step == at:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        gk.train(recipe, words, out=tmp_path / "run", on_progress=stop)
    run = gk.train(recipe, words, out=tmp_path / "run", resume=True)
    for name in ("model", "ema", "optim"):
        one, other = (read_checkpoint(r.checkpoints / "step-0000090").tensors[name] for r in (straight, run))
        assert same(one, other), name


def test_early_stopping_goes_on_with_the_weights_that_fit_the_validation_part_best(
    recipe: Path, tmp_path: Path
) -> None:
    # a learning rate so high that the validation loss goes up and down between evaluations
    words = ["train.pretrain.eval_every=7", "train.pretrain.optimizer={lr: 1.0, schedule: constant}", "ema.decay=0"]
    run = gk.train(recipe, words, out=tmp_path / "run")
    looks = {row["step"]: row["base_valid_loss"] for row in run.metrics() if "base_valid_loss" in row}
    assert list(looks) == [*range(7, 60, 7), 60]
    best = min(looks, key=lambda step: looks[step])
    assert best not in (7, 60)  # otherwise this test would show nothing
    assert next(row["base_best_step"] for row in run.metrics() if row["step"] == 60) == best
    rows = run.dataset.split("valid").first(50)
    run.model.base.double()
    assert run.model.base.pretraining_loss(rows.double()).item() == pytest.approx(looks[best], abs=1e-5)
    assert "best-base" not in read_checkpoint(run.checkpoints / "step-0000070").tensors
    assert "best-base" in read_checkpoint(run.checkpoints / "step-0000060").tensors


def test_looking_changes_nothing_but_the_weights_that_go_on(recipe: Path, tmp_path: Path) -> None:
    plain = gk.train(recipe, out=tmp_path / "plain")
    looked = gk.train(recipe, ["train.pretrain.eval_every=7"], out=tmp_path / "looked")
    for name in ("model", "ema", "optim", "rng"):
        one, other = (read_checkpoint(run.checkpoints / "step-0000060").tensors[name] for run in (plain, looked))
        assert same(one, other), name


def test_early_stopping_needs_validation_rows() -> None:
    from gebm_kit.engine.training import early_stopping

    class Empty:
        def split(self, name: str) -> list[int]:
            return []

    with pytest.raises(UsageError, match="needs validation rows"):
        early_stopping.BestBase(Empty(), 1, 2, 0, torch.device("cpu"), torch.float32)  # type: ignore[arg-type]


def test_learning_rates_are_those_of_the_phase(recipe: Path, tmp_path: Path) -> None:
    from gebm_kit.config.build import build_dataset
    from gebm_kit.config.load import load_recipe
    from gebm_kit.engine.training.trainer import Trainer

    checked = load_recipe(recipe, ["train.part=base-then-both", "optim.base.lr=1e-3", "optim.base.schedule=linear"])
    trainer = Trainer(checked, build_dataset(checked), torch.device("cpu"))
    trainer.initialise()
    rates = []
    for _ in range(80):
        trainer.cycle()
        rates.append(float(trainer.base_optimizer.param_groups[0]["lr"]))
    assert rates[0] == pytest.approx(1e-1)
    assert rates[30] == pytest.approx(5e-2)
    assert rates[60] == pytest.approx(1e-3)
    assert rates[70] == pytest.approx(5e-4)


def test_what_has_no_meaning_is_refused(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="train.part=base-then-energy needs a base with a loss of its own"):
        gk.train(recipe, ["base=test-plain"], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
