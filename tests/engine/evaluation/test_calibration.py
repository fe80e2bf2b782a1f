"""The calibrated inverse temperature: known answers, its standard error, and what has no answer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import gebm_kit as gk
from gebm_kit.core.interfaces import Base, Energy
from gebm_kit.core.model import GEBM
from gebm_kit.engine.datasets.held_out import HeldOut
from gebm_kit.engine.evaluation.calibration import LARGEST_BETA, calibrate, calibration_of, verdict

pytestmark = pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")

SHIFT = 1.0
"""Base draws are N(0, 1) and data N(1, 1): the log-ratio is x - 1/2, the true energy -x."""


def samples(scale: float, seed: int, n: int = 4000, num: int = 20_000) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    data = SHIFT + torch.randn(n, generator=generator, dtype=torch.float64)
    return -scale * data, -scale * torch.randn(num, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.25, 0.5, 1.0, 2.0, 5.0])
def test_an_energy_times_c_has_the_answer_one_over_c(scale: float) -> None:
    found = calibrate(*samples(scale, 0))
    assert found.inverse_temperature is not None
    assert found.stderr is not None
    assert abs(found.inverse_temperature - 1 / scale) < 4 * found.stderr
    assert found.stderr < 0.06 / scale
    assert found.kale == pytest.approx(0.5, abs=0.06)  # KL(N(1, 1) || N(0, 1))
    assert found.kale >= found.kale_at_1
    assert (found.rows, found.draws) == (4000, 20_000)


def test_it_is_where_the_model_has_the_energy_of_the_data() -> None:
    data, base = samples(1.7, 3)
    beta = calibrate(data, base).inverse_temperature
    weights = torch.softmax(-beta * base, 0)
    assert float((weights * base).sum()) == pytest.approx(float(data.mean()), abs=1e-9)
    value = calibrate(data, base).kale
    for other in (0.9 * beta, 1.1 * beta):
        assert float(-other * data.mean() + math.log(len(base)) - torch.logsumexp(-other * base, 0)) < value


def test_the_standard_error_is_the_spread_over_samples() -> None:
    found = [calibrate(*samples(2.0, seed, 300, 1000)) for seed in range(300)]
    betas = torch.tensor([one.inverse_temperature for one in found])
    stated = torch.tensor([one.stderr for one in found]).mean()
    assert 0.85 < float(stated / betas.std()) < 1.15


def test_energies_that_are_constant_have_no_answer() -> None:
    found = calibrate(torch.full((5,), 2.0), torch.full((7,), 2.0))
    assert found.inverse_temperature is found.stderr is None
    assert "constant" in verdict(found.as_dict())
    assert found.kale == pytest.approx(0.0, abs=1e-12)


def test_data_below_all_base_draws_end_at_the_bound_with_a_statement() -> None:
    found = calibrate(torch.full((5,), -9.0), torch.linspace(0, 1, 50))
    assert found.inverse_temperature == LARGEST_BETA
    assert found.stderr is None
    assert "still grows at 100" in verdict(found.as_dict())


def test_data_above_the_base_draws_have_no_answer() -> None:
    found = calibrate(torch.full((5,), 9.0), torch.linspace(0, 1, 50))
    assert found.inverse_temperature is None
    assert "base alone" in verdict(found.as_dict())
    assert found.kale == 0.0


@pytest.mark.parametrize("data", [[1.0, math.nan], [math.inf, 0.0], []])
def test_energies_that_are_not_finite_have_no_answer(data: list[float]) -> None:
    found = calibrate(torch.tensor(data), torch.linspace(0, 1, 50))
    assert found.inverse_temperature is None
    assert found.as_dict()["kale"] is None
    assert "not finite" in verdict(found.as_dict())


def test_excluded_base_draws_have_no_weight() -> None:
    data, base = samples(1.0, 0)
    excluded = torch.cat([base, torch.full_like(base, math.inf)])
    one, other = calibrate(data, base), calibrate(data, excluded)
    assert one.inverse_temperature == pytest.approx(other.inverse_temperature, rel=1e-12)
    assert other.kale == pytest.approx(one.kale + math.log(2))


def test_heavy_tails_are_said() -> None:
    data = -torch.full((100,), 40.0, dtype=torch.float64)
    base = -torch.exp(torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.5)
    found = calibrate(data, base)
    assert found.pareto_k >= 0.7
    assert "not to be trusted" in verdict(found.as_dict())


@pytest.mark.parametrize(
    ("beta", "stderr", "words"),
    [(0.5, 0.1, "overconfident"), (1.5, 0.1, "timid"), (0.9, 0.1, "as it is"), (0.98, 0.001, "as it is")],
)
def test_the_verdict_minds_the_error(beta: float, stderr: float, words: str) -> None:
    assert words in verdict({"inverse_temperature": beta, "stderr": stderr, "reason": ""})


# --- models ----------------------------------------------------------------------------------------------------------
class Identity(Base):
    latent_dim, data_shape = 2, (2,)

    def forward(self, z: Tensor) -> Tensor:
        return z


class Slope(Energy):
    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x: Tensor) -> Tensor:
        return -self.slope * x[:, 0]


def rows() -> Tensor:
    return torch.randn(4000, 2, generator=torch.Generator().manual_seed(1)) + torch.tensor([SHIFT, 0.0])


def test_a_model_is_calibrated_on_the_validation_part() -> None:
    model = GEBM(Identity(), Slope(2.0))
    base = [torch.randn(3000, 2, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    found = calibration_of(model, HeldOut(rows()), base, torch.device("cpu"), limit=8000)
    assert found is not None
    assert found.rows == 2000
    assert found.draws == 8000
    assert found.inverse_temperature == pytest.approx(0.5, abs=0.06)
    assert model.energy.training
    assert model.energy.slope.grad is None


def test_without_a_validation_part_there_is_none() -> None:
    held = HeldOut(rows())
    held._valid._rows = held._valid._rows[:0]
    assert calibration_of(GEBM(Identity(), Slope(2.0)), held, [torch.zeros(3, 2)], torch.device("cpu")) is None


def test_every_evaluation_reports_it() -> None:
    found = gk.evaluate(GEBM(Identity(), Slope(2.0)), data=rows(), metrics=["mmd"], num_samples=500, num_sets=2)
    assert found.calibration is not None
    told = found.as_dict()["calibration"]
    assert told["inverse_temperature"] == found.calibration.inverse_temperature == pytest.approx(0.5, abs=0.15)
    assert set(told) >= {"inverse_temperature", "stderr", "kale_at_1", "kale"}
    assert "overconfident" in verdict(told)
