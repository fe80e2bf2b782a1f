"""Recipes with classes: each trains, draws classes and is evaluated; resumed and on two ranks it is the same training."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
import yaml
from PIL import Image
from torch import Tensor

import gebm_kit as gk
from gebm_kit.cli.app import main
from gebm_kit.config.build import build_dataset
from gebm_kit.config.load import load_recipe, shipped_recipes
from gebm_kit.core.errors import GebmKitError
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.engine.evaluation import budget
from gebm_kit.engine.run_directory.checkpoint import read_checkpoint, save_checkpoint
from gebm_kit.engine.training import phases
from gebm_kit.engine.training.checkpoint_state import counters_of, restore, tensors_of
from gebm_kit.engine.training.dry_run import plan
from gebm_kit.engine.training.trainer import Trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning"),
    pytest.mark.usefixtures("quick_evaluation"),
]


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few base draws behind the log-partition of a class."""
    monkeypatch.setattr(budget, "NUM_DRAWS", 160)


RECIPES = [name for name, path in shipped_recipes().items() if "conditional: true" in path.read_text()]
CLASSES = {str(label) for label in range(10)}

SHORT = [
    "train.steps=3", "train.energy_steps=1", "train.start_steps=0", "train.batch_size=8", "train.checkpoint_every=20",
    "train.eval_every=0", "train.final.steps=2", "train.final.batch_size=12", "sampler={name: hmc, num_leapfrog: 1}",
    "sample={num_samples: 80, num_chains: 80, warmup: 1, steps: 2, thin: 1}", "eval.num_samples=80", "eval.num_sets=2",
    "eval.metrics=[{name: frechet, features: pixels}]", "eval.log_partition=importance-sampling",
]  # fmt: skip
SMALL = [
    "base.width=4",
    "energy.width=4",
    "base.latent_dim=4",
    "train.final.energy.width=4",
    "train.final.energy.steps=2",
]


def idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


def fashion_mnist(folder: Path, num: int = 60) -> Path:
    folder.mkdir()
    random = np.random.default_rng(0)
    for part in ("train", "t10k"):
        idx(folder / f"{part}-images-idx3-ubyte.gz", random.integers(0, 256, (num, 28, 28)))
        idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(num) % 10)
    return folder


@pytest.fixture(scope="module")
def folders(formats: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``data.path`` by dataset."""
    root = tmp_path_factory.mktemp("data")
    return {"idx": fashion_mnist(root / "idx"), "cifar10": formats.cifar10(root / "cifar10")}


def words_of(name: str, folders: dict[str, Path]) -> list[str]:
    data = load_recipe(name).data.name
    return SHORT if data == "digits" else [*SHORT, *SMALL, f"data.path={folders[data]}"]


def test_every_one_is_shipped() -> None:
    names = {"digits_conditional", "fashion_mnist_conditional", "cifar10_conditional", "cifar10_conditional_small"}
    assert set(RECIPES) >= names
    assert {name for name in shipped_recipes() if "conditional" in name} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_it_trains_draws_classes_and_evaluates(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    run = gk.train(name, words_of(name, folders), out=tmp_path / "run")
    assert run.step == 5
    for part in (run.model.base, run.model.energy):
        assert (part.conditional, part.num_classes) == (True, 10)
    assert run.evaluation is not None
    assert set(run.evaluation["classes"]) == CLASSES
    assert torch.isfinite(run.model.class_log_partition).all()
    draws = gk.sample(run, labels="all", num_samples=10, seed=1)
    assert draws.labels.tolist() == list(range(10))
    if draws.class_names is not None:
        assert gk.sample(run, labels=draws.class_names[1], num_samples=2, seed=1).labels.tolist() == [1, 1]
    assert tuple(draws.x.shape) == (10, *run.dataset.data_shape)


@pytest.mark.parametrize(
    ("name", "plain"),
    [("fashion_mnist_conditional", "fashion_mnist"), ("cifar10_conditional_small", "cifar10_resnet_small")],
)
def test_its_settings_are_those_of_the_recipe_without_classes(name: str, plain: str) -> None:
    ours, theirs = (yaml.safe_load(shipped_recipes()[one].read_text()) for one in (name, plain))
    for node in (ours["base"], ours["energy"], ours["train"]["final"]["energy"]):
        assert node.pop("conditional") is True
    ours["data"].pop("class_names", None)  # which only name what is drawn
    assert ours == theirs


def test_a_dry_run_needs_no_data(tmp_path: Path) -> None:
    words = [f"data.path={tmp_path / 'nowhere'}", *SMALL, "train.batch_size=2"]
    with pytest.warns(GebmKitWarning, match="does not exist; the dry run uses random images"):
        costs = plan(load_recipe("cifar10_conditional", words), cycles=1)
    assert costs["data"]["stand_in"] is True
    assert set(costs["parameters"]) == {"base", "energy", "final_energy"}


# --- the same training -----------------------------------------------------------------------------------------------


def everything(trainer: Trainer) -> dict[str, Tensor]:
    named = {
        f"{part}/{name}": t.clone() for part, tensors in tensors_of(trainer).items() for name, t in tensors.items()
    }
    return {name: tensor for name, tensor in named.items() if "log_partition" not in name or "loss" in name}


@pytest.mark.parametrize("name", RECIPES)
def test_resumed_equals_never_stopped(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    recipe = load_recipe(name, words_of(name, folders))
    dataset = build_dataset(recipe)
    torch.manual_seed(0)
    straight = Trainer(recipe, dataset, torch.device("cpu"))
    straight.initialise()
    for step in range(1, 6):
        straight.cycle()
        if step in (2, 4):
            save_checkpoint(tmp_path, step, tensors_of(straight), counters_of(straight), keep=2)
    expected = everything(straight)
    for step in (2, 4):
        torch.manual_seed(1)
        resumed = Trainer(recipe, dataset, torch.device("cpu"))
        restore(resumed, read_checkpoint(tmp_path / f"step-{step:07d}"))
        for _ in range(step, 5):
            resumed.cycle()
        found = everything(resumed)
        assert found.keys() == expected.keys()
        assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


RANKS = 2


def trained(name: str, words: list[str]) -> dict[str, Tensor]:
    recipe = load_recipe(name, words)
    torch.manual_seed(0)
    trainer = Trainer(recipe, build_dataset(recipe), torch.device("cpu"))
    trainer.initialise()
    for _ in range(5):
        trainer.cycle()
    return {key: value for key, value in everything(trainer).items() if key != "rng/torch"}


def ranks_words(name: str, words: list[str]) -> list[str]:
    """Without statistics over a rank's part of the batch, and with numbers that show the order of sums least."""
    norm = "none" if name == "digits_conditional" else "layer"
    return [*words, "precision=float64", f"base.norm={norm}"]


ON_RANKS = ["digits_conditional", "fashion_mnist_conditional"]


def work(rank: int, ranks: int, folder: str, words: dict[str, list[str]]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    phases.INITIAL_DRAWS = 64  # as quick_evaluation has it
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    torch.save({name: trained(name, words[name]) for name in words}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_train_what_one_process_trains(folders: dict[str, Path], tmp_path: Path) -> None:
    words = {name: ranks_words(name, words_of(name, folders)) for name in ON_RANKS}
    torch.multiprocessing.spawn(work, args=(RANKS, str(tmp_path), words), nprocs=RANKS)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS))
    for name in ON_RANKS:
        assert [key for key in first[name] if not torch.equal(first[name][key], second[name][key])] == []
        alone = trained(name, words[name])
        assert alone.keys() == first[name].keys()
        for key, value in alone.items():
            if value.is_floating_point():
                torch.testing.assert_close(
                    first[name][key], value, rtol=1e-6, atol=1e-8, msg=lambda m, k=key: f"{k}: {m}"
                )


# --- what is missing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "digits_conditional"])
def test_images_without_labels_are_refused_before_anything_is_made(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    random = np.random.default_rng(0)
    for index in range(20):
        Image.fromarray(random.integers(0, 256, (32, 32), dtype=np.uint8)).save(tmp_path / "images" / f"{index}.png")
    mine = tmp_path / "mine.yaml"
    assert main(["recipes", "cp", name, str(mine), "--data", str(tmp_path / "images")]) == 0
    assert main(["recipes", "check", str(mine)]) == 0
    assert main(["train", str(mine), "--out", str(tmp_path / "run"), *SHORT]) == 2
    shown = " ".join(capfd.readouterr().err.split())
    assert "conditional is true, and the dataset has no labels (image-folder); at least two classes are needed" in shown
    assert "Or leave conditional out." in shown
    assert not (tmp_path / "run").exists()


def test_a_final_energy_without_classes_serves_a_conditional_base(folders: dict[str, Path]) -> None:
    words = [*words_of("fashion_mnist_conditional", folders), "train.final.energy.conditional=false"]
    recipe = load_recipe("fashion_mnist_conditional", words)
    assert Trainer(recipe, build_dataset(recipe), torch.device("cpu")).model.num_classes == 10
    recipe = load_recipe("fashion_mnist_conditional", [*words, "base.conditional=false"])
    with pytest.raises(GebmKitError, match="a model has its classes in all phases or in none"):
        Trainer(recipe, build_dataset(recipe), torch.device("cpu"))
