"""metrics.jsonl: whole lines of valid JSON, flushed, and appended when a run resumes."""

import json
import math
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gebm_kit.core.errors import RunFailed
from gebm_kit.core.interfaces import Logger
from gebm_kit.loggers.jsonl import Jsonl


def test_lines(tmp_path):
    logger = Jsonl(run_directory=tmp_path)
    assert isinstance(logger, Logger)
    logger.log(10, {"kale": 0.5, "energy_loss": math.nan, "base_loss": math.inf})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()  # before close: every line is flushed
    assert [json.loads(line) for line in lines] == [{"step": 10, "kale": 0.5, "energy_loss": None, "base_loss": None}]
    logger.log(20, {"kale": -1e-7})
    logger.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    assert json.loads(text.splitlines()[1]) == {"step": 20, "kale": -1e-7}


def test_a_resumed_run_appends(tmp_path):
    for step in (1, 2):
        logger = Jsonl(run_directory=tmp_path)
        logger.log(step, {"kale": 0.0})
        logger.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let this process write no file beyond ``size`` bytes, as on a disk that is full there."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_a_failed_run(tmp_path):
    logger = Jsonl(run_directory=tmp_path)
    with files_of_at_most(0), pytest.raises(RunFailed, match=r"metrics.jsonl can't be written to: File too large"):
        logger.log(1, {"kale": 0.0})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_no_directory(tmp_path):
    with pytest.raises(RunFailed, match="can't be opened: No such file"):
        Jsonl(run_directory=tmp_path / "missing")


def test_a_row_that_fits_in_part_is_taken_back(tmp_path):
    logger = Jsonl(run_directory=tmp_path)
    logger.log(1, {"kale": 0.0})
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with files_of_at_most(size + 5), pytest.raises(RunFailed, match="File too large"):
        logger.log(2, {"kale": 0.0})
    assert (tmp_path / "metrics.jsonl").stat().st_size == size
    logger.log(3, {"kale": 0.0})
    logger.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 3]
