"""What ``gebm-kit eval`` prints: verdicts without the table's figures, calibration, and sentences that wrap."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from gebm_kit.cli import ui
from gebm_kit.cli.results import show_calibration, show_log_partition, verdict_lines

RATIO = {"value": 0.5, "low": 0.4, "high": 0.6}


def test_sentences_that_differ_in_the_metric_alone_become_one() -> None:
    better, same = "The GEBM is better than its base by", "The GEBM is no different from its base by"
    verdict = {name: f"{better} {name}: 0.5 times the base's value (...)." for name in ("fid", "kid")}
    verdict |= {"mmd": f"{same} mmd: 1 times the base's value (...)."}
    without = f"{better} prdc.recall: +0.1 beside the base's value (...)."
    ratios = dict.fromkeys(verdict, RATIO)
    assert verdict_lines({**verdict, "prdc.recall": without}, ratios) == [
        f"{better} fid, kid.",
        f"{same} mmd.",
        without,  # the table has no ratio of it
    ]


@pytest.mark.parametrize(
    ("found", "used", "words", "offers"),
    [
        ({"inverse_temperature": 0.5, "stderr": 0.01}, 1.0, "0.5 +- 0.01 (KALE 2 there, 1 at 1); the energy is", True),
        ({"inverse_temperature": 0.5, "stderr": 0.01}, 0.5, "overconfident", False),
        ({"inverse_temperature": 0.99, "stderr": 0.1}, 1.0, "the energy fits held-out data as it is", False),
        (
            {"inverse_temperature": 100.0, "stderr": None, "reason": "KALE still grows at 100"},
            1.0,
            "still grows",
            False,
        ),
        (
            {"inverse_temperature": None, "stderr": None, "reason": "the energy is constant"},
            1.0,
            "as the energy",
            False,
        ),
    ],
)
def test_a_calibration_is_offered_where_it_matters(
    found: dict[str, Any], used: float, words: str, offers: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    show_calibration({"kale": 2.0, "kale_at_1": 1.0, **found}, used)
    out = capsys.readouterr().out
    assert words in out
    assert ("inverse_temperature=calibrated draws there" in out) is offers


def test_an_unreliable_log_partition_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    partition = {"value": 1.0, "se": 0.1, "low": 0.8, "high": 1.2, "method": "importance-sampling", "reliable": False}
    for reason in ("Pareto k 0.9; not reliable: ...", "asked for"):
        show_log_partition({**partition, "reason": reason})
        assert capsys.readouterr().out.count("not reliable") == 1


def test_sentences_wrap_on_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((20, 24)))
    words = "one sentence about many things, path/to/something-that-is-long"
    ui.sentence(words, "  ")
    assert capsys.readouterr().out == words + "\n"
    monkeypatch.setattr(ui, "is_terminal", lambda stream: stream is sys.stdout)
    ui.sentence(words, "  ")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["one sentence about", "  many things,", "  path/to/something-that-is-long"]
