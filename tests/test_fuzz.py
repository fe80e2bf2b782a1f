"""Mutated files never lead to a traceback, a crash, a hang or much memory: 2,000 of the cases of benchmarks/fuzz."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fuzz.__main__ import run_case
from benchmarks.fuzz.mutations import mutated_bytes, mutated_json, mutated_text
from benchmarks.fuzz.scene import Reader

ROOT = Path(__file__).parent.parent


def fuzz(*words: str) -> dict:
    command = [sys.executable, "-m", "benchmarks.fuzz", "--json", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["1", "2"])
def test_a_thousand_mutated_files_end_with_a_message_or_do_no_harm(seed: str) -> None:
    found = fuzz("--cases", "1000", "--seed", seed)
    assert found["cases"] >= 1000
    assert found["failed"] == []
    assert found["memory"] < 1_000_000_000


def unchanged(content: bytes, rng: random.Random) -> bytes:
    return content


def test_a_reader_that_fails_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("content")
    reader = Reader("a reader", "file", unchanged, (("list", "sampler"),))

    def fails(words: list[str]) -> int:
        raise KeyError("lost")

    monkeypatch.setattr("benchmarks.fuzz.__main__.main", fails)
    assert "KeyError" in run_case(reader, 0, seed=0)
    monkeypatch.setattr("benchmarks.fuzz.__main__.main", lambda words: 1)
    assert "exit code 1" in run_case(reader, 0, seed=0)
    monkeypatch.setattr("benchmarks.fuzz.__main__.main", lambda words: 2)
    assert run_case(reader, 0, seed=0) == ""
    assert (tmp_path / "file").read_text() == "content"


def test_mutations_change_files_and_repeat_under_a_seed() -> None:
    content = b'{"a": [1, 2, {"b": "word"}], "c": 3}\nmore words here\n' * 3
    for mutate in (mutated_bytes, mutated_text):
        found = [mutate(content, random.Random(seed)) for seed in range(50)]
        assert found == [mutate(content, random.Random(seed)) for seed in range(50)]
        assert len(set(found)) > 40
    record = b'{"a": [1, 2, {"b": "word"}]}'
    assert len({mutated_json(record, random.Random(seed)) for seed in range(50)}) > 25
