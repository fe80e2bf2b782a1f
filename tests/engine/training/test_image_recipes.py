"""Recipes of the large image datasets, on small files in their true formats: train, resume, sample, evaluate."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import gebm_kit as gk
from gebm_kit.config.build import build_dataset
from gebm_kit.config.load import load_recipe, shipped_recipes
from gebm_kit.core.errors import DataError, Interrupted
from gebm_kit.core.expected import IsPublished
from gebm_kit.core.plugins import installed
from gebm_kit.core.progress import GebmKitWarning, Progress
from gebm_kit.data.lsun import Lsun
from gebm_kit.engine.datasets.batches import RESIDENT_BYTES
from gebm_kit.engine.datasets.prepare import prepare
from gebm_kit.engine.datasets.prepared_cache import PreparedDataset
from gebm_kit.engine.train import train
from gebm_kit.engine.training.dry_run import plan
from gebm_kit.engine.training.phases import num_energy_updates
from gebm_kit.engine.training.trainer import Trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning"),
    pytest.mark.usefixtures("quick_evaluation"),
]

FAMILIES = {
    "cifar10_sngan": "cifar10",
    "cifar10_resnet": "cifar10",
    "imagenet32_resnet": "imagenet32",
    "lsun_bedroom": "lsun",
    "celeba": "celeba",
    "celeba32": "celeba",
}
RECIPES = [name + ending for name in FAMILIES for ending in ("", "_small")]

TINY = [
    "base.latent_dim=4", "base.width=4", "energy.width=4", "train.steps=15", "train.energy_steps=1",
    "train.start_energy_steps=2", "train.batch_size=8", "train.log_every=5", "train.eval_every=0",
    "train.checkpoint_every=20", "train.final.steps=5", "sample.num_samples=12", "sample.num_chains=6", "sample.warmup=1",
    "sample.steps=2", "sample.thin=1", "sampler={name: hmc, num_leapfrog: 1}", "eval.num_samples=8", "eval.num_sets=2",
    "eval.metrics=[{name: frechet, features: pixels}]",
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(formats: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``data.path`` by dataset."""
    root = tmp_path_factory.mktemp("data")
    return {name: getattr(formats, name)(root / name) for name in set(FAMILIES.values())}


def words_of(recipe: str, folders: dict[str, Path]) -> list[str]:
    """Overrides that name the small files, and split more than a row off them."""
    dataset = FAMILIES[recipe.removesuffix("_small")]
    fractions = {
        "lsun": ["data.valid_fraction=0.2", "data.test_fraction=0.2"],
        "imagenet32": ["data.valid_fraction=0.2"],
    }
    return [f"data.path={folders[dataset]}", *fractions.get(dataset, [])]


def test_every_one_is_shipped() -> None:
    assert set(RECIPES) <= set(shipped_recipes())


@pytest.mark.parametrize("name", FAMILIES)
def test_it_trains_resumes_samples_and_evaluates(
    name: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it from the files, half from what is prepared of them."""
    monkeypatch.setenv("GEBM_KIT_DATA_CACHE", str(tmp_path / "cache"))

    def stop(progress: Progress) -> None:
        if progress.stage == "train" and progress.step == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    words = [*TINY, *words_of(name, folders)]
    with pytest.raises(Interrupted):
        train(name, words, out=tmp_path / "run", on_progress=stop)
    prepare(load_recipe(name, words))
    run = train(name, words, out=tmp_path / "run", resume=True)
    assert run.step == 20
    assert isinstance(run.dataset, PreparedDataset)
    assert run.evaluation is not None
    for which in ("data", "base", "gebm"):
        assert run.evaluation["metrics"][which]["frechet"]["value"] >= 0
    draws = gk.sample(run, num_samples=6, num_chains=6, warmup=1, steps=1)
    side = 64 if name == "celeba" else 32
    assert draws.x.shape == (6, 3, side, side)
    assert draws.x.abs().max() <= 1


@pytest.mark.parametrize("name", FAMILIES)
def test_its_small_variant_trains_and_evaluates(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    name = f"{name}_small"
    words = [*TINY, *words_of(name, folders), "train.steps=2", "train.final.steps=1", "train.final.energy.steps=2"]
    run = train(name, words, out=tmp_path / "run")
    assert run.step == 3
    assert run.evaluation is not None


@pytest.mark.parametrize(
    ("name", "base", "energy"),
    [
        ("cifar10_sngan", 3_575_363, 2_935_872),
        ("cifar10_resnet", 4_161_283, 1_053_824),
        ("imagenet32_resnet", 4_161_283, 1_053_824),
        ("lsun_bedroom", 3_575_363, 2_935_872),
        ("celeba32", 3_575_363, 2_935_872),
    ],
)
def test_a_dry_run_shows_the_published_size(name: str, base: int, energy: int, folders: dict[str, Path]) -> None:
    recipe = load_recipe(name, [*words_of(name, folders), "train.batch_size=2", "train.energy_steps=1"])
    costs = plan(recipe, cycles=1)
    assert costs["parameters"] == {"base": base, "energy": energy}
    assert costs["steps"] == 170_000
    # parameters, gradients and Adam's two moments in single precision, and the images as bytes
    assert costs["memory_bytes"] >= 16 * (base + energy)
    assert costs["steps_per_second"] > 0


@pytest.mark.parametrize(
    ("name", "shape", "num"),
    [
        ("cifar10_resnet", [3, 32, 32], 45_000),
        ("imagenet32_resnet", [3, 32, 32], 1_268_355),
        ("lsun_bedroom", [3, 32, 32], 2_972_382),
        ("celeba", [3, 64, 64], 162_770),
        ("celeba32", [3, 32, 32], 162_770),
    ],
)
def test_a_dry_run_needs_no_data(name: str, shape: list[int], num: int, tmp_path: Path) -> None:
    words = [f"data.path={tmp_path / 'nowhere'}", "base.width=4", "energy.width=4", "train.batch_size=2"]
    with pytest.warns(GebmKitWarning, match="does not exist; the dry run uses random images"):
        costs = plan(load_recipe(name, [*words, "train.energy_steps=1"]), cycles=1)
    assert costs["data"] == {"shape": shape, "train": num, "prepared": None, "stand_in": True}
    assert costs["steps_per_second"] > 0
    size = num * shape[0] * shape[1] * shape[2]
    held = costs["memory_bytes"] - 16 * sum(costs["parameters"].values())
    assert (held > size) == (size <= RESIDENT_BYTES)  # what training would hold on the device


def test_what_is_there_and_damaged_is_an_error_of_a_dry_run_too(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no"):
        plan(load_recipe("celeba", [f"data.path={tmp_path / 'empty'}"]))
    with pytest.raises(DataError, match="holds no folder tower_train|does not exist"):
        plan(load_recipe("lsun_bedroom", [f"data.path={tmp_path / 'nowhere'}", "data.category=tower"]))


def test_expected_numbers_follow_from_the_parameters(folders: dict[str, Path]) -> None:
    """The number of rows of a published dataset follows from its parameters, as it does for the small files."""
    assert Lsun.expected({"category": "tower", "size": 8, "valid_fraction": 0.1, "test_fraction": 0.1}) is None
    for name in ("cifar10_sngan", "imagenet32_resnet", "lsun_bedroom", "celeba"):
        recipe = load_recipe(name, words_of(name, folders))
        target = installed().registry.get("dataset", recipe.data.name).load()
        assert isinstance(target, IsPublished)
        found = target.expected(recipe.data.parameters)
        assert found is not None
        dataset = build_dataset(recipe)
        assert (found.shape, found.num_classes) == (dataset.data_shape, getattr(dataset, "num_classes", None))


def test_a_slow_cycle_is_measured_once(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    cycles = []
    real = Trainer.cycle
    monkeypatch.setattr("gebm_kit.engine.training.trainer.Trainer.cycle", lambda self: cycles.append(1) or real(self))
    words = [*TINY, *words_of("celeba32", folders)]
    plan(load_recipe("celeba32", words), cycles=3)
    assert len(cycles) == 5
    monkeypatch.setattr("gebm_kit.engine.training.dry_run.SLOW_CYCLE_SECONDS", 0.0)
    plan(load_recipe("celeba32", words), cycles=3)
    assert len(cycles) == 6


def test_published_energy_updates() -> None:
    """A hundred at the first two cycles and at every 500th, five otherwise."""
    settings = load_recipe("cifar10_sngan").train
    trainer = object.__new__(Trainer)
    trainer.settings = settings
    counts = {}
    for step in (0, 1, 2, 3, 499, 500, 501, 1000):
        trainer.step = step
        counts[step] = num_energy_updates(trainer.settings, trainer.step)
    assert counts == {0: 100, 1: 100, 2: 5, 3: 5, 499: 5, 500: 100, 501: 5, 1000: 100}
