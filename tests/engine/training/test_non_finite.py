"""Losses and gradients that are not finite are skipped without a trace and counted; after too many, training goes back."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gebm_kit.config.build import build_dataset
from gebm_kit.config.check import check
from gebm_kit.config.schema import Recipe
from gebm_kit.config.tree import parse
from gebm_kit.core.errors import Interrupted, RunFailed
from gebm_kit.core.interfaces import Batch, LossTerms
from gebm_kit.core.progress import GebmKitWarning, Progress
from gebm_kit.engine.run_directory.checkpoint import Checkpoint, list_checkpoints, save_checkpoint
from gebm_kit.engine.run_directory.run import Run, load_run
from gebm_kit.engine.train import train
from gebm_kit.engine.training.checkpoint_state import counters_of, restore, tensors_of
from gebm_kit.engine.training.non_finite import Guard
from gebm_kit.engine.training.phases import Phase
from gebm_kit.engine.training.rollback import go_back
from gebm_kit.engine.training.trainer import Trainer
from gebm_kit.testing.host_sync import forbid_host_sync

TOY = """\
schema: 1
data: {name: eight-gaussians, num_train: 300, num_valid: 100, num_test: 100}
base: {name: mlp, latent_dim: 3, hidden: [16], norm: batch}
energy: {name: mlp, hidden: [16], spectral_norm: true}
loss: {name: kale}
train:
  steps: 12
  energy_steps: 2
  start_steps: 0
  batch_size: 32
  noise: 0.05
  on_non_finite: {limit: 5}
  log_every: 3
  checkpoint_every: 4
  final: {steps: 4}
sample: {num_samples: 40, num_chains: 20, warmup: 4, steps: 4, thin: 2}
eval: {metrics: [mmd], num_samples: 40, num_sets: 2}
"""

pytestmark = [
    pytest.mark.filterwarnings("ignore:the chains have not mixed", "ignore:the effective sample size"),
    pytest.mark.usefixtures("no_pictures"),
]


def toy(overrides: Sequence[str] = ()) -> Recipe:
    return check(parse(TOY, name="toy", overrides=overrides), directory=Path())


def toy_trainer(overrides: Sequence[str] = ()) -> Trainer:
    recipe = toy(overrides)
    torch.manual_seed(0)
    trainer = Trainer(recipe, build_dataset(recipe), torch.device("cpu"))
    trainer.initialise()
    return trainer


def state(trainer: Trainer) -> dict[str, Tensor]:
    """Return everything that an update may change, except random numbers."""
    parts = tensors_of(trainer)
    return {f"{part}/{k}": v.clone() for part, named in parts.items() if part != "rng" for k, v in named.items()}


def differences(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.allclose(a[name], b[name], rtol=0, atol=0, equal_nan=True)]


def value_is(bad: float) -> Callable[[LossTerms], LossTerms]:
    return lambda terms: LossTerms(
        terms.loss * bad, {name: torch.full_like(value, torch.nan) for name, value in terms.metrics.items()}
    )


class _BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * torch.nan


def gradient_is_nan(terms: LossTerms) -> LossTerms:
    return LossTerms(_BadGradient.apply(terms.loss), terms.metrics)


POISONS = {"nan": value_is(torch.nan), "inf": value_is(torch.inf), "gradient": gradient_is_nan}


def poisoned_step(trainer: Trainer, part: str, poison: Callable[[LossTerms], LossTerms]) -> LossTerms:
    """Make one update of the part with a loss that has gone through ``poison``."""
    name = f"{part}_loss"
    healthy = getattr(trainer.loss, name)
    setattr(trainer.loss, name, lambda model, batch: poison(healthy(model, batch)))
    try:
        step: LossTerms = getattr(trainer, f"{part}_step")()
    finally:
        delattr(trainer.loss, name)
    return step


OPTIMISERS = [f"optim={{energy: {{name: {name}}}, base: {{name: {name}}}}}" for name in ("adam", "adamw", "sgd")]


# --- one update ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("part", ["energy", "base"])
@pytest.mark.parametrize(
    "overrides",
    [*[[o] for o in OPTIMISERS], ["loss={name: kale, update: adam}"], ["loss=logistic", "train.clip_grad_norm=1"],
     ["loss={name: kale-dv, moving_average: 0.9}"]],
    ids=["adam", "adamw", "sgd", "kale-adam", "logistic-clipped", "kale-dv"],
)  # fmt: skip
def test_a_bad_update_changes_nothing(overrides: list[str], part: str, poison: str) -> None:
    trainer = toy_trainer(overrides)
    trainer.cycle()
    before = state(trainer)
    poisoned_step(trainer, part, POISONS[poison])
    assert differences(before, state(trainer)) == []
    seen = {report.part: report for report in trainer.guard.look()}
    assert (seen[part].total, seen[part].in_a_row, seen[part].step) == (1, 1, 2)
    assert (seen[part].value == seen[part].value and abs(seen[part].value) < 100) == (poison == "gradient")
    assert seen["base" if part == "energy" else "energy"].total == 0
    getattr(trainer, f"{part}_step")()
    assert len(differences(before, state(trainer))) > 5
    assert {report.part: report.in_a_row for report in trainer.guard.look()} == {"energy": 0, "base": 0}


@pytest.mark.parametrize("part", ["energy", "base"])
def test_without_the_guard_a_bad_update_ruins_the_part(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guard, "judge", lambda *_: torch.zeros(()))
    trainer = toy_trainer()
    trainer.cycle()
    poisoned_step(trainer, part, POISONS["nan"])
    module = getattr(trainer.model, part)
    assert all(bool(torch.isnan(parameter).any()) for parameter in module.parameters())


@pytest.mark.parametrize("overrides", OPTIMISERS)
def test_a_bad_first_update_leaves_the_optimiser_as_new(overrides: str) -> None:
    """The next update is the one that a new optimiser makes: step counts, moments and momentum start there."""
    poisoned, clean = toy_trainer([overrides]), toy_trainer([overrides])
    poisoned_step(poisoned, "energy", POISONS["nan"])
    kept = clean.guard.keep()
    clean.energy_batch()  # the random numbers and rows of the skipped update
    clean.guard.undo(kept, torch.ones(()))
    for trainer in (poisoned, clean):
        trainer.energy_step()
        trainer.base_step()
    assert differences(state(poisoned), state(clean)) == []


def test_the_final_average_of_the_energy_passes_over_bad_updates() -> None:
    trainer = toy_trainer()
    for _ in range(13):
        trainer.cycle()
    assert trainer.energy_ema is not None
    before = state(trainer)
    poisoned_step(trainer, "energy", POISONS["inf"])
    assert differences(before, state(trainer)) == []


@pytest.mark.parametrize("overrides", [[], ["train.clip_grad_norm=1", "train.penalty={name: gradient, every: 2}"]])
def test_no_cycle_waits_for_the_device(overrides: list[str]) -> None:
    trainer = toy_trainer([*overrides, "train.steps=3"])
    trainer.cycle()
    for _ in range(5):  # through the change to the final phase
        with forbid_host_sync():
            trainer.cycle()
    assert trainer.phase is Phase.FINAL


@pytest.mark.parametrize("limit", [1e-3, 1e3])
def test_the_gradient_of_loss_and_penalties_together_is_clipped(limit: float) -> None:
    """One step of gradient descent at rate 1 moves by the gradient: its norm is the limit, or unchanged if it was below."""
    words = ["optim.energy={name: sgd, lr: 1, beta1: 0}", "train.penalty={name: r2, weight: 50}"]
    plain, clipped = toy_trainer(words), toy_trainer([*words, f"train.clip_grad_norm={limit}"])
    moves = []
    for trainer in (plain, clipped):
        before = [p.detach().clone() for p in trainer.model.energy.parameters()]
        trainer.energy_step()
        after = list(trainer.model.energy.parameters())
        moves.append(torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)]).detach())
    torch.testing.assert_close(moves[1], moves[0] * min(1.0, limit / float(moves[0].norm())), rtol=1e-3, atol=1e-7)
    assert 1e-3 < float(moves[0].norm()) < 1e3


def test_counts_are_read_written_and_restored() -> None:
    trainer = toy_trainer()
    for _ in range(2):
        poisoned_step(trainer, "energy", POISONS["nan"])
    trainer.energy_step()
    poisoned_step(trainer, "energy", POISONS["inf"])
    other = Guard([], torch.device("cpu"))
    other.restore(trainer.guard.state())
    for guard in (trainer.guard, other):
        energy, base = guard.read()
        assert (energy.total, energy.recent, energy.longest, energy.in_a_row) == (3, 3, 2, 1)
        assert abs(energy.value) == torch.inf
        assert (base.total, base.recent) == (0, 0)
        energy, _ = guard.read()
        assert (energy.total, energy.recent, energy.longest, energy.in_a_row) == (3, 0, 1, 1)
    assert "3 of the latest energy updates (3 in all) were skipped" in str(trainer.guard.look()[0]).replace(
        "0 of", "3 of"
    )


# --- a whole run -----------------------------------------------------------------------------------------------------


def poison_data(monkeypatch: pytest.MonkeyPatch, when: Callable[[Trainer], bool]) -> None:
    """Make batches NaN whenever ``when`` says so."""
    healthy = Trainer.energy_batch

    def batch(self: Trainer) -> Batch:
        made = healthy(self)
        return Batch(made.x * torch.nan, made.z, made.x_base) if made.x is not None and when(self) else made

    monkeypatch.setattr(Trainer, "energy_batch", batch)


def quietly(recipe: Recipe, out: Path, **options: Any) -> tuple[Run, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = train(recipe, out=out, **options)
    return run, [str(w.message) for w in caught if issubclass(w.category, GebmKitWarning)]


def test_a_few_bad_updates_are_reported_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison_data(monkeypatch, lambda trainer: trainer.step == 4)
    run, said = quietly(toy(), tmp_path / "run")
    assert any("2 of the latest energy updates (2 in all) were skipped" in text and "step 5" in text for text in said)
    assert run.state == "finished"
    assert run.checkpoint.state["restores"] == 0
    assert run.checkpoint.state["non_finite"]["energy"]["total"] == 2
    assert all(bool(torch.isfinite(tensor).all()) for tensor in run.checkpoint.tensors["model"].values())


def test_too_many_in_a_row_go_back_to_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison_data(monkeypatch, lambda trainer: trainer.restores == 0 and trainer.step >= 6)
    run, said = quietly(toy(), tmp_path / "run")
    assert any("training goes back from step 9 to step 4, with other random numbers (1 of at most 2" in t for t in said)
    assert run.state == "finished"
    assert run.step == 16
    assert run.checkpoint.state["restores"] == 1
    steps = [row["step"] for row in run.metrics() if "energy_loss" in row]
    assert steps == sorted(set(steps))  # rows logged after the restored checkpoint are gone


@pytest.mark.parametrize("step", [6, 11])  # before and after going back
def test_a_run_that_went_back_resumes_to_the_bit(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gebm_kit.engine.training.loop.PROGRESS_EVERY", 1)
    poison_data(monkeypatch, lambda trainer: trainer.restores == 0 and trainer.step >= 6)
    straight, _ = quietly(toy(), tmp_path / "straight")

    def stop(progress: Progress) -> None:
        if progress.stage == "train" and progress.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        quietly(toy(), tmp_path / "stopped", on_progress=stop)
    resumed, _ = quietly(toy(), tmp_path / "stopped", resume=True)
    first, second = (
        {f"{part}/{k}": v for part, named in run.checkpoint.tensors.items() for k, v in named.items()}
        for run in (straight, resumed)
    )
    assert differences(first, second) == []
    assert resumed.checkpoint.state["restores"] == 1


def test_a_failure_that_comes_back_each_time_ends_the_run_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_data(monkeypatch, lambda trainer: trainer.step >= 6)
    with pytest.raises(
        RunFailed, match="training diverged: 6 energy updates in a row had been skipped by step 9"
    ) as caught:
        quietly(toy(), tmp_path / "run")
    assert "going back 2 times did not help" in str(caught.value)
    assert "energy loss = nan" in str(caught.value)
    assert "optim.energy.lr" in caught.value.hint
    assert load_run(tmp_path / "run").state == "failed"


# --- which checkpoint it goes back to --------------------------------------------------------------------------------


def save(trainer: Trainer, folder: Path) -> None:
    save_checkpoint(folder, trainer.step, tensors_of(trainer), counters_of(trainer), keep=9)


def back(trainer: Trainer, folder: Path) -> Trainer:
    def begin(made: Trainer, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            restore(made, checkpoint)

    return go_back(trainer, folder, lambda: toy_trainer(["train.checkpoint_every=2"]), begin)


def test_it_goes_back_one_further_each_time_and_last_to_the_start(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    trainer = toy_trainer(["train.checkpoint_every=2"])
    while trainer.step < 6:
        trainer.cycle()
        if trainer.step % 2 == 0:
            save(trainer, folder)
    for _ in range(2):
        poisoned_step(trainer, "energy", POISONS["nan"])
    trainer.step = 8
    save(trainer, folder)  # not a good checkpoint
    steps, trainers = [], [trainer]
    for _ in range(4):
        trainers.append(back(trainers[-1], folder))
        save(trainers[-1], folder)
        steps.append(trainers[-1].step)
    assert steps == [6, 4, 2, 0]
    assert [t.restores for t in trainers] == [0, 1, 2, 3, 4]
    assert [path.name for path in list_checkpoints(folder)] == ["step-0000000"]


def test_what_comes_after_going_back_is_random_anew(tmp_path: Path) -> None:
    trainer = toy_trainer()
    trainer.cycle()
    save(trainer, tmp_path / "checkpoints")
    again = back(trainer, tmp_path / "checkpoints")
    assert differences(state(trainer), state(again)) == []
    ahead, other = trainer.energy_batch(), again.energy_batch()
    assert ahead.x is not None
    assert other.x is not None
    assert not torch.equal(ahead.x, other.x)
    assert not torch.equal(ahead.z, other.z)
    assert sorted(map(tuple, rows_of_an_epoch(trainer))) == sorted(map(tuple, rows_of_an_epoch(again)))


def rows_of_an_epoch(trainer: Trainer) -> list[list[float]]:
    trainer.feed.position = 0
    return torch.cat([trainer.feed.next() for _ in range(10)])[:300].tolist()  # type: ignore[no-any-return]
