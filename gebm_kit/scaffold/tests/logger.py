"""Tests of the logger."""

from pathlib import Path

from gebm_kit.core.plugins import installed
from gebm_kit.scaffold.examples.logger import Example
from gebm_kit.testing import check_logger


def test_it_does_what_every_logger_must(tmp_path: Path) -> None:
    check_logger(Example(run_directory=tmp_path))


def test_the_kit_finds_it_by_name() -> None:
    assert installed().registry.get("logger", "example").load() is Example


def test_a_resumed_run_adds_to_the_table(tmp_path: Path) -> None:
    for step in (50, 100):
        logger = Example(delimiter=";", run_directory=tmp_path)
        logger.log(step, {"energy_loss": -0.5})
        logger.close()
    (path,) = tmp_path.iterdir()
    assert path.read_text() == "step;name;value\n50;energy_loss;-0.5\n100;energy_loss;-0.5\n"
