"""Classes in training: labels stay with their rows, base labels follow the data, and what serves no classes is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gebm_kit.config.build import build_dataset
from gebm_kit.config.load import load_recipe
from gebm_kit.core.errors import GebmKitError, PluginError, UsageError
from gebm_kit.core.interfaces import Dataset, Energy, named_scalars
from gebm_kit.core.plugins import installed
from gebm_kit.engine.datasets import batches
from gebm_kit.engine.datasets.class_rows import apportioned, labels_in_shares
from gebm_kit.engine.likelihood.class_log_partitions import store_log_partition
from gebm_kit.engine.run_directory.checkpoint import read_checkpoint, save_checkpoint
from gebm_kit.engine.training.checkpoint_state import counters_of, restore, tensors_of
from gebm_kit.engine.training.contract import check_training
from gebm_kit.engine.training.trainer import Trainer

TINY = """\
schema: 1
data: {name: digits}
base: {name: mlp, latent_dim: 2, hidden: [8], norm: batch, conditional: true}
energy: {name: mlp, hidden: [8], conditional: true}
loss: {name: kale}
train:
  steps: 14
  energy_steps: 2
  start_steps: 1
  batch_size: 16
  noise: 0.05
  penalty: {name: r1, weight: 1.0, every: 2}
  final: {steps: 6, batch_size: 24, penalty: {name: r2, weight: 0.1, every: 2}}
ema: {decay: 0.9}
sampler: {name: hmc}
"""
SERVING = [
    r.component.name
    for r in installed().registry.of_kind("loss")
    if r.load().serves_classes and "energy" in r.load().parts
]
OTHERS = [r.component.name for r in installed().registry.of_kind("loss") if r.component.name not in SERVING]


def recipe_of(folder: Path, *overrides: str) -> Any:
    (folder / "tiny.yaml").write_text(TINY)
    return load_recipe(folder / "tiny.yaml", overrides)


def trainer_of(folder: Path, *overrides: str) -> tuple[Trainer, Dataset]:
    recipe = recipe_of(folder, *overrides)
    dataset = build_dataset(recipe)
    torch.manual_seed(0)
    return Trainer(recipe, dataset, torch.device("cpu")), dataset


@pytest.mark.parametrize("resident", [True, False])
def test_labels_stay_with_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resident: bool) -> None:
    if not resident:
        monkeypatch.setattr(batches, "RESIDENT_BYTES", 0)
    trainer, dataset = trainer_of(tmp_path, "train.batch_size=500", "train.noise=0")
    rows, labels = dataset.split("train").first(1199), dataset.labels("train")  # type: ignore[attr-defined]
    for _ in range(5):  # two epochs, and a batch over the end of one
        batch = trainer.energy_batch()
        assert batch.x is not None
        assert batch.labels is not None
        places = torch.cdist(batch.x.flatten(1), rows.flatten(1)).argmin(1)
        assert torch.equal(rows[places], batch.x)
        assert torch.equal(labels[places], batch.labels)


def test_base_labels_follow_the_data(tmp_path: Path) -> None:
    trainer, dataset = trainer_of(tmp_path, "train.batch_size=1000")
    shares = torch.bincount(dataset.labels("train"), minlength=10) / 1199  # type: ignore[attr-defined]
    torch.testing.assert_close(trainer.model.class_weights, shares)
    drawn = torch.cat([trainer.energy_batch().base_labels for _ in range(20)])  # type: ignore[misc]
    torch.testing.assert_close(torch.bincount(drawn, minlength=10) / len(drawn), shares, rtol=0.0, atol=0.01)


def test_a_class_without_rows_is_never_drawn(tmp_path: Path) -> None:
    trainer, _ = trainer_of(tmp_path)
    trainer.classes._cumulated = torch.tensor([0.0, 0.5, 0.5, 1.0], dtype=torch.float64)
    drawn = torch.cat([trainer.classes.drawn(trainer.generator, 500) for _ in range(10)])  # type: ignore[misc]
    assert drawn.unique().tolist() == [1, 3]


def test_base_batches_have_the_labels_that_they_need(tmp_path: Path) -> None:
    trainer, _ = trainer_of(tmp_path)
    batch = trainer.base_batch(frozenset({"x_base"}))
    assert batch.labels is None
    assert batch.base_labels is not None
    assert len(batch.base_labels) == len(batch.x_base)
    both = trainer.base_batch(frozenset({"x", "x_base"}))
    assert both.x is not None
    assert both.labels is not None
    assert len(both.labels) == len(both.x)


def test_models_without_classes_have_no_labels(tmp_path: Path) -> None:
    trainer, _ = trainer_of(tmp_path, "base.conditional=false", "energy.conditional=false")
    batch = trainer.energy_batch()
    assert (batch.labels, batch.base_labels) == (None, None)
    assert "class_weights" not in trainer.model.state_dict()


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    named = {
        f"{part}/{name}": t.clone() for part, tensors in tensors_of(trainer).items() for name, t in tensors.items()
    }
    return {name: tensor for name, tensor in named.items() if "log_partition" not in name or "loss" in name}


@pytest.mark.parametrize(
    ("loss", "parts"),
    [*((loss, ("true", "true")) for loss in SERVING), ("kale", ("true", "false")), ("kale", ("false", "true"))],
)
def test_resumed_equals_never_stopped(loss: str, parts: tuple[str, str], tmp_path: Path) -> None:
    words = [f"loss={{name: {loss}}}", f"base.conditional={parts[0]}", f"energy.conditional={parts[1]}"]
    straight, dataset = trainer_of(tmp_path, *words)
    straight.initialise()
    before = everything(straight)
    for step in range(1, 21):
        metrics = dict(named_scalars({**straight.cycle(), **straight.vital_signs()}))
        assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values()), (step, metrics)
        if step in (5, 16):
            save_checkpoint(tmp_path, step, tensors_of(straight), counters_of(straight), keep=2)
    expected = everything(straight)
    embedded = [name for name in expected if name.startswith("model/") and "embedding" in name]
    assert embedded
    assert not any(torch.equal(before[name], expected[name]) for name in embedded)
    for step in (5, 16):
        torch.manual_seed(0)
        resumed = Trainer(straight.recipe, dataset, torch.device("cpu"))
        torch.manual_seed(1)
        restore(resumed, read_checkpoint(tmp_path / f"step-{step:07d}"))
        for _ in range(step, 20):
            resumed.cycle()
        found = everything(resumed)
        assert found.keys() == expected.keys()
        assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


AUTOENCODER = ["base={name: vae, latent_dim: 2, hidden: [8], conditional: true}", "train.final.steps=0"]
FIRST = [*AUTOENCODER, "train.part=base-then-energy", "train.pretrain={steps: 6, eval_every: 2}", "train.steps=4"]
ALONE = [*AUTOENCODER, "train.part=base", "loss=elbo", "train.penalty=null", "train.steps=10", "train.noise=0"]


@pytest.mark.parametrize("words", [FIRST, ALONE], ids=["pretraining", "elbo alone"])
def test_a_base_is_trained_by_its_own_loss_with_labels_and_resumed(words: list[str], tmp_path: Path) -> None:
    straight, dataset = trainer_of(tmp_path, *words)
    straight.initialise()
    before = everything(straight)
    seen: list[torch.Tensor] = []
    base: Any = straight.model.base
    plain = base.pretraining_loss
    base.pretraining_loss = lambda x, labels: seen.append(labels) or plain(x, labels)
    last = straight.settings.total_steps
    for step in range(1, last + 1):
        assert all(torch.isfinite(value).all() for value in straight.cycle().values())
        if step == 3:
            save_checkpoint(tmp_path, step, tensors_of(straight), counters_of(straight), keep=1)
    assert {len(labels) for labels in seen} <= {16, len(dataset.split("valid"))}
    expected = everything(straight)
    for name in ("decoder.embedding.weight", "embedding.weight"):
        assert not torch.equal(before[f"model/base.{name}"], expected[f"model/base.{name}"])
    torch.manual_seed(0)
    resumed = Trainer(straight.recipe, dataset, torch.device("cpu"))
    restore(resumed, read_checkpoint(tmp_path / "step-0000003"))
    for _ in range(3, last):
        resumed.cycle()
    found = everything(resumed)
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


def test_a_base_of_classes_whose_own_loss_takes_no_labels_is_named(tmp_path: Path) -> None:
    trainer, dataset = trainer_of(tmp_path, *FIRST)
    trainer.model.base.pretraining_loss = lambda x: x.sum()  # type: ignore[operator, method-assign]
    with pytest.raises(PluginError, match="is conditional, and its pretraining_loss does not take the labels"):
        check_training(trainer, dataset)


BASE_ALONE: dict[bool, list[str]] = {
    True: ["train.part=base", "train.final.steps=0", "train.penalty=null"],
    False: [],
}


@pytest.mark.parametrize("loss", OTHERS)
def test_losses_that_serve_no_classes_are_refused_by_name(loss: str, tmp_path: Path) -> None:
    with pytest.raises(GebmKitError, match=f"loss '{loss}' .*(does not serve models with classes|needs a base with)"):
        trainer_of(tmp_path, f"loss={{name: {loss}}}", *BASE_ALONE[loss in ("elbo", "ml")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.penalty={name: gradient}"], "the penalty 'gradient' .* does not serve energies with classes"),
        (["train.final.penalty={name: gradient}"], "the penalty 'gradient' .* does not serve energies with classes"),
        (["train.negatives.share=0.5"], "train.negatives.share is 0.5, which does not serve models with classes"),
        (["train.final.negatives.share=0.5"], "train.final.negatives.share is 0.5"),
        (["train.final.loss={name: pcd}"], "the loss 'pcd' .* does not serve models with classes"),
        (
            ["base.conditional=false", "energy.conditional=false", "train.final.energy={name: mlp, conditional: true}"],
            "a model has its classes in all phases or in none; here none in the main and 10 in the final phase",
        ),
        (
            ["base.conditional=false", "train.final.energy={name: mlp}"],
            "a model has its classes in all phases or in none; here 10 in the main and none in the final phase",
        ),
        (["data={name: eight-gaussians}"], "conditional is true, and the dataset has no labels"),
    ],
)
def test_what_serves_no_classes_is_refused_before_training(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(GebmKitError, match=message):
        trainer_of(tmp_path, *words)


def test_the_gradient_penalty_serves_an_unconditional_energy_on_a_conditional_base(tmp_path: Path) -> None:
    trainer, _ = trainer_of(tmp_path, "energy.conditional=false", "train.penalty={name: gradient}")
    trainer.initialise()
    assert torch.isfinite(trainer.cycle()["energy_loss"])


def test_a_dataset_with_other_classes_is_refused(tmp_path: Path) -> None:
    class Three(Energy):
        conditional, num_classes = True, 3

    trainer, dataset = trainer_of(tmp_path)
    from gebm_kit.core.model import GEBM
    from gebm_kit.engine.training.class_labels import ClassLabels

    plain, _ = trainer_of(tmp_path, "base.conditional=false")
    with pytest.raises(UsageError, match="the model has 3 classes, and the dataset has 10"):
        ClassLabels(GEBM(plain.model.base, Three()), dataset, trainer.feed)


def test_a_log_partition_of_each_class_is_stored(tmp_path: Path) -> None:
    trainer, _ = trainer_of(tmp_path)
    with trainer.averaged():
        store_log_partition(trainer.model, 100, torch.Generator().manual_seed(0))
    model = trainer.model
    assert torch.isfinite(model.class_log_partition).all()
    expected = torch.logsumexp(model.class_weights.log() + model.class_log_partition, 0)
    torch.testing.assert_close(model.log_partition, expected)
    assert float(model.given(3).log_partition) == float(model.class_log_partition[3])


def test_draws_are_apportioned_by_largest_remainders() -> None:
    assert apportioned(torch.tensor([0.5, 0.25, 0.25]), 10) == [5, 3, 2]
    assert apportioned(torch.tensor([0.99, 0.01, 0.0]), 5) == [5, 0, 0]
    assert labels_in_shares(torch.tensor([1.0, 2.0]), 3).tolist() == [0, 1, 1]
