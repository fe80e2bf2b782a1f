"""Components that break their contract are found before the first step, by name, package, file and line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gebm_kit as gk
from gebm_kit.config.build import build_dataset
from gebm_kit.config.load import load_recipe
from gebm_kit.config.schema import Recipe
from gebm_kit.core.attribution import kind_of
from gebm_kit.core.components import Component
from gebm_kit.core.errors import DataError, GebmKitError, PluginError
from gebm_kit.core.plugins import installed
from gebm_kit.core.preserved import preserved
from gebm_kit.core.progress import ignore
from gebm_kit.engine.process.distributed import ALONE
from gebm_kit.engine.training.checkpoint_state import tensors_of
from gebm_kit.engine.training.dry_run import plan
from gebm_kit.engine.training.starting_state import begin
from gebm_kit.engine.training.trainer import Trainer

RECIPE = """
schema: 1
data: {name: two-moons, num_train: 200, num_valid: 100, num_test: 100}
base: {name: mlp, latent_dim: 2, hidden: [8]}
energy: {name: mlp, hidden: [8]}
loss: {name: logistic}
train: {steps: 1, energy_steps: 1, start_steps: 0, batch_size: 16, penalty: null}
ema: {decay: 0.0}
sampler: {name: mala}
sample: {num_chains: 8, num_samples: 16, warmup: 2, steps: 2}
eval: {metrics: [mmd], num_samples: 16, num_sets: 2}
"""

WRONG: dict[str, str] = {
    "BaseWithoutLatentDim": r"must set latent_dim to a whole number >= 1, and it is None",
    "BaseWithoutDataShape": r"must set data_shape to a tuple of whole numbers, and it is None",
    "BaseThatStatesAnotherShape": r"states data_shape \(3,\), but the data have shape \(2,\)",
    "BaseOfAnotherShape": r"returns shape \(4, 1\) for 4 codes; it must be \(4, 2\)",
    "BaseOfATuple": r"returns tuple .* for 4 codes; it must return a tensor of shape \(4, 2\)",
    "BaseOfNaN": r"returns values that are not finite",
    "BaseThatMixesRows": r"a row's result must depend on the row alone",
    "BaseWithNoise": r"gives other results for the same rows when called again in eval mode",
    "BaseThatChangesCodes": r"changes its codes z in place",
    "BaseWithoutGradient": r"has no gradient with respect to z: it is cut off",
    "BaseWithHiddenWeights": r"gives other values once its state_dict is read back into a new object",
    "BaseWithExtraState": r"has dict as '_extra_state' in its state_dict; a checkpoint holds tensors alone",
    "BaseThatFails": r"failed at .*oddware_parts.py, line \d+: RuntimeError: mat1 and mat2",
    "EnergyOfAColumn": r"must return one number per row, shape \(4,\), but returned \(4, 1\)",
    "EnergyOfOneNumber": r"must return one number per row, shape \(4,\), but returned \(\)",
    "EnergyOfNumpy": r"must return one number per row, shape \(4,\), but returned ndarray",
    "EnergyOfNaN": r"returns 8 of 8 numbers that are not finite for the first batch of data",
    "EnergyThatChangesX": r"changes its input x in place; it must leave its input as it is",
    "EnergyThatChangesXInTraining": r"changes its input x in place; it must leave its input as it is",
    "EnergyThatMixesRows": r"a row's result must depend on the row alone",
    "EnergyWithNoise": r"gives other results for the same rows when called again in eval mode",
    "EnergyWithoutGradient": r"has no gradient with respect to x: it is cut off",
    "EnergyOfWholeNumbers": r"has no gradient with respect to x: it is zero for every row",
    "EnergyOfTwoArguments": r"failed at .*: TypeError: .*forward\(\) missing 1 required positional argument: 'time'",
    "LossOfATensor": r"returns float32 of shape \(\) from energy_loss; it must return LossTerms",
    "LossOfRows": r"returns float32 of shape \(8,\) as the loss of energy_loss; it must be a .*scalar tensor",
    "LossOfNaN": r"returns nan as the loss of energy_loss on the first batch; it must be finite",
    "LossWithFloatMetrics": r"returns the metric 'gap' as float 0.5; it must be a scalar tensor",
    "LossWithAGraphInMetrics": r"returns the metric 'gap' with an autograd graph",
    "LossOnTheBase": r"leaves a gradient on the base in energy_loss",
    "LossOffTheEnergy": r"has no gradient with respect to the energy's parameters in energy_loss",
    "LossThatChangesTheBatch": r"changes batch.x_base in place",
    "LossOffTheBase": r"has no gradient with respect to the base's parameters in base_loss",
    "PenaltyOfRows": r"returns float32 of shape \(8,\) as the penalty; it must be a floating-point scalar",
    "PenaltyOfNaN": r"returns nan as the penalty on the first batch; it must be finite",
    "PenaltyThatChangesTheBatch": r"changes batch.x in place",
    "NotAPenalty": r"must derive from gebm_kit.core.interfaces.Penalty, and does not",
    "SamplerOfColumns": r"returns info.accepted as bool of shape \(8, 1\); its shape must be \(8,\)",
    "SamplerOfProbabilitiesAboveOne": r"returns an info.acceptance outside \[0, 1\]",
    "SamplerWithItsOwnNoise": r"gives another state.position for the same seed",
    "SamplerThatChangesItsState": r"changes state.position in a step in place",
    "SamplerOfAPlainTuple": r"has a tuple as state; it must be a NamedTuple with position, value",
    "SamplerOfInfinity": r"numbers that are not finite for state.position after 5 steps on a smooth potential",
    "SamplerWithoutInfo": r"returns Walk from step; it must return the pair of a state and an Info",
    "DatasetOfNumpy": r"returns ndarray from split\('train'\).batch; it must return a torch.Tensor",
    "DatasetOutsideItsRange": r"states the value_range \(-1.0, 1.0\), but its part train has values from -",
    "DatasetWithNaN": r"train data: row 7 holds a value that is not finite \(NaN or infinity\), in the dataset",
    "DatasetOfWholeNumbers": r"returns torch.int64 from split\('train'\).batch; it must return floating-point numbers",
    "DatasetOfAnotherShape": r"returns shape \(128, 1\) from split\('train'\).batch; it must be \(128, 2\)",
    "DatasetOfOnePart": r"has 128 of 128 rows looked at in its part valid in its part train too; parts share no row",
    "DatasetWithoutSplits": r"returns Tensor from split\('train'\); it must return a gebm_kit.core.interfaces.Split",
    "DatasetWithBadLabels": r"has labels 0 to 199 in part train; they must lie in 0 to 2",
    "MetricOfATensor": r"returns 'distance': float32 of shape \(2,\); it must return floats by name",
    "MetricThatSortsTheDraws": r"changes the draws or the data that it scores in place",
    "MetricThatFails": r"failed at .*oddware_parts.py, line \d+: RuntimeError: shape",
    "OddFeatures": r"returns float32 of shape \(\d+,\) for \d+ rows; it must return floating-point rows \(\d+, F\)",
}
"""A component of each kind that breaks its contract in one way, and the words that say how."""

KEYS = {
    "base": "base={}",
    "energy": "energy={}",
    "loss": "loss={}",
    "penalty": "train.penalty={}",
    "sampler": "sampler={}",
    "dataset": "data={}",
    "metric": "eval.metrics=[{}]",
    "features": "eval.metrics=[MetricOfOddFeatures]",
}
"""The override that chooses a component of each kind."""


@pytest.fixture(scope="module")
def parts() -> Iterator[Any]:
    """The module of wrong components, registered as those of the package oddware 0.1."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        import oddware_parts

        registry = installed().registry
        kept = {key: list(records) for key, records in registry._records.items()}
        for name, cls in vars(oddware_parts).items():
            kind = "penalty" if name == "NotAPenalty" else kind_of(cls) if isinstance(cls, type) else ""
            if kind and cls.__module__ == "oddware_parts" and name != "Rows":
                registry.add(Component(kind, name, f"oddware_parts:{name}", "a test"), "oddware", "0.1")
        yield oddware_parts
        registry._records.clear()
        registry._records.update(kept)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def chosen(parts: Any, name: str) -> tuple[str, str]:
    """Return the kind of a component of ``parts``, and the override that chooses it."""
    kind = "penalty" if name == "NotAPenalty" else kind_of(getattr(parts, name))
    return kind, KEYS[kind].format(name)


@pytest.mark.parametrize("name", WRONG)
def test_found_before_the_first_step(name: str, parts: Any, recipe: Path, tmp_path: Path) -> None:
    kind, override = chosen(parts, name)
    with pytest.raises(GebmKitError) as caught:
        gk.train(recipe, [override], out=tmp_path / "run")
    said, line = caught.value.message, inspect.getsourcelines(getattr(parts, name))[1]
    assert isinstance(caught.value, DataError if name == "DatasetWithNaN" else PluginError)
    assert re.search(WRONG[name], said), said
    assert f"the {kind} '{name}' (oddware 0.1, {Path(__file__).parent / 'oddware_parts.py'}, line {line})" in said
    assert "\n" not in said
    assert "--resume" not in said + caught.value.hint
    assert not (tmp_path / "run").exists()


def test_there_are_forty() -> None:
    assert len(WRONG) >= 40


@pytest.mark.parametrize("kind", [kind for kind in KEYS if kind != "features"])
def test_a_sound_component_of_each_kind_passes(kind: str, parts: Any, recipe: Path) -> None:
    planned = plan(load_recipe(recipe, [KEYS[kind].format(f"Good{kind.capitalize()}")]), cycles=1)
    assert planned["steps"] == 1


@pytest.mark.parametrize("name", ["EnergyOfAColumn", "SamplerOfColumns", "DatasetOfNumpy", "BaseWithHiddenWeights"])
def test_a_dry_run_finds_them_too(name: str, parts: Any, recipe: Path) -> None:
    with pytest.raises(PluginError, match=WRONG[name]):
        plan(load_recipe(recipe, [chosen(parts, name)[1]]), cycles=1)


FINAL = [name for name in WRONG if name.startswith(("Energy", "Loss")) and name != "LossOffTheBase"]
"""Components that the final phase may have of its own; its loss has no part for the base."""


@pytest.mark.parametrize("name", FINAL)
def test_those_of_the_final_phase_are_found_before_the_first_step(
    name: str, parts: Any, recipe: Path, tmp_path: Path
) -> None:
    words = ["train.final.steps=2", f"train.final.{chosen(parts, name)[1]}"]
    with pytest.raises(PluginError, match=WRONG[name]) as caught:
        gk.train(recipe, words, out=tmp_path / "run")
    assert f"'{name}' (oddware 0.1, " in caught.value.message
    assert not (tmp_path / "run").exists()


CHECKED = {
    "plain": ["energy={name: mlp, hidden: [8], activation: relu}"],
    "batch norm": ["base=BaseWithBatchNorm"],
    "spectral norm": ["energy={name: mlp, hidden: [8], spectral_norm: true}"],
    "chains": ["loss=pcd", "loss.buffer_size=32"],
    "penalty and phases": ["train.penalty={name: gradient}", "ema.decay=0.9", "train.final.steps=2"],
    "final parts": [
        "train.final.steps=2",
        "train.final.loss={name: pcd, buffer_size: 32}",
        "train.final.energy={name: mlp, hidden: [4], spectral_norm: true}",
    ],
    "final loss": ["train.final.steps=2", "train.final.loss=flo"],
}
"""Overrides of runs that draw random numbers and keep state in different places."""


@pytest.mark.parametrize("name", CHECKED)
def test_training_is_the_same_with_the_check_and_without(name: str, parts: Any, recipe: Path) -> None:
    checked, without = (trained(load_recipe(recipe, [*CHECKED[name], "train.steps=3"]), check=c) for c in (True, False))
    assert checked.keys() == without.keys()
    for part, tensors in checked.items():
        for key, tensor in tensors.items():
            same = torch.equal(tensor.nan_to_num(), without[part][key].nan_to_num())
            assert same, f"{part}: {key}"


def trained(recipe: Recipe, *, check: bool) -> dict[str, dict[str, Tensor]]:
    """Train a recipe to its end, with the check before the first step or without; return the whole state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dataset = build_dataset(recipe)
        trainer = Trainer(recipe, dataset, torch.device("cpu"))
        begin(trainer, None, ALONE, dataset, ignore, check=check)
        assert all(parameter.grad is None for parameter in trainer.model.parameters())
        while trainer.step < recipe.train.total_steps:
            trainer.cycle()
        return tensors_of(trainer)


def test_nothing_is_left_behind(parts: Any) -> None:
    """Attributes, buffers that were replaced, gradients, modes and random numbers are put back."""

    class Remembering(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(2, 2)
            self.register_buffer("mean", torch.zeros(2))
            self.calls, self.seen = 0, torch.zeros(2)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.mean = self.mean + 1
            self.seen.add_(1)
            self.latest = x
            return self.linear(x)

    module = Remembering().train()
    state, mean = torch.get_rng_state(), module.mean
    with preserved(module):
        module.eval()
        module(torch.randn(3, 2)).sum().backward()
        torch.nn.init.zeros_(module.linear.weight)
    assert module.training
    assert (module.calls, module.mean.tolist(), module.seen.tolist()) == (0, [0, 0], [0, 0])
    assert module.mean is mean
    assert not hasattr(module, "latest")
    assert bool((module.linear.weight != 0).all())
    assert module.linear.weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)
