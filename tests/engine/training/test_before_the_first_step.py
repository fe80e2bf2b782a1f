"""What else is settled before the first step: shared weights, another run's weights, sizes that no memory holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gebm_kit as gk
from gebm_kit.config.build import build_dataset
from gebm_kit.config.load import load_recipe
from gebm_kit.core.errors import CheckpointError, RecipeError
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.engine.figures.run_figures import curve_panels
from gebm_kit.engine.process.memory import bounded_tensors
from gebm_kit.engine.run_directory.checkpoint import read_checkpoint, save_checkpoint
from gebm_kit.engine.training import starting_state
from gebm_kit.engine.training.dry_run import plan
from gebm_kit.engine.training.trainer import Trainer

RECIPE = """
schema: 1
data: {name: two-moons, num_train: 200, num_valid: 100, num_test: 100}
base: {name: mlp, latent_dim: 2, hidden: [8]}
energy: {name: mlp, hidden: [8]}
train: {steps: 1, energy_steps: 1, start_steps: 0, batch_size: 16}
sampler: {name: mala}
sample: {num_chains: 8, num_samples: 16, warmup: 2, steps: 2}
eval: {metrics: [mmd], num_samples: 16, num_sets: 2}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def test_tensors_that_share_memory_are_saved_apart(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    state: dict[str, Tensor] = dict(module.state_dict()) | {"part": torch.arange(10.0)[2:5]}
    path = save_checkpoint(tmp_path / "checkpoints", 1, {"model": state}, {}, keep=1)
    found = read_checkpoint(path).tensors["model"]
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_a_dry_run_looks_at_the_run_to_start_from(recipe: Path) -> None:
    with pytest.raises(CheckpointError, match="nope does not exist"):
        plan(load_recipe(recipe, ["train.init_from=nope"]), cycles=1)


def test_an_energy_that_does_not_fit_stays_as_it_is(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first layer has the other run's shape and its second has not: neither is copied."""
    own = load_recipe(recipe, ["energy.hidden=[8, 4]", "train.init_from=other"])

    class Other:
        path = "other"
        model = Trainer(load_recipe(recipe, ["energy.hidden=[8, 5]"]), build_dataset(own), torch.device("cpu")).model

    monkeypatch.setattr(starting_state, "load_run", lambda path: Other)
    trainer = Trainer(own, build_dataset(own), torch.device("cpu"))
    before = {name: value.clone() for name, value in trainer.model.energy.state_dict().items()}
    with pytest.warns(GebmKitWarning, match=r"starts afresh \(.* has shape \(4, 8\) here and \(5, 8\) there"):
        starting_state.start_from(trainer, own)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.energy.state_dict().items())
    theirs: dict[str, Any] = Other.model.base.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in trainer.model.base.state_dict().items())


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("train.batch_size=100000000000", "train.batch_size=100000000000 needs at least .* GB of memory, and cpu has"),
        ("energy.hidden=[100000000000]", r"the model has a tensor of shape \(100000000000, 2\), 800.0 GB"),
        ("base.hidden=[100000000000]", r"the model has a tensor of shape \(100000000000, 2\), 800.0 GB"),
        ("eval.num_samples=100000000000", "eval.num_samples=100000000000 needs at least .* GB of memory"),
    ],
)
def test_sizes_that_no_memory_holds(word: str, said: str, recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        gk.train(recipe, [word], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bounded_tensors_are_those_that_are_made() -> None:
    with bounded_tensors(torch.device("cpu"), "this"):
        torch.empty(10**12, device="meta")
        nn.Linear(4, 4)
        with pytest.raises(RecipeError, match="this has a tensor of shape"):
            torch.zeros(10**12)
    torch.zeros(4)


def test_curves_show_what_a_loss_logs() -> None:
    row = {"step": 1, "energy_loss": 1.0, "kale": None, "hellinger": 0.5, "energy_std": 2.0, "eval.gebm.mmd": 0.1}
    assert curve_panels([row]) == {"loss": ["energy_loss"], "hellinger": ["hellinger"]}
    many = {"step": 1} | {f"value_{index}": 1.0 for index in range(20)}
    assert len(curve_panels([many])) == 6
    assert curve_panels([]) == {"loss": []}
