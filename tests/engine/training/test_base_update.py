"""The base's update by likelihood, weighted or on chains: the gradient of KALE, its minimum the model, training with it."""

from __future__ import annotations

import math
import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn

import gebm_kit as gk
from gebm_kit.config.build import build_dataset
from gebm_kit.config.check import check
from gebm_kit.config.schema import Recipe
from gebm_kit.config.tree import parse
from gebm_kit.core.components import Component, Injected, Registered
from gebm_kit.core.errors import Interrupted, RecipeError, UsageError
from gebm_kit.core.estimators import effective_sample_size
from gebm_kit.core.interfaces import Base, Batch
from gebm_kit.core.model import GEBM
from gebm_kit.core.plugins import installed
from gebm_kit.core.progress import GebmKitWarning, Progress
from gebm_kit.engine.datasets.held_out import evenly_spaced_rows
from gebm_kit.engine.run_directory.checkpoint import read_checkpoint
from gebm_kit.engine.training.base_update import McmcTeaching, WeightedLikelihood, tempering
from gebm_kit.engine.training.ema import EMA
from gebm_kit.engine.training.trainer import Trainer
from gebm_kit.losses.contrastive import PersistentContrastiveDivergence
from gebm_kit.losses.critics import Hinge
from gebm_kit.losses.kale_dv import KaleDV
from gebm_kit.testing.host_sync import forbid_host_sync
from gebm_kit.testing.statistics import confirmed, holm, t_p_value
from gebm_kit.testing.targets import QuadraticEnergy

RECIPE = """\
schema: 1
data: {name: eight-gaussians, num_train: 400, num_valid: 60, num_test: 60}
base: {name: test-gaussian}
energy: {name: mlp, hidden: [16]}
loss: {name: kale-dv}
train:
  base_update: weighted-likelihood
  steps: 20
  energy_steps: 2
  start_steps: 0
  batch_size: 64
  final: {steps: 6}
  log_every: 1
  checkpoint_every: 10
  keep_checkpoints: 50
optim: {energy: {lr: 0.01}, base: {lr: 0.02, beta1: 0.9}}
ema: {decay: 0.9}
precision: float64
device: cpu
sample: {num_samples: 20, num_chains: 20, warmup: 2, steps: 4, thin: 4}
eval: {metrics: [mmd], num_samples: 20, num_sets: 2}
"""


TAUGHT = (
    "train.base_update=mcmc-teaching",
    "energy={name: codes, hidden: [16]}",
    "loss={name: pcd, steps: 2, buffer_size: 64}",
)
AT_DATA = (*TAUGHT, "loss={name: pcd, steps: 2, buffer_size: 64, restart: 0.3, restart_at: data}")
"""Words that make a recipe one of MCMC teaching."""


class Gaussian(Base):
    """``G(z) = m + e^s z`` with its inverse and its density."""

    def __init__(self, *, data_shape: Annotated[tuple[int, ...], Injected]) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = data_shape[0], data_shape
        self.mean, self.log_scale = nn.Parameter(torch.zeros(data_shape)), nn.Parameter(torch.zeros(data_shape))

    def forward(self, z: Tensor) -> Tensor:
        return self.mean + self.log_scale.exp() * z

    def encode(self, x: Tensor) -> Tensor:
        return (x - self.mean) * torch.exp(-self.log_scale)

    def log_prob(self, x: Tensor) -> Tensor:
        z = self.encode(x)
        return -(0.5 * z.square().sum(1) + self.log_scale.sum() + 0.5 * self.latent_dim * math.log(2 * math.pi))


def register(patch: pytest.MonkeyPatch) -> None:
    """Make the base known to recipes."""
    module = ModuleType("gebm_kit_test_weighted")
    module.Gaussian = Gaussian  # type: ignore[attr-defined]
    patch.setitem(sys.modules, module.__name__, module)
    record = Registered(Component("base", "test-gaussian", f"{module.__name__}:Gaussian", "From a test"), "a-test", "1")
    patch.setitem(installed().registry._records, ("base", "test-gaussian"), [record])


@pytest.fixture(autouse=True)
def bases(no_pictures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


def recipe(*words: str) -> Recipe:
    return check(parse(RECIPE, name="weighted", overrides=words), directory=Path())


def trainer_of(*words: str) -> Trainer:
    chosen = recipe(*words)
    torch.manual_seed(0)
    trainer = Trainer(chosen, build_dataset(chosen), torch.device("cpu"))
    trainer.initialise()
    return trainer


# --- the gradient ----------------------------------------------------------------------------------------------------

MEAN, SCALE, CURVATURE, CENTRE = 0.3, 1.4, 0.8, 1.1


def one_dimensional() -> GEBM:
    """Base N(m, s^2) and ``E(x) = k (x - c)^2 / 2``, up to a constant."""
    base = Gaussian(data_shape=(1,)).double()
    with torch.no_grad():
        base.mean.fill_(MEAN)
        base.log_scale.fill_(math.log(SCALE))
    slope = torch.tensor([-CURVATURE * CENTRE], dtype=torch.float64)
    return GEBM(base, QuadraticEnergy(torch.tensor([[CURVATURE]], dtype=torch.float64), slope))


def of_the_model() -> tuple[float, float]:
    """Mean and variance of q, which is Gaussian."""
    precision = 1 / SCALE**2 + CURVATURE
    return (MEAN / SCALE**2 + CURVATURE * CENTRE) / precision, 1 / precision


def kale_gradient() -> tuple[float, float]:
    """Differentiate ``-log E_B[exp(-E)] = log(1 + k s^2) / 2 + k (m - c)^2 / (2 (1 + k s^2))`` in m and in log s."""
    spread = 1 + CURVATURE * SCALE**2
    off = MEAN - CENTRE
    return CURVATURE * off / spread, SCALE * (CURVATURE * SCALE / spread - CURVATURE**2 * SCALE * off**2 / spread**2)


def weighted(model: GEBM, least_ess: float = 1e-3) -> WeightedLikelihood:
    return WeightedLikelihood(model, KaleDV(), EMA(model.base, 0.9), least_ess)


def taught(model: GEBM) -> McmcTeaching:
    return McmcTeaching(model, PersistentContrastiveDivergence(), EMA(model.base, 0.9))


def gradients(form: str, model: GEBM, seed: int, teacher: WeightedLikelihood | None = None) -> Tensor:
    """Return the gradients of 60 independent batches in m and log s; (60, 2)."""
    generator = torch.Generator().manual_seed(seed)
    teacher = teacher or weighted(model)
    exact = of_the_model()
    found = []
    for _ in range(60):
        z = model.base.sample_prior(20_000, generator, torch.float64)
        if form == "pathwise":
            loss = KaleDV().base_loss(model, Batch(None, z, model.base(z))).loss
        elif form == "weighted":
            loss = teacher.loss(model.base, z).loss
        elif form == "taught":  # by chains that have come to the model's law
            loss = taught(model).loss(model.base, exact[0] + math.sqrt(exact[1]) * z).loss
        else:  # the mistake: draws of the base as they are
            loss = -model.base.log_prob(teacher.reference(z)).mean()
        found.append(torch.cat(torch.autograd.grad(loss, [model.base.mean, model.base.log_scale])))
    return torch.stack(found)


def wrong(found: Tensor, expected: tuple[float, float]) -> dict[str, float]:
    names = zip(("mean", "log scale"), found.T, expected, strict=True)
    return holm({name: t_p_value(values, value) for name, values, value in names})


@pytest.mark.parametrize("form", ["pathwise", "weighted", "taught"])
def test_all_forms_have_the_gradient_of_kale(form: str) -> None:
    model = one_dimensional()
    assert not confirmed(lambda seed: wrong(gradients(form, model, seed), kale_gradient()))


def test_without_weights_it_is_another_one() -> None:
    model = one_dimensional()
    assert confirmed(lambda seed: wrong(gradients("unweighted", model, seed), kale_gradient()))


@pytest.mark.parametrize(("form", "right"), [("weighted", True), ("taught", True), ("unweighted", False)])
def test_the_minimum_is_the_model_of_the_averaged_base(form: str, right: bool) -> None:
    model = one_dimensional()
    teacher = weighted(model)
    mean, variance = of_the_model()
    with torch.no_grad():  # the base is there already, while the average is not
        model.base.mean.fill_(mean)
        model.base.log_scale.fill_(0.5 * math.log(variance))
    found = confirmed(lambda seed: wrong(gradients(form, model, seed, teacher), (0.0, 0.0)))
    assert (not found) == right


def test_no_gradient_reaches_energy_and_average() -> None:
    model = one_dimensional()
    teacher = weighted(model)
    teacher.loss(model.base, torch.randn(50, 1, dtype=torch.float64)).loss.backward()
    assert all(p.grad is None for p in [*teacher.reference.parameters(), *model.energy.parameters()])
    assert all(p.grad is not None for p in model.base.parameters())


def test_an_energy_that_says_nothing_moves_nothing() -> None:
    model = one_dimensional()
    model.energy = QuadraticEnergy(torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    teacher = weighted(model)
    z = torch.randn(50, 1, dtype=torch.float64)
    found = torch.autograd.grad(teacher.loss(model.base, z).loss, [model.base.mean, model.base.log_scale])
    torch.testing.assert_close(torch.cat(found), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-14)
    plain = torch.autograd.grad(
        -model.base.log_prob(teacher.reference(z)).mean(), [model.base.mean, model.base.log_scale]
    )
    assert torch.cat(plain).abs().min() > 1e-3  # the noise that the control variate takes away


# --- the weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("least", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("scale", [0.01, 3.0, 300.0])
def test_the_power_leaves_as_many_effective_draws_as_asked_for(least: float, scale: float) -> None:
    log_weights = scale * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    power = tempering(log_weights, least)
    share = effective_sample_size(power * log_weights.double()).item() / 1000
    assert 0 < power <= 1
    assert share == pytest.approx(least, abs=1e-3) if power < 1 else share >= least


def test_equal_weights_are_left_alone() -> None:
    assert tempering(torch.full((7,), -400.0), 0.99) == 1


def test_it_waits_for_no_device() -> None:
    model = one_dimensional()
    teacher = weighted(model, 0.5)
    z = torch.randn(50, 1, dtype=torch.float64)
    with forbid_host_sync():
        teacher.loss(model.base, z).loss.backward()


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [(), ("energy={name: codes, hidden: [16]}",), TAUGHT], ids=["weighted", "weighted codes", "taught"]
)
def test_the_base_comes_to_the_likelihood_of_its_best_without_seeing_data(words: tuple[str, ...]) -> None:
    trainer = trainer_of(*words, "train.steps=401", "optim.energy.schedule=linear", "optim.base.schedule=linear")
    assert trainer.likelihood is not None
    assert trainer.ema is not None
    trainer.model.base.mean.data.fill_(0.7)
    trainer.ema = EMA(trainer.model.base, 0.9)
    trainer.follow_average()
    rows = evenly_spaced_rows(build_dataset(trainer.recipe).split("train"), "training part").double()
    best = (rows.var(0, correction=0).log().sum() / 2 + math.log(2 * math.pi) + 1).item()
    before = -trainer.likelihood.reference.log_prob(rows).mean().item() - best  # type: ignore[operator, union-attr]
    for _ in range(400):
        metrics = trainer.cycle()
    assert 0 < metrics.get("weight_power", 1.0) <= 1
    after = -trainer.likelihood.reference.log_prob(rows).mean().item() - best  # type: ignore[operator, union-attr]
    assert before > 0.5  # or this test shows nothing
    assert after < 0.1 * before


def test_the_average_draws_what_the_energy_and_the_base_learn_from() -> None:
    trainer = trainer_of()
    assert trainer.likelihood is not None
    assert trainer.ema is not None
    for _ in range(5):
        trainer.cycle()
    averages = trainer.ema.state_dict()
    for name, value in trainer.likelihood.reference.state_dict().items():
        assert torch.equal(value, averages[name])
        assert not torch.equal(value, trainer.model.base.state_dict()[name])
    batch = trainer.energy_batch()
    torch.testing.assert_close(batch.x_base, trainer.likelihood.reference(batch.z))


def test_of_an_energy_on_codes_training_sees_codes_of_the_average() -> None:
    trainer = trainer_of(*TAUGHT)
    assert trainer.likelihood is not None
    for _ in range(5):
        trainer.cycle()
    reference = trainer.likelihood.reference
    batch = trainer.energy_batch()
    assert batch.x_base is batch.z or torch.equal(batch.x_base, batch.z)
    rows = evenly_spaced_rows(build_dataset(trainer.recipe).split("train"), "training part").double()
    codes = reference.encode(rows)  # type: ignore[operator]
    assert all((codes - row).abs().sum(1).min() < 1e-9 for row in batch.x)
    torch.testing.assert_close(trainer.model.energy(rows), trainer.side.energy(codes))
    own = trainer.model.base.encode(rows)  # type: ignore[operator]
    assert (own - codes).abs().max() > 1e-3  # the average is behind
    with trainer.averaged():
        torch.testing.assert_close(trainer.model(codes), trainer.model.energy(trainer.model.base(codes)))


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_base_learns_from_the_chains_of_the_last_energy_update(
    noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(*TAUGHT, f"train.noise={noise}")
    seen: list[Tensor] = []
    log_prob = Gaussian.log_prob
    monkeypatch.setattr(Gaussian, "log_prob", lambda self, x: (seen.append(x), log_prob(self, x))[1])
    trainer.cycle()
    assert trainer.negatives is not None
    (x,) = seen
    start = Gaussian(data_shape=(2,)).double()  # the average, before this update moved it
    ends = start(trainer.negatives.tensors()["buffer"])  # all of which walk; without the energy's instance noise
    torch.testing.assert_close(x[x[:, 0].argsort()], ends[ends[:, 0].argsort()])


def test_chains_that_start_at_data_do_so_at_the_averages_codes_without_noise() -> None:
    still = "loss={name: pcd, steps: 1, step_size: 1.0e-12, buffer_size: 64, restart: 1.0, restart_at: data}"
    trainer = trainer_of(*TAUGHT, still, "train.noise=0.5")
    for _ in range(3):
        trainer.cycle()
    assert trainer.likelihood is not None
    rows = evenly_spaced_rows(build_dataset(trainer.recipe).split("train"), "training part").double()
    codes = trainer.likelihood.reference.encode(rows)  # type: ignore[operator]
    batch = trainer.energy_batch()
    ends, negatives = trainer.chain_ends(), batch.negatives
    assert ends is not None
    assert negatives is not None
    assert all((codes - end).abs().sum(1).min() < 1e-4 for end in ends)
    assert (negatives - ends).std() > 0.3  # the energy's instance noise


@pytest.mark.parametrize("words", [(), TAUGHT, AT_DATA], ids=["weighted", "taught", "at-data"])
@pytest.mark.parametrize("at", [5, 10, 13, 22])
def test_resumed_it_ends_at_the_same_weights(at: int, words: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "weighted.yaml"
    path.write_text(RECIPE)
    straight = gk.train(path, list(words), out=tmp_path / "straight")

    def stop(progress: Progress) -> None:
        if progress.stage == "train" and progress.step == at:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        gk.train(path, list(words), out=tmp_path / "run", on_progress=stop)
    run = gk.train(path, list(words), out=tmp_path / "run", resume=True)
    for part in ("model", "ema", "optim"):
        one, other = (read_checkpoint(r.checkpoints / "step-0000026").tensors[part] for r in (straight, run))
        assert all(torch.equal(value, other[name]) for name, value in one.items()), part


def test_from_another_run_the_average_begins_at_its_base(tmp_path: Path) -> None:
    path = tmp_path / "weighted.yaml"
    path.write_text(RECIPE)
    first = gk.train(path, out=tmp_path / "first")
    second = gk.train(
        path, [f"train.init_from={first.path}", "optim.base.lr=0", "train.steps=3"], out=tmp_path / "second"
    )
    for name, value in first.model.base.state_dict().items():
        torch.testing.assert_close(second.model.base.state_dict()[name], value)


def test_it_does_not_warn_of_a_base_that_the_energy_has_not_met(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "weighted.yaml"
    path.write_text(RECIPE)
    gk.train(path, ["train.steps=2", "train.final.steps=0"], out=tmp_path / "run")
    assert not [w for w in recwarn if "running base" in str(w.message)]
    with pytest.warns(GebmKitWarning, match="running base"):
        gk.train(path, ["train.steps=2", "train.final.steps=0", "train.base_update=pathwise"], out=tmp_path / "plain")


# --- ranks -----------------------------------------------------------------------------------------------------------


def state_after(cycles: int, *words: str) -> dict[str, Tensor]:
    trainer = trainer_of(*words)
    for _ in range(cycles):
        metrics = trainer.cycle()
    state = {name: value for name, value in trainer.model.state_dict().items() if name != "log_partition"}
    return {**state, **{name: metrics[name] for name in ("base_loss", "weight_power") if name in metrics}}


def work(rank: int, ranks: int, folder: str, words: tuple[str, ...] = ()) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    register(pytest.MonkeyPatch())
    torch.save(state_after(20, *words), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_train_what_one_process_trains(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, args=(2, str(tmp_path)), nprocs=2)
    alone = state_after(20)
    for rank in range(2):
        seen = torch.load(tmp_path / f"{rank}.pt")
        assert seen.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(seen[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("words", [TAUGHT, AT_DATA], ids=["taught", "at-data"])
def test_taught_all_ranks_have_the_same_weights(words: tuple[str, ...], tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, args=(2, str(tmp_path), words), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, value in first.items():
        if name != "base_loss":  # of each rank's own chains
            torch.testing.assert_close(second[name], value, rtol=1e-10, atol=1e-12)
    before = trainer_of(*words).model.state_dict()
    assert not torch.equal(first["base.mean"], before["base.mean"])


# --- what has no meaning ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.part=energy"], "both parts must learn"),
        (["train.part=base"], "both parts must learn"),
        (["ema.decay=0"], "ema.decay"),
        (["train.base_update_ess=1"], "base_update_ess"),
        (["train.base_update=likelihood"], "base_update"),
    ],
)
def test_what_has_no_meaning_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["base={name: mlp}"], "a density"),
        (["loss=hinge"], "no log density ratio"),
        (["train.base_update=mcmc-teaching"], "chains of the loss, and KaleDV has none"),
        (["train.base_update=mcmc-teaching", "loss={name: pcd, space: data}"], "no log density ratio"),
        (["base={name: mlp}", "loss={name: pcd, restart_at: data}"], "no inverse"),
        (["train.base_update=pathwise", "energy=codes"], "no slope for the base"),
        (["train.base_update=pathwise", "energy=codes", "loss={name: pcd, space: data}"], "walk in data space"),
    ],
)
def test_what_it_can_not_train_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        trainer_of(*words)


def test_a_critic_is_refused() -> None:
    model = one_dimensional()
    with pytest.raises(UsageError, match="Hinge"):
        WeightedLikelihood(model, Hinge(), EMA(model.base, 0.9), 0.5)
