"""Classes on the command line: a run with classes from training to draws of a class, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
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
    assert found["equilibrium"]["metric"] == "mmd"
    assert found["equilibrium"]["metric_at_4x"] is not None
    assert found["calibration"]["rows"] == 199
    assert found["classifier"]["law"] == "energy-part"
    assert found["classifier"]["rows"] == 399
    assert found["classifier"]["nll"] is None
    for name in ("samples", "energies", "curves", "classes"):
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
    assert "class of the lowest E(x, y) + A_y on 399 held-out rows: right in" in " ".join(result.out.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--class", "10"], "there is no class 10; allowed are whole numbers from 0 to 9"),
        (["--class", "seven"], "--class is 'seven'; allowed: a class such as 7, classes such as 3,5, or all"),
        (["--class", "3,"], "--class is '3,'"),
        (["--class", "-1"], "--class is '-1'"),
        (["--class", ""], "--class is ''"),
        (["--class", "1", "--resume", "--out", "draws.npz"], "can't be resumed"),
        (["--class", "3", "--class", "all"], "--class is given 2 times, once as 'all'"),
        (["--class", "1", "--class", "2", "--trace", "mmd"], "--class is given 2 times ('1', '2'); allowed: one class"),
        (["--class", "1,2", "--trace", "mmd"], "--class is '1,2'; allowed: one class, such as 7"),
        (["--class", "10", "--trace", "mmd"], "there is no class 10"),
        (["--trace", "mmd"], "a trace follows the chains of one class, and the model has 10 classes"),
        (["--class", "1", "--out", "draws.csv"], "draws.csv is a table of columns, and the draws have shape"),
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


def test_shards_of_classes(run_with_classes: Path, tmp_path: Path, cli: Cli) -> None:
    words = ("--class", "3,5", "--out", tmp_path / "shards", "--images", tmp_path / "png", *SAMPLE)
    found = cli("sample", run_with_classes, *words)
    assert found.code == 0, found.err
    assert (found.json["classes"], found.json["shards"]) == ({"3": 10, "5": 10}, 2)
    names = [path.name for path in sorted((tmp_path / "png").iterdir())]
    assert [name[-5] for name in names] == ["3"] * 10 + ["5"] * 10
    alone = cli("sample", run_with_classes, "--class", "3,5", "--out", tmp_path / "draws.npz", *SAMPLE)
    assert alone.code == 0, alone.err
    assert gk.load_draws(tmp_path / "shards").x.equal(gk.load_draws(tmp_path / "draws.npz").x)
    again = cli("sample", run_with_classes, *words[:4], "--resume", *SAMPLE)
    assert again.json["classes"] == {"3": 10, "5": 10}


@pytest.fixture(scope="module")
def run_that_classifies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose base has no classes, so that Bayes' rule holds, and a file of its rows."""
    folder = tmp_path_factory.mktemp("bayes")
    (folder / "tiny.yaml").write_text(RECIPE.replace("energy: {name: mlp, ", "energy: {name: mlp, conditional: true, "))
    assert main(["train", str(folder / "tiny.yaml"), "--out", str(folder / "run"), "--quiet"]) == 0
    np.save(folder / "rows.npy", gk.load_run(folder / "run").dataset.split("test").first(12).numpy())
    return folder


def table(place: str) -> dict[str, list[float]]:
    header, *lines = Path(place).read_text().splitlines()
    cells = [[float(cell) for cell in line.split(",")] for line in lines]
    return dict(zip(header.split(","), map(list, zip(*cells, strict=True)), strict=True))


def test_scores_have_class_probabilities(run_that_classifies: Path, cli: Cli) -> None:
    run, rows = run_that_classifies / "run", run_that_classifies / "rows.npy"
    found = cli("score", run, rows, "--json", "--quiet").json
    names = [f"{kind}_{label}" for kind in ("energy", "probability") for label in range(10)]
    assert found["columns"] == ["energy", *names, "class"]
    assert found["classes"]["law"] == "bayes"
    assert sum(found["classes"]["rows"].values()) == 12
    assert list(found["classes"]["log_partition"]) == [str(label) for label in range(10)]
    assert (found["log_partition"], found["mean_log_density"]) == (None, None)
    written = table(found["out"])
    for index in range(12):
        probabilities = [written[f"probability_{label}"][index] for label in range(10)]
        assert sum(probabilities) == pytest.approx(1.0)
        assert written["class"][index] == max(range(10), key=probabilities.__getitem__)
    one = cli("score", run, rows, "--class", 3, "--json", "--quiet", "--out", run_that_classifies / "3.csv").json
    assert (one["class"], one["columns"]) == (3, ["energy"])
    shift = found["classes"]["log_partition"]["3"]["value"]
    given = table(one["out"])["energy"]
    assert written["energy_3"] == pytest.approx([value + shift for value in given], abs=1e-5)
    shown = cli("score", run, rows, "--quiet")
    assert "most probable in" in shown.out
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["classifier"]["law"] == "bayes"
    assert 0 <= evaluation["classifier"]["calibration_error"] <= 1
    assert "class probabilities by Bayes' rule on 399 held-out rows" in cli("eval", run, "--quiet").out


def test_scores_of_a_base_with_classes_say_what_they_are(run_with_classes: Path, tmp_path: Path, cli: Cli) -> None:
    np.save(tmp_path / "rows.npy", gk.load_run(run_with_classes).dataset.split("test").first(5).numpy())
    found = cli("score", run_with_classes, tmp_path / "rows.npy", "--json", "--quiet", "--out", tmp_path / "s.csv").json
    assert found["columns"] == [f"energy_{label}" for label in range(10)]
    assert (found["mean_energy"], found["classes"]["law"], found["classes"]["rows"]) == (None, "energy-part", None)
    assert "there are no class probabilities" in found["classes"]["reason"]
    shown = cli("score", run_with_classes, tmp_path / "rows.npy", "--quiet", "--out", tmp_path / "s.csv")
    assert "there are no class probabilities" in " ".join(shown.out.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--class", "10"], "there is no class 10; allowed are whole numbers from 0 to 9"),
        (["--class", "all"], "--class is 'all'; allowed: one class, such as 7"),
        (["--class", "3,5"], "--class is '3,5'"),
        (["--class", "3", "--class", "5"], "--class is given 2 times ('3', '5'); allowed: one class"),
        (["--class", ""], "--class is ''"),
    ],
)
def test_classes_that_no_row_can_have(
    run_that_classifies: Path, tmp_path: Path, cli: Cli, words: list[str], message: str
) -> None:
    rows = run_that_classifies / "rows.npy"
    result = cli("score", run_that_classifies / "run", rows, "--out", tmp_path / "scores.csv", *words)
    assert result.code == 2
    assert message in " ".join(result.err.split())
    assert not list(tmp_path.iterdir())


def test_classes_of_rows_of_a_run_without_any(trained: Path, run_that_classifies: Path, cli: Cli) -> None:
    result = cli("score", trained, run_that_classifies / "rows.npy", "--class", "3")
    assert result.code == 2
    assert "was given, and the model has no classes" in result.err
    assert cli("sample", trained, "--class", "3", "--trace", "mmd").code == 2


def test_a_trace_of_one_class(run_with_classes: Path, tmp_path: Path, cli: Cli) -> None:
    words = ("--trace", "mmd", "--class", 7, "sample.warmup=4", "sample.steps=4", "--num-samples", 20, "--json")
    found = cli("sample", run_with_classes, *words, "--out", tmp_path / "trace.json").json
    assert found["trace"]["protocol"]["class"] == 7
    assert found["trace"]["protocol"]["reference"] == 40
    assert found["figures"] == [str(run_with_classes / "figures" / "along-mmd-class7.png")]


@pytest.mark.parametrize("word", ["3", "trouser", "all"])
def test_classes_of_a_run_without_any(trained: Path, cli: Cli, word: str) -> None:
    result = cli("sample", trained, "--class", word)
    assert result.code == 2
    assert "the model has no classes" in result.err


def test_data_without_labels(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "tiny.yaml").write_text(CONDITIONAL.replace("digits", "eight-gaussians"))
    result = cli("train", tmp_path / "tiny.yaml", "--out", tmp_path / "run")
    assert result.code == 2
    assert "conditional is true, and the dataset has no labels" in result.err
    assert not (tmp_path / "run").exists()


def test_metrics_of_the_energy_are_those_of_the_classes(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "tiny.yaml").write_text(CONDITIONAL)
    metrics = "eval.metrics=[{name: ood-auroc, dataset: digits}, {name: kale, num_draws: 50}, mmd]"
    result = cli("train", tmp_path / "tiny.yaml", metrics, "--out", tmp_path / "run", "--json")
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert {"kale", "ood-auroc"} <= set(found["metrics"]["gebm"])
    assert "kale" in found["classes"]["0"]["metrics"]["gebm"]
