"""Negatives from the model itself: the fixed point, the exact gradient, a dip that base draws miss, resumption, ranks."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import gebm_kit as gk
from gebm_kit.config.build import build_dataset, resolved_yaml
from gebm_kit.config.load import load_recipe
from gebm_kit.core.errors import RecipeError
from gebm_kit.core.interfaces import Base, Batch, Energy, Loss, NegativeSettings
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import ignore
from gebm_kit.engine.process.distributed import ALONE
from gebm_kit.engine.run_directory.checkpoint import read_checkpoint, save_checkpoint
from gebm_kit.engine.training import contract
from gebm_kit.engine.training.checkpoint_state import counters_of, restore, share_state, tensors_of
from gebm_kit.engine.training.dry_run import plan
from gebm_kit.engine.training.model_negatives import CHAINS_PER_ROW, mixed
from gebm_kit.engine.training.negatives import LOSS_KEYS, NegativeChains
from gebm_kit.engine.training.starting_state import begin
from gebm_kit.engine.training.trainer import Trainer
from gebm_kit.losses.contrastive import ContrastiveDivergence
from gebm_kit.losses.kale import Kale
from gebm_kit.losses.kale_dv import KaleDV
from gebm_kit.losses.logistic import Logistic
from gebm_kit.losses.relativistic import Relativistic
from gebm_kit.losses.smile import Smile

pytestmark = [
    pytest.mark.usefixtures("quick_evaluation"),
    pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning"),
]

CPU = torch.device("cpu")

TOY = """\
schema: 1
data: {name: eight-gaussians, num_train: 100, num_valid: 20, num_test: 20}
base: {name: mlp, latent_dim: 2, hidden: [8]}
energy: {name: mlp, hidden: [8]}
loss: {name: relativistic}
train:
  steps: 8
  energy_steps: 2
  start_steps: 1
  batch_size: 16
  noise: 0.05
  penalty: [r1, r2]
  checkpoint_every: 4
  keep_checkpoints: 10
  final: {steps: 6, batch_size: 24}
sample: {num_samples: 20, num_chains: 20, warmup: 2, steps: 5}
eval: {num_samples: 20, num_sets: 2, metrics: [mmd]}
"""
AT_NEGATIVES = "[r1, {name: r2, at: negatives}]"
BOTH = ["train.negatives={share: 0.25, steps: 2, chains: 40}"]
PHASES = {
    "both": BOTH,
    "main alone": [*BOTH, "train.final.negatives.share=0"],
    "final alone": ["train.final.negatives={share: 0.5, steps: 2, chains: 30, restart: 0.2}"],
    "another loss": [*BOTH, "train.final.loss=kale", f"train.penalty={AT_NEGATIVES}"],
    "another energy": [*BOTH, "train.final.energy={name: mlp, hidden: [6], spectral_norm: true}"],
    "chains before": ["loss={name: pcd, buffer_size: 30}", "train.final.loss=kale", "train.final.negatives.share=1"],
    "jumps": ["train.negatives={share: 0.25, sampler: imh, steps: 2, chains: 40}"],
    "fixed steps": ["train.negatives={share: 0.25, sampler: ula, steps: 1, adapt: false, step_size: 0.01}"],
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(TOY)
    return path


def begun(path: Path, words: Sequence[str] = ()) -> Trainer:
    recipe = load_recipe(path, words)
    dataset = build_dataset(recipe)
    torch.manual_seed(0)
    return Trainer(recipe, dataset, CPU)


def everything(trainer: Trainer) -> dict[str, Tensor]:
    found = {f"{part}/{name}": t.clone() for part, named in tensors_of(trainer).items() for name, t in named.items()}
    return {name: tensor for name, tensor in found.items() if name != "model/log_partition"}  # nan: not estimated yet


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def trained(trainer: Trainer, cycles: int) -> Trainer:
    trainer.initialise()
    for _ in range(cycles):
        trainer.cycle()
    return trainer


# --- the objective ---------------------------------------------------------------------------------------------------
class Table(Energy):
    """One free energy for each of a few points."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.values[x[:, 0].long()]


class Identity(Base):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = size, (size,)

    def forward(self, z: Tensor) -> Tensor:
        return z


DATA, BASE = torch.tensor([1, 2, 4, 1, 8]), torch.tensor([4, 2, 2, 7, 1])
"""How often each of five points occurs among sixteen data and sixteen base draws."""


def points(counts: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(counts)), counts).double().unsqueeze(1)


def chains_with(share: float) -> NegativeChains:
    settings = NegativeSettings("latent", "mala", 0.1, 1, buffer_size=16)
    return NegativeChains(settings, 16, None, 0, CPU, torch.float64, LOSS_KEYS, share)


def gradient(loss: Loss, values: Tensor, negatives: Tensor, share: float) -> Tensor:
    """The gradient in the five energies at ``values``, over the whole laws: nothing is random."""
    model = GEBM(Identity(1), Table(values))
    loss = loss.double()
    base = points(BASE)
    loss.initialise(model.energy(base).detach())
    batch = Batch(points(DATA), base, base, points(negatives))
    terms = mixed(loss.energy_loss(model, batch), model, batch, chains_with(share))
    return torch.autograd.grad(terms.loss, model.energy.values)[0]


LOG_RATIO = (DATA.double() / BASE.double()).log()
LOSSES = [Kale(), KaleDV(), Smile(5.0), Logistic(), Relativistic()]


@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_the_fixed_point_stays_where_it_was(loss: Loss, share: float) -> None:
    """At E = -log dP/dB the model's law is P; an exact set of negatives is then that of the data."""
    assert torch.allclose(gradient(loss, 0.7 - LOG_RATIO, DATA, share), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    # broken twins: base draws for negatives; and another energy, with the negatives of its own law
    assert gradient(loss, 0.7 - LOG_RATIO, BASE, share).abs().max() > 0.02
    assert gradient(loss, torch.zeros(5).double(), BASE, share).abs().max() > 0.02


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_the_gradient_is_the_mixture_of_two(loss: Loss, share: float) -> None:
    torch.manual_seed(0)
    energy = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0)).double()
    model, loss = GEBM(Identity(2), energy), loss.double()
    x, z, negatives = (scale * torch.randn(6, 2).double() for scale in (1.0, 0.5, 2.0))
    batch = Batch(x, z, z, negatives)
    loss.initialise(energy(z).detach())
    own = loss.energy_loss(model, batch)
    terms = mixed(own, model, batch, chains_with(share))
    contrast = ContrastiveDivergence().double().energy_loss(model, batch)
    weights = list(energy.parameters())
    for got, left, right in zip(
        *(torch.autograd.grad(t.loss, weights, retain_graph=True) for t in (terms, own, contrast)), strict=True
    ):
        torch.testing.assert_close(got, (1 - share) * left + share * right, rtol=1e-12, atol=1e-14)
    assert {name: terms.metrics[name] for name in own.metrics} == own.metrics
    if share:
        torch.testing.assert_close(terms.metrics["energy_negatives"], energy(negatives).mean().detach())
        torch.testing.assert_close(terms.loss, (1 - share) * own.loss + share * contrast.loss)
    else:
        assert terms is own


class Dip(Energy):
    """The energy ``-depth exp(-(x - at)^2 / 2.9)``; base draws, N(0, 1), come near 6 once in a billion times."""

    def __init__(self, at: float = 6.0, depth: float = 25.0) -> None:
        super().__init__()
        self.at, self.depth = at, nn.Parameter(torch.tensor(depth))

    def forward(self, x: Tensor) -> Tensor:
        return -self.depth * torch.exp(-(x[:, 0] - self.at).square() / 2.9)


def mass_in_the_dip(energy: Energy, beyond: float = 3.5) -> float:
    grid = torch.linspace(-6, 12, 4001).unsqueeze(1)
    with torch.no_grad():
        law = torch.softmax(-energy(grid) - 0.5 * grid[:, 0].square(), 0)
    return float(law[grid[:, 0] > beyond].sum())


@pytest.mark.parametrize("share", [0.0, 0.25])
@pytest.mark.parametrize("loss", [KaleDV(), Relativistic()], ids=lambda loss: type(loss).__name__)
def test_a_dip_that_base_draws_never_meet_is_filled_by_negatives_alone(loss: Loss, share: float) -> None:
    """Data and base draws are both N(0, 1), so the energy should be flat; the dip holds nearly all mass of the model."""
    generator = torch.Generator().manual_seed(0)
    model = GEBM(Identity(1), Dip())
    settings = NegativeSettings("latent", "mala", 0.2, 5, buffer_size=128, restart=0.02, adapt=True)
    chains = NegativeChains(settings, 64, None, 0, CPU, torch.float32, LOSS_KEYS, share)
    chains.fill(model)
    assert mass_in_the_dip(model.energy) > 0.99
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    for update in range(400):
        x, z = (torch.randn(64, 1, generator=generator) for _ in range(2))
        negatives = chains.draw(model, x, z, generator, update) if share else None
        batch = Batch(x, z, z, negatives)
        terms = mixed(loss.energy_loss(model, batch), model, batch, chains)
        optimizer.zero_grad()
        terms.loss.backward()
        optimizer.step()
    mass = mass_in_the_dip(model.energy)
    assert mass < 0.05 if share else mass > 0.99


@pytest.mark.parametrize("sampler", ["imh", "isir", "elliptical"])
def test_kernels_without_a_step_size_fill_a_dip_that_base_draws_rarely_meet(sampler: str) -> None:
    generator = torch.Generator().manual_seed(0)
    model = GEBM(Identity(1), Dip(3.5, 12.0))
    settings = NegativeSettings("latent", sampler, 0.2, 2, buffer_size=128, restart=0.01, adapt=True)
    chains = NegativeChains(settings, 64, None, 0, CPU, torch.float32, LOSS_KEYS, 1.0)
    chains.fill(model)
    assert mass_in_the_dip(model.energy, 2.0) > 0.9
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    for update in range(300):
        x = torch.randn(64, 1, generator=generator)
        negatives = chains.draw(model, x, x, generator, update)
        contrast = model.energy(x).mean() - model.energy(negatives).mean()
        optimizer.zero_grad()
        contrast.backward()
        optimizer.step()
    assert mass_in_the_dip(model.energy, 2.0) < 0.2  # 0.02 under N(0, 1)


# --- the chains ------------------------------------------------------------------------------------------------------
class Narrow(Energy):
    """A potential of curvature 2,500 around 0: steps that suit the prior are far too long."""

    def forward(self, x: Tensor) -> Tensor:
        return 1250 * x.square().sum(1)


@pytest.mark.parametrize("sampler", ["mala", "hmc", "ula", "klmc"])
@pytest.mark.parametrize("energy", [Narrow(), Dip()], ids=["narrow", "flat"])
def test_the_step_follows_the_acceptance(sampler: str, energy: Energy) -> None:
    settings = NegativeSettings("latent", sampler, 0.2, 5, buffer_size=64, restart=0.0, adapt=True)
    chains = NegativeChains(settings, 64, None, 0, CPU, torch.float32)
    model = GEBM(Identity(1), energy)
    chains.fill(model)
    chains._buffer *= 0.02
    x, generator = torch.zeros(64, 1), torch.Generator().manual_seed(0)
    for update in range(300):
        chains.draw(model, x, x, generator, update)
    factor = float(chains.metrics["negatives_step"])
    tunable = chains._sampler.tunable
    if isinstance(energy, Narrow):
        assert factor < 0.1
        assert float(chains.metrics["negatives_acceptance"]) > 0.5
    else:
        assert 1.0 < factor <= 1.0001 * tunable.high / 0.2


def test_without_adaptation_the_step_stays(recipe: Path) -> None:
    trainer = trained(begun(recipe, ["train.negatives={share: 0.25, adapt: false}"]), 2)
    assert "negatives_step" not in trainer.negatives.metrics
    assert "log_scale" not in trainer.negatives.tensors()
    assert trainer.negatives._sampler.step_size == 0.05


def test_by_default_there_are_eight_chains_for_each_row_of_the_largest_batch(recipe: Path) -> None:
    trainer = trained(begun(recipe, ["train.negatives.share=0.25"]), 1)
    assert len(trainer.negatives.tensors()["buffer"]) == CHAINS_PER_ROW * 24


# --- training --------------------------------------------------------------------------------------------------------
def test_a_share_of_zero_changes_nothing(recipe: Path) -> None:
    plain = trained(begun(recipe), 14)
    named = trained(begun(recipe, ["train.negatives={share: 0, steps: 9}", "train.final.negatives={share: 0}"]), 14)
    assert differing(everything(plain), everything(named)) == []
    assert plain.negatives is named.negatives is None


def test_each_phase_has_the_chains_that_its_section_asks_for(recipe: Path) -> None:
    def shares(words: Sequence[str]) -> list[float | None]:
        trainer = begun(recipe, words)
        trainer.initialise()
        found = []
        for cycles in (8, 6):
            for _ in range(cycles):
                metrics = trainer.cycle()
            found.append(None if trainer.negatives is None else trainer.negatives.share)
            assert ("energy_negatives" in metrics) is bool(found[-1])
        return found

    assert shares(PHASES["both"]) == [0.25, 0.25]
    assert shares(PHASES["main alone"]) == [0.25, None]
    assert shares(PHASES["final alone"]) == [None, 0.5]
    assert shares(PHASES["another loss"]) == [0.25, 0.25]


@pytest.mark.parametrize("name", PHASES)
def test_resumed_equals_never_stopped(name: str, recipe: Path, tmp_path: Path) -> None:
    straight = begun(recipe, PHASES[name])
    straight.initialise()
    for step in range(1, 15):
        assert all(value.isfinite() for value in straight.cycle().values())
        if step in (3, 8, 11):  # in the main phase, at its end, and in the final one
            save_checkpoint(tmp_path, step, tensors_of(straight), counters_of(straight), keep=3)
    for step in (3, 8, 11):
        resumed = begun(recipe, PHASES[name])
        torch.manual_seed(1)
        restore(resumed, read_checkpoint(tmp_path / f"step-{step:07d}"))
        for _ in range(step, 14):
            resumed.cycle()
        assert differing(everything(straight), everything(resumed)) == []


@pytest.mark.parametrize("name", PHASES)
def test_the_check_before_the_first_step_leaves_no_trace(name: str, recipe: Path) -> None:
    found = []
    for check in (True, False):
        trainer = begun(recipe, PHASES[name])
        begin(trainer, None, ALONE, build_dataset(trainer.recipe), ignore, check=check)
        for _ in range(14):
            trainer.cycle()
        found.append(everything(trainer))
    assert differing(*found) == []


def test_the_check_runs_the_final_phases_penalties_on_its_own_chains(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    check = contract._check_energy_step

    def watched(trainer: Trainer, penalties) -> None:
        seen.append(any("negatives" in penalty.needs for penalty in penalties))
        check(trainer, penalties)

    monkeypatch.setattr(contract, "_check_energy_step", watched)
    trainer = begun(recipe, ["train.final.negatives.share=0.5", f"train.final.penalty={AT_NEGATIVES}"])
    begin(trainer, None, ALONE, build_dataset(trainer.recipe), ignore)
    assert seen == [False, True]


def test_penalties_and_instance_noise_see_the_negatives(recipe: Path) -> None:
    trainer = trained(begun(recipe, [*BOTH, f"train.penalty={AT_NEGATIVES}", "train.noise=0.3"]), 1)
    batch = trainer.energy_batch()
    noise = batch.negatives - trainer.chain_ends()
    assert 0.2 < float(noise.std()) < 0.4
    r2 = trainer.penalties[1]
    value = r2(trainer.model.energy, batch, trainer.generator)
    swapped = Batch(batch.x, batch.z, batch.negatives, batch.x_base)
    r2.at = "x_base"
    torch.testing.assert_close(r2(trainer.model.energy, swapped, trainer.generator), value)


def test_an_update_that_is_not_finite_is_skipped(recipe: Path) -> None:
    trainer = trained(begun(recipe, [*BOTH, "train.penalty=null"]), 2)
    before = {name: value.clone() for name, value in trainer.model.energy.state_dict().items()}
    trainer.negatives.draw = lambda model, x, *_: torch.full_like(x, math.nan)
    trainer.energy_step()
    assert differing(before, dict(trainer.model.energy.state_dict())) == []
    assert trainer.guard.read()[0].recent == 1


def test_a_run_from_the_first_step_to_draws(recipe: Path, tmp_path: Path) -> None:
    run = gk.train(str(recipe), overrides=[*PHASES["another loss"], "train.log_every=1"], out=tmp_path / "run")
    rows = [row for row in run.metrics() if "energy_loss" in row]
    assert len(rows) == 14
    for name in ("energy_negatives", "negatives_acceptance", "negatives_step", "negatives_replaced"):
        assert all(math.isfinite(row[name]) for row in rows), name
    assert gk.sample(run, num_samples=20).x.shape == (20, 2)
    again = tmp_path / "again.yaml"
    again.write_text(resolved_yaml(run.recipe))
    assert load_recipe(again).train == run.recipe.train
    assert load_recipe(again, ["train.final.negatives.share=0.1"]).train.final_negatives.share == 0.1


def test_a_dry_run_goes_through_both_phases(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: set[float] = set()
    draw = NegativeChains.draw

    def seen(self: NegativeChains, *given, **named) -> Tensor:
        shares.add(self.share)
        return draw(self, *given, **named)

    monkeypatch.setattr(NegativeChains, "draw", seen)
    words = ["train.negatives.share=0.25", "train.final.negatives.share=0.5"]
    assert json.dumps(plan(load_recipe(recipe, words)))
    assert shares == {0.25, 0.5}


def test_compiled_networks_train_the_same(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import functools

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    words = [*PHASES["both"], "train.final.batch_size=16", "precision=float64"]
    plain, faster = trained(begun(recipe, words), 10), trained(begun(recipe, [*words, "train.compile=true"]), 10)
    torch._dynamo.reset()
    assert faster.stepped is not faster.side
    for name, value in plain.model.state_dict().items():
        if name != "log_partition":
            torch.testing.assert_close(faster.model.state_dict()[name], value, rtol=1e-8, atol=1e-10)


# --- ranks -----------------------------------------------------------------------------------------------------------
STILL = "train.negatives={share: 0.5, step_size: 1.0e-30, adapt: false, chains: 48, restart: 1.0, steps: 1}"
"""Chains that stay where they start: the steps' own noise is all that the ranks do not share."""

ADAPTING = "train.negatives={share: 0.5, chains: 48, steps: 2}"


def work(rank: int, ranks: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    for name, words in (("still", STILL), ("adapting", ADAPTING)):
        trainer = begun(Path(folder) / "toy.yaml", [words, "precision=float64"])
        torch.save(everything(trained(trainer, 10)), f"{folder}/{name}-{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_train_what_one_process_trains(recipe: Path, tmp_path: Path) -> None:
    alone_at = tmp_path / "alone"
    alone_at.mkdir()
    (alone_at / "toy.yaml").write_text(TOY)
    torch.multiprocessing.spawn(work, args=(1, str(alone_at)), nprocs=1)
    torch.multiprocessing.spawn(work, args=(2, str(tmp_path)), nprocs=2)
    alone = torch.load(alone_at / "still-0.pt")
    both = [torch.load(tmp_path / f"still-{rank}.pt") for rank in range(2)]
    for name, value in alone.items():
        if "rng" not in name:
            torch.testing.assert_close(both[0][name], value, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
    assert [n for n in both[0] if not torch.equal(both[0][n], both[1][n]) and "rng/torch" not in n] == []
    first, second = (torch.load(tmp_path / f"adapting-{rank}.pt") for rank in range(2))
    assert [n for n in first if not torch.equal(first[n], second[n]) and "rng/torch" not in n] == []
    assert "negatives/log_scale" in first
    assert float(first["negatives/log_scale"]) != 0


def test_other_ranks_start_before_the_chains_do(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rank sends its state before training, when no phase has filled the chains yet."""
    first, second = begun(recipe, BOTH), begun(recipe, BOTH)
    sent: list[bytes] = []

    class Rank:
        size = 2

        def __init__(self, rank: int) -> None:
            self.rank = rank

        def broadcast(self, content: bytes) -> bytes:
            sent.extend([content] if self.rank == 0 else [])
            return sent[0]

    share_state(first, Rank(0))
    share_state(second, Rank(1))
    assert differing(everything(trained(first, 3)), everything(trained(second, 3))) == []


# --- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss=pcd", "train.negatives.share=0.2"], "train.negatives.share is 0.2, and the loss Persist.* allowed: 0"),
        (["loss=hinge", "train.negatives.share=0.2"], "not a log density ratio"),
        (["train.negatives.share=0.2", "train.final.loss=hinge"], "train.final.negatives.share is 0.2, and the energy"),
        (["train.negatives={share: 0.2, chains: 20}"], "train.negatives.chains is 20, a batch has 24 rows"),
        (["train.final.negatives={share: 0.2, chains: 20}"], "train.final.negatives.chains is 20, a batch has 24 rows"),
        (["train.negatives={share: 0.2, sampler: sir}"], "negatives.sampler 'sir' is not a kernel whose chains"),
        (["train.negatives={share: 0.2, sampler: mola}"], "sampler 'mola' is unknown; did you mean mala"),
        (["train.negatives.share=1.5"], r"train.negatives.share: 1.5 is out of range; allowed: in \[0, 1\]"),
        (["train.negatives.step_size=0"], "train.negatives.step_size: 0.0 is out of range"),
        (["train.negatives.stps=1"], "train.negatives.stps: unknown key"),
        (["train.final.negatives=3"], "train.final.negatives: 3 is not a mapping"),
        (["train.negatives.share=0.1", "train.part=base", "train.final.steps=0"], "train.negatives.share: has no meaning"),
        (["train.penalty={name: r2, at: negatives}"], "train.penalty: the penalty R2 acts on negatives"),
        (
            [*BOTH, "train.final.negatives.share=0", "train.penalty=null", f"train.final.penalty={AT_NEGATIVES}"],
            "train.final.penalty: the penalty R2 acts on negatives",
        ),
        (["train.penalty={name: r2, at: data}"], "train.penalty.*at: 'data' is not allowed"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused_before_the_first_step(words: list[str], message: str, recipe: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        begun(recipe, words)


def test_old_checkpoints_and_runs_without_the_keys_load(recipe: Path, tmp_path: Path) -> None:
    run = gk.train(str(recipe), out=tmp_path / "run")
    path = run.path / "resolved.yaml"
    text = path.read_text()
    start, end = text.index("  negatives:\n"), text.index("  compile:")
    path.write_text(text[:start].replace("    negatives: null\n", "") + text[end:])
    assert "negatives" not in path.read_text()
    assert gk.load_run(run.path).recipe.train == run.recipe.train
