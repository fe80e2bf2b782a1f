"""Records of runs, read from their directories without torch and without building anything, whatever their state.

They are for looking at many runs at once: a run that is damaged, in training, or trained with plugins that are gone can
still be read. To sample from a run, use `gebm_kit.engine.run_directory.run.Run`.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gebm_kit.config.schema import PRETRAINED
from gebm_kit.core.errors import CheckpointError, UsageError
from gebm_kit.core.files import read_json
from gebm_kit.core.paths import user_path
from gebm_kit.engine.process.lock import LOCK

try:
    import fcntl
except ImportError:  # Windows, where a killed run can't be told from a running one
    fcntl = None  # type: ignore[assignment, unused-ignore]


COLUMNS = ("data", "base", "gebm", "ratio")
"""Keys of an evaluation\'s ``metrics``."""


_EVALUATED = "eval.gebm."
"""Prefix of the keys of metrics.jsonl that hold a metric of the GEBM."""


@dataclass(frozen=True)
class Score:
    """One value of a metric in the last evaluation.

    Attributes:
        name: name of the value.
        columns: for each of `COLUMNS` its ``value``, ``low``, ``high`` and ``n``, as in ``gebm-kit eval``, or None.
        best: the GEBM's best value over the evaluations of the run, and its step; None if no direction counts as better.
    """

    name: str
    columns: Mapping[str, Mapping[str, Any] | None]
    best: tuple[float, int] | None

    def as_dict(self) -> dict[str, Any]:
        best = None if self.best is None else {"value": self.best[0], "step": self.best[1]}
        return {"metric": self.name, **self.columns, "best": best}


@dataclass(frozen=True)
class RunRecord:
    """A run as its directory describes it.

    Attributes:
        path: the directory.
        recipe: name of the recipe.
        state: the state in ``status.json`` (running, interrupted, trained, finished, failed); or ``killed``, if that says
            running but no process holds the directory; or ``damaged``.
        step: cycles trained, by the last log line while the run is running, otherwise by the newest checkpoint.
        total_steps: cycles of all phases.
        seconds: wall time of all attempts.
        updated: time of the last change of the status, in seconds since the epoch.
        resolved: the resolved recipe, as plain data.
        evaluation: the last evaluation, as the JSON of ``gebm-kit eval``, or None.
        problem: what is damaged, in a sentence; "" if nothing is.
    """

    path: Path
    recipe: str
    state: str
    step: int | None
    total_steps: int | None
    seconds: float | None
    updated: float
    resolved: dict[str, Any] = field(repr=False)
    evaluation: dict[str, Any] | None = field(repr=False)
    problem: str = ""

    @functools.cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl."""
        return read_rows(self.path)

    @functools.cached_property
    def evaluated_rows(self) -> list[dict[str, Any]]:
        """Rows of evaluations, the last one at each step."""
        rows = read_rows(self.path, containing=_EVALUATED)
        return list({row["step"]: row for row in rows if isinstance(row.get("step"), int)}.values())

    @functools.cached_property
    def checkpoint_state(self) -> dict[str, Any]:
        """Plain state in the newest readable checkpoint, not verified; empty if there is none."""
        for path in sorted((self.path / "checkpoints").glob("step-*"), reverse=True):
            found = _mapping(path / "state.json", []).get("state")
            if isinstance(found, dict):
                return found
        return {}

    def value_names(self) -> list[str]:
        """Return the names of the values that the run was scored by, in the recipe's order."""
        found = list((self._metrics.get("gebm") or {}).keys())
        if not found and self.evaluated_rows:
            return [name.removeprefix(_EVALUATED) for name in self.evaluated_rows[-1] if name.startswith(_EVALUATED)]
        return found

    def score(self, name: str | None = None) -> Score | None:
        """Return the score of the last evaluation by the value ``name`` (None: the first one), or None if there is none."""
        names = self.value_names()
        if name is None and names:
            name = names[0]
        if name is None or name not in names:
            return None
        columns = {column: _estimate(self._metrics.get(column), name) for column in COLUMNS}
        if columns["gebm"] is None:  # evaluated during training only
            last = self.evaluated_rows[-1] if self.evaluated_rows else {}
            for column in COLUMNS:
                value = last.get(f"eval.{column}.{name}")
                columns[column] = None if value is None else {"value": value, "low": None, "high": None, "n": None}
        return Score(name, columns, self._best(name))

    def protocol(self, name: str) -> dict[str, Any]:
        """Return what the value ``name`` depends on; empty if unknown."""
        protocols = (self.evaluation or {}).get("protocol")
        for metric, protocol in (protocols if isinstance(protocols, dict) else {}).items():
            if name == metric or name.startswith(f"{metric}."):
                return dict(protocol) if isinstance(protocol, dict) else {}
        return {}

    @property
    def _metrics(self) -> dict[str, Any]:
        found = (self.evaluation or {}).get("metrics")
        return found if isinstance(found, dict) else {}

    def _best(self, name: str) -> tuple[float, int] | None:
        lower = self.protocol(name).get("lower_is_better")
        key = _EVALUATED + name
        found = [(row[key], row["step"]) for row in self.evaluated_rows if isinstance(row.get(key), float)]
        if lower is None or not found:
            return None
        return min(found, key=lambda pair: pair[0] if lower else -pair[0])


def find_records(root: Path) -> list[RunRecord]:
    """Read every run under ``root``, which may itself be a run; the latest change comes first.

    Raises:
        UsageError: ``root`` is not a directory.
    """
    if not root.is_dir():
        raise UsageError(
            f"{root} {'is not a directory' if root.exists() else 'does not exist'}", hint="Name a directory of runs."
        )
    return sorted((_read(path) for path in _directories(root)), key=lambda record: record.updated, reverse=True)


def read_record(path: str | Path) -> RunRecord:
    """Read one run.

    Raises:
        CheckpointError: ``path`` is not a run directory, or the run is damaged.
    """
    path = user_path(path)
    if not _is_run(path):
        what = "is not a run directory" if path.exists() else "does not exist"
        raise CheckpointError(f"{path} {what}", hint="`gebm-kit runs` lists the runs under runs/.")
    record = _read(path)
    if record.problem:
        raise CheckpointError(record.problem)
    return record


def read_rows(path: Path, containing: str = "") -> list[dict[str, Any]]:
    """Read the rows of ``path``/metrics.jsonl that contain a text; a line cut off by a kill is left out."""
    rows = []
    try:
        with open(path / "metrics.jsonl", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if containing in line and isinstance(row := _parsed(line), dict):
                    rows.append(row)
    except FileNotFoundError:
        return []
    return rows


# --- parts -----------------------------------------------------------------------------------------------------------
def _directories(root: Path) -> Iterator[Path]:
    for folder, inner, _ in os.walk(root):
        path = Path(folder)
        if _is_run(path):
            inner.clear()  # runs do not contain runs
            yield path


def _is_run(path: Path) -> bool:
    """Return whether ``path`` holds a run, however damaged; only run directories have a ``resolved.yaml``."""
    return (path / "resolved.yaml").is_file() or ((path / "status.json").is_file() and (path / "env.json").is_file())


def _read(path: Path) -> RunRecord:
    problems: list[str] = []
    status = _mapping(path / "status.json", problems)
    resolved = _mapping(path / "resolved.yaml", problems)
    evaluation = _mapping(path / "evaluation.json", problems) if (path / "evaluation.json").exists() else None
    state = str(status.get("state", "unknown"))
    if state == "running" and _is_abandoned(path):
        state = "killed"
    updated = _changed(path)
    step, seconds = status.get("step"), status.get("seconds")
    if state == "running":
        last = _last_step(path / "metrics.jsonl")
        step = last if isinstance(step, int) and last > step else step
        seconds = seconds + max(time.time() - updated, 0.0) if isinstance(seconds, float) else seconds
    return RunRecord(
        path=path,
        recipe=str(status.get("recipe", "")),
        state="damaged" if problems else state,
        step=step if isinstance(step, int) else None,
        total_steps=_total_steps(resolved),
        seconds=float(seconds) if isinstance(seconds, int | float) else None,
        updated=updated,
        resolved=resolved,
        evaluation=evaluation,
        problem="; ".join(problems),
    )


def _mapping(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        if path.suffix == ".json":
            value = read_json(path)
        else:
            value = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
        problems.append(f"{path} is missing or damaged: {reason}")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path} is damaged: it does not hold a mapping")
        return {}
    return value


def _is_abandoned(path: Path) -> bool:
    """Return whether no process holds the run's lock, by trying a shared lock, which fails while training holds its own."""
    try:
        handle = os.open(path / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
    except OSError:  # held, or a file system without locks
        pass
    finally:
        os.close(handle)
    return False


def _changed(path: Path) -> float:
    for name in ("status.json", "resolved.yaml", ""):
        try:
            return (path / name).stat().st_mtime
        except OSError:
            continue
    return 0.0


def _last_step(path: Path) -> int:
    """Return the step of the last whole row, read from the end of the file; 0 if there is none."""
    try:
        with open(path, "rb") as stream:
            stream.seek(max(stream.seek(0, os.SEEK_END) - 16_384, 0))
            lines = stream.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        row = _parsed(line)
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            return int(row["step"])
    return 0


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _total_steps(resolved: Mapping[str, Any]) -> int | None:
    train = resolved.get("train")
    if not isinstance(train, dict) or not isinstance(train.get("steps"), int):
        return None
    phases = ["final", "pretrain"] if str(train.get("part")).startswith(PRETRAINED) else ["final"]
    extra = [train[name].get("steps") for name in phases if isinstance(train.get(name), dict)]
    return int(train["steps"]) + sum(steps for steps in extra if isinstance(steps, int))


def _estimate(values: Any, name: str) -> dict[str, Any] | None:
    found = values.get(name) if isinstance(values, dict) else None
    return dict(found) if isinstance(found, dict) else None
