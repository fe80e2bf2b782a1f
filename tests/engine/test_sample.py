"""Draws from models built by hand: right, reproducible, refused in words when they can't be had."""

from __future__ import annotations

import copy
import errno
import itertools
import json
import math
import os
import warnings
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import gebm_kit as gk
from gebm_kit.config.schema import ComponentNode
from gebm_kit.core.errors import PluginError, RecipeError, RunFailed, UsageError
from gebm_kit.core.interfaces import Base, Energy
from gebm_kit.core.progress import GebmKitWarning, ignore
from gebm_kit.engine.process.distributed import ALONE
from gebm_kit.engine.run_directory.run import Run
from gebm_kit.engine.sample import SampleOptions, sample
from gebm_kit.engine.sampling.draw import draw, prepared
from gebm_kit.engine.sampling.draws import Draws
from gebm_kit.engine.sampling.draws_in_memory import Assembly, InMemory
from gebm_kit.engine.sampling.run_kernel import warmed
from gebm_kit.engine.sampling.settings import SampleSettings
from gebm_kit.samplers.hmc import Hmc
from gebm_kit.samplers.mala import Mala
from gebm_kit.testing.statistics import confirmed, disagreement
from gebm_kit.testing.targets import (
    IdentityBase,
    LinearEnergy,
    WalledEnergy,
    linear_gaussian,
    tilted_sphere,
    tilted_uniform,
)

QUICK = {"num_samples": 60, "num_chains": 20, "warmup": 20, "steps": 20, "thin": 5}

pytestmark = pytest.mark.filterwarnings("ignore:the chains have not mixed")


class SmallBase(Base):
    def __init__(self) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = 3, (2, 2)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z).unflatten(1, (2, 2))


class SmallEnergy(Energy):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(4, 8), nn.Dropout(0.5), nn.SiLU(), nn.Linear(8, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(1)


@pytest.fixture
def model() -> gk.GEBM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return gk.GEBM(SmallBase(), SmallEnergy())


class FunctionEnergy(Energy):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _with_energy(function) -> gk.GEBM:
    return gk.GEBM(IdentityBase(2), FunctionEnergy(function))


# --- draws ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mala", "hmc"])
def test_draws_of_a_hand_built_model_follow_its_posterior(name: str) -> None:
    target = linear_gaussian(4, inverse_temperature=0.8)

    def failures(seed: int) -> dict[str, float]:
        draws = gk.sample(
            target.model, sampler=name, num_samples=3000, num_chains=3000, warmup=100, steps=150, inverse_temperature=0.8,
            seed=seed,
        )  # fmt: skip
        return disagreement(draws.z, target)

    assert not confirmed(failures)


@pytest.mark.parametrize("target", [tilted_uniform(), tilted_sphere()], ids=lambda t: t.name)
def test_z_is_in_the_bases_own_coordinates(target) -> None:
    draws = gk.sample(target.model, num_samples=2000, num_chains=2000, warmup=60, steps=60)
    if target.name == "tilted-uniform":
        assert float(draws.z.abs().max()) <= 1
        mean = 1 / 2 - 1 / math.tanh(2)  # of the density ∝ exp(-2 u) on [-1, 1]
        assert float(draws.z.mean()) == pytest.approx(mean, abs=0.05)
    else:
        torch.testing.assert_close(draws.z.norm(dim=1), torch.full((2000,), math.sqrt(3), dtype=draws.z.dtype))
        mean = math.sqrt(3) * (1 / 2 - 1 / math.tanh(2))
        assert float(draws.z[:, 0].mean()) == pytest.approx(mean, abs=0.1)
    torch.testing.assert_close(draws.x, target.model.base(draws.z))


def test_shapes_order_and_decoding(model: gk.GEBM) -> None:
    draws = sample(model, "mala", num_samples=50, num_chains=20, warmup=10, steps=5, thin=4)
    assert draws.x.shape == (50, 2, 2)
    assert draws.z.shape == (50, 3)
    assert draws.chain.tolist() == [*range(20), *range(20), *range(10)]
    assert draws.diagnostics.steps == 9  # two spacings of four beyond the first kept state
    with torch.no_grad():
        torch.testing.assert_close(draws.x, model.eval().base(draws.z))
    longer = sample(model, "mala", num_samples=20, num_chains=20, warmup=10, steps=9, thin=4)
    assert torch.equal(longer.z, draws.z[:20])  # the last states come first


def test_no_more_chains_than_draws(model: gk.GEBM) -> None:
    draws = sample(model, num_samples=7, num_chains=500, warmup=5, steps=5)
    assert len(draws.x) == 7
    assert draws.diagnostics.num_chains == 7


def test_the_seed_alone_decides(model: gk.GEBM) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = sample(model, seed=3, **QUICK)
        state = torch.random.get_rng_state()
        second = sample(model, seed=3, **QUICK)
        assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.z, second.z)
    assert not torch.equal(first.z, sample(model, seed=4, **QUICK).z)


def test_fewer_chains_than_the_sampler_needs_are_refused(model: gk.GEBM) -> None:
    class Paired(Mala):
        min_chains = 8

    with pytest.raises(UsageError, match="needs at least 8 chains, num_chains is 7"):
        sample(model, Paired(), **QUICK | {"num_chains": 7})
    few = sample(model, Paired(), **QUICK | {"num_samples": 3})
    assert len(few.x) == 3
    assert few.diagnostics.num_chains == 8  # more chains run than draws are kept
    assert few.diagnostics.grad_evals >= 8 * QUICK["steps"]


# --- blocks --------------------------------------------------------------------------------------------------------------


def _in_waves(model: gk.GEBM, waves: list[list[int]]) -> Tensor:
    """x of chains in blocks of four, of which those of a wave take their steps in turn."""
    settings = SampleSettings(**QUICK | {"num_chains": 18, "block_size": 4})
    with prepared(model, Hmc(), settings, None, ignore, ALONE) as job:
        _, runs = warmed(job, InMemory(60, ALONE))
        assembly = Assembly(60)
        for wave in waves:
            turns = [runs[block].parts(lambda run: None) for block in wave]
            for parts in itertools.zip_longest(*turns):
                for part in filter(None, parts):
                    assembly.add(part)
    return assembly.draws(None, []).x


def test_draws_do_not_depend_on_how_many_blocks_run_at_once(model: gk.GEBM) -> None:
    expected = sample(model, "hmc", **QUICK | {"num_chains": 18, "block_size": 4})
    for waves in ([[0], [1], [2], [3], [4]], [[4, 1], [0, 3], [2]], [[3, 0, 4, 1, 2]]):
        assert torch.equal(_in_waves(model, waves), expected.x)


def test_blocks_are_other_random_numbers_of_the_same_law(model: gk.GEBM) -> None:
    whole, blocks = sample(model, **QUICK), sample(model, block_size=6, **QUICK)
    assert not torch.equal(whole.z, blocks.z)
    assert blocks.chain.tolist() == whole.chain.tolist()
    target = linear_gaussian(4, inverse_temperature=1.0)

    def failures(seed: int) -> dict[str, float]:
        settings = {"num_samples": 3000, "num_chains": 3000, "warmup": 60, "steps": 40, "block_size": 701}
        return disagreement(sample(target.model, "hmc", seed=seed, **settings).z, target)

    assert not confirmed(failures)


@pytest.mark.usefixtures("unchecked")
def test_every_evaluation_has_one_shape(model: gk.GEBM) -> None:
    rows = []
    model.energy.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    sample(model, "hmc", **QUICK | {"num_chains": 18, "block_size": 4})
    assert set(rows) == {4}  # five blocks of four, of which two chains are not kept


def test_the_tuning_of_a_run_is_that_of_all_its_blocks(model: gk.GEBM) -> None:
    """Blocks of one chain each tune as well as one block of all of them."""
    asked = QUICK | {"num_samples": 200, "num_chains": 200, "warmup": 100, "steps": 40}
    one, many = (sample(model, "mala", **asked, block_size=size).diagnostics for size in (200, 10))
    assert one.acceptance == pytest.approx(many.acceptance, abs=0.05)
    assert one.grad_evals == pytest.approx(many.grad_evals, rel=0.1)


def test_the_model_is_given_back_as_it_was(model: gk.GEBM) -> None:
    model.energy.eval()
    model.base.layers[0].weight.requires_grad_(False)
    training = [m.training for m in model.modules()]
    needs = [p.requires_grad for p in model.parameters()]
    state = copy.deepcopy(model.state_dict())
    sample(model, **QUICK)
    bad = gk.GEBM(model.base, FunctionEnergy(lambda x: x.flatten(1).sum(1, keepdim=True)))
    with pytest.raises(PluginError):
        sample(bad, **QUICK)
    assert training == [m.training for m in model.modules()]
    assert needs == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0, equal_nan=True)


def test_float64_models_give_float64_draws(model: gk.GEBM) -> None:
    draws = sample(model.double(), **QUICK)
    assert draws.x.dtype == draws.z.dtype == torch.float64


@pytest.mark.parametrize("name", ["ula", "mala", "hmc"])
@pytest.mark.usefixtures("unchecked")
def test_evaluations_are_counted(model: gk.GEBM, name: str) -> None:
    rows = []
    model.energy.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    found = sample(model, name, **QUICK).diagnostics
    assert found.grad_evals + found.forward_evals == sum(rows)
    assert found.forward_evals == found.num_chains  # one look at how far the tilt of prior draws spreads
    assert found.ess_per_grad > 0
    assert found.seconds > 0


def test_diagnostics_have_the_documented_keys(model: gk.GEBM) -> None:
    found = sample(model, "hmc", **QUICK).diagnostics.as_dict()
    documented = (
        "sampler num_samples num_chains warmup_steps steps acceptance divergences rhat_max ess_min ess_per_grad grad_evals "
        "forward_evals seconds inverse_temperature seed"
    )
    assert set(documented.split()) <= set(found)
    assert found["sampler"] == "hmc"
    assert (found["num_samples"], found["num_chains"], found["warmup_steps"], found["steps"]) == (60, 20, 20, 20)
    json.dumps(found, allow_nan=False)


def test_equipartition_shows_ulas_bias() -> None:
    """On N(0, I) with step h the mean of z dU/dz is 1 / (1 - h/2)."""
    from gebm_kit.samplers.ula import Ula

    model = gk.GEBM(IdentityBase(8), LinearEnergy(torch.zeros(8)))
    kept = {"num_samples": 4000, "num_chains": 1000, "warmup": 0, "steps": 80, "thin": 10}
    assert sample(model, Ula(0.5), **kept).diagnostics.equipartition == pytest.approx(4 / 3, abs=0.05)
    assert sample(model, Mala(0.5), **kept).diagnostics.equipartition == pytest.approx(1.0, abs=0.05)


# --- runs ----------------------------------------------------------------------------------------------------------------


def test_a_run_brings_its_own_settings(model: gk.GEBM, tmp_path) -> None:
    class Recipe:
        sampler = ComponentNode("mala", {"step_size": 0.05})
        sample = SampleSettings(num_samples=30, num_chains=10, warmup=0, steps=5, thin=2, seed=9)
        device = "cpu"

    run = Run(tmp_path)
    run.__dict__.update(model=model, recipe=Recipe, checkpoint=SimpleNamespace(state={"facts": {}}))
    found = sample(run).diagnostics
    assert (found.sampler, found.step_size, found.num_samples, found.seed) == ("mala", 0.05, 30, 9)
    assert sample(run, "mala", num_samples=5).diagnostics.step_size == 0.05
    assert sample(run, "hmc", seed=1).diagnostics.sampler == "hmc"
    assert sample(run, Mala(0.07)).diagnostics.step_size == 0.07


# --- bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"inverse_temperature": -1.0}, "inverse_temperature .* >= 0, got -1.0"),
        ({"inverse_temperature": math.nan}, "inverse_temperature .* got nan"),
        ({"num_chains": 0}, "num_chains must be a whole number >= 1, got 0"),
        ({"num_samples": 2.5}, "num_samples must be a whole number"),
        ({"steps": 0}, "steps must be"),
        ({"thin": 0}, "thin must be"),
        ({"warmup": -1}, "warmup must be"),
        ({"seed": -1}, "seed must be"),
        ({"block_size": 0}, "block_size must be"),
        ({"device": "quantum"}, "device 'quantum' can't be used"),
        ({"sampler": 3}, "sampler must be a name, a node {name: ...} or a Sampler, got int"),
    ],
)
def test_arguments_out_of_range(model: gk.GEBM, arguments: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        sample(model, **arguments)


def test_an_unknown_option_is_named(model: gk.GEBM) -> None:
    with pytest.raises(TypeError, match=r"sample\(\) got an unexpected keyword argument 'num_sample'"):
        sample(model, num_sample=3)


def test_every_setting_is_an_option() -> None:
    assert {field.name for field in fields(SampleSettings)} <= set(SampleOptions.__annotations__)


def test_an_option_that_is_none_is_one_not_given(model: gk.GEBM) -> None:
    unset = {name: None for name in SampleOptions.__annotations__ if name not in ("resume", "on_progress", *QUICK)}
    assert torch.equal(sample(model, "mala", **QUICK, **unset).x, sample(model, "mala", **QUICK).x)


def test_a_misspelt_sampler_gets_the_nearest_name(model: gk.GEBM) -> None:
    with pytest.raises(RecipeError, match="did you mean mala"):
        sample(model, "malla")


def test_not_a_model() -> None:
    with pytest.raises(UsageError, match="a run, its path or a GEBM is needed, got Linear"):
        sample(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="must state latent_dim"):
        sample(gk.GEBM(nn.Linear(2, 2), SmallEnergy()))


def test_a_nan_step_size_is_refused(model: gk.GEBM) -> None:
    sampler = Mala()
    sampler.step_size = math.nan
    with pytest.raises(UsageError, match="step_size must be a positive finite number, got nan"):
        sample(model, sampler)


def test_a_prior_that_the_sampler_does_not_serve(model: gk.GEBM) -> None:
    class NormalOnly(Mala):
        priors = frozenset({"normal"})

    with pytest.raises(UsageError, match="serves normal priors, the base's is 'uniform'"):
        sample(tilted_uniform().model, NormalOnly())


def test_an_energy_that_is_nan_everywhere() -> None:
    with pytest.raises(UsageError, match="not finite at any of 20 points"):
        sample(_with_energy(lambda x: x.sum(1) * math.nan), "hmc", **QUICK)


def test_an_energy_of_the_wrong_shape() -> None:
    with pytest.raises(PluginError, match=r"the energy .* shape \(4,\), but returned \(4, 1\)"):
        sample(_with_energy(lambda x: x.sum(1, keepdim=True)), **QUICK)


class WideBase(Base):
    """It states two columns and makes four."""

    latent_dim, data_shape = 2, (2,)

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z, z], 1)


def test_a_base_of_another_shape_than_it_states() -> None:
    said = r"the base 'WideBase' \(.*, line \d+\) returns shape \(4, 4\) .* must be \(4, 2\)"
    with pytest.raises(PluginError, match=said):
        sample(gk.GEBM(WideBase(), FunctionEnergy(lambda x: x.sum(1))), **QUICK)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_region_without_energy_is_left_out_and_reported(bad: float) -> None:
    with pytest.warns(GebmKitWarning) as seen:
        draws = sample(gk.GEBM(IdentityBase(2), WalledEnergy(bad)), "mala", **QUICK | {"num_chains": 60})
    text = " ".join(str(w.message) for w in seen)
    assert "starting points, which were drawn again" in text
    assert "steps diverged" in text
    assert float(draws.z[:, 0].max()) <= 1
    assert draws.diagnostics.divergences > 0


def test_a_critic_that_is_no_log_ratio_is_named(model: gk.GEBM) -> None:
    model.log_ratio = False
    with pytest.warns(GebmKitWarning, match="no estimate of the data's distribution") as seen:
        sample(model, **QUICK)
    assert seen[0].filename == __file__  # the warning points at the caller's line


def test_good_draws_come_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(linear_gaussian(2, stiffness=4.0).model, num_samples=500, num_chains=500, warmup=50, steps=100)


# --- files ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def draws(model: gk.GEBM) -> Draws:
    return draw(model, Mala(), SampleSettings(**QUICK))


def test_safetensors_round_trip(draws: Draws, tmp_path) -> None:
    path = draws.save(tmp_path / "new" / "draws.safetensors", value_range=(-1, 1))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        for name in ("x", "z", "chain"):
            assert torch.equal(file.get_tensor(name), getattr(draws, name))
    assert json.loads(metadata["diagnostics"]) == draws.diagnostics.as_dict()
    assert json.loads(metadata["value_range"]) == [-1.0, 1.0]


def test_npz_round_trip(draws: Draws, tmp_path) -> None:
    draws.save(tmp_path / "draws.npz")
    with np.load(tmp_path / "draws.npz", allow_pickle=False) as file:
        assert np.array_equal(file["x"], draws.x.numpy())
        assert np.array_equal(file["z"], draws.z.numpy())
        assert json.loads(str(file["diagnostics"])) == draws.diagnostics.as_dict()


def test_another_suffix_is_refused(draws: Draws, tmp_path) -> None:
    with pytest.raises(UsageError, match=r"\.safetensors or \.npz"):
        draws.save(tmp_path / "draws.pt")


def test_a_place_that_cant_be_written(draws: Draws, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can't be written"):
        draws.save(tmp_path / "file" / "draws.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(UsageError, match="is a directory"):
        draws.save(tmp_path / "folder.npz")


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_a_full_disk_leaves_no_half_file(draws: Draws, tmp_path, monkeypatch, suffix: str) -> None:
    path = tmp_path / f"draws.{suffix}"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailed, match="No space left"):
        draws.save(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [path.name]
