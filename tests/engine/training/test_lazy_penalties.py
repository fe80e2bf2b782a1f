"""Penalties that are due at every k-th energy step, and r1 with r2 in the loss's own forward pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from gebm_kit.config.build import build_dataset
from gebm_kit.config.check import check
from gebm_kit.config.tree import parse
from gebm_kit.core.interfaces import Batch, Energy, LossTerms, Penalty
from gebm_kit.core.model import GEBM
from gebm_kit.engine.training.penalties import PenalisedLoss, with_penalties
from gebm_kit.engine.training.trainer import Trainer
from gebm_kit.losses.kale_dv import KaleDV
from gebm_kit.penalties.gradient import GradientPenalty
from gebm_kit.penalties.zero_centred import R1, R2

RECIPE = """\
schema: 1
data: {name: digits}
base: {name: dcgan, latent_dim: 3, width: 2, norm: none}
energy: {name: conv, width: 2}
loss: {name: kale-dv}
train: {steps: 6, start_steps: 0, batch_size: 8, final: {steps: 2}}
precision: float64
device: cpu
"""
LOSSES = ["kale", "kale-dv", "relativistic", "logistic", "smile", "flo", "hinge", "wasserstein"]

pytestmark = pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")


def trainer_of(*overrides: str) -> Trainer:
    recipe = check(parse(RECIPE, name="toy", overrides=overrides), directory=Path())
    torch.manual_seed(0)
    trainer = Trainer(recipe, build_dataset(recipe), torch.device("cpu"))
    trainer.initialise()
    return trainer


class Watched:
    """The number of rows in each forward pass of an energy in training."""

    def __init__(self, energy: torch.nn.Module) -> None:
        self.passes: list[int] = []
        energy.register_forward_hook(lambda _, given, __: self.passes.append(len(given[0])))

    def of_step(self, trainer: Trainer) -> list[int]:
        self.passes.clear()
        trainer.energy_step()
        return list(self.passes)


@pytest.mark.parametrize(
    ("penalties", "passes"),
    [
        ("[{name: r1, every: 4}, {name: r2, every: 4}]", [[16], [16], [16], [16], [16]]),
        ("[{name: r1, every: 2}, {name: r2, every: 4}]", [[16], [16], [16, 8], [16], [16]]),
        ("{name: r1, every: 3}", [[16, 8], [16], [16], [16, 8], [16]]),
        ("{name: r2, every: 3}", [[16, 8], [16], [16], [16, 8], [16]]),
        ("[r1, r2, {name: gradient, every: 2}]", [[16, 8], [16], [16, 8], [16], [16, 8]]),
    ],
)
def test_both_penalties_need_no_forward_pass_of_their_own(penalties: str, passes: list[list[int]]) -> None:
    trainer = trainer_of(f"train.penalty={penalties}")
    watched = Watched(trainer.model.energy)
    assert [watched.of_step(trainer) for _ in range(5)] == passes


def parts(trainer: Trainer, joint: bool) -> tuple[Tensor, list[Tensor]]:
    """The total of an energy step and its gradient, in one pass or in one for each penalty."""
    batch, learned = trainer.energy_batch(), trainer._energy_parameters()
    due = [R1(3.0, 2), R2(0.5, 2)]
    if joint:
        _, total = PenalisedLoss()(trainer.loss, trainer.side, batch, due, trainer.generator)
    else:
        terms = trainer.loss.energy_loss(trainer.side, batch)
        total = with_penalties(terms.loss, due, trainer.side.energy, batch, trainer.generator)
    grads = torch.autograd.grad(total, learned, allow_unused=True, materialize_grads=True)
    return total, list(grads)


@pytest.mark.parametrize("loss", LOSSES)
def test_one_pass_computes_what_several_do(loss: str) -> None:
    (one, first), (other, second) = (parts(trainer_of(f"loss={loss}"), joint) for joint in (True, False))
    torch.testing.assert_close(one, other)
    for mine, theirs in zip(first, second, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weights", [(3.0, 0.0), (0.0, 3.0)])
def test_each_penalty_takes_its_own_rows(weights: tuple[float, float]) -> None:
    trainer = trainer_of()
    batch = trainer.energy_batch()
    _, total = PenalisedLoss()(trainer.loss, trainer.side, batch, [R1(weights[0]), R2(weights[1])], trainer.generator)
    alone = R1(3.0) if weights[0] else R2(3.0)
    value = trainer.loss.energy_loss(trainer.side, batch).loss
    torch.testing.assert_close(total, value + alone(trainer.side.energy, batch, trainer.generator))


class Twice(KaleDV):
    """A loss that evaluates the energy of other rows, or more often."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def energy_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        assert batch.x is not None
        if self.how == "apart":
            return LossTerms(model.energy(batch.x).mean() - model.energy(batch.x_base).mean())
        if self.how == "moved":
            return LossTerms(model.energy(torch.cat([batch.x + 0.1, batch.x_base])).square().mean())
        if self.how == "keyword":
            return LossTerms(model.energy(x=torch.cat([batch.x, batch.x_base])).square().mean())
        rows = torch.cat([batch.x, batch.x_base]).requires_grad_()
        (slope,) = torch.autograd.grad(model.energy(rows).sum(), rows, create_graph=True)
        return LossTerms(slope.square().mean())


@pytest.mark.parametrize("how", ["apart", "moved", "keyword", "own slopes"])
def test_losses_that_evaluate_the_energy_otherwise(how: str) -> None:
    found = []
    for joint in (True, False):
        trainer = trainer_of()
        trainer.loss = Twice(how)
        found.append(parts(trainer, joint))
    torch.testing.assert_close(found[0][0], found[1][0])
    for mine, theirs in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_penalty_of_another_kind_beside_them_is_added() -> None:
    class Level(Penalty):
        def forward(self, energy: Energy, batch: Batch, generator: torch.Generator) -> Tensor:
            return torch.as_tensor(energy(batch.x_base).mean() ** 2)

    trainer = trainer_of()
    batch = trainer.energy_batch()
    due: list[Penalty] = [R1(), Level(), R2(), GradientPenalty()]
    value = trainer.loss.energy_loss(trainer.side, batch).loss
    state = trainer.generator.get_state()
    apart = with_penalties(value, due, trainer.side.energy, batch, trainer.generator)
    trainer.generator.set_state(state)
    _, total = PenalisedLoss()(trainer.loss, trainer.side, batch, due, trainer.generator)
    torch.testing.assert_close(total, apart)


def test_the_final_phase_looks_at_its_own_loss_again() -> None:
    trainer = trainer_of("train.steps=2", "train.penalty=[r1, r2]", "train.final.loss=relativistic")
    watched = Watched(trainer.model.energy)
    for _ in range(2):
        trainer.cycle()
    trainer.cycle()
    assert trainer.loss is not None
    assert watched.of_step(trainer) == [16]
