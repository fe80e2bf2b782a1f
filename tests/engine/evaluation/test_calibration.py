"""The calibrated inverse temperature: known answers, its standard error, and what has no answer."""

from __future__ import annotations

import functools
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gebm_kit as gk
from gebm_kit.cli.results import calibration_words
from gebm_kit.config.load import load_recipe
from gebm_kit.core.errors import GebmKitError, RecipeError, UsageError
from gebm_kit.core.estimators import pareto_k
from gebm_kit.core.interfaces import Base, Energy
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.engine.datasets.held_out import HeldOut
from gebm_kit.engine.evaluation.calibration import LARGEST_BETA, calibrate, calibration_of
from gebm_kit.engine.likelihood.user_rows import model_of
from gebm_kit.engine.run_directory.calibrated import with_calibrated_beta
from gebm_kit.engine.sampling.settings import settings_of

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
    assert "constant" in calibration_words(found.as_dict())
    assert found.kale == pytest.approx(0.0, abs=1e-12)


def test_data_below_all_base_draws_end_at_the_bound_with_a_statement() -> None:
    found = calibrate(torch.full((5,), -9.0), torch.linspace(0, 1, 50))
    assert found.inverse_temperature == LARGEST_BETA
    assert found.stderr is None
    assert "still grows at 100" in calibration_words(found.as_dict())


def test_data_above_the_base_draws_have_no_answer() -> None:
    found = calibrate(torch.full((5,), 9.0), torch.linspace(0, 1, 50))
    assert found.inverse_temperature is None
    assert "base alone" in calibration_words(found.as_dict())
    assert found.kale == 0.0


@pytest.mark.parametrize("data", [[1.0, math.nan], [math.inf, 0.0], []])
def test_energies_that_are_not_finite_have_no_answer(data: list[float]) -> None:
    found = calibrate(torch.tensor(data), torch.linspace(0, 1, 50))
    assert found.inverse_temperature is None
    assert found.as_dict()["kale"] is None
    assert "not finite" in calibration_words(found.as_dict())


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
    assert "not to be trusted" in calibration_words(found.as_dict())


def test_what_base_draws_know_nothing_of_is_not_applied() -> None:
    """A timid energy: data far below the base draws ask for a beta at which a handful of draws is left."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(5000, generator=generator, dtype=torch.float64)
    for gap in (3.0, 9.0):
        found = calibrate(torch.full((200,), -gap, dtype=torch.float64), base)
        assert found.inverse_temperature is not None
        assert found.applied is not None
        assert 1.0 < found.applied < found.inverse_temperature
        assert pareto_k(-found.applied * base) < 0.7 <= found.pareto_k
        assert f"{found.applied:.3g} is applied" in found.reason
    trusted = calibrate(torch.full((200,), -0.5, dtype=torch.float64), base)
    assert trusted.applied == trusted.inverse_temperature
    steep = calibrate(torch.full((200,), -40.0, dtype=torch.float64), -torch.exp(1.5 * base))
    assert (steep.applied is not None and steep.applied <= 1.0) or steep.inverse_temperature == steep.applied


@pytest.mark.parametrize(
    ("beta", "stderr", "words"),
    [(0.5, 0.1, "overconfident"), (1.5, 0.1, "timid"), (0.9, 0.1, "as it is"), (0.98, 0.001, "as it is")],
)
def test_the_verdict_minds_the_error(beta: float, stderr: float, words: str) -> None:
    assert words in calibration_words({"inverse_temperature": beta, "stderr": stderr, "reason": ""})


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
    base = -2 * torch.randn(12_000, generator=torch.Generator().manual_seed(0))
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
    assert calibration_of(GEBM(Identity(), Slope(2.0)), held, torch.zeros(3), torch.device("cpu")) is None


def test_every_evaluation_reports_it() -> None:
    found = gk.evaluate(GEBM(Identity(), Slope(2.0)), data=rows(), metrics=["mmd"], num_samples=500, num_sets=2)
    assert found.calibration is not None
    told = found.as_dict()["calibration"]
    assert told["inverse_temperature"] == found.calibration.inverse_temperature == pytest.approx(0.5, abs=0.15)
    assert set(told) >= {"inverse_temperature", "stderr", "kale_at_1", "kale"}
    assert "overconfident" in calibration_words(told)


# --- draws at the calibrated beta ------------------------------------------------------------------------------------
TOY = """\
schema: 1
data: {name: eight-gaussians, num_train: 100, num_valid: 40, num_test: 40}
base: {name: mlp, latent_dim: 2, hidden: [8]}
energy: {name: mlp, hidden: [8]}
train: {steps: 20, start_steps: 0, energy_steps: 2, batch_size: 16, checkpoint_every: 20, final: {steps: 20}}
sample: {num_samples: 20, num_chains: 20, warmup: 2, steps: 5}
eval: {num_samples: 40, num_sets: 2, metrics: [mmd]}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> gk.Run:
    folder = tmp_path_factory.mktemp("calibrated")
    (folder / "toy.yaml").write_text(TOY)
    trained = gk.train(str(folder / "toy.yaml"), out=folder / "run")
    path = trained.path / "evaluation.json"
    found = json.loads(path.read_text())
    assert "inverse_temperature" in found["calibration"]
    found["calibration"] |= {"inverse_temperature": 0.625, "applied": 0.625, "reason": ""}
    path.write_text(json.dumps(found))
    return gk.load_run(trained.path)


def test_draws_and_traces_take_the_beta_of_the_last_evaluation(run: gk.Run) -> None:
    assert gk.sample(run, inverse_temperature="calibrated").diagnostics.as_dict()["inverse_temperature"] == 0.625
    trace = gk.trace_quality(run, "mmd", inverse_temperature="calibrated", num_sets=2, num_samples=20)
    assert [curve.inverse_temperature for curve in trace.curves] == [0.625]
    wanted = load_recipe(run.path / "resolved.yaml", ["sample.inverse_temperature=calibrated"])
    assert with_calibrated_beta(run, wanted).sample.inverse_temperature == 0.625
    assert settings_of(wanted.sample).inverse_temperature == 1.0


def test_everything_that_takes_a_beta_takes_the_word(run: gk.Run) -> None:
    assert gk.score(run, torch.zeros(3, 2), inverse_temperature="calibrated").inverse_temperature == 0.625
    options = {"space": None, "method": None, "seed": None, "device": None}
    assert model_of(run, inverse_temperature="calibrated", **options)[2]["inverse_temperature"] == 0.625
    trace = gk.trace_quality(run, "mmd", inverse_temperature=[1, "calibrated"], num_sets=2, num_samples=20)
    assert [curve.inverse_temperature for curve in trace.curves] == [1.0, 0.625]


def test_a_calibration_belongs_to_its_checkpoint(run: gk.Run) -> None:
    assert run.evaluation is not None
    assert run.evaluation["checkpoint"] == run.checkpoint.path.name == "step-0000040"
    earlier = gk.load_run(run.path, "step-20")
    asked = [
        lambda: gk.sample(earlier, inverse_temperature="calibrated"),
        lambda: gk.trace_quality(earlier, "mmd", inverse_temperature=["calibrated"]),
        lambda: gk.score(earlier, torch.zeros(3, 2), inverse_temperature="calibrated"),
    ]
    for ask in asked:
        with pytest.raises(
            UsageError, match="0.625, belongs to checkpoint step-0000040, not to step-0000020"
        ) as caught:
            ask()
        assert "--checkpoint step-0000020" in caught.value.hint


def test_another_word_is_no_beta(run: gk.Run) -> None:
    for ask in (gk.sample, gk.evaluate, functools.partial(gk.score, rows=torch.zeros(3, 2)), gk.trace_quality):
        with pytest.raises(UsageError, match="a finite number >= 0 or 'calibrated', got 'hot'"):
            ask(run, inverse_temperature="hot")


def test_an_evaluation_finds_the_beta_that_it_samples_at(run: gk.Run) -> None:
    model = GEBM(Identity(), Slope(2.0))
    found = gk.evaluate(
        model, data=rows(), metrics=["mmd"], num_samples=500, num_sets=2, inverse_temperature="calibrated"
    )
    assert found.calibration is not None
    assert found.inverse_temperature == found.calibration.applied == found.calibration.inverse_temperature
    assert 0.3 < found.inverse_temperature < 0.7


def test_a_doubtful_beta_is_taken_with_a_warning(run: gk.Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    path = tmp_path / "run" / "evaluation.json"
    found = json.loads(path.read_text())
    found["calibration"]["reason"] = "KALE still grows at 100"
    path.write_text(json.dumps(found))
    with pytest.warns(GebmKitWarning, match=r"0.625, is doubtful: KALE still grows"):
        gk.sample(gk.load_run(tmp_path / "run"), inverse_temperature="calibrated")


@pytest.mark.parametrize("name", ["applied", "inverse_temperature"])
def test_a_beta_that_is_not_a_number_is_a_damaged_evaluation(name: str, run: gk.Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    path = tmp_path / "run" / "evaluation.json"
    found = json.loads(path.read_text())
    found["calibration"] |= {"applied": 0.5, "inverse_temperature": 0.5, name: "many"}
    path.write_text(json.dumps(found))
    with pytest.raises(GebmKitError, match=r"evaluation\.json|no calibrated inverse temperature"):
        gk.sample(gk.load_run(tmp_path / "run"), inverse_temperature="calibrated")


@pytest.mark.parametrize("problem", ["none", "old"])
def test_a_run_without_it_says_so(problem: str, run: gk.Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    path = tmp_path / "run" / "evaluation.json"
    found = json.loads(path.read_text())
    if problem == "none":
        found["calibration"] |= {"inverse_temperature": None, "applied": None, "reason": "the energy is constant"}
    else:
        del found["calibration"]
    path.write_text(json.dumps(found))
    with pytest.raises(UsageError, match="no calibrated inverse temperature: (the energy is constant|no evaluation)"):
        gk.sample(gk.load_run(tmp_path / "run"), inverse_temperature="calibrated")


def test_a_model_without_a_run_has_none() -> None:
    with pytest.raises(UsageError, match="built by hand has no calibrated"):
        gk.sample(GEBM(Identity(), Slope(2.0)), inverse_temperature="calibrated")
    with pytest.raises(UsageError, match="built by hand has no calibrated"):
        gk.trace_quality(GEBM(Identity(), Slope(2.0)), "mmd", data=rows(), inverse_temperature="calibrated")
    for compute in (gk.score, gk.log_density):
        with pytest.raises(UsageError, match="built by hand has no calibrated"):
            compute(GEBM(Identity(), Slope(2.0)), rows(), inverse_temperature="calibrated")
    asked = {"metrics": ["mmd"], "num_samples": 50, "num_sets": 2, "inverse_temperature": "calibrated"}
    with pytest.warns(GebmKitWarning, match=r"no calibrated .*energy is constant.* evaluated at 1"):
        assert gk.evaluate(GEBM(Identity(), Slope(0.0)), data=rows(), **asked).inverse_temperature == 1.0


def test_the_word_in_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(TOY.replace("sample: {", "sample: {inverse_temperature: calibrated, "))
    trained = gk.train(str(tmp_path / "toy.yaml"), overrides=["train.eval_every=20"], out=tmp_path / "run")
    told = trained.evaluation
    assert told["inverse_temperature"] == (told["calibration"]["applied"] or 1.0)
    told["calibration"] |= {"inverse_temperature": 0.5, "applied": 0.5, "reason": ""}
    (trained.path / "evaluation.json").write_text(json.dumps(told))
    assert gk.sample(trained).diagnostics.as_dict()["inverse_temperature"] == 0.5
    assert gk.score(trained, torch.zeros(3, 2)).inverse_temperature == 0.5
    with pytest.raises(RecipeError, match="sample.inverse_temperature"):
        load_recipe(tmp_path / "toy.yaml", ["sample.inverse_temperature=calibratd"])
