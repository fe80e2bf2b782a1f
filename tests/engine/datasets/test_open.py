"""What is said when a dataset is opened."""

from __future__ import annotations

import logging

import pytest

from gebm_kit.cli.ui import Ui
from gebm_kit.config.load import load_recipe
from gebm_kit.core.progress import note
from gebm_kit.engine.datasets import open as opening


class Speaking:
    def describe_reading(self) -> str:
        return "odd\x1b[31m name.csv:\n 3 rows"


def test_what_was_read_is_one_note_without_control_characters(monkeypatch, caplog):
    monkeypatch.setattr(opening, "_opened", lambda recipe: Speaking())
    with caplog.at_level(logging.INFO, logger="gebm_kit"):
        opening.open_dataset(load_recipe("quickstart"))
    assert [record.getMessage() for record in caplog.records] == ["data: odd?[31m name.csv: 3 rows"]


@pytest.mark.parametrize(("quiet", "expected"), [(False, "gebm-kit: data: 3 rows\n"), (True, "")])
def test_the_command_line_prints_a_note_once_on_stderr(capsys, quiet, expected):
    Ui(quiet=True)  # an earlier command no longer listens
    Ui(quiet=quiet)
    note("data: 3 rows")
    note("data: 3 rows")
    assert capsys.readouterr() == ("", expected)
