"""Records of run directories: every state, every kind of damage, and the scores."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from gebm_kit.core.errors import CheckpointError, UsageError
from gebm_kit.engine.process.lock import LOCK
from gebm_kit.engine.run_directory.lock import RunLock
from gebm_kit.engine.run_directory.log_rows import read_rows
from gebm_kit.engine.run_directory.record import find_records, read_record


def estimate(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 5}


def made(
    path: Path, *, state: str = "finished", step: int = 12, seconds: float = 3.0, age: float = 0.0, **score: Any
) -> Path:
    """Write a run directory without weights."""
    path.mkdir(parents=True)
    (path / "env.json").write_text("{}")
    (path / "resolved.yaml").write_text(yaml.safe_dump({"train": {"steps": 10, "final": {"steps": 2}}}))
    (path / "status.json").write_text(json.dumps({"recipe": "toy", "state": state, "step": step, "seconds": seconds}))
    rows = [{"step": s, "kale": 0.1 * s, "energy_loss": -0.1} for s in (1, 4, 8)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if score:
        metrics = {
            "base": {"mmd": estimate(0.5), "modes.covered": estimate(5.0)},
            "gebm": {"mmd": estimate(score["gebm"]), "modes.covered": estimate(7.0)},
            "ratio": {"mmd": estimate(score["gebm"] / 0.5)},
        }
        protocol = {"mmd": {"samples": 40, "lower_is_better": True}, "modes": {"samples": 40, "lower_is_better": False}}
        (path / "evaluation.json").write_text(json.dumps({"metrics": metrics, "protocol": protocol}))
    when = (path / "status.json").stat().st_mtime - age
    os.utime(path / "status.json", (when, when))
    return path


def evaluated(path: Path, *pairs: tuple[int, float]) -> None:
    with open(path / "metrics.jsonl", "a") as stream:
        for step, value in pairs:
            row = {"step": step, "eval.base.mmd": 0.5, "eval.gebm.mmd": value, "eval.gebm.modes.covered": value}
            stream.write(json.dumps(row) + "\n")


def test_runs_are_found_at_any_depth_the_latest_first(tmp_path: Path) -> None:
    made(tmp_path / "toy" / "a", age=50)
    made(tmp_path / "b", age=10)
    made(tmp_path / "deep" / "er" / "c", age=100)
    made(tmp_path / "b" / "samples" / "not-a-run-of-its-own")
    (tmp_path / "draws").mkdir()
    (tmp_path / "draws" / "status.json").write_text("{}")
    assert [record.path.name for record in find_records(tmp_path)] == ["b", "a", "c"]
    assert [record.path for record in find_records(tmp_path / "b")] == [tmp_path / "b"]
    assert find_records(tmp_path / "draws") == []
    with pytest.raises(UsageError, match="nowhere does not exist"):
        find_records(tmp_path / "nowhere")


def test_a_finished_run(tmp_path: Path) -> None:
    record = read_record(made(tmp_path / "run", gebm=0.25))
    assert (record.recipe, record.state, record.step, record.total_steps) == ("toy", "finished", 12, 12)
    assert record.seconds == 3.0
    assert record.problem == ""
    assert record.value_names() == ["mmd", "modes.covered"]
    score = record.score()
    assert score is not None
    assert (score.name, score.columns["gebm"], score.columns["data"]) == ("mmd", estimate(0.25), None)
    assert score.columns["ratio"] == estimate(0.5)
    assert record.protocol("modes.covered") == {"samples": 40, "lower_is_better": False}
    assert record.score("frechet") is None


def test_the_best_value_follows_the_metrics_direction(tmp_path: Path) -> None:
    path = made(tmp_path / "run", gebm=0.3)
    evaluated(path, (4, 0.4), (8, 0.2), (12, 0.9), (12, 0.3))  # the last at a step counts: it was evaluated again
    record = read_record(path)
    assert record.score("mmd").best == (0.2, 8)  # type: ignore[union-attr]
    assert record.score("modes.covered").best == (0.4, 4)  # type: ignore[union-attr]


def test_a_run_that_was_only_looked_at(tmp_path: Path) -> None:
    path = made(tmp_path / "run", state="interrupted", step=8)
    assert read_record(path).score() is None
    evaluated(path, (4, 0.4), (8, 0.2))
    score = read_record(path).score()
    assert score is not None
    assert score.columns["gebm"] == {"value": 0.2, "low": None, "high": None, "n": None}
    assert score.columns["ratio"] is None
    assert score.best is None  # which way is better is said by an evaluation of the whole run


def test_a_running_run_is_told_from_a_killed_one_by_its_lock(tmp_path: Path) -> None:
    path = made(tmp_path / "run", state="running", step=4, age=60.0)
    assert read_record(path).state == "running"  # of a version without lock: nobody knows
    with RunLock() as lock:
        lock.hold(path)
        assert (path / LOCK).exists()
        record = read_record(path)
        assert (record.state, record.step) == ("running", 8)
        assert record.seconds is not None
        assert 62.0 < record.seconds < 120.0
    record = read_record(path)
    assert (record.state, record.step, record.seconds) == ("killed", 4, 3.0)
    (path / "metrics.jsonl").unlink()
    assert read_record(path).rows == []


@pytest.mark.parametrize("name", ["status.json", "resolved.yaml", "evaluation.json"])
@pytest.mark.parametrize("content", ["{", "[1]", "", b"\xff\xfe\x00", None])
def test_damage_is_told_and_breaks_nothing(tmp_path: Path, name: str, content: str | bytes | None) -> None:
    path = made(tmp_path / "run", gebm=0.25)
    made(tmp_path / "good")
    if content is None:
        (path / name).unlink()
        (path / name).mkdir()
    else:
        (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if name == "resolved.yaml" and content is None:
        (path / "resolved.yaml").rmdir()
    record = next(r for r in find_records(tmp_path) if r.path == path)
    assert record.state == "damaged"
    assert name in record.problem
    assert len(find_records(tmp_path)) == 2
    record.score()
    with pytest.raises(CheckpointError, match=name):
        read_record(path)


@pytest.mark.parametrize("evaluation", [{"metrics": []}, {"metrics": {"gebm": {"mmd": 3}}, "protocol": {"mmd": 1}}])
def test_an_evaluation_of_another_shape(tmp_path: Path, evaluation: Any) -> None:
    path = made(tmp_path / "run")
    (path / "evaluation.json").write_text(json.dumps(evaluation))
    (record,) = find_records(path)
    assert record.state == "damaged"
    assert "evaluation.json is damaged: metrics" in record.problem
    assert record.score("mmd") is None
    assert record.protocol("mmd") == {}


def test_rows_cut_off_or_of_another_kind_are_left_out(tmp_path: Path) -> None:
    path = made(tmp_path / "run", state="running")
    with open(path / "metrics.jsonl", "ab") as stream:
        stream.write(b'3\n\xff\xfe\n{"step": 9, "ka')
    assert [row["step"] for row in read_rows(path)] == [1, 4, 8]
    assert read_record(path).step == 12


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a run directory"):
        read_record(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_record(tmp_path / "nowhere")
