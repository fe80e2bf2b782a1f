"""The word ``calibrated`` in commands on a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

WORD = "inverse_temperature=calibrated"


@pytest.fixture
def calibrated(run: Path) -> Path:
    """Return a run whose evaluation found 0.625."""
    path = run / "evaluation.json"
    found = json.loads(path.read_text())
    found["calibration"] |= {"inverse_temperature": 0.625, "reason": ""}
    path.write_text(json.dumps(found))
    return run


def test_commands_on_a_run_take_the_word(calibrated: Path, cli: Cli, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("\n".join([",".join(["0"] * 64)] * 3))
    assert cli("sample", calibrated, WORD, "--json").json["inverse_temperature"] == 0.625
    assert cli("score", calibrated, rows, WORD, "--json").json["inverse_temperature"] == 0.625
    traced = cli("sample", calibrated, "--trace", "mmd", "inverse_temperature=[1,calibrated]", "--json").json["trace"]
    assert [curve["inverse_temperature"] for curve in traced["curves"]] == [1.0, 0.625]
    found = cli("eval", calibrated, WORD, "--json").json
    assert found["inverse_temperature"] == (found["calibration"]["inverse_temperature"] or 1.0)


def test_a_number_is_short_in_every_command_on_a_run(run: Path, cli: Cli, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("\n".join([",".join(["0"] * 64)] * 3))
    assert cli("eval", run, "inverse_temperature=0.5", "--json").json["inverse_temperature"] == 0.5
    assert cli("score", run, rows, "inverse_temperature=0.5", "--json").json["inverse_temperature"] == 0.5


def test_another_checkpoint_has_no_calibration(calibrated: Path, cli: Cli) -> None:
    path = calibrated / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"checkpoint": "step-0000001"}))
    result = cli("sample", calibrated, WORD)
    assert result.code == 2
    said = " ".join(result.err.split())
    assert "0.625, belongs to checkpoint step-0000001, not to step-" in said
    assert "gebm-kit eval" in said
