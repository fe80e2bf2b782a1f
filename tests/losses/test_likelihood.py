"""Tests of ml and elbo on a base that is registered as a plugin's would be."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated

import pytest
import torch
from torch import Tensor, nn

import gebm_kit as gk
from gebm_kit.core.components import Component, Injected, Registered
from gebm_kit.core.errors import RecipeError, UsageError
from gebm_kit.core.interfaces import Base, Batch
from gebm_kit.core.model import GEBM
from gebm_kit.core.plugins import installed
from gebm_kit.energies.mlp import MlpEnergy
from gebm_kit.losses.likelihood import Elbo, MaximumLikelihood

RECIPE = """\
schema: 1
data: {name: eight-gaussians, num_train: 400, num_valid: 50, num_test: 50}
base: {name: test-affine-flow}
energy: {name: mlp, hidden: [4]}
loss: {name: ml}
train: {part: base, steps: 300, batch_size: 400, log_every: 100}
optim: {base: {lr: 5.0e-2, schedule: linear}}
ema: {decay: 0}
sample: {num_samples: 20, num_chains: 20, warmup: 2, steps: 4, thin: 4}
eval: {metrics: [mmd], num_samples: 20, num_sets: 2}
"""

pytestmark = [
    pytest.mark.filterwarnings("ignore:the chains have not mixed"),
    pytest.mark.filterwarnings("ignore:this model's loss does not make"),
]


class AffineFlow(Base):
    """The base ``G(z) = m + e^s z``, with a density, an encoder, and a loss of its own that is not the likelihood."""

    def __init__(self, *, data_shape: Annotated[tuple[int, ...], Injected]) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = data_shape[0], data_shape
        self.mean, self.log_scale = nn.Parameter(torch.ones(data_shape)), nn.Parameter(torch.zeros(data_shape))

    def forward(self, z: Tensor) -> Tensor:
        return self.mean + self.log_scale.exp() * z

    def encode(self, x: Tensor) -> Tensor:
        return (x - self.mean) * torch.exp(-self.log_scale)

    def log_prob(self, x: Tensor) -> Tensor:
        constant = 0.5 * self.latent_dim * math.log(2 * math.pi)
        return -0.5 * self.encode(x).square().sum(1) - self.log_scale.sum() - constant

    def pretraining_loss(self, x: Tensor) -> Tensor:
        return 2.0 - self.log_prob(x).mean()


class Plain(Base):
    """A base with neither density nor encoder."""

    def __init__(self, *, data_shape: Annotated[tuple[int, ...], Injected]) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = data_shape[0], data_shape
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor) -> Tensor:
        return self.scale * z


@pytest.fixture(autouse=True)
def bases(no_pictures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("gebm_kit_test_bases")
    module.AffineFlow, module.Plain = AffineFlow, Plain  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name, kind in {"test-affine-flow": "AffineFlow", "test-plain": "Plain"}.items():
        record = Registered(Component("base", name, f"{module.__name__}:{kind}", "From a test"), "a-test", "1")
        monkeypatch.setitem(installed().registry._records, ("base", name), [record])


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "flow.yaml"
    path.write_text(RECIPE)
    return path


def test_maximum_likelihood_is_the_datas_mean_and_spread(recipe: Path, tmp_path: Path) -> None:
    run = gk.train(recipe, out=tmp_path / "run")
    data = run.dataset.split("train").first(400)
    torch.testing.assert_close(run.model.base.mean, data.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(run.model.base.log_scale.exp(), data.std(0, correction=0), atol=0.02, rtol=0)
    rows = [row for row in run.metrics() if "base_loss" in row]
    assert rows[-1]["log_likelihood"] == pytest.approx(-rows[-1]["base_loss"])
    assert rows[-1]["log_likelihood"] > rows[0]["log_likelihood"]
    assert not any("energy_loss" in row for row in rows)
    assert not run.model.log_ratio


def test_the_elbo_is_the_bases_own(recipe: Path, tmp_path: Path) -> None:
    """ml and the base's own loss differ by a constant, so they end at the same weights. ml does not use the base's loss."""
    short = ["train.steps=20"]
    ml = gk.train(recipe, short, out=tmp_path / "ml")
    elbo = gk.train(recipe, [*short, "loss=elbo"], out=tmp_path / "elbo")
    for one, other in zip(ml.model.base.parameters(), elbo.model.base.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    last = [run.metrics()[0] for run in (ml, elbo)]
    assert last[1]["base_loss"] == pytest.approx(last[0]["base_loss"] + 2.0)
    assert last[1]["elbo"] == pytest.approx(-last[1]["base_loss"])


@pytest.mark.parametrize("loss", ["ml", "elbo"])
def test_what_can_not_be_trained_is_refused(loss: str, recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"train.part: 'both' does not go with loss '{loss}'; allowed: base"):
        gk.train(recipe, [f"loss={loss}", "train.part=both"], out=tmp_path / "run")
    wanted = {
        "ml": r"a density \(log_prob\), but Plain has none",
        "elbo": r"an encoder \(encode\) .*, but Plain does not have both",
    }[loss]
    with pytest.raises(UsageError, match=wanted):
        gk.train(recipe, [f"loss={loss}", "base=test-plain"], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_formula_and_gradient() -> None:
    flow = AffineFlow(data_shape=(2,)).double()
    model = GEBM(flow, MlpEnergy([4], data_shape=(2,)).double())
    x = torch.randn(6, 2, dtype=torch.float64)
    batch = Batch(x, x, x)
    density = torch.distributions.Normal(flow.mean, flow.log_scale.exp())
    expected = -density.log_prob(x).sum(1).mean()
    for loss, value in ((MaximumLikelihood(), expected), (Elbo(), expected + 2.0)):
        terms = loss.base_loss(model, batch)
        torch.testing.assert_close(terms.loss, value)
        torch.testing.assert_close(
            torch.autograd.grad(terms.loss, flow.mean), torch.autograd.grad(value, flow.mean, retain_graph=True)
        )
        with pytest.raises(UsageError, match="needs data"):
            loss.base_loss(model, Batch(None, x, x))
        with pytest.raises(UsageError, match="trains only the base and has no loss for the energy"):
            loss.energy_loss(model, batch)
