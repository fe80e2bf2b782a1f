"""``gebm-kit report`` and ``gebm-kit compare --html``, and the reports that training and evaluation write."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gebm_kit as gk
from gebm_kit.core.errors import UsageError

pytestmark = pytest.mark.pictures  # charts are drawn, not left blank

Cli = Callable[..., Any]

SECTIONS = (
    "verdict",
    "trust",
    "draws",
    "before-and-after",
    "by-energy",
    "neighbours",
    "energies",
    "training",
    "quality",
)
"""Anchors of a report about images; those about the making follow them."""


def headings(page: str) -> list[str]:
    return re.findall(r'<h2 id="([a-z-]+)">', page)


def test_an_evaluation_writes_a_report(cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEBM_KIT_REPORT", "1")
    result = cli("eval", run, "--json", "--quiet")
    assert result.code == 0, result.err
    page = (run / "report.html").read_text()
    assert headings(page) == ["in-short", *SECTIONS, "data", "recipe", "versions", "again"]
    for text in ("by mmd", "R-hat", "These are draws of the last evaluation.", "gebm-kit train", "sha256 of the first"):
        assert text in page, text
    assert "A recipe that trains in no time" in page
    assert not re.search('(src|href)="(?!data:|#)', page)
    assert "<script" not in page


def test_training_writes_a_report_unless_it_is_switched_off(
    cli: Cli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEBM_KIT_REPORT", "1")
    result = cli("train", recipe, "--out", tmp_path / "run", "--quiet")
    assert result.code == 0, result.err
    assert f"report: {tmp_path / 'run' / 'report.html'}" in result.out
    (tmp_path / "run" / "report.html").unlink()
    monkeypatch.setenv("GEBM_KIT_REPORT", "0")
    assert cli("train", recipe, "--out", tmp_path / "run", "--resume", "--json", "--quiet").code == 0
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_report_that_fails_is_a_warning(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gebm_kit.core.progress import GebmKitWarning
    from gebm_kit.engine.reporting import write

    def broken(*given: object) -> str:
        raise RuntimeError("no page")

    monkeypatch.setenv("GEBM_KIT_REPORT", "1")
    monkeypatch.setattr(write, "gather", broken)
    with pytest.warns(GebmKitWarning, match="no report was written: RuntimeError: no page"):
        assert write.written_at_the_end(gk.load_run(run)) is None
    assert not list(run.glob("*report*"))


def test_report_without_an_evaluation_and_without_a_checkpoint(cli: Cli, run: Path) -> None:
    (run / "evaluation.json").unlink()
    shutil.rmtree(run / "checkpoints")
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"state": "failed"}))
    result = cli("report", run, "--json", "--quiet")
    assert result.code == 0, result.err
    page = Path(result.json["report"]).read_text()
    assert "The run failed before it was evaluated." in page
    assert "--resume" in page
    assert "Evaluate it first" in page
    assert "energy_loss" in page  # the curves are there


def test_estimates_around_zero_have_no_ratio_and_what_is_off_comes_with_what_to_do(cli: Cli, run: Path) -> None:
    """An unbiased estimate may be negative: 81 % of it is no change, and a ladder does not rest on weights."""
    found = json.loads((run / "evaluation.json").read_text())
    for column, value in (("base", -0.0004), ("gebm", -0.0007), ("ratio", 1.8112)):
        found["metrics"][column]["mmd"] = {"value": value, "low": None, "high": None, "n": 2}
    found["log_partition"] = {"value": 0.5, "se": 0.01, "method": "smc", "reliable": True, "pareto_k": 0.98765}
    found["calibration"] = {"inverse_temperature": 3.25, "stderr": 0.1}
    found["inverse_temperature"] = 1.0
    (run / "evaluation.json").write_text(json.dumps(found))
    assert cli("report", run, "--quiet").code == 0
    page = (run / "report.html").read_text()
    said = page[page.index("In short") : page.index('id="verdict"')]
    assert "a ratio says little there" in said
    assert "What should be done?" in said
    assert "Text(" not in page
    assert "1.811" not in page
    assert "0.98765" not in page
    assert "0.99" not in page[page.index("log-partition A") :][:300]


def test_report_without_the_data_and_with_a_damaged_evaluation(cli: Cli, run: Path) -> None:
    resolved = (run / "resolved.yaml").read_text()
    (run / "resolved.yaml").write_text(resolved.replace("name: digits", "name: idx\n  path: /nowhere", 1))
    (run / "evaluation.json").write_text('{"metrics": 3}')
    result = cli("report", run, "--out", run.parent / "new" / "page.html", "--json", "--quiet")
    assert result.code == 0, result.err
    page = (run.parent / "new" / "page.html").read_text()
    assert "The data can&#39;t be read now" in page
    assert "is damaged: metrics" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report", "RUN", "--out", "page.pdf"], "--out must be an HTML file"),
        (["report", "nowhere"], "nowhere does not exist"),
        (["report", "."], "is not a run directory"),
        (["report", "sample.seed=1"], "takes no overrides"),
        (["compare", "RUN", "RUN2", "--html", "page.txt"], "--html must be an HTML file"),
    ],
)
def test_wrong_words(cli: Cli, trained: Path, words: list[str], message: str, tmp_path: Path) -> None:
    result = cli(*(str(trained) if word == "RUN" else word for word in words))
    assert result.code == 2
    assert message in result.err


def test_compare_writes_a_page_and_no_picture_that_was_not_asked_for(
    cli: Cli, run: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli("compare", run, trained, "--html", "both.html", "--json")
    assert result.code == 0, result.err
    assert (result.json["figure"], result.json["report"]) == (None, "both.html")
    assert not Path("compare.png").exists()
    page = Path("both.html").read_text()
    assert headings(page) == ["in-short", "scores", "draws", "outcomes", "training", "recipes", "again"]
    assert "Which GEBM is best by mmd?" in page
    assert "The recipes are the same." in page


def test_report_in_python(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a report is an HTML file"):
        gk.report(trained, tmp_path / "page.txt")
