"""Tests of tilting a generator by a scorer: exact in a linear-Gaussian case, and every kind of bad scorer."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gebm_kit as gk
from gebm_kit.bases.mlp import MlpBase
from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.core.trust import trust_programs
from gebm_kit.data.digits import Digits
from gebm_kit.energies.codes import CodesEnergy
from gebm_kit.energies.mlp import MlpEnergy
from gebm_kit.engine.tilting import levels as levels_module
from gebm_kit.engine.tilting.ascent import climb, kl_at_least
from gebm_kit.engine.tilting.base_pool import best_of_kl, best_of_score
from gebm_kit.engine.tilting.levels import chain_mean
from gebm_kit.engine.tilting.result import Tilt
from gebm_kit.testing.targets import AffineBase, IdentityBase, QuadraticEnergy

WEIGHT = torch.tensor([[0.9, -0.2, 0.1, 0.3], [0.0, 0.7, -0.4, 0.1], [0.2, 0.1, 0.5, -0.6]], dtype=torch.float64)
OFFSET = torch.tensor([0.2, -0.3, 0.1], dtype=torch.float64)
PRECISION = torch.tensor([[1.0, 0.2, 0.0], [0.2, 0.8, 0.1], [0.0, 0.1, 0.5]], dtype=torch.float64)
SLOPE = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)


class Exact:
    """The posterior N(m, S) of the linear-Gaussian case at one beta: its moments in x, log Z, mean score and KL."""

    def __init__(self, beta: float) -> None:
        eye = torch.eye(4, dtype=torch.float64)
        s = torch.linalg.inv(eye + beta * WEIGHT.T @ PRECISION @ WEIGHT)
        m = -beta * s @ WEIGHT.T @ (PRECISION @ OFFSET + SLOPE)
        constant = 0.5 * OFFSET @ PRECISION @ OFFSET + SLOPE @ OFFSET
        self.log_z = float(0.5 * torch.logdet(s) + 0.5 * m @ torch.linalg.solve(s, m) - beta * constant)
        self.mean, self.covariance = WEIGHT @ m + OFFSET, WEIGHT @ s @ WEIGHT.T
        energy = (
            0.5 * (PRECISION @ self.covariance).trace() + 0.5 * self.mean @ PRECISION @ self.mean + SLOPE @ self.mean
        )
        self.score = -float(energy)
        self.kl = float(0.5 * (s.trace() + m @ m - 4 - torch.logdet(s)))  # of Gaussians; not by A and E


def linear_gaussian(**options: Any) -> Tilt:
    chosen = {"betas": [0.5, 2.0], "num_samples": 2000, "num_base": 8192, "seed": 3, **options}
    return gk.tilt(AffineBase(WEIGHT, OFFSET), QuadraticEnergy(PRECISION, SLOPE), **chosen)


def worst(found: Tilt) -> dict[str, float]:
    """Return the largest distance from the exact value over all betas, in standard errors, by what is estimated."""
    off: dict[str, float] = {}
    for level in found.levels:
        exact, x = Exact(level.beta), level.draws.x.double()
        pairs = [
            ("log Z", level.log_partition.value, level.log_partition.se, exact.log_z),
            ("score", level.score.value, level.score.se, exact.score),
            ("KL", level.kl.value, level.kl.se, exact.kl),
        ]
        centred = x - exact.mean
        for i in range(3):
            first = chain_mean(x[:, i], level.draws)
            second = chain_mean(centred[:, i].square(), level.draws)
            pairs.append(("mean", first.value, first.se, float(exact.mean[i])))
            pairs.append(("variance", second.value, second.se, float(exact.covariance[i, i])))
        for name, value, se, truth in pairs:
            assert se > 0
            off[name] = max(off.get(name, 0.0), abs(value - truth) / se)
    return off


@pytest.fixture(scope="module")
def exact_case() -> Tilt:
    return linear_gaussian()


def test_a_linear_gaussian_case_is_exact_within_errors(exact_case):
    off = worst(exact_case)
    assert set(off) == {"log Z", "score", "KL", "mean", "variance"}
    assert max(off.values()) < 4.5, off
    for level in exact_case.levels:
        assert level.kl.se < 0.06
        assert level.log_partition.reliable
        assert level.draws.diagnostics.converged


def test_the_same_test_fails_for_draws_at_another_beta_and_for_a_wrong_kl(exact_case, monkeypatch):
    real = levels_module.draw

    def at_half(model: Any, sampler: Any, settings: Any, **rest: Any) -> Any:
        return real(model, sampler, replace(settings, inverse_temperature=0.5 * settings.inverse_temperature), **rest)

    monkeypatch.setattr(levels_module, "draw", at_half)
    off = worst(linear_gaussian(betas=[2.0]))
    assert off["score"] > 10
    assert off["KL"] > 5
    turned = [
        replace(v, kl=replace(v.kl, value=-v.log_partition.value + v.beta * v.score.value)) for v in exact_case.levels
    ]
    wrong_sign = [replace(v, kl=replace(v.kl, value=-v.kl.value)) for v in turned]
    assert worst(replace(exact_case, levels=tuple(turned)))["KL"] < 4.5
    assert worst(replace(exact_case, levels=tuple(wrong_sign)))["KL"] > 10


def test_chains_that_follow_the_gradient_are_exact_too():
    off = worst(linear_gaussian(betas=[2.0], sampler="hmc", log_partition="smc"))
    assert max(off.values()) < 4.5, off


def test_best_of_n_scores_no_higher_than_the_posterior_at_its_kl(exact_case):
    for best in exact_case.best_of[1:]:
        low, high = 0.0, 400.0
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if Exact(middle).kl < best.kl else (low, middle)
        assert best.score.value < Exact(low).score + 3 * best.score.se


def test_best_of_n_is_the_mean_maximum_with_its_kl():
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(16 * 4096, generator=generator, dtype=torch.float64)
    for n in (1, 4, 16, 64):
        found = best_of_score(uniform, n)
        assert abs(found.value - n / (n + 1)) < 4.5 * found.se
    few = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).repeat(16)
    assert best_of_score(few, 2).value == pytest.approx((2 + 3 * 2 + 4 * 3) / 6)
    assert best_of_kl(1) == 0
    assert best_of_kl(4) == pytest.approx(math.log(4) - 0.75)
    assert math.isnan(best_of_score(few, 64).value)


def test_the_bound_on_gradient_ascent_is_the_kl_of_gaussian_codes():
    generator = torch.Generator().manual_seed(0)
    root = torch.tensor([[0.5, 0.0, 0.0], [0.3, 0.4, 0.0], [0.0, 0.2, 0.9]], dtype=torch.float64)
    shift = torch.tensor([1.0, 0.0, -0.5], dtype=torch.float64)
    covariance = root @ root.T
    truth = float(0.5 * (covariance.trace() + shift @ shift - 3 - torch.logdet(covariance)))
    noise = torch.randn(200, 500, 3, generator=generator, dtype=torch.float64)
    values = torch.tensor([kl_at_least(z @ root.T + shift) for z in noise])
    assert abs(float(values.mean()) - truth) < 4.5 * float(values.std()) / math.sqrt(200)
    wide = torch.randn(40, 30, generator=generator)  # too few for a covariance: each coordinate counts alone
    assert kl_at_least(wide) < 1.5
    assert kl_at_least(torch.zeros(40, 3)) == math.inf


def test_gradient_ascent_knows_the_kl_of_its_codes_where_they_are_few():
    base, energy = AffineBase(WEIGHT, OFFSET), QuadraticEnergy(PRECISION, SLOPE)
    z = torch.randn(256, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stops = climb(GEBM(base, energy), z, 6, lambda report: None)
    assert [stop.steps for stop in stops] == [1, 2, 4, 6]
    for stop in stops:  # the codes are Gaussian, so their moments give the whole KL; the volume must agree
        step = torch.linalg.lstsq(torch.cat([z, torch.ones(256, 1)], 1), stop.z).solution
        map_, shift = step[:4].T, step[4]
        truth = float(0.5 * ((map_ @ map_.T).trace() + shift @ shift - 4) - torch.linalg.slogdet(map_).logabsdet)
        assert stop.kl == pytest.approx(truth, rel=0.15, abs=0.1)
    assert float(stops[-1].score.mean()) > float(stops[0].score.mean())


# --- scorers ---------------------------------------------------------------------------------------------------------

QUICK: dict[str, Any] = {"betas": [1.0], "num_samples": 200, "num_base": 2048}


class Score(nn.Module):
    """The score ``r(x) = x_0``, times ``factor``."""

    def __init__(self, end: Callable[[Tensor], Any] = lambda r: r) -> None:
        super().__init__()
        self.end = end

    def forward(self, x: Tensor) -> Any:
        return self.end(x[:, 0])


def test_functions_modules_and_energies_agree_about_the_sign():
    two = torch.eye(2, dtype=torch.float64)
    plane, downhill = AffineBase(two, 0 * two[0]), QuadraticEnergy(0 * two, -two[0])
    small = IdentityBase(2)
    for base, scorer in (
        (small, lambda x: x[:, 0]),
        (small, Score()),
        (small, Score(lambda r: r[:, None])),
        (plane, downhill),
    ):
        (level,) = gk.tilt(base, scorer, **QUICK).levels
        assert abs(level.score.value - 1) < 5 * level.score.se
        assert abs(level.kl.value - 0.5) < 5 * level.kl.se
        assert abs(level.log_partition.value - 0.5) < 5 * level.log_partition.se


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        (Score(lambda r: r[:, None].repeat(1, 3)), r"the scorer Score returns shape \[\d+, 3\]"),
        (Score(lambda r: r.mean()), r"returns shape \[\] .* for \d+ rows"),
        (Score(lambda r: (r > 0).long()), "torch.int64"),
        (Score(lambda r: r.tolist()), "returns list"),
        (Score(lambda r: r * math.nan), "not finite at any"),
        (Score(lambda r: r / 0 if len(r) > 3 and [][1] else r), r"the scorer Score fails on \d+ rows .*IndexError"),
        (lambda x: torch.from_numpy(x.numpy()[:, 0]), "the scorer <lambda> fails on .* requires grad"),
        (lambda x: x.mul_(2)[:, 0], "the scorer <lambda> changes its input x in place"),
        (lambda x: x[:, 0] - x[:, 0].mean(), "the scorer <lambda> gives a row another result"),
        (CodesEnergy(data_shape=(2,)), "energy on codes"),
        (7, "the scorer must be an energy"),
        ("no/such/file.pt", "no/such/file.pt"),
    ],
)
def test_bad_scorers_are_named(scorer, said):
    with pytest.raises((UsageError, DataError), match=said):
        gk.tilt(IdentityBase(2), scorer, **QUICK)


def test_scores_that_are_not_finite_are_counted_and_named():
    def patchy(x: Tensor) -> Tensor:
        return torch.where(x[:, 1] > 3.09, math.nan, x[:, 0])  # one draw in 1,000

    for sampler in ("auto", "hmc", "imh", "sir"):
        with pytest.warns(GebmKitWarning, match=r"the scorer patchy is not finite .* at \d+ of 8,192 base draws"):
            found = gk.tilt(IdentityBase(2), patchy, sampler=sampler, **{**QUICK, "num_base": 8192})
        assert 1 <= found.not_finite <= 30
        (level,) = found.levels
        assert abs(level.score.value - 1) < 5 * level.score.se + 0.02
        assert bool((level.draws.x[:, 1] <= 3.09).all())
        assert abs(level.log_partition.value - 0.499) < 5 * level.log_partition.se
        assert found.as_dict()["not_finite"] == found.not_finite


def test_a_scorer_without_gradient_is_drawn_from_by_samplers_without_gradients():
    def steps(x: Tensor) -> Tensor:
        return (x[:, 0] > 0).to(x.dtype)

    with pytest.warns(GebmKitWarning, match="has no gradient .*pcn, elliptical, rwm or imh"):
        found = gk.tilt(IdentityBase(2), steps, **QUICK)
    (level,) = found.levels
    truth = math.e / (1 + math.e)
    assert abs(level.score.value - truth) < 5 * level.score.se
    assert abs(level.log_partition.value - math.log((1 + math.e) / 2)) < 5 * level.log_partition.se
    assert found.ascent == ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UsageError, match="gradient") as caught:
            gk.tilt(IdentityBase(2), steps, sampler="mala", **QUICK)
    assert "pcn, elliptical, rwm or imh" in caught.value.hint + caught.value.message


@pytest.mark.parametrize("betas", [[], [0.0], [-1.0], [math.inf], [True], ["1"]])
def test_betas_are_numbers_above_zero(betas):
    with pytest.raises(UsageError, match="beta"):
        gk.tilt(IdentityBase(2), Score(), betas=betas)


def test_other_mistakes_are_named(tmp_path):
    base = IdentityBase(2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(UsageError, match="not an empty directory"):
        gk.tilt(base, Score(), out=tmp_path / "full")
    with pytest.raises(TypeError, match="bettas"):
        gk.tilt(base, Score(), bettas=[1])
    with pytest.raises(UsageError, match="num_base"):
        gk.tilt(base, Score(), num_base=3)
    with pytest.raises(UsageError, match="features 'classifier' need data"):
        gk.tilt(base, Score(), features="classifier", **QUICK)
    with pytest.raises(UsageError, match="log_partition"):
        gk.tilt(base, Score(), log_partition="guess")
    with pytest.raises(UsageError, match="value_range"):
        gk.tilt(base, Score(), value_range=(1, -1))
    with pytest.raises(UsageError, match="needs data with labels"):
        gk.tilt(base, {"name": "classifier", "target": 1})
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(UsageError, match="whole diffusers pipeline") as caught:
        gk.tilt(str(tmp_path / "pipeline"), Score())
    assert "name: diffusers-pipeline" in caught.value.hint
    with pytest.raises(UsageError, match="the generator must be"):
        gk.tilt(3, Score())


# --- files -----------------------------------------------------------------------------------------------------------


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 64), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z).unflatten(1, (1, 8, 8))


def save(module: nn.Module, path: Path, example: Tensor) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module.eval(), example), str(path))
    return str(path)


def test_files_are_tilted_and_written_with_data(tmp_path):
    generator = save(Images(), tmp_path / "generator.pt", torch.randn(3, 5))
    scorer = save(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), tmp_path / "scorer.pt", torch.randn(3, 1, 8, 8))
    with trust_programs():
        options = {"latent_shape": [5], "features": "pixels", **QUICK}
        found = gk.tilt(generator, scorer, data="digits", out=tmp_path / "out", **options)
        alone = gk.tilt(generator, scorer, latent_shape=[5], **QUICK)
    assert alone.levels[0].draws.x.shape == (200, 1, 8, 8)
    assert alone.levels[0].prdc == {}
    torch.testing.assert_close(alone.levels[0].draws.x, found.levels[0].draws.x)
    assert set(found.levels[0].prdc) == {"precision", "recall", "density", "coverage"}
    assert found.features == "pixels"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"tilt.json", "frontier.png", "grid.png", "draws-beta-1.safetensors"}
    payload = json.loads((tmp_path / "out" / "tilt.json").read_text())
    assert payload["schema"] == 1
    assert payload["scorer"]["path"] == scorer
    assert len(payload["scorer"]["sha256"]) == 64
    assert {v["n"] for v in payload["best_of"]} == {1, 4, 16, 64}
    assert payload["levels"][0]["kl"]["value"] == found.levels[0].kl.value
    again = gk.load_draws(tmp_path / "out" / "draws-beta-1.safetensors")
    torch.testing.assert_close(again.x, found.draws(1.0).x)
    with pytest.raises(UsageError, match="trust"):
        gk.tilt(generator, scorer, latent_shape=[5], **QUICK)
    with trust_programs(), pytest.raises(UsageError, match="fails on codes of shape"):
        gk.tilt(generator, scorer, latent_shape=[4], **QUICK)


def test_conditional_parts_are_held_at_one_class():
    data, generator = Digits(), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = GEBM(
        MlpBase(
            latent_dim=4, hidden=[16], conditional=True, data_shape=(1, 8, 8), value_range=(-1.0, 1.0), num_classes=10
        ),
        MlpEnergy([8], conditional=True, data_shape=(1, 8, 8), num_classes=10),
    )
    z = torch.randn(3, 4, generator=generator)
    node = {"name": "classifier", "features": {"name": "classifier", "steps": 20}}
    options = {"data": data, "features": "pixels", "sampler": "imh", "warmup": 0, "steps": 10, "betas": [2.0]}
    options |= {"num_samples": 60, "num_base": 256, "log_partition": "importance-sampling"}
    alone = gk.tilt(model.given(3), {**node, "target": 3}, **options)
    held = gk.tilt(model, node, label=3, **options)
    assert torch.equal(held.draws(2.0).x, alone.draws(2.0).x)
    kept = gk.tilt(model, node, label=3, keep_energy=True, **options)
    alone = gk.tilt(model.given(3), {**node, "target": 3}, keep_energy=True, **options)
    assert torch.equal(kept.draws(2.0).x, alone.draws(2.0).x)
    assert kept.levels[0].kl.value != held.levels[0].kl.value
    assert model.base(z, torch.tensor([1, 2, 3])).shape == (3, 1, 8, 8)
    for label, said in ((None, "a tilt serves one law at a time"), (10, "10"), (1.5, "whole"), (True, "whole")):
        with pytest.raises(UsageError, match=said):
            gk.tilt(model, node, label=label, **options)
    with pytest.raises(UsageError, match="neither the generator nor the scorer has classes"):
        gk.tilt(IdentityBase(2), lambda x: x[:, 0], label=1)


def test_a_class_is_drawn_from_a_generator_without_classes(tmp_path):
    node = {"name": "classifier", "target": 3, "features": {"name": "classifier", "steps": 60}}
    pair = {
        "name": "sum",
        "parts": [node, {"name": "pretrained", "path": str(tmp_path / "scorer.pt")}],
        "weights": [1, 0],
    }
    generator = save(Images(), tmp_path / "generator.pt", torch.randn(3, 5))
    save(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), tmp_path / "scorer.pt", torch.randn(3, 1, 8, 8))
    options = {"data": Digits(), "latent_shape": [5], "features": "pixels", "sampler": "imh", "warmup": 0, "steps": 20}
    options |= {"betas": [1.0], "num_samples": 100, "num_base": 512, "log_partition": "importance-sampling"}
    with trust_programs():
        found = gk.tilt(generator, node, **options)
        both = gk.tilt(generator, pair, **options)
    assert found.levels[0].score.value > found.base.score.value + 0.1
    assert found.scorer["name"] == "classifier"
    assert both.levels[0].score.value == pytest.approx(found.levels[0].score.value, abs=1e-4)
