"""Tests that every loss trains through both phases, and that a resumed run equals one that was never stopped."""

from pathlib import Path

import pytest
import torch

from gebm_kit.config.build import build_dataset
from gebm_kit.config.load import load_recipe
from gebm_kit.core.interfaces import named_scalars
from gebm_kit.core.plugins import installed
from gebm_kit.engine.run_directory.checkpoint import read_checkpoint, save_checkpoint
from gebm_kit.engine.training.checkpoint_state import counters_of, restore, tensors_of
from gebm_kit.engine.training.trainer import Trainer

TOY = """\
schema: 1
data: {name: eight-gaussians, num_train: 100, num_valid: 20, num_test: 20}
base: {name: mlp, latent_dim: 2, hidden: [8], norm: batch, prior: sphere}
energy: {name: mlp, hidden: [8], spectral_norm: true}
loss: {name: kale}
train: {steps: 14, energy_steps: 2, start_steps: 1, batch_size: 16, noise: 0.05, final: {steps: 6, batch_size: 24}}
"""
MORE = {
    "pcd-data": "{name: pcd, space: data, sampler: ula, step_size: 0.01, steps: 2, buffer_size: 30, restart: 0.2}",
    "cd-data": "{name: cd, space: data, steps: 2}",
    "kale-dv-average": "{name: kale-dv, moving_average: 0.9}",
    "kale-adam": "{name: kale, update: adam}",
    "smile-clipped": "{name: smile, gradient: clipped}",
}
LOSSES = {
    **{r.component.name: r.component.name for r in installed().registry.of_kind("loss") if "energy" in r.load().parts},
    **MORE,
}


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    named = {
        f"{part}/{name}": t.clone() for part, tensors in tensors_of(trainer).items() for name, t in tensors.items()
    }
    return {name: tensor for name, tensor in named.items() if name != "model/log_partition"}  # nan: not estimated yet


@pytest.mark.parametrize("name", LOSSES)
def test_resumed_equals_never_stopped(name: str, tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(TOY)
    recipe = load_recipe(tmp_path / "toy.yaml", [f"loss={LOSSES[name]}"])
    dataset = build_dataset(recipe)

    def begun() -> Trainer:
        torch.manual_seed(0)
        return Trainer(recipe, dataset, torch.device("cpu"))

    straight = begun()
    straight.initialise()
    before = everything(straight)
    for step in range(1, 21):
        metrics = dict(named_scalars(straight.cycle()))
        assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values()), (step, metrics)
        if step in (5, 16):
            save_checkpoint(tmp_path, step, tensors_of(straight), counters_of(straight), keep=2)
    expected = everything(straight)
    for part in ("base", "energy"):
        weights = [key for key in expected if key.startswith(f"model/{part}.layers") and "weight" in key]
        assert weights
        assert not any(torch.equal(before[key], expected[key]) for key in weights)
    for step in (5, 16):  # in the main phase and in the final one
        resumed = begun()
        torch.manual_seed(1)
        restore(resumed, read_checkpoint(tmp_path / f"step-{step:07d}"))
        for _ in range(step, 20):
            resumed.cycle()
        found = everything(resumed)
        assert found.keys() == expected.keys()
        assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
