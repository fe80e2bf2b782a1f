"""Tests of the plugin as part of the kit: its components, their documentation, and the recipes that need it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("gebm_kit_flows", reason="the plugin package gebm-kit-flows is not installed")

import gebm_kit as gk
import gebm_kit_flows
from gebm_kit.config.build import build_dataset
from gebm_kit.config.load import load_recipe, shipped_recipes
from gebm_kit.core.builtins import FIRST_PARTY
from gebm_kit.core.components import parameters
from gebm_kit.core.errors import DataError
from gebm_kit.core.interfaces import HasDensity
from gebm_kit.core.plugins import installed
from gebm_kit.engine.training.trainer import Trainer

ROOT = Path(__file__).parents[3]
ABSENT = ("whitewine", "parkinsons", "hepmass", "miniboone")
SHORT = ["train.pretrain.steps=3", "train.steps=3", "train.final.steps=2", "train.start_steps=1", "train.batch_size=50"]


def test_the_kit_knows_what_the_plugin_brings() -> None:
    brought = [(component.kind, component.name) for component in gebm_kit_flows.gebm_components()]
    assert sorted(FIRST_PARTY["gebm-kit-flows"]) == sorted(brought)
    assert all(installed().registry.get(kind, name).distribution == "gebm-kit-flows" for kind, name in brought)


def test_every_component_and_parameter_is_documented() -> None:
    page, readme = ((ROOT / path).read_text() for path in ("docs/flows.md", "plugins/gebm-kit-flows/README.md"))
    for kind, name in FIRST_PARTY["gebm-kit-flows"]:
        assert f"`{name}`" in page
        assert f"`{name}`" in readme
        record = installed().registry.get(kind, name)
        doc = record.load().__doc__ or ""
        for parameter in parameters(record.load()):
            assert f"{parameter}:" in doc or f"{parameter}," in doc, f"{name}.{parameter}"


@pytest.fixture(autouse=True)
def _few_initial_draws(no_pictures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gebm_kit.engine.training.phases.INITIAL_DRAWS", 100)


def table(name: str, folder: Path) -> Path:
    """Write a file with the layout that the recipe reads, filled with random numbers."""
    rng = np.random.default_rng(0)
    if name == "miniboone":
        path = folder / "miniboone.npy"
        np.save(path, rng.normal(size=(400, 43)))
        return path
    size, header, mark = {
        "whitewine": (12, [*(f'"column {k}"' for k in range(11)), '"quality"'], ";"),
        "parkinsons": (22, ["subject#", *(f"c{k}" for k in range(21))], ","),
        "hepmass": (28, ["# label", *(f"f{k}" for k in range(27))], ","),
    }[name]
    rows = rng.normal(size=(800, size)).round(4)
    if name == "hepmass":
        rows[:, 0] = rng.integers(0, 2, size=800)
    path = folder / f"{name}.csv"
    path.write_text("\n".join([mark.join(header), *(mark.join(map(str, row)) for row in rows)]) + "\n")
    return path


@pytest.mark.parametrize("name", ABSENT)
def test_an_absent_table_says_where_to_get_it(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, directory=tmp_path)
    with pytest.raises(DataError, match=f"data/uci/{name}.* does not exist") as caught:
        build_dataset(recipe)
    assert "https://" in caught.value.hint


@pytest.mark.parametrize(("name", "dim"), [("whitewine", 11), ("parkinsons", 15), ("hepmass", 27), ("miniboone", 43)])
def test_a_table_of_that_layout_is_read(name: str, dim: int, tmp_path: Path) -> None:
    (tmp_path / "data" / "uci").mkdir(parents=True)
    shutil.move(table(name, tmp_path), tmp_path / "data" / "uci")
    recipe = load_recipe(name, directory=tmp_path)
    dataset = build_dataset(recipe)
    assert dataset.data_shape == (dim,)
    total = sum(len(dataset.split(part)) for part in ("train", "valid", "test"))
    assert total == {"miniboone": 400, "hepmass": total}.get(name, 800)
    assert name != "hepmass" or 300 < total < 500
    train_a_little(load_recipe(name, [*SHORT, "base.transforms=1", "base.hidden=[8]"], directory=tmp_path))


BASES = [
    "{name: realnvp, transforms: 2, hidden: [16]}",
    "{name: maf, transforms: 2, hidden: [16]}",
    "{name: maf, transforms: 2, hidden: [16], fast: sampling}",
    "{name: nsf, transforms: 2, hidden: [16]}",
    "{name: gaussianization, transforms: 2, components: 3}",
]


@pytest.mark.parametrize("part", ["base-then-energy", "both", "base-then-both"])
@pytest.mark.parametrize("base", BASES)
def test_every_flow_trains_in_all_three_ways(base: str, part: str) -> None:
    train_a_little(load_recipe("redwine", [f"base={base}", f"train.part={part}", *SHORT]))


LIKELIHOODS = {
    "weighted-likelihood": ("loss=smile",),
    "mcmc-teaching": ("loss={name: pcd, steps: 2}", "energy={name: codes, hidden: [16]}"),
}


@pytest.mark.parametrize("part", ["both", "base-then-both"])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("update", LIKELIHOODS)
def test_every_flow_learns_by_likelihood_on_the_model(update: str, base: str, part: str) -> None:
    words = [f"base={base}", f"train.part={part}", f"train.base_update={update}", *LIKELIHOODS[update]]
    train_a_little(load_recipe("redwine", [*words, *SHORT]))


@pytest.mark.parametrize("base", BASES)
def test_an_energy_on_codes_is_the_same_through_every_flow(base: str) -> None:
    words = [f"base={base}", "train.part=base-then-energy", "energy={name: codes, hidden: [16]}"]
    recipe = load_recipe("redwine", [*words, *SHORT])
    train_a_little(recipe)
    torch.manual_seed(0)
    model = Trainer(recipe, build_dataset(recipe), torch.device("cpu")).model.double().eval()
    z = torch.randn(50, model.latent_dim, dtype=torch.float64)
    torch.testing.assert_close(model(z), model.energy(model.base(z)), rtol=1e-5, atol=1e-6)
    assert model(z).std() > 1e-3


def train_a_little(recipe: gk.Recipe) -> None:
    trainer = Trainer(recipe, build_dataset(recipe), torch.device("cpu"))
    trainer.initialise()
    assert isinstance(trainer.model.base, HasDensity)
    before = {name: value.clone() for name, value in trainer.model.base.state_dict().items()}
    for _ in range(recipe.train.pretrain_steps):
        assert set(trainer.cycle()) == {"base_loss"}
    at_main = {name: value.clone() for name, value in trainer.model.base.state_dict().items()}
    while trainer.step < recipe.train.total_steps:
        assert "energy_loss" in trainer.cycle()
    moved_first = any(not torch.equal(before[name], value) for name, value in at_main.items())
    moved_later = any(not torch.equal(at_main[name], v) for name, v in trainer.model.base.state_dict().items())
    assert moved_first == recipe.train.part.startswith("base-then-")
    assert moved_later or recipe.train.part == "base-then-energy"
    rows = trainer.model.base(torch.randn(20, trainer.model.latent_dim))
    with torch.no_grad():
        assert bool(torch.isfinite(trainer.model.base.log_prob(rows)).all())


def test_a_run_from_training_to_draws(tmp_path: Path) -> None:
    words = [
        *SHORT,
        "base.transforms=2",
        "base.hidden=[16]",
        "sample.num_samples=40",
        "sample.num_chains=20",
        "sample.warmup=3",
        "sample.steps=4",
        "sample.thin=2",
    ]
    run = gk.train("redwine", [*words, "eval.num_samples=40", "eval.num_sets=2"], out=tmp_path / "run")
    draws = gk.sample(run, num_samples=20)
    assert draws.x.shape == (20, 11)
    again = gk.load_run(tmp_path / "run")
    rows = again.dataset.split("test").first(5)
    with torch.no_grad():
        torch.testing.assert_close(again.model.base.log_prob(rows), run.model.base.log_prob(rows))
    assert set(shipped_recipes()) >= {"redwine", *ABSENT}
