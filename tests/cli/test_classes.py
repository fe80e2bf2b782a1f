"""Classes on the command line: a run with classes from training to draws of a class, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import gebm_kit as gk
from gebm_kit.cli.app import main

from .conftest import RECIPE, Cli

CONDITIONAL = RECIPE.replace("hidden: [16]}", "hidden: [16], conditional: true}")
SAMPLE = ["sample.warmup=4", "sample.steps=6", "--num-samples", "20", "--json", "--quiet"]


@pytest.fixture(scope="module")
def run_with_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    (folder / "tiny.yaml").write_text(CONDITIONAL)
    assert main(["train", str(folder / "tiny.yaml"), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


def test_training_evaluates_overall_and_by_class(run_with_classes: Path) -> None:
    found = json.loads((run_with_classes / "evaluation.json").read_text())
    assert set(found["metrics"]) == {"data", "base", "gebm", "ratio"}
    assert found["protocol"]["mmd"]["classes"] == "in the shares of the training data"
    assert list(found["classes"]) == [str(label) for label in range(10)]
    assert sum(one["draws"] for one in found["classes"].values()) == 60
    assert sum(one["rows"] for one in found["classes"].values()) == 399
    assert sum(one["share"] for one in found["classes"].values()) == pytest.approx(1.0)
    for one in found["classes"].values():
        assert set(one["metrics"]) == {"data", "base", "gebm", "ratio"}
        assert one["kale_test"] is not None
        assert one["log_partition"]["value"] is not None
    assert found["equilibrium"]["reason"] == "chains of a model with classes are not continued"
    for name in ("samples", "energies", "curves"):
        assert (run_with_classes / "figures" / f"{name}.png").is_file()


@pytest.mark.parametrize(
    ("word", "expected"),
    [("7", {"7": 20}), ("3,5", {"3": 10, "5": 10}), ("all", {str(label): 2 for label in range(10)})],
)
def test_draws_of_classes(
    run_with_classes: Path, tmp_path: Path, cli: Cli, word: str, expected: dict[str, int]
) -> None:
    out = tmp_path / "draws.safetensors"
    result = cli("sample", run_with_classes, "--class", word, "--out", out, "--images", tmp_path / "png", *SAMPLE)
    assert result.code == 0, result.err
    assert result.json["classes"] == expected
    assert result.json["num_samples"] == 20
    draws = gk.load_draws(out)
    names = sorted(path.name for path in (tmp_path / "png").iterdir())
    assert names == [f"{index:05d}-class{label}.png" for index, label in enumerate(draws.labels.tolist())]
    assert Image.open(tmp_path / "png" / names[0]).size == (8, 8)


def test_without_the_option_classes_are_drawn_by_their_shares(run_with_classes: Path, tmp_path: Path, cli: Cli) -> None:
    result = cli("sample", run_with_classes, "--out", tmp_path / "draws.npz", *SAMPLE)
    assert result.code == 0, result.err
    assert sum(result.json["classes"].values()) == 20


def test_eval_prints_a_table_by_class(run_with_classes: Path, cli: Cli) -> None:
    result = cli("eval", run_with_classes, "eval.num_samples=40", "--quiet")
    assert result.code == 0, result.err
    assert "mmd, GEBM" in result.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--class", "10"], "there is no class 10; allowed are whole numbers from 0 to 9"),
        (["--class", "seven"], "--class is 'seven'; allowed: a class such as 7, classes such as 3,5, or all"),
        (["--class", "3,"], "--class is '3,'"),
        (["--class", "-1"], "--class is '-1'"),
        (["--class", ""], "--class is ''"),
        (["--class", "all", "--out", "shards"], "can't be streamed into a directory"),
        (["--class", "1", "--resume", "--out", "draws.npz"], "can't be resumed"),
        (["--class", "1", "--trace", "mmd"], "nothing for --class"),
        (["--trace", "mmd"], "the model has 10 classes"),
    ],
)
def test_what_can_not_be_drawn(
    run_with_classes: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli("sample", run_with_classes, *words)
    assert result.code == 2
    assert message in " ".join(result.err.split())
    assert not list(tmp_path.iterdir())


def test_classes_of_a_run_without_any(trained: Path, cli: Cli) -> None:
    result = cli("sample", trained, "--class", "3")
    assert result.code == 2
    assert "the model has no classes" in result.err


def test_data_without_labels(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "tiny.yaml").write_text(CONDITIONAL.replace("digits", "eight-gaussians"))
    result = cli("train", tmp_path / "tiny.yaml", "--out", tmp_path / "run")
    assert result.code == 2
    assert "conditional is true, and the dataset has no labels" in result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("metric", ["kale", "ood-auroc"])
def test_metrics_of_the_energy_are_refused_before_training(tmp_path: Path, cli: Cli, metric: str) -> None:
    (tmp_path / "tiny.yaml").write_text(CONDITIONAL)
    extra = "{name: ood-auroc, dataset: digits}" if metric == "ood-auroc" else "kale"
    result = cli("train", tmp_path / "tiny.yaml", f"eval.metrics=[{extra}]", "--out", tmp_path / "run")
    assert result.code == 2, result.err
    assert f"metric {metric}" in result.err
    assert not (tmp_path / "run").exists()
