"""The final phase's own loss and energy: what they start from, their resumption, and a run that uses them afterwards."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import gebm_kit as gk
from gebm_kit.config.build import build_dataset, resolved_yaml
from gebm_kit.config.load import load_recipe
from gebm_kit.core import estimators
from gebm_kit.core.errors import CheckpointError, Interrupted, PluginError, RecipeError, UsageError
from gebm_kit.core.progress import Progress
from gebm_kit.engine.likelihood.log_partition import prior_energies
from gebm_kit.engine.run_directory.checkpoint import list_checkpoints, read_checkpoint, save_checkpoint
from gebm_kit.engine.run_directory.run import load_run
from gebm_kit.engine.train import train
from gebm_kit.engine.training import loop, phases
from gebm_kit.engine.training.checkpoint_state import counters_of, restore, tensors_of
from gebm_kit.engine.training.dry_run import plan
from gebm_kit.engine.training.trainer import Trainer
from gebm_kit.losses.flo import Flo
from gebm_kit.losses.kale import Kale
from gebm_kit.losses.kale_dv import KaleDV

pytestmark = [
    pytest.mark.usefixtures("quick_evaluation"),
    pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning"),
]

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
  penalty: [r1, r2]
  checkpoint_every: 4
  keep_checkpoints: 10
  final: {steps: 6, batch_size: 24}
sample: {num_samples: 20, num_chains: 20, warmup: 2, steps: 5}
eval: {num_samples: 20, num_sets: 2, metrics: [mmd]}
"""
FINAL = {
    "loss": ["train.final.loss={name: kale-dv, moving_average: 0.9}"],
    "loss with a network": ["train.final.loss={name: flo, hidden: [4]}"],
    "loss with chains": ["train.final.loss={name: pcd, steps: 1, buffer_size: 30}"],
    "chains before": ["loss={name: pcd, steps: 1, buffer_size: 30}", "train.final.loss=kale"],
    "noise": ["train.noise=0.1", "train.final.noise=0.5"],
    "energy": ["train.final.energy={name: mlp, hidden: [6, 6], spectral_norm: true}"],
    "both": ["train.final.loss={name: kale, update: adam}", "train.final.energy={name: mlp, hidden: [6, 6]}"],
    "without averages": ["train.final.loss=kale-dv", "train.final.ema=0", "ema.decay=0"],
}
SIX = "train.final.energy={name: mlp, hidden: [6, 6]}"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(TOY)
    return path


def begun(path: Path, words: Sequence[str] = ()) -> Trainer:
    recipe = load_recipe(path, words)
    torch.manual_seed(0)
    return Trainer(recipe, build_dataset(recipe), torch.device("cpu"))


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    found = {f"{part}/{name}": t.clone() for part, named in tensors_of(trainer).items() for name, t in named.items()}
    return {name: tensor for name, tensor in found.items() if name != "model/log_partition"}  # nan: not estimated yet


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


# --- the phase -------------------------------------------------------------------------------------------------------
def test_the_same_loss_named_again_trains_the_same(recipe: Path) -> None:
    plain, named = begun(recipe, ["loss=kale"]), begun(recipe, ["loss=kale", "train.final.loss=kale"])
    for trainer in (plain, named):
        trainer.initialise()
        for _ in range(14):
            trainer.cycle()
    assert differing(everything(plain), everything(named)) == []


def test_the_phase_begins_at_the_energy_that_was_left_with_a_fresh_a(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gebm_kit.engine.training.phases.INITIAL_DRAWS", 100_000)
    monkeypatch.setattr(phases, "LEAST_DRAWS", 100_000)
    trainer = begun(recipe, [*FINAL["loss"], "optim.energy.lr=0.05"])
    trainer.initialise()
    for _ in range(8):
        trainer.cycle()
    left = {name: value.clone() for name, value in trainer.model.energy.state_dict().items()}
    main = trainer.loss

    class BeforeTheFirstUpdate(Exception):
        pass

    def stop() -> None:
        raise BeforeTheFirstUpdate

    monkeypatch.setattr(trainer, "energy_step", stop)
    with pytest.raises(BeforeTheFirstUpdate):
        trainer.cycle()
    assert isinstance(trainer.loss, KaleDV)
    assert trainer.loss is not main
    assert all(torch.equal(value, left[name]) for name, value in trainer.model.energy.state_dict().items())
    with torch.no_grad():
        energies = trainer.model(trainer.model.base.sample_prior(100_000, torch.Generator().manual_seed(5)))
    assert trainer.loss.log_partition.abs() > 0.05
    assert trainer.loss.log_partition.item() == pytest.approx(estimators.log_partition(energies).item(), abs=0.01)


def test_a_new_energy_begins_at_its_own_fresh_weights_and_alone_learns(recipe: Path) -> None:
    trainer = begun(recipe, [SIX])
    assert trainer.final is not None
    fresh = {name: value.clone() for name, value in trainer.final.energy.state_dict().items()}
    old = trainer.model.energy
    trainer.initialise()
    for _ in range(8):
        trainer.cycle()
    assert differing(fresh, dict(trainer.final.energy.state_dict())) == []  # the main phase does not touch it
    left = {name: value.clone() for name, value in old.state_dict().items()}
    base = {name: value.clone() for name, value in trainer.averages()[0][1].state_dict().items()}
    for _ in range(6):
        trainer.cycle()
    assert trainer.model.energy is trainer.side.energy is trainer.final.energy
    assert differing(fresh, dict(trainer.model.energy.state_dict())) != []
    assert differing(left, dict(old.state_dict())) == []
    assert all(torch.equal(value, base[name]) for name, value in trainer.model.base.state_dict().items())
    assert len(trainer.energy_optimizer.param_groups[0]["params"]) == len(list(trainer.model.energy.parameters()))


def test_the_main_phase_is_the_same_whatever_comes_after(recipe: Path) -> None:
    plain, other = begun(recipe), begun(recipe, FINAL["both"])
    for trainer in (plain, other):
        trainer.initialise()
        for _ in range(8):
            trainer.cycle()
    names = [name for name in everything(plain) if name != "rng/torch"]  # the new parts' weights were drawn from it
    assert [n for n in names if not torch.equal(everything(plain)[n], everything(other)[n])] == []


@pytest.mark.parametrize("name", FINAL)
def test_resumed_equals_never_stopped(name: str, recipe: Path, tmp_path: Path) -> None:
    straight = begun(recipe, FINAL[name])
    straight.initialise()
    for step in range(1, 15):
        assert all(value.isfinite() for value in straight.cycle().values())
        if step in (3, 8, 11):  # in the main phase, at its end, and in the final one
            save_checkpoint(tmp_path, step, tensors_of(straight), counters_of(straight), keep=3)
    for step in (3, 8, 11):
        resumed = begun(recipe, FINAL[name])
        torch.manual_seed(1)
        restore(resumed, read_checkpoint(tmp_path / f"step-{step:07d}"))
        for _ in range(step, 14):
            resumed.cycle()
        assert differing(everything(straight), everything(resumed)) == []


def test_new_parts_come_from_the_checkpoint_and_not_from_the_seed(recipe: Path, tmp_path: Path) -> None:
    """What was fitted to the data, or drawn by another version of torch, is not drawn again."""
    first = begun(recipe, FINAL["both"])
    with torch.no_grad():
        for parameter in first.final.energy.parameters():
            parameter.add_(1.0)
    first.cycle()
    path = save_checkpoint(tmp_path, 1, tensors_of(first), counters_of(first), keep=1)
    second = begun(recipe, FINAL["both"])
    restore(second, read_checkpoint(path))
    assert differing(first.final.tensors(), second.final.tensors()) == []


def test_non_finite_updates_of_the_new_parts_are_undone(recipe: Path) -> None:
    """The guard looks after the buffers of the loss and the energy that came."""
    trainer = begun(
        recipe, ["train.final.loss=kale", "train.final.energy={name: mlp, hidden: [6], spectral_norm: true}"]
    )
    trainer.initialise()
    for _ in range(9):
        trainer.cycle()

    def watched() -> dict[str, torch.Tensor]:
        return {**trainer.model.energy.state_dict(), **trainer.loss.state_dict()}

    before = {name: value.clone() for name, value in watched().items()}
    assert any("_u" in name for name in before)
    trainer.data = lambda: torch.full((24, 2), torch.nan)
    trainer.cycle()
    assert differing(before, dict(watched())) == []


# --- a run -----------------------------------------------------------------------------------------------------------
def test_the_final_phase_has_its_own_instance_noise(recipe: Path) -> None:
    def spread(trainer: Trainer) -> float:
        batches = [trainer.energy_batch() for _ in range(20)]
        return float(torch.cat([batch.x_base - trainer.model.base(batch.z) for batch in batches]).std())

    words = ["train.noise=0.5", "train.final.noise=2", "train.steps=1"]
    trainer = begun(recipe, words)
    with torch.no_grad():
        assert spread(trainer) == pytest.approx(0.5, rel=0.2)
        for word in ("train.final.noise=2", "train.final.noise=null"):
            trainer = begun(recipe, [*words, word])
            with torch.enable_grad():
                for _ in range(2):
                    trainer.cycle()
            assert spread(trainer) == pytest.approx(2.0 if word.endswith("2") else 0.5, rel=0.2)


def test_a_finished_run_uses_the_final_energy_and_its_a(recipe: Path, tmp_path: Path) -> None:
    run = train(recipe, FINAL["both"], out=tmp_path / "run")
    model = run.model
    assert [layer.out_features for layer in model.energy.modules() if isinstance(layer, torch.nn.Linear)][:2] == [6, 6]
    for name, value in model.energy.state_dict().items():
        assert torch.equal(value, run.checkpoint.tensors["ema"][f"energy.{name}"])
    assert run.checkpoint.state["facts"]["final"] is True
    drawn = min(loop.LOG_PARTITION_DRAWS, max(run.checkpoint.state["energy_updates"] * 16 // 3, phases.LEAST_DRAWS))
    energies = prior_energies(model, drawn, torch.Generator().manual_seed(run.step))
    assert torch.equal(model.log_partition, estimators.log_partition(energies).float())
    draws = gk.sample(run, num_samples=20)
    assert draws.x.shape == (20, 2)
    assert gk.evaluate(run).metrics["gebm"]
    assert len(gk.score(run, torch.zeros(3, 2)).energy) == 3


def test_a_checkpoint_of_the_main_phase_has_the_main_phases_energy(recipe: Path, tmp_path: Path) -> None:
    run = train(recipe, FINAL["both"], out=tmp_path / "run")
    for step in (4, 8):
        early = load_run(run.path, f"step-{step}")
        assert early.checkpoint.state["facts"]["final"] is False
        (layer, *_) = [part for part in early.model.energy.modules() if isinstance(part, torch.nn.Linear)]
        assert layer.out_features == 8
        assert early.model.log_partition.isfinite()
    assert "final" in load_run(run.path, "step-8").checkpoint.tensors
    assert "final" not in run.checkpoint.tensors


@pytest.mark.parametrize(("main", "last"), [("hinge", "kale-dv"), ("kale", "hinge")])
def test_whether_the_energy_is_a_log_ratio_is_said_by_the_loss_of_its_phase(
    main: str, last: str, recipe: Path, tmp_path: Path
) -> None:
    run = train(recipe, [f"loss={main}", f"train.final.loss={last}"], out=tmp_path / "run")
    assert run.model.log_ratio is (last != "hinge")
    assert load_run(run.path, "step-8").model.log_ratio is (main != "hinge")


class StopAt:
    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, progress: Progress) -> None:
        if progress.stage == "train" and progress.step == self.step:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("stop", [5, 8, 11])
def test_a_stopped_run_is_resumed_to_the_bit(stop: int, recipe: Path, tmp_path: Path) -> None:
    words = [*FINAL["both"], "train.log_every=1"]
    straight = train(recipe, words, out=tmp_path / "straight")
    with pytest.raises(Interrupted):
        train(recipe, words, out=tmp_path / "run", on_progress=StopAt(stop))
    resumed = train(recipe, words, out=tmp_path / "run", resume=True)
    for part in ("model", "loss", "optim", "ema", "rng"):
        assert differing(straight.checkpoint.tensors[part], resumed.checkpoint.tensors[part]) == [], part


def test_a_fitted_energy_of_the_final_phase_is_fitted_before_the_first_step(tmp_path: Path) -> None:
    words = [
        "data={name: digits}", "base={name: mlp, latent_dim: 4, hidden: [8]}", "train.steps=2", "train.final.steps=2",
        "train.final.energy={name: projected, width: 4, dim: 4, hidden: [4], steps: 3}", "train.checkpoint_every=1",
        "train.penalty=null", "train.start_steps=0", "train.noise=0",
    ]  # fmt: skip
    (tmp_path / "toy.yaml").write_text(TOY)
    stages: list[str] = []
    run = train(tmp_path / "toy.yaml", words, out=tmp_path / "run", on_progress=lambda p: stages.append(p.stage))
    assert stages.index("fit") < stages.index("train")
    tensors = load_run(run.path, "step-1").checkpoint.tensors["final"]
    assert bool(tensors["energy.fitted"])
    fitted = {name.removeprefix("energy."): value for name, value in tensors.items() if ".trunk." in name}
    assert fitted
    assert all(torch.equal(value, run.checkpoint.tensors["model"][f"energy.{n}"]) for n, value in fitted.items())


@pytest.mark.parametrize("stop", [5, 11])
def test_a_run_of_before_loads_and_resumes(stop: int, recipe: Path, tmp_path: Path) -> None:
    """Runs from before these keys have neither them in their recipe nor the fact in their checkpoints."""
    words = ["train.log_every=1"]
    straight = train(recipe, words, out=tmp_path / "straight")
    with pytest.raises(Interrupted):
        train(recipe, words, out=tmp_path / "run", on_progress=StopAt(stop))
    run = load_run(tmp_path / "run")
    path = run.path / "resolved.yaml"
    kept = [line for line in path.read_text().splitlines() if line not in ("    loss: null", "    energy: null")]
    assert len(kept) == len(path.read_text().splitlines()) - 2
    path.write_text("\n".join(kept) + "\n")
    for made in [read_checkpoint(folder) for folder in list_checkpoints(run.checkpoints)]:
        facts = {name: value for name, value in made.state["facts"].items() if name != "final"}
        save_checkpoint(run.checkpoints, made.step, made.tensors, {**made.state, "facts": facts}, keep=10)
    assert load_run(run.path).model.log_partition.isfinite()
    assert load_run(run.path).step == stop
    resumed = train(recipe, words, out=run.path, resume=True)
    for part in ("model", "loss", "optim", "ema", "rng"):
        assert differing(straight.checkpoint.tensors[part], resumed.checkpoint.tensors[part]) == [], part


# --- recipes ---------------------------------------------------------------------------------------------------------
def test_short_names_and_parameters(recipe: Path) -> None:
    found = load_recipe(recipe, ["train.final.loss=kale-dv", "train.final.energy=mlp"])
    assert found.final_loss is not None
    assert found.final_loss.as_dict() == {"name": "kale-dv", "moving_average": 0.0}
    assert found.final_energy is not None
    assert found.final_energy.parameters["hidden"]
    recipe.with_name("again.yaml").write_text(resolved_yaml(found))
    assert load_recipe(recipe.with_name("again.yaml")).train == found.train
    later = load_recipe(recipe, ["train.final.loss=kale-dv", "train.final.loss.moving_average=0.5"])
    assert later.final_loss is not None
    assert later.final_loss.parameters["moving_average"] == 0.5


def test_without_a_final_phase_its_parts_are_not_built(recipe: Path) -> None:
    words = [*FINAL["both"], "train.final.steps=0"]
    assert load_recipe(recipe, words).final_loss is None
    assert begun(recipe, words).final is None


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("train.final.loss=kale-vd", "train.final.loss: loss 'kale-vd' is unknown; did you mean kale-dv"),
        ("train.final.loss={name: kale, rate: 2}", "train.final.loss.rate: 2.0 is out of range"),
        ("train.final.energy={name: mlp, hiden: [3]}", "train.final.energy.hiden: energy 'mlp' has no such parameter"),
        ("train.final.energy=[mlp]", "train.final.energy: needs a component: {name: NAME}; names: "),
        ("train.final.loss=3", "train.final.loss: needs a component: {name: NAME}; names: "),
        ("train.final.loss=ml", "train.final.loss: 'ml' has no loss for the energy"),
    ],
)
def test_problems_of_a_recipe(word: str, expected: str, recipe: Path) -> None:
    with pytest.raises((RecipeError, PluginError)) as caught:
        load_recipe(recipe, [word])
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("train.final.energy=codes", "the codes energy needs a base with an inverse"),
        ("train.final.loss={name: pcd, restart_at: data}", "latent chains start at the codes of data"),
        ("train.final.loss={name: pcd, buffer_size: 20}", "loss.buffer_size is 20, a batch has 24 rows"),
        ("train.final.loss={name: pcd, sampler: sir}", "'sir' is not a kernel whose chains move alone"),
    ],
)
def test_parts_that_do_not_fit_are_found_before_the_first_step(word: str, expected: str, recipe: Path) -> None:
    with pytest.raises((UsageError, RecipeError), match=expected):
        begun(recipe, [word])


def test_another_final_loss_is_another_recipe(recipe: Path, tmp_path: Path) -> None:
    train(recipe, FINAL["loss"], out=tmp_path / "run")
    with pytest.raises(UsageError, match=r"train.final.loss.name: 'kale-dv' in the run, 'kale' now"):
        train(recipe, ["train.final.loss=kale"], out=tmp_path / "run", resume=True)


def test_a_checkpoint_without_the_parts_does_not_fit(recipe: Path, tmp_path: Path) -> None:
    plain = begun(recipe)
    plain.cycle()
    path = save_checkpoint(tmp_path, 1, tensors_of(plain), counters_of(plain), keep=1)
    with pytest.raises(CheckpointError, match="does not fit the recipe"):
        restore(begun(recipe, FINAL["both"]), read_checkpoint(path))


def test_a_dry_run_goes_through_the_final_phase(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*FINAL["both"], "train.final.loss={name: flo, hidden: [3]}"]
    phases: list[tuple[type, int]] = []
    step = Trainer.energy_step

    def seen(self: Trainer):
        phases.append((type(self.loss), sum(p.numel() for p in self.model.energy.parameters())))
        return step(self)

    monkeypatch.setattr(Trainer, "energy_step", seen)
    planned = plan(load_recipe(recipe, words))
    json.dumps(planned)
    sizes = planned["parameters"]
    assert set(sizes) == {"base", "energy", "final_energy"}
    assert (Flo, sizes["final_energy"]) in phases
    assert planned["seconds"] > 0
    plain = plan(load_recipe(recipe, ["train.final.loss=kale"]))
    assert set(plain["parameters"]) == {"base", "energy"}
    assert plain["memory_bytes"] < planned["memory_bytes"]
    assert Kale in {kind for kind, _ in phases}
