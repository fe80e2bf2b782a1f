"""Tests of the hinge and Wasserstein critics against their formulas, and of the warning when drawing from such a model."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import gebm_kit as gk
from gebm_kit.core.interfaces import Base, Batch, Energy
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.losses.critics import Hinge, Wasserstein

DATA, BASE = (torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (8, 11))
FORMULAS = {
    Hinge: lambda data, base: torch.relu(1 + data).mean() + torch.relu(1 - base).mean(),
    Wasserstein: lambda data, base: data.mean() - base.mean(),
}


class Shifted(Energy):
    """An energy that is the data plus a parameter for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(19, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(1) + self.shift[: len(x)]


@pytest.mark.parametrize("kind", FORMULAS)
def test_the_formula(kind: type) -> None:
    energy = Shifted()
    batch = Batch(DATA.unsqueeze(1), torch.zeros(11, 1), BASE.unsqueeze(1))
    loss = kind()
    terms = loss.energy_loss(GEBM(Base(), energy), batch)
    data, base = DATA.clone().requires_grad_(), BASE.clone().requires_grad_()
    expected = FORMULAS[kind](data, base)
    torch.testing.assert_close(terms.loss, expected)
    gradient = torch.cat(torch.autograd.grad(expected, [data, base]))
    torch.testing.assert_close(torch.autograd.grad(terms.loss, energy.shift)[0], gradient)
    torch.testing.assert_close(loss.base_loss(GEBM(Base(), energy), batch).loss, BASE.mean())
    assert loss.log_partition_estimate() is None
    assert "kale" not in terms.metrics


def test_metrics() -> None:
    batch = Batch(torch.tensor([[-2.0], [0.0]]), torch.zeros(2, 1), torch.tensor([[0.5], [0.0]]))
    energy = Shifted().float()
    assert Hinge().energy_loss(GEBM(Base(), energy), batch).metrics["inside_margin"].item() == 0.75
    assert Wasserstein().energy_loss(GEBM(Base(), energy), batch).metrics["wasserstein"].item() == 1.25


@pytest.mark.filterwarnings("ignore:the chains have not mixed")
@pytest.mark.parametrize("loss", ["loss=hinge", "loss={name: cd, space: data}"])
def test_drawing_from_such_a_model_is_warned_of(
    loss: str, tmp_path: Path, no_pictures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [
        loss, "data.num_train=100", "data.num_valid=50", "data.num_test=50", "train.steps=1", "train.start_steps=0",
        "train.final.steps=0", "ema.decay=0", "train.batch_size=16", "base.hidden=[4]", "energy.hidden=[4]",
        "sampler=mala", "sample.num_samples=20", "sample.num_chains=20", "sample.warmup=2", "sample.steps=8",
        "sample.thin=8", "eval.num_samples=20", "eval.num_sets=2", "eval.metrics=[mmd]",
    ]  # fmt: skip
    with pytest.warns(GebmKitWarning, match="no estimate of the data's distribution"):
        run = gk.train("eight_gaussians", overrides, out=tmp_path / "run")
    again = gk.load_run(run.path)
    assert not again.model.log_ratio
    with pytest.warns(GebmKitWarning, match="does not make its energy a log density ratio"):
        gk.sample(again)
    with pytest.warns(GebmKitWarning, match="does not make its energy a log density ratio"):
        gk.evaluate(again)
