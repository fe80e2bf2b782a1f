"""``gebm-kit runs`` and ``gebm-kit compare``: tables, JSON, and damaged runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gebm_kit.cli.runs import FIRST_TO_GO, HEADINGS, fitting_columns

KEYS = {
    "run", "recipe", "state", "step", "total_steps", "seconds", "updated", "metric", "data", "base", "gebm", "ratio",
    "best", "problem", "protocol_group",
}  # fmt: skip


def test_no_runs(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("runs").out.startswith("there are no runs under runs;")
    assert cli("runs", "--json").json == {"schema": 1, "directory": "runs", "runs": []}
    result = cli("runs", "elsewhere")
    assert (result.code, result.out) == (2, "")
    assert "elsewhere does not exist" in result.err


def test_the_list(cli: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good = shutil.copytree(trained, tmp_path / "runs" / "good")
    bad = shutil.copytree(trained, tmp_path / "runs" / "bad")
    (bad / "status.json").write_text("{")
    found = cli("runs", "--json").json["runs"]
    assert all(set(run) == KEYS for run in found)
    by_name = {Path(run["run"]).name: run for run in found}
    assert by_name["bad"]["state"] == "damaged"
    assert "status.json is missing or damaged" in by_name["bad"]["problem"]
    one = by_name["good"]
    assert (one["recipe"], one["state"], one["step"], one["total_steps"]) == ("tiny", "finished", 6, 6)
    evaluation = json.loads((good / "evaluation.json").read_text())
    assert one["metric"] == "mmd"
    assert one["gebm"] == evaluation["metrics"]["gebm"]["mmd"]
    assert one["best"] == {"value": one["gebm"]["value"], "step": 6}
    assert evaluation["protocol"]["mmd"]["lower_is_better"] is True

    result = cli("runs")
    heading, *lines = result.out.splitlines()
    assert heading.split("  ")[0] == "run"
    assert {line.split()[0] for line in lines} == {"runs/good", "runs/bad"}
    assert "status.json is missing or damaged" in result.err
    assert cli("runs", "--quiet").err == ""
    assert cli("runs", good, "--metric", "mmd").code == 0
    wrong = cli("runs", "--metric", "mdm")
    assert wrong.code == 2
    assert "did you mean mmd?" in wrong.err


def test_values_of_different_protocols_are_marked(
    cli: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two", "three", "looked"):
        shutil.copytree(trained, tmp_path / "runs" / name)
    assert "#" not in cli("runs").out
    assert {run["protocol_group"] for run in cli("runs", "--json").json["runs"]} == {1}
    path = tmp_path / "runs" / "two" / "evaluation.json"
    evaluation = json.loads(path.read_text())
    evaluation["protocol"]["mmd"]["features_checksum"] = "another"
    path.write_text(json.dumps(evaluation))
    path = tmp_path / "runs" / "looked" / "evaluation.json"  # as of a run that was scored in training alone
    row = {"step": 6, "eval.gebm.mmd": 0.5}
    path.unlink()
    with open(path.parent / "metrics.jsonl", "a") as stream:
        stream.write(json.dumps(row) + "\n")
    out = cli("runs").out
    marks = {line.split()[0]: line.split()[5] for line in out.splitlines() if line.startswith("runs/")}
    assert marks["runs/one"] == marks["runs/three"]
    assert {marks["runs/one"], marks["runs/two"]} == {"#1", "#2"}
    assert marks["runs/looked"] == "?"
    assert "comparable where they have the same number" in out
    groups = {Path(run["run"]).name: run["protocol_group"] for run in cli("runs", "--json").json["runs"]}
    assert groups["one"] == groups["three"] != groups["two"]
    assert groups["looked"] is None


def test_a_narrow_terminal_gets_the_columns_that_fit() -> None:
    rows = [["runs/quickstart/20261123T030107Z-f1b08a", *["12345678"] * (len(HEADINGS) - 1)]]
    everything = list(range(len(HEADINGS)))
    assert fitting_columns(everything, rows, 1000) == everything
    for width in (80, 100, 120, 140):
        kept = fitting_columns(everything, rows, width)
        assert 1 + sum(3 + max(len(HEADINGS[i]), len(rows[0][i])) for i in kept) <= max(width, 87)
        gone = [heading for heading in HEADINGS if HEADINGS.index(heading) not in kept]
        assert set(gone) == set(FIRST_TO_GO[: len(gone)])


@pytest.mark.pictures
def test_compare(cli: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "one")
    other = shutil.copytree(trained, tmp_path / "two")
    text = (other / "resolved.yaml").read_text()
    (other / "resolved.yaml").write_text(text.replace("seed: 0", "seed: 7", 1))
    found = cli("compare", "one", "two", "--json").json
    assert set(found) == {"schema", "runs", "differences", "metrics", "figure"}
    assert found["differences"] == {"train.seed": [0, 7]}
    assert found["metrics"]["mmd"]["comparable"] is True
    assert found["figure"] == "compare.png"
    assert (tmp_path / "compare.png").stat().st_size > 10_000
    result = cli("compare", "one", "two", "--out", "pictures/both.png")
    assert (result.code, result.err) == (0, "")
    assert (tmp_path / "pictures" / "both.png").is_file()
    lines = result.out.splitlines()
    assert lines[0].split() == ["recipe", "one", "two"]
    assert lines[1].split() == ["train.seed", "0", "7"]
    for word in ("state", "step", "time", "divergences", "GEBM / base"):
        assert any(word in line for line in lines), word
    assert lines[-1] == "figure: pictures/both.png"
    assert any(line.startswith("mmd: 60 draws against ") and "features pixels (identity)" in line for line in lines)

    evaluation = json.loads((other / "evaluation.json").read_text())
    evaluation["protocol"]["mmd"]["samples"] = 61
    (other / "evaluation.json").write_text(json.dumps(evaluation))
    marked = cli("compare", "one", "two").out
    assert "! not comparable: mmd (samples: 60, 61)" in marked
    assert "mmd !" in marked


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["one"], "at least two runs"),
        (["one", "one"], "one is named twice"),
        (["one", "nowhere"], "nowhere does not exist"),
        (["one", "two", "--out", "compare.svg"], "PNG"),
        (["one", "two", "--out", "one/env.json/x.png"], "can't be written"),
    ],
)
def test_what_compare_refuses(
    cli: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        shutil.copytree(trained, tmp_path / name)
    result = cli("compare", *words)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert not list(tmp_path.glob("*.png"))
