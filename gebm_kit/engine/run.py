"""A run directory: what is in it, how it is made, found and read.

runs/<recipe>/<utc>-<short hash>/
  recipe.yaml  resolved.yaml  overrides.txt  env.json  status.json  evaluation.json  metrics.jsonl
  checkpoints/step-0003000/{model,loss,optim,ema,rng}.safetensors + state.json     samples/  figures/
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import platform
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gebm_kit.config.build import build, data_facts, resolved_yaml
from gebm_kit.config.load import load_recipe
from gebm_kit.config.schema import Recipe
from gebm_kit.core.errors import CheckpointError, GebmKitError, RunFailed, UsageError
from gebm_kit.core.files import make_directory, read_json, remove_leftovers, write_atomic, write_json
from gebm_kit.core.interfaces import Dataset
from gebm_kit.core.model import GEBM
from gebm_kit.core.plugins import installed
from gebm_kit.core.progress import warn
from gebm_kit.core.version import __version__
from gebm_kit.engine.checkpoint import Checkpoint, remove_unfinished
from gebm_kit.engine.chosen import LAST, check_word, chosen_checkpoint
from gebm_kit.engine.prepared import open_dataset
from gebm_kit.engine.process.lock import LOCK, RunLock
from gebm_kit.engine.run_record import read_rows

RUNS = Path("runs")

STATUS = "status.json"

_FILES = ("recipe.yaml", "overrides.txt", "resolved.yaml", "env.json", STATUS)
_FOLDERS = ("checkpoints", "samples", "figures")

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32}
"""Type of parameters and data under each precision (bfloat16 is autocast on float32 parameters)."""


@dataclass(frozen=True)
class Run:
    """A run directory, read lazily.

    Attributes:
        path: the directory.
        which: its checkpoint: ``last`` (the newest that is whole), ``best`` (see ``train.keep_best``), or ``step-N``.
    """

    path: Path
    which: str = LAST

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @functools.cached_property
    def recipe(self) -> Recipe:
        """The resolved recipe that the run was trained with."""
        return load_recipe(self.path / "resolved.yaml", directory=Path(self.environment["directory"]))

    @functools.cached_property
    def environment(self) -> dict[str, Any]:
        """``env.json``: versions, platform, and the directory that relative paths start from."""
        return _object(self.path / "env.json")

    @property
    def status(self) -> dict[str, Any]:
        """``status.json``: recipe, state (running, interrupted, trained, finished, failed), step, seconds, best."""
        return _object(self.path / "status.json")

    @property
    def state(self) -> str:
        return str(self.status.get("state", "unknown"))

    @property
    def step(self) -> int:
        """Cycles in the checkpoint."""
        return self.checkpoint.step

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """The last evaluation written by train or eval, as the JSON of ``gebm-kit eval``."""
        path = self.path / "evaluation.json"
        return _object(path) if path.exists() else None

    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl; a last line cut off by a kill is left out."""
        return read_rows(self.path)

    @functools.cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint that `which` asks for, verified.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        words = ["gebm-kit", "train", str(self.path / "resolved.yaml"), "--out", str(self.path), "--resume"]
        return chosen_checkpoint(self.checkpoints, self.which, f"Training goes on with `{shlex.join(words)}`.")

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The run's data."""
        return open_dataset(self.recipe)

    @property
    def value_range(self) -> tuple[float, float] | None:
        """Of the data, as the checkpoint remembers it, so that sampling needs no data; None where it has none."""
        found = self.checkpoint.state["facts"].get("value_range")
        return None if found is None else (float(found[0]), float(found[1]))

    @functools.cached_property
    def model(self) -> GEBM:
        """The model that sampling uses, with averaged weights where there are any; on the CPU, in eval mode.

        Raises:
            CheckpointError: the checkpoint is damaged or does not fit the recipe.
        """
        facts = self.checkpoint.state["facts"]
        places = {"directory": self.recipe.directory, "run_directory": self.path}
        model = build_model(self.recipe, {**facts, **_tuples(facts), **places})
        tensors = dict(self.checkpoint.tensors["model"])
        averages = self.checkpoint.tensors["ema"]
        tensors |= {name: averages[name] for name in tensors if name in averages}
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointError(f"{self.checkpoint.path} does not fit the recipe: {error}") from error
        return model.eval()


def build_model(recipe: Recipe, facts: Mapping[str, Any]) -> GEBM:
    """The recipe's base and energy, with fresh weights from torch's default generator, in the recipe's precision."""
    base = build("base", recipe.base, facts)
    energy = build("energy", recipe.energy, {**facts, "latent_dim": base.latent_dim})
    with torch.random.fork_rng(devices=[]):  # a loss may have weights of its own; the model's do not depend on them
        loss = build("loss", recipe.loss, {**facts, "latent_dim": base.latent_dim})
    model = GEBM(base, energy, log_ratio=bool(getattr(loss, "log_ratio", True)))
    return model.to(DTYPES[recipe.precision])


def facts_for_checkpoint(recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """What the model needs to know of the data, so that it can be rebuilt without the data."""
    return {k: v for k, v in data_facts(recipe, dataset).items() if k != "directory"}


def _tuples(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) for k, v in facts.items() if isinstance(v, list)}


def load_run(path: str | Path, checkpoint: str = LAST) -> Run:
    """Open a run directory.

    Args:
        checkpoint: ``last`` (the newest that is whole), ``best`` (see ``train.keep_best``), or ``step-N``.

    Raises:
        UsageError: ``checkpoint`` is none of these.
        CheckpointError: ``path`` is no run directory.
    """
    path = Path(path)
    missing = [name for name in ("resolved.yaml", "status.json", "env.json") if not (path / name).is_file()]
    if missing:
        what = "does not exist" if not path.exists() else f"is not a run directory: it has no {missing[0]}"
        raise CheckpointError(
            f"{path} {what}", hint="A run directory is what `gebm-kit train` made, runs/<recipe>/<time>."
        )
    return Run(path, check_word(checkpoint))


def newest_run(root: str | Path = RUNS) -> Run:
    """The newest finished run under ``root``.

    Raises:
        UsageError: there is none.
    """
    runs = [run for run in _runs(Path(root)) if run.state == "finished"]
    if not runs:
        raise UsageError(
            f"there is no finished run under {root}/", hint="Train one with `gebm-kit train quickstart`, or name a run."
        )
    return max(runs, key=lambda run: run.path.joinpath("status.json").stat().st_mtime)


def unfinished_runs(recipe_name: str, root: Path = RUNS) -> list[Run]:
    """Runs of a recipe that training can go on with, the newest first."""
    runs = [run for run in _runs(root / recipe_name) if run.state != "finished"]
    return sorted(runs, key=lambda run: run.path.joinpath("status.json").stat().st_mtime, reverse=True)


def _runs(root: Path) -> list[Run]:
    found = []
    for status in root.rglob("status.json") if root.is_dir() else ():
        try:
            run = load_run(status.parent)
            _ = run.state
        except GebmKitError:
            continue
        found.append(run)
    return found


def create_run(recipe: Recipe, out: str | Path | None, lock: RunLock) -> Run:
    """Make a new run directory, ``out`` itself, or one under ``runs/<recipe>/``, and hold ``lock`` on it.

    ``status.json`` is written last: with it the run exists. What a kill before that leaves is made again.

    Raises:
        UsageError: ``out`` is not empty, is a file, can't be written, or another process trains there.
    """
    if out is None:
        path = _new_directory(recipe)
    else:
        path = Path(out)
        _check_free(path)
        make_directory(path)
    lock.hold(path)
    _check_free(path)  # another process may have been faster
    remove_leftovers(path, _FILES)
    for folder in _FOLDERS:
        make_directory(path / folder)
    write_atomic(path / "recipe.yaml", recipe.text.encode())
    write_atomic(path / "overrides.txt", "".join(f"{word}\n" for word in recipe.overrides).encode())
    write_resolved(path, recipe)
    write_json(path / "env.json", _environment(recipe))
    write_json(path / STATUS, {"recipe": recipe.name, "state": "running", "step": 0, "seconds": 0.0})
    return Run(path)


def is_unmade(path: Path) -> bool:
    """Whether ``path`` is free for a new run: missing, empty, or what a process left that was killed while it made one."""
    if not path.is_dir():
        return not path.exists()
    names = {entry.name for entry in path.iterdir()}
    if not names:
        return True
    known = [*_FOLDERS, *_FILES, LOCK]
    beginnings = tuple(f".{name}-" for name in _FILES)
    ours = all(name in known or name.startswith(beginnings) for name in names)
    return LOCK in names and STATUS not in names and ours and not any((path / "checkpoints").glob("*"))


def _check_free(path: Path) -> None:
    if path.is_dir() and not is_unmade(path):
        is_run = (path / STATUS).exists()
        raise UsageError(
            f"{path} is not empty" + (": it holds a run" if is_run else ""),
            hint="Add --resume to go on with it, or choose another --out." if is_run else "Choose another --out.",
        )


def tidy(run: Run) -> None:
    """Remove half-written files of a killed process, and write a damaged status file again; for who holds the lock."""
    remove_leftovers(run.path, (*_FILES, "evaluation.json", "metrics.jsonl"))
    remove_unfinished(run.checkpoints)
    try:
        _ = run.status
    except CheckpointError as error:
        warn(f"{error}; it is written again, without the seconds of earlier attempts")
        write_json(run.path / STATUS, {"recipe": run.recipe.name, "state": "interrupted", "step": 0, "seconds": 0.0})


def write_resolved(path: Path, recipe: Recipe) -> None:
    """The recipe as it is in force; a resumed run may have changed what comes after training."""
    write_atomic(path / "resolved.yaml", resolved_yaml(recipe).encode())


def _new_directory(recipe: Recipe) -> Path:
    digest = hashlib.sha256(resolved_yaml(recipe).encode()).hexdigest()[:6]
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    make_directory(RUNS / recipe.name)
    for attempt in range(1000):
        path = RUNS / recipe.name / (f"{stamp}-{digest}" + (f"-{attempt + 1}" if attempt else ""))
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise RunFailed(f"no free name under {RUNS / recipe.name}")


def _environment(recipe: Recipe) -> dict[str, Any]:
    report = installed().report
    return {
        "schema": 1,
        "gebm-kit": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "plugins": {p.distribution: p.version for p in report if p.state == "ok"},
        "directory": str(recipe.directory),
    }


def _object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is missing or damaged: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: it is not a JSON object")
    return value
