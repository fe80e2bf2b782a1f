"""Tests that a trained energy's KALE is within 5 % of a known divergence, on the cases of benchmarks/kale_known_kl.py."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kale_known_kl.py"
specification = importlib.util.spec_from_file_location("kale_known_kl", SCRIPT)
assert specification is not None
assert specification.loader is not None
known = importlib.util.module_from_spec(specification)
sys.modules["kale_known_kl"] = known
specification.loader.exec_module(known)

HARD = [known.Case("mean", 10, 2.0), known.Case("variance", 10, 2.0)]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_cases_have_the_divergence_they_claim():
    """The divergences agree with Monte Carlo of log p/b under P, with the densities of torch.distributions."""
    for case in known.CASES:
        x = case.data(200_000, torch.Generator().manual_seed(0)).double()
        p = torch.distributions.Normal(case.mean.double(), case.std)
        b = torch.distributions.Normal(torch.zeros(case.dim, dtype=torch.float64), 1.0)
        ratio = (p.log_prob(x) - b.log_prob(x)).sum(1)
        assert abs(ratio.mean() - case.divergence) < 5 * ratio.std() / len(ratio) ** 0.5
        assert case.std <= 1


@pytest.mark.parametrize("case", known.CASES, ids=lambda c: f"{c.differs}-{c.dim}d-{c.divergence}")
def test_kale(case):
    assert known.measured(case, "kale") == pytest.approx(case.divergence, rel=0.05)


@pytest.mark.parametrize("case", HARD, ids=lambda c: f"{c.differs}-{c.dim}d-{c.divergence}")
@pytest.mark.parametrize("loss", ["kale-dv", "logistic"])
def test_other_losses_where_it_is_hardest(case, loss):
    assert known.measured(case, loss) == pytest.approx(case.divergence, rel=0.05)


@pytest.mark.parametrize("loss", ["relativistic", "smile", "smile, clipped gradient", "flo", "cd", "pcd"])
def test_the_rest_of_those_that_learn_a_log_ratio(loss):
    """The cases are those where the ratio stays within smile's clip and chains of a few steps converge."""
    case = known.Case("mean", 2, 0.5)
    assert known.measured(case, loss, steps=400) == pytest.approx(case.divergence, rel=0.05)


def test_an_untrained_energy_fails():
    """This is the negative control: a test that an untrained energy passes proves nothing."""
    case = known.CASES[0]
    model = known.GEBM(known.Identity(case.dim), known.Quadratic(case.dim))
    value = known.held_out_kale(case, model, torch.Generator().manual_seed(0))
    assert value == pytest.approx(0.0, abs=1e-9)
