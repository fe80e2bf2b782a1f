"""A table with classes that have names and weights on the command line, from training to draws of a class by its name."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import gebm_kit as gk
from gebm_kit.cli.app import main

from .conftest import Cli

RECIPE = """\
schema: 1
data: {{name: tabular, path: {path}, labels: kind, class_weights: {{red: 3, blue: 1, dark red: 4}}, test_fraction: 0.3}}
base: {{name: mlp, latent_dim: 2, hidden: [8], conditional: true}}
energy: {{name: mlp, hidden: [8], conditional: true}}
loss: {{name: kale}}
train: {{steps: 12, energy_steps: 1, start_steps: 0, batch_size: 16, log_every: 6, checkpoint_every: 6}}
sampler: {{name: hmc}}
sample: {{num_samples: 40, num_chains: 24, warmup: 4, steps: 6, thin: 2}}
eval: {{metrics: [mmd], num_samples: 40, num_sets: 2}}
device: cpu
"""
NAMES = ("blue", "dark red", "red")
CLASSES = {"0": "blue", "1": "dark red", "2": "red"}
NUM = 400
SAMPLE = ["sample.warmup=4", "sample.steps=6", "--num-samples", "20", "--quiet"]

pytestmark = pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    values = np.random.default_rng(0).normal(size=(NUM, 2))
    kinds = [("red", "blue", "dark red")[i % 3 if i % 4 else 0] for i in range(NUM)]
    lines = [f"{10 + 3 * u},{kind},{v}\n" for (u, v), kind in zip(values, kinds, strict=True)]
    (folder / "table.csv").write_text("size,kind,weight\n" + "".join(lines))
    (folder / "tiny.yaml").write_text(RECIPE.format(path=folder / "table.csv"))
    assert main(["train", str(folder / "tiny.yaml"), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


def test_the_run_keeps_names_and_weights(run: Path) -> None:
    loaded = gk.load_run(run)
    assert loaded.class_names == loaded.model.class_names == NAMES
    torch.testing.assert_close(loaded.model.class_weights, torch.tensor([0.125, 0.5, 0.375]))
    assert loaded.recipe.class_weights == {"red": 3.0, "blue": 1.0, "dark red": 4.0}


def test_the_data_are_scored_in_the_weights(run: Path) -> None:
    found = json.loads((run / "evaluation.json").read_text())
    assert found["protocol"]["mmd"]["classes"] == "in the shares of data.class_weights"
    each = found["classes"]
    assert {label: one["name"] for label, one in each.items()} == CLASSES
    assert [one["share"] for one in each.values()] == pytest.approx([0.125, 0.5, 0.375])
    assert [one["draws"] for one in each.values()] == [5, 20, 15]
    means = sum(one["share"] * one["kale_test"] for one in each.values())
    assert found["kale_test"] == pytest.approx(means)
    parts = [one["share"] * np.exp(one["log_partition"]["value"]) for one in each.values()]
    assert found["log_partition"]["value"] == pytest.approx(np.log(sum(parts)))


@pytest.mark.parametrize(
    ("word", "expected"),
    [("dark red", {"1": 20}), ("red,blue", {"0": 10, "2": 10}), ("red, 1", {"1": 10, "2": 10}), ("2", {"2": 20})],
)
def test_classes_are_drawn_by_name(run: Path, tmp_path: Path, cli: Cli, word: str, expected: dict[str, int]) -> None:
    out = tmp_path / "draws.safetensors"
    result = cli("sample", run, "--class", word, "--out", out, *SAMPLE, "--json")
    assert result.code == 0, result.err
    assert result.json["classes"] == expected
    assert result.json["class_names"] == {label: CLASSES[label] for label in expected}
    draws = gk.load_draws(out)
    assert draws.class_names == NAMES
    assert draws.units is not None
    first = word.partition(",")[0]
    by_name = gk.sample(run, labels=int(first) if first.isdecimal() else first, num_samples=3)
    assert by_name.class_names == NAMES
    assert set(by_name.labels.tolist()) <= {int(label) for label in expected}


def test_the_text_names_the_classes(run: Path, tmp_path: Path, cli: Cli) -> None:
    result = cli("sample", run, "--class", "all", "--out", tmp_path / "draws.npz", *SAMPLE)
    assert result.code == 0, result.err
    assert "draws of each class: 0 (blue): 7, 1 (dark red): 7, 2 (red): 6" in result.out


def test_a_table_of_draws_has_the_classes_and_is_in_units(run: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "draws.csv"
    result = cli("sample", run, "--class", "red,blue", "--out", out, *SAMPLE)
    assert result.code == 0, result.err
    lines = list(csv.reader(out.read_text().splitlines()))
    assert lines[0] == ["size", "weight", "class"]
    assert [line[2] for line in lines[1:]] == ["red", "blue"] * 10
    again = gk.sample(run, labels=["red", "blue"], num_samples=20, out=tmp_path / "again.csv")
    assert again.units is not None


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("redd", "--class is 'redd', and there is no class 'redd'; did you mean red"),
        ("Red", "there is no class 'Red'; did you mean red"),
        ("3", "there is no class 3; allowed are whole numbers from 0 to 2"),
        ("red,,blue", "--class is 'red,,blue'; allowed: a class such as 7"),
    ],
)
def test_other_words(run: Path, tmp_path: Path, cli: Cli, word: str, message: str) -> None:
    result = cli("sample", run, "--class", word, "--out", tmp_path / "draws.npz")
    assert result.code == 2
    assert message in " ".join(result.err.split())
    assert not list(tmp_path.iterdir())


def test_runs_shows_the_classes_of_a_run(run: Path, cli: Cli) -> None:
    assert "3 classes: 0 (blue), 1 (dark red), 2 (red)" in cli("runs", run).out
    (record,) = cli("runs", run, "--json").json["runs"]
    assert record["classes"] == CLASSES


def test_a_run_whose_names_are_damaged(run: Path, tmp_path: Path) -> None:
    loaded = gk.load_run(run)
    facts = loaded.checkpoint.state["facts"]
    for names in (["a"], "abc", [1, 2, 3]):
        loaded.__dict__.pop("model", None)
        facts["class_names"] = names
        with pytest.raises(gk.core.errors.CheckpointError, match="class_names are not the names of its classes"):
            _ = loaded.model
