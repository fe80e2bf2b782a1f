"""Finding and reading run directories. Layout:

runs/<recipe>/<utc>-<short hash>/
  recipe.yaml  resolved.yaml  overrides.txt  env.json  status.json  evaluation.json  metrics.jsonl
  checkpoints/step-0003000/{model,loss,optim,ema,rng}.safetensors + state.json     samples/  figures/
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gebm_kit.config.build import data_facts
from gebm_kit.config.load import load_recipe
from gebm_kit.config.model import build_model
from gebm_kit.config.schema import Recipe
from gebm_kit.core.errors import CheckpointError, GebmKitError, UsageError
from gebm_kit.core.files import read_json
from gebm_kit.core.interfaces import Dataset
from gebm_kit.core.model import GEBM
from gebm_kit.engine.datasets.open import open_dataset
from gebm_kit.engine.run_directory.checkpoint import LAST, Checkpoint, check_word, chosen_checkpoint
from gebm_kit.engine.run_directory.record import read_rows

RUNS = Path("runs")
"""Default folder in which runs are created and looked for."""


STATUS = "status.json"
"""Name of the file that holds a run's state, see `Run.status`."""


@dataclass(frozen=True)
class Run:
    """A run directory, read lazily.

    Attributes:
        path: the directory.
        which: the checkpoint to read: ``last`` (the newest whole one), ``best`` (see ``train.keep_best``), or ``step-N``.
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
        """Resolved recipe that the run was trained with."""
        return load_recipe(self.path / "resolved.yaml", directory=Path(self.environment["directory"]))

    @functools.cached_property
    def environment(self) -> dict[str, Any]:
        """Content of ``env.json``: versions, platform, and the directory that relative paths start from."""
        return _object(self.path / "env.json")

    @property
    def status(self) -> dict[str, Any]:
        """Content of ``status.json``: recipe, state, step, seconds, best.

        The state is running, interrupted, trained, finished or failed.
        """
        return _object(self.path / "status.json")

    @property
    def state(self) -> str:
        return str(self.status.get("state", "unknown"))

    @property
    def step(self) -> int:
        """Cycles trained, according to the checkpoint."""
        return self.checkpoint.step

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """Last evaluation written by train or eval, as the JSON of ``gebm-kit eval``; None if there is none."""
        path = self.path / "evaluation.json"
        return _object(path) if path.exists() else None

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl; a last line cut off by a kill is left out."""
        return read_rows(self.path)

    @functools.cached_property
    def checkpoint(self) -> Checkpoint:
        """Checkpoint that `which` asks for, verified.

        Raises:
            CheckpointError: there is no such checkpoint, or it is damaged.
        """
        words = ["gebm-kit", "train", str(self.path / "resolved.yaml"), "--out", str(self.path), "--resume"]
        return chosen_checkpoint(self.checkpoints, self.which, f"Resume training with `{shlex.join(words)}`.")

    @functools.cached_property
    def dataset(self) -> Dataset:
        """Dataset that the run was trained on."""
        return open_dataset(self.recipe)

    @property
    def value_range(self) -> tuple[float, float] | None:
        """Value range of the data, or None; read from the checkpoint, so that sampling does not need the data."""
        found = self.checkpoint.state["facts"].get("value_range")
        return None if found is None else (float(found[0]), float(found[1]))

    @functools.cached_property
    def model(self) -> GEBM:
        """Model that sampling uses, with averaged weights where there are any; on the CPU, in eval mode.

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


def facts_for_checkpoint(recipe: Recipe, dataset: Dataset, log_ratio: bool, *, final: bool = False) -> dict[str, Any]:
    """Return what a checkpoint keeps to rebuild the model without its data and its loss.

    Args:
        log_ratio: whether the trained energy is a log density ratio (`GEBM.log_ratio`).
        final: whether the energy and its log-partition are those of the final phase.
    """
    facts = {k: v for k, v in data_facts(recipe, dataset).items() if k != "directory"}
    return facts | {"log_ratio": log_ratio, "final": final}


def _tuples(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) for k, v in facts.items() if isinstance(v, list)}


def load_run(path: str | Path, checkpoint: str = LAST) -> Run:
    """Open a run directory.

    Args:
        checkpoint: ``last`` (the newest whole one), ``best`` (see ``train.keep_best``), or ``step-N``.

    Raises:
        UsageError: ``checkpoint`` is none of these.
        CheckpointError: ``path`` is not a run directory.
    """
    path = Path(path)
    missing = [name for name in ("resolved.yaml", "status.json", "env.json") if not (path / name).is_file()]
    if missing:
        what = "does not exist" if not path.exists() else f"is not a run directory: it has no {missing[0]}"
        raise CheckpointError(f"{path} {what}", hint="`gebm-kit train` makes run directories, runs/<recipe>/<time>.")
    return Run(path, check_word(checkpoint))


def subject_of(run_or_model: Run | GEBM | str | Path) -> Run | GEBM:
    """Return the run or model itself, or open the run directory that a path names.

    Raises:
        UsageError: it is neither a run, a path nor a model.
        CheckpointError: the path is not a run directory.
    """
    if isinstance(run_or_model, str | Path):
        return load_run(run_or_model)
    if isinstance(run_or_model, Run | GEBM):
        return run_or_model
    raise UsageError(f"a run, its path or a GEBM is needed, got {type(run_or_model).__name__}")


def newest_run(root: str | Path = RUNS) -> Run:
    """Open the newest finished run under ``root``.

    Raises:
        UsageError: there is no finished run.
    """
    runs = [run for run in _runs(Path(root)) if run.state == "finished"]
    if not runs:
        raise UsageError(
            f"there is no finished run under {root}/", hint="Train one with `gebm-kit train quickstart`, or name a run."
        )
    return max(runs, key=lambda run: run.path.joinpath("status.json").stat().st_mtime)


def unfinished_runs(recipe_name: str, root: Path = RUNS) -> list[Run]:
    """Return the runs of a recipe that can be resumed, newest first."""
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


def _object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is missing or damaged: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: it is not a JSON object")
    return value
