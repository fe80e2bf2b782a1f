"""sample --trace: JSON, files, the table, sweeps, and words that are refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

TRACE_KEYS = {
    "metric", "sampler", "axis", "lower_is_better", "seed", "protocol", "points", "curves", "base", "data",
}  # fmt: skip
CURVE_KEYS = {
    "inverse_temperature", "warmup_steps", "warmup_chains", "warmup_grad_evals", "warmup_forward_evals", "step_size",
    "acceptance", "divergences", "improvement", "evals_to_95",
}  # fmt: skip
POINT_KEYS = {
    "inverse_temperature", "name", "step", "grad_evals", "forward_evals", "value", "low", "high", "n",
}  # fmt: skip


@pytest.mark.pictures
def test_json_files_and_figure(cli: Any, run: Path) -> None:
    result = cli("sample", run, "--trace", "mmd", "--num-samples", 40, "--seed", 3, "--json")
    assert result.code == 0
    found = result.json
    assert set(found) == {"schema", "trace", "out", "run", "figures"}
    assert set(found["trace"]) == TRACE_KEYS
    (curve,) = found["trace"]["curves"]
    assert set(curve) == CURVE_KEYS
    points = found["trace"]["points"]
    assert set(points[0]) == POINT_KEYS
    assert [point["step"] for point in points] == [0, 1, 2, 4, 8, 16, 18]  # warm-up and steps of the recipe: 8 + 10
    assert [point["grad_evals"] for point in points] == [0, 2, 3, 5, 9, 17, 19]  # mala
    assert (curve["warmup_steps"], curve["warmup_chains"]) == (8, 30)
    assert curve["warmup_grad_evals"] > 8
    protocol = found["trace"]["protocol"]
    assert (protocol["samples"], protocol["sets"], found["trace"]["seed"]) == (40, 2, 3)
    kept = json.loads(Path(found["out"]).read_text())
    assert kept == {"schema": 1, **found["trace"]}
    assert Path(found["out"]).parent == run / "samples"
    assert Path(found["out"]).name.startswith("along-mmd-mala-seed3-")
    assert found["figures"] == [str(run / "figures" / "along-mmd.png")]
    with Image.open(found["figures"][0]) as image:
        assert image.format == "PNG"
    assert "trace 36/36" in result.err


def test_sweep_in_plain_text_and_csv(cli: Any, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "rows.csv"
    result = cli("sample", run, "--trace", "mmd", "--sampler=pcn", "inverse_temperature=[1, 0, 1e2]", "--out", out)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].split() == ["inverse", "temperature", "step", "evaluations", "per", "chain", "mmd"]
    assert [line.split()[0] for line in lines[1:22]] == ["1"] * 7 + ["0"] * 7 + ["100"] * 7
    assert any(line.startswith("held-out data: mmd ") for line in lines)
    for beta in ("1", "0", "100"):
        (sentence,) = [line for line in lines if line.startswith(f"inverse temperature {beta}: mmd ")]
        assert "improve" in sentence
        assert "evaluations per chain" in sentence
    assert lines[-2] == f"figure: {run / 'figures' / 'along-mmd.png'}"
    assert lines[-1] == f"trace: {out}"
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == POINT_KEYS
    assert [row["inverse_temperature"] for row in rows] == ["1.0"] * 7 + ["0.0"] * 7 + ["100.0"] * 7
    assert not list((run / "samples").iterdir())


def test_what_a_gradient_sampler_spends_besides_is_shown(cli: Any, run: Path) -> None:
    result = cli("sample", run, "--trace", "mmd", "--sampler=isir", "sample.steps=2", "sample.warmup=0")
    lines = [line.split() for line in result.out.splitlines()]
    assert " ".join(lines[0]) == "inverse temperature step gradients per chain other evaluations mmd"
    assert [line[:4] for line in lines[1:4]] == [["1", "0", "0", "0"], ["1", "1", "2", "8"], ["1", "2", "4", "15"]]


def test_the_long_name_of_beta_and_the_last_word_counts(cli: Any, run: Path) -> None:
    words = ("sample.warmup=0", "sample.steps=2", "--json", "--trace", "mmd")
    for betas, expected in [
        (["sample.inverse_temperature=[2,3]"], [2, 3]),
        (["inverse_temperature=[2,3]", "inverse_temperature=4"], [4]),
        (["sample.inverse_temperature=4", "inverse_temperature=[5]"], [5]),
        ([], [1]),
    ]:
        found = cli("sample", run, *words, *betas).json["trace"]
        assert [curve["inverse_temperature"] for curve in found["curves"]] == expected
        assert found["curves"][0]["warmup_grad_evals"] == 0
    found = cli("sample", run, "inverse_temperature=0.5", "--json")
    assert found.json["inverse_temperature"] == 0.5


def test_a_metric_has_the_recipes_parameters(cli: Any, run: Path) -> None:
    words = ("sample.steps=2", "--json", "--trace", "frechet", "--quiet")
    node = "eval.metrics=[{name: frechet, features: pixels, extrapolate: false}]"
    found = cli("sample", run, *words, node, "eval.num_sets=3").json["trace"]
    assert (found["protocol"]["features"], found["protocol"]["extrapolated"]) == ("pixels", False)
    assert found["points"][0]["n"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inverse_temperature=[1,10]"], "goes with --trace METRIC"),
        (["sample.inverse_temperature=[1]"], "goes with --trace METRIC"),
        (["--trace", "frechett"], "did you mean frechet?"),
        (["--trace", "kale"], "a property of the model"),
        (["--trace", "modes"], "modes"),
        (["--trace", "mmd", "inverse_temperature=[]"], "lists no temperature"),
        (["--trace", "mmd", "inverse_temperature=[1,-2]"], "-2.0 is out of range; allowed: >= 0"),
        (["--trace", "mmd", "inverse_temperature=[1,.nan]"], "not finite"),
        (["--trace", "mmd", "inverse_temperature=[1,hot]"], "'hot' is not a number"),
        (["--trace", "mmd", "inverse_temperature=[1,[2]]"], "[2]"),
        (["--trace", "mmd", "inverse_temperature=[1,2,1.0]"], "inverse_temperature 1 is listed twice"),
        (["--trace", "mmd", "--images", "png"], "nothing for --images"),
        (["--trace", "mmd", "--require-converged"], "nothing for --require-converged"),
        (["--trace", "mmd", "--out", "draws.npz"], ".json or .csv"),
        (["--trace", "mmd", "eval.num_samples=9"], "eval.metrics, eval.num_sets, eval.num_reference and eval.features"),
        (["--trace", "mmd", "sample.thin=2"], "one draw of each chain"),
        (["--trace", "mmd", "train.steps=9"], "can't override 'train'"),
        (["--trace", "mmd", "eval.num_sets=1"], ">= 2"),
        (["--trace", "mmd", "--num-samples", "1"], ">= 2, got 1"),
        (["--trace", "mmd", "--sampler", "hcm"], "did you mean hmc?"),
    ],
)
def test_bad_words(cli: Any, run: Path, words: list[str], message: str) -> None:
    before = set(run.rglob("*"))
    result = cli("sample", run, *words)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert len(result.err.splitlines()) <= 3
    assert set(run.rglob("*")) == before


def test_several_processes_are_refused(cli: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    result = cli("sample", run, "--trace", "mmd")
    assert result.code == 2
    assert "--trace runs in one process" in result.err
