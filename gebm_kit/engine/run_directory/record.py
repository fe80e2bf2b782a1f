"""Records of runs, read from their directories without torch and without building anything, whatever their state.

They are for looking at many runs at once: a run that is damaged, in training, or trained with plugins that are gone can
still be read. To sample from a run, use `gebm_kit.engine.run_directory.run.Run`.
"""

from __future__ import annotations

import functools
import os
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gebm_kit.config.schema import PRETRAINED
from gebm_kit.core.errors import CheckpointError, UsageError
from gebm_kit.core.files import open_own
from gebm_kit.core.paths import user_path
from gebm_kit.core.reading import read_json_file
from gebm_kit.engine.process.lock import LOCK
from gebm_kit.engine.run_directory.checkpoint_record import MAX_RECORD, RECORD
from gebm_kit.engine.run_directory.log_rows import (
    DRAWN_ROWS,
    LOG,
    log_problem,
    open_log,
    parsed,
    read_rows,
    read_series,
)
from gebm_kit.engine.run_directory.run_files import (
    ENVIRONMENT,
    EVALUATION,
    RESOLVED,
    STATUS,
    read_evaluation,
    read_resolved,
    read_status,
)
from gebm_kit.engine.run_directory.values import is_count

try:
    import fcntl
except ImportError:  # Windows, where a killed run can't be told from a running one
    fcntl = None  # type: ignore[assignment, unused-ignore]


COLUMNS = ("data", "base", "gebm", "ratio")
"""Keys of an evaluation\'s ``metrics``."""


MOST_CLASSES = 100_000
"""Most classes that a record lists; a damaged checkpoint may hold any number."""


LATEST = 4e9
"""Latest time of a change, in seconds since the epoch: the year 2096. Python's dates end at the year 9999."""


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

    def series(self, names: Iterable[str]) -> dict[str, tuple[array[float], array[float]]]:
        """Return steps and values of the ``names`` in the log, thinned for pictures where the log is long."""
        return {name: (array("d"), array("d")) for name in names} if self._no_log else read_series(self.path, names)

    @functools.cached_property
    def evaluated_rows(self) -> list[dict[str, Any]]:
        """Rows of evaluations, the last one at each step."""
        rows = [] if self._no_log else read_rows(self.path, containing=_EVALUATED, most=DRAWN_ROWS)
        return list({row["step"]: row for row in rows}.values())

    @functools.cached_property
    def _no_log(self) -> bool:
        return bool(log_problem(self.path))

    @functools.cached_property
    def checkpoint_state(self) -> dict[str, Any]:
        """Plain state in the newest readable checkpoint, not verified; empty if there is none."""
        for path in sorted((self.path / "checkpoints").glob("step-*"), reverse=True):
            try:
                found = read_json_file(path / RECORD, limit=MAX_RECORD, error=CheckpointError)
            except CheckpointError:
                continue
            if isinstance(found, dict) and isinstance(found.get("state"), dict):
                return dict(found["state"])
        return {}

    @functools.cached_property
    def classes(self) -> dict[str, str | None] | None:
        """What a model's classes are called, by index, each None without names; None for a model without classes."""
        sections = (self.resolved.get(part) for part in ("base", "energy"))
        if not any(isinstance(section, dict) and section.get("conditional") is True for section in sections):
            return None
        facts = self.checkpoint_state.get("facts")
        facts = facts if isinstance(facts, dict) else {}
        count, names = facts.get("num_classes"), facts.get("class_names")
        if not is_count(count) or count > MOST_CLASSES:
            return None
        if not isinstance(names, list) or len(names) != count:
            return dict.fromkeys(map(str, range(count)))
        return {str(label): str(name) for label, name in enumerate(names)}

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
    if not os.path.isdir(root):
        what = "is not a directory" if os.path.lexists(root) else "does not exist"
        raise UsageError(f"{root} {what}", hint="Name a directory of runs.")
    return sorted((_read(path) for path in run_directories(root)), key=lambda record: record.updated, reverse=True)


def read_record(path: str | Path, *, damaged: bool = False) -> RunRecord:
    """Read one run.

    Args:
        damaged: whether to read a damaged run as far as it goes, with its `RunRecord.problem`, instead of raising.

    Raises:
        CheckpointError: ``path`` is not a run directory, or the run is damaged.
    """
    path = user_path(path)
    if not _is_run(path):
        what = "is not a run directory" if os.path.lexists(path) else "does not exist"
        raise CheckpointError(f"{path} {what}", hint="`gebm-kit runs` lists the runs under runs/.")
    record = _read(path)
    if record.problem and not damaged:
        raise CheckpointError(record.problem)
    return record


# --- parts -----------------------------------------------------------------------------------------------------------
def run_directories(root: Path) -> Iterator[Path]:
    """Yield the run directories under ``root``, and folders that can't be read, which may be runs.

    Links are not followed.
    """
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                found = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        except OSError:
            yield folder
            continue
        if _has_run(found):
            yield folder  # runs do not contain runs
        else:
            folders += [folder / name for name, inner in sorted(found.items(), reverse=True) if inner]


def _is_run(path: Path) -> bool:
    """Return whether ``path`` holds a run, however damaged."""
    try:
        return _has_run(os.listdir(path))
    except OSError:
        return False


def _has_run(names: Iterable[str]) -> bool:
    """Return whether a directory with these names is a run; only run directories have a ``resolved.yaml``."""
    return RESOLVED in names or (STATUS in names and ENVIRONMENT in names)


def _read(path: Path) -> RunRecord:
    problems: list[str] = []
    status = _content(read_status, path, problems)
    resolved = _content(read_resolved, path, problems)
    evaluation = _content(read_evaluation, path, problems) if os.path.lexists(path / EVALUATION) else None
    if problem := log_problem(path):
        problems.append(problem)
    state = str(status.get("state", "unknown"))
    if state == "running" and _is_abandoned(path):
        state = "killed"
    updated = _changed(path)
    step, seconds = status.get("step"), status.get("seconds")
    if state == "running":
        last = _last_step(path)
        step = last if isinstance(step, int) and last > step else step
        seconds = seconds + max(time.time() - updated, 0.0) if isinstance(seconds, float) else seconds
    return RunRecord(
        path=path,
        recipe=str(status.get("recipe", "")),
        state="damaged" if problems else state,
        step=step,
        total_steps=_total_steps(resolved),
        seconds=None if seconds is None else float(seconds),
        updated=updated,
        resolved=resolved,
        evaluation=evaluation,
        problem="; ".join(problems),
    )


def _content(read: Callable[[Path], dict[str, Any]], path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        return read(path)
    except CheckpointError as error:
        problems.append(error.message)
        return {}


def _is_abandoned(path: Path) -> bool:
    """Return whether no process holds the run's lock, by trying a shared lock, which fails while training holds its own."""
    try:
        handle = open_own(path / LOCK, os.O_RDONLY)
    except (OSError, UsageError):
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
    for name in (STATUS, RESOLVED, ""):
        try:
            found = (path / name).stat().st_mtime
        except OSError:
            continue
        return min(max(found, 0.0), LATEST)  # an archive can hold any time
    return 0.0


def _last_step(run: Path) -> int:
    """Return the step of the last whole row, read from the end of the log; 0 if there is none."""
    if not os.path.lexists(run / LOG):
        return 0
    try:
        with open_log(run) as stream:
            stream.seek(max(stream.seek(0, os.SEEK_END) - 16_384, 0))
            lines = stream.read(16_384).splitlines()
    except (OSError, CheckpointError):
        return 0
    rows = (parsed(line) for line in reversed(lines))
    return next((int(row["step"]) for row in rows if row is not None), 0)


def _total_steps(resolved: Mapping[str, Any]) -> int | None:
    train = resolved.get("train")
    if not isinstance(train, dict) or not is_count(train.get("steps")):
        return None
    phases = ["final", "pretrain"] if str(train.get("part")).startswith(PRETRAINED) else ["final"]
    extra = [train[name].get("steps") for name in phases if isinstance(train.get(name), dict)]
    return int(train["steps"]) + sum(steps for steps in extra if is_count(steps))


def _estimate(values: Any, name: str) -> dict[str, Any] | None:
    found = values.get(name) if isinstance(values, dict) else None
    return dict(found) if isinstance(found, dict) else None
