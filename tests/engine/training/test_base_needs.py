"""A loss says which fields of the batch its base step reads, and the engine fills them all."""

from __future__ import annotations

import copy
import math
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gebm_kit.config.load import load_recipe
from gebm_kit.core.components import Component, Injected, Registered
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Base, Batch, Loss, LossTerms, NegativeSettings
from gebm_kit.core.model import GEBM
from gebm_kit.core.plugins import installed
from gebm_kit.engine.datasets.open import open_dataset
from gebm_kit.engine.train import train
from gebm_kit.engine.training.dry_run import plan
from gebm_kit.engine.training.trainer import Trainer

pytestmark = [
    pytest.mark.usefixtures("quick_evaluation"),
    pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning"),
]

SMALL = [
    "base={name: mlp, latent_dim: 4, hidden: [8]}", "energy={name: mlp, hidden: [8]}", "train.penalty=null",
    "train.batch_size=16", "train.noise=0", "train.steps=3", "train.start_steps=0", "train.energy_steps=1",
    "train.final.steps=0", "sample.num_samples=20", "sample.num_chains=20", "sample.warmup=2", "sample.steps=5",
    "eval.num_samples=20", "eval.num_sets=2", "eval.metrics=[mmd]",
]  # fmt: skip


class Relativistic(Loss):
    """All pairs of data and base draws: ``E_{P x B}[softplus(E(x) - E(G(z)))]``, and the same with the signs turned."""

    base_needs = frozenset({"x", "x_base"})
    seen: list[Batch]

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def _pairs(self, model: GEBM, batch: Batch) -> torch.Tensor:
        assert batch.x is not None
        return model.energy(batch.x)[:, None] - model.energy(batch.x_base)[None]

    def energy_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        return LossTerms(F.softplus(self._pairs(model, batch)).mean())

    def base_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        self.seen.append(batch)
        return LossTerms(F.softplus(-self._pairs(model, batch)).mean())


class MeanMatching(Relativistic):
    """The same for the energy; the base loss matches the means of data and base draws."""

    def base_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        self.seen.append(batch)
        assert batch.x is not None
        return LossTerms((batch.x_base.mean(0) - batch.x.mean(0)).square().sum())


class Flow(Base):
    """``G(z) = m + e^s z`` with its inverse and its density."""

    def __init__(self, *, data_shape: Annotated[tuple[int, ...], Injected]) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = data_shape[0], data_shape
        self.mean, self.log_scale = nn.Parameter(torch.zeros(data_shape)), nn.Parameter(torch.zeros(data_shape))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.mean + self.log_scale.exp() * z

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        z = (x - self.mean) * torch.exp(-self.log_scale)
        return -(0.5 * z.square().sum(1) + self.log_scale.sum() + 0.5 * self.latent_dim * math.log(2 * math.pi))


class OnChains(Relativistic):
    """The same, and its base step reads the chains too."""

    needs = frozenset({"x", "x_base", "negatives"})
    base_needs = frozenset({"x", "x_base", "negatives"})
    negatives = NegativeSettings("latent", "ula", 0.1, 2)


class Misspelt(Relativistic):
    base_needs = frozenset({"x", "xbase"})


class Undeclared(Relativistic):
    base_needs = frozenset({"x_base", "negatives"})


@pytest.fixture(autouse=True)
def losses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The losses above, registered as a plugin's are."""
    module = types.ModuleType("losses_of_this_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    kinds = {"loss": (Relativistic, MeanMatching, OnChains, Misspelt, Undeclared), "base": (Flow,)}
    for part, kind in ((part, kind) for part, found in kinds.items() for kind in found):
        setattr(module, kind.__name__, kind)
        name = f"test-{kind.__name__.lower()}"
        record = Registered(Component(part, name, f"{module.__name__}:{kind.__name__}", "From a test"), "a-test", "1")
        monkeypatch.setitem(installed().registry._records, (part, name), [record])
    return


def trainer(loss: str, *words: str) -> Trainer:
    recipe = load_recipe("quickstart", [*SMALL, f"loss={loss}", *words])
    return Trainer(recipe, open_dataset(recipe), torch.device("cpu"))


def test_a_base_step_gets_data_and_base_draws_that_carry_its_gradient() -> None:
    made = trainer("test-relativistic")
    before = copy.deepcopy(made.model.base)
    energy = [parameter.clone() for parameter in made.model.energy.parameters()]
    made.base_step()
    (batch,) = made.loss.seen
    assert batch.x is not None
    assert batch.x.shape == batch.x_base.shape == (16, *made.model.data_shape)
    assert batch.z.shape == (16, 4)
    assert batch.x_base.requires_grad
    assert not batch.x.requires_grad
    torch.testing.assert_close(batch.x_base, before(batch.z))
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), made.model.base.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(energy, made.model.energy.parameters(), strict=True))


def test_a_run_trains_resumes_and_is_scored(tmp_path: Path) -> None:
    run = train("quickstart", [*SMALL, "loss=test-relativistic", "train.steps=2"], out=tmp_path / "run")
    assert run.step == 2
    assert plan(load_recipe("quickstart", [*SMALL, "loss=test-relativistic"])) is not None


def test_data_alone_draw_no_codes_and_draws_alone_take_no_data() -> None:
    """The random numbers of a base step are those that its loss's fields need."""
    for needs, rows, moved in (({"x"}, 16, False), ({"x_base"}, 0, True), ({"x", "x_base"}, 16, True)):
        made = trainer("test-relativistic")
        position, state = made.feed.position, made.generator.get_state()
        batch = made.base_batch(frozenset(needs))
        assert made.feed.position - position == rows
        assert torch.equal(state, made.generator.get_state()) is not moved
        assert (batch.x is None) is ("x" not in needs)
        assert bool(batch.x_base.numel()) is ("x_base" in needs)


def test_codes_alone_make_no_base_draws() -> None:
    made = trainer("test-relativistic")
    calls = []
    made.model.base.register_forward_hook(lambda *_: calls.append(1))
    codes = made.base_batch(frozenset({"z"}))
    assert (codes.z.shape, codes.x_base.numel(), calls) == ((16, 4), 0, [])
    nothing = made.base_batch(frozenset({"negatives"}))
    assert nothing.z.numel() == nothing.x_base.numel() == 0


def test_means_that_are_matched_reach_the_base_with_their_own_gradient() -> None:
    """The simplest MMD loss: the gradient of the base is that of the loss on the batch, and no energy takes part."""
    made = trainer("test-meanmatching", "optim.base.lr=0")
    made.base_step()
    (batch,) = made.loss.seen
    assert batch.x is not None
    expected = (made.model.base(batch.z).mean(0) - batch.x.mean(0)).square().sum()
    parameters = list(made.model.base.parameters())
    for parameter, slope in zip(parameters, torch.autograd.grad(expected, parameters), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, slope)


def test_a_likelihood_that_the_recipe_asks_for_replaces_a_base_loss_on_data() -> None:
    """The steps then see the averaged base, which a loss on data and draws would train in place of the base."""
    words = ("data=eight-gaussians", "base=test-flow", "train.base_update=weighted-likelihood", "ema.decay=0.9")
    made = trainer("test-relativistic", *words)
    before = copy.deepcopy(made.model.base)
    made.base_step()
    assert made.loss.seen == []
    assert all(not torch.equal(a, b) for a, b in zip(before.parameters(), made.model.base.parameters(), strict=True))


def test_negatives_are_those_of_the_last_energy_update() -> None:
    made = trainer("test-onchains")
    made.cycle()
    (batch,) = made.loss.seen
    assert batch.negatives is not None
    torch.testing.assert_close(batch.negatives, made.chain_ends(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (
            "test-misspelt",
            "base_needs of the loss Misspelt names 'xbase', which a batch does not have; did you mean x_base",
        ),
        ("test-undeclared", "names 'negatives', and the loss does not say how to draw them"),
    ],
)
def test_fields_that_nothing_fills_are_refused_before_training(loss: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        trainer(loss)
