"""``gebm-kit runs``: the list, its JSON, and what it does with runs that are damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

KEYS = {
    "run", "recipe", "state", "step", "total_steps", "seconds", "updated", "metric", "data", "base", "gebm", "ratio",
    "best", "problem",
}  # fmt: skip


def test_no_runs(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("runs").out.startswith("there are no runs under runs;")
    assert cli("runs", "--json").json == {"schema": 1, "directory": "runs", "runs": []}
    result = cli("runs", "elsewhere")
    assert (result.code, result.out) == (2, "")
    assert "elsewhere is not there" in result.err


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
