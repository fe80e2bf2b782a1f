"""Each warning appears on a case made for it, once until it clears up; the quickstart's early steps give no warning."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gebm_kit.config.build import build_dataset
from gebm_kit.config.load import load_recipe
from gebm_kit.core.interfaces import Base, Batch, Energy, named_scalars
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.engine.train import train
from gebm_kit.engine.training.checkpoint_state import tensors_of
from gebm_kit.engine.training.trainer import Trainer
from gebm_kit.engine.training.vital_signs import VitalSignWarnings, findings, vital_signs
from gebm_kit.losses.kale import Kale


class Identity(Base):
    latent_dim, data_shape = 2, (2,)

    def forward(self, z: Tensor) -> Tensor:
        return z


class Linear(Energy):
    """The energy ``slope * x_1`` with a dropout layer, which must be off while vital signs are computed."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.slope * x[:, 0])


def signs(slope: float = 1.0, log_partition: float = 0.5, scale: float = 1.0, noise: float = 0.0) -> dict[str, float]:
    """Return the vital signs of 10,000 standard normal data and 10,000 base draws.

    Base draws are ``scale`` times as wide; noise of standard deviation ``noise`` is added to both.
    """
    generator = torch.Generator().manual_seed(0)
    x, z, first, second = torch.randn(4, 10_000, 2, generator=generator)
    loss = Kale()
    loss.log_partition.fill_(log_partition)
    model = GEBM(Identity(), Linear(slope)).train()
    batch = Batch(x + noise * first, z, scale * z + noise * second)
    found = dict(named_scalars(vital_signs(model, loss, batch, batch, noise)))
    assert model.energy.training
    assert model.energy.dropout.training
    return found


def test_vital_signs_are_what_they_say() -> None:
    # E = x_1: log E_B exp(-E) = 1/2 for a standard normal base
    seen = signs()
    assert seen["energy_std"] == pytest.approx(1.0, abs=0.03)
    assert seen["base_spread"] == pytest.approx(1.0, abs=0.03)
    assert seen["log_mean_weight"] == pytest.approx(0.0, abs=0.06)
    assert signs(scale=0.1, noise=0.5)["base_spread"] == pytest.approx(0.1, abs=0.03)


MADE = {
    "energy collapse": (
        signs(slope=1e-3, log_partition=0.0),
        "energy is flat .* 1.0e-03 nats.*lower the weight of train",
    ),
    "base collapse": (signs(scale=0.05, log_partition=0.0), "base draws vary 0.05 times as much as the data"),
    "log-partition off": (signs(log_partition=-4.5), "5.0 nats too low.*lower optim.energy.lr"),
    "log-partition far": (signs(log_partition=0.5) | {"log_partition": -2345.0}, "run away to -2.34e.03 nats"),
    "one draw": (
        signs() | {"weight_ess": 1.2 / 128},
        "rest on 1.2 of 128 base draws.*Raise the weight of train.penalty",
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_each_failure_is_found_where_it_was_made_and_nothing_else(name: str) -> None:
    import re

    scalars, words = MADE[name]
    found = findings(scalars, 128)
    assert found.keys() == {name}
    assert re.search(words, found[name]), found[name]


def test_a_healthy_line_and_one_that_is_not_a_number_say_nothing() -> None:
    assert findings(signs() | {"weight_ess": 0.5, "log_partition": 3.0, "kale": 1.0}, 128) == {}
    assert findings(dict.fromkeys([*signs(), "weight_ess", "log_partition"], math.nan), 128) == {}
    assert findings({}, 128) == {}


def test_each_is_said_once_until_it_clears_up() -> None:
    watch = VitalSignWarnings(start=50)
    bad, good = {"energy_std": 1e-4}, {"energy_std": 1.0}
    said = [len(watch.say(50 * n, bad if n not in (6, 7) else good, 128)) for n in range(12)]
    #       start   seen twice       cleared  again
    assert said == [0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0]


def test_the_quickstart_starts_without_a_warning_and_looking_changes_nothing() -> None:
    recipe = load_recipe("quickstart", ["train.log_every=40"])
    runs = []
    for looking in (True, False):
        torch.manual_seed(0)
        trainer = Trainer(recipe, build_dataset(recipe), torch.device("cpu"))
        trainer.initialise()
        watch = VitalSignWarnings(recipe.train.start_steps)
        while trainer.step < 160:
            metrics = trainer.cycle()
            if looking and trainer.step % 40 == 0:
                scalars = dict(named_scalars({**trainer.vital_signs(), **metrics}))
                assert watch.say(trainer.step, scalars, 128) == []
        runs.append(tensors_of(trainer))
    for part, tensors in runs[0].items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, runs[1][part][name], rtol=0, atol=0, equal_nan=True)


RECIPE = """\
schema: 1
data: {name: eight-gaussians, num_train: 300, num_valid: 100, num_test: 100}
base: {name: mlp, latent_dim: 3, hidden: [16]}
energy: {name: mlp, hidden: [16]}
loss: {name: kale}
train: {steps: 8, energy_steps: 1, start_steps: 1, start_energy_steps: 1, batch_size: 32, log_every: 2, final: {steps: 2}}
optim: {energy: {name: sgd, lr: 0}, base: {lr: 0}}
ema: {decay: 0}
sample: {num_samples: 40, num_chains: 20, warmup: 4, steps: 4, thin: 2}
eval: {metrics: [mmd], num_samples: 40, num_sets: 2}
"""


@pytest.mark.filterwarnings("ignore:the chains have not mixed", "ignore:the effective sample size")
def test_a_run_says_it(tmp_path: Path, no_pictures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    initialise = Trainer.initialise

    def flattened(self: Trainer) -> None:
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(1e-3)
        initialise(self)

    monkeypatch.setattr(Trainer, "initialise", flattened)
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(RECIPE)
    with pytest.warns(GebmKitWarning) as caught:
        run = train(recipe, out=tmp_path / "run")
    said = [str(w.message) for w in caught]
    assert sum("step 4: the energy is flat" in text for text in said) == 1
    assert sum("step 4: base draws vary" in text for text in said) == 1
    rows = [row for row in run.metrics() if "energy_loss" in row]
    assert {"energy_std", "base_spread"} <= rows[0].keys()
