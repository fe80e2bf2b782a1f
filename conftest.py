"""Fixtures that the tests of the kit and of its plugins share."""

from __future__ import annotations

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the file that takes longest: a worker that begins it last would end alone.

    xdist keeps this order only with ``--no-loadscope-reorder``, as in the Makefile.
    """
    items.sort(key=lambda item: item.path.name != "test_fuzz.py")


@pytest.fixture(scope="session", autouse=True)
def _no_reports() -> None:
    """Training and evaluation write no report, here and in programs that tests start; tests of reports ask for it."""
    os.environ["GEBM_KIT_REPORT"] = "0"


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and evaluation write no figures: drawing takes most of the time of a run as small as a test's."""
    from gebm_kit.engine.evaluation import evaluation_files

    monkeypatch.setattr(evaluation_files, "draw_all", lambda *_, **__: [])


@pytest.fixture
def quick_evaluation(no_pictures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures, and 64 base draws behind each estimate of A in the place of thousands."""
    from gebm_kit.engine.evaluation import budget
    from gebm_kit.engine.likelihood import class_densities, model_fit
    from gebm_kit.engine.training import loop, phases

    for module, name in ((loop, "LOG_PARTITION_DRAWS"), (phases, "INITIAL_DRAWS")):
        monkeypatch.setattr(module, name, 64)
    for module in (budget, class_densities, model_fit):
        monkeypatch.setattr(module, "NUM_DRAWS", 64)
