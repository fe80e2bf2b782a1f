"""Finding and reading run directories. Layout:

runs/<recipe>/<utc>-<short hash>/
  recipe.yaml  resolved.yaml  overrides.txt  env.json  status.json  evaluation.json  metrics.jsonl
  checkpoints/step-0003000/{model,loss,optim,ema,rng}.safetensors + state.json     samples/  figures/
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gebm_kit.config.load import load_recipe
from gebm_kit.config.model import build_model
from gebm_kit.config.schema import Parts, Recipe
from gebm_kit.core.arguments import check_path
from gebm_kit.core.errors import CheckpointError, GebmKitError, UsageError, shown
from gebm_kit.core.files import remove_temporary_files
from gebm_kit.core.html import Shown
from gebm_kit.core.hubs import fetched, is_place
from gebm_kit.core.interfaces import Dataset
from gebm_kit.core.model import GEBM
from gebm_kit.core.paths import user_path
from gebm_kit.core.units import HasMeasured, TableUnits
from gebm_kit.engine.datasets.open import open_dataset
from gebm_kit.engine.run_directory.checkpoint import LAST, Checkpoint, check_word, chosen_checkpoint
from gebm_kit.engine.run_directory.exported import RECIPE, ExportedFolder, exported_folder
from gebm_kit.engine.run_directory.facts import UnitsOfDataset, class_names_in
from gebm_kit.engine.run_directory.log_rows import DRAWN_ROWS, read_rows
from gebm_kit.engine.run_directory.objects import names_objects, parts_for
from gebm_kit.engine.run_directory.record import run_directories
from gebm_kit.engine.run_directory.run_files import (
    ENVIRONMENT,
    EVALUATION,
    RESOLVED,
    STATUS,
    is_exported,
    read_environment,
    read_evaluation,
    read_status,
)
from gebm_kit.engine.run_directory.run_html import run_sections, run_summary

RUNS = Path("runs")
"""Default folder in which runs are created and looked for."""


@dataclass(frozen=True, repr=False)
class Run(Shown):
    """A run directory, or a folder that `gebm_kit.export` wrote, read lazily.

    Attributes:
        path: the directory.
        which: the checkpoint to read: ``last`` (the newest whole one), ``best`` (see ``train.keep_best``), or ``step-N``.
        parts: objects of the caller's that the run was trained on, by their keys in the recipe; see `gebm_kit.fit`.
    """

    path: Path
    which: str = LAST
    parts: Parts = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def _summary(self) -> str:
        return run_summary(self)

    def _sections(self) -> Iterator[str]:
        return run_sections(self.path)

    @functools.cached_property
    def exported(self) -> ExportedFolder | None:
        """The folder as `gebm_kit.export` wrote it; None for a run directory."""
        return exported_folder(self.path)

    @property
    def outputs(self) -> Path:
        """Folder for draws, figures and evaluations; an exported folder is not written to."""
        return self.path if self.exported is None else Path("outputs") / self.exported.config["name"]

    @property
    def figures(self) -> Path:
        return self.outputs / "figures"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @functools.cached_property
    def recipe(self) -> Recipe:
        """Resolved recipe that the run was trained with, under the name that it had then."""
        if self.exported is not None:
            recipe = load_recipe(self.exported.recipe(), directory=self.path, parts=self.parts)
            return dataclasses.replace(recipe, name=self.exported.config["name"])
        directory = self.environment.get("directory")
        if directory is None:
            raise CheckpointError(f"{self.path / ENVIRONMENT} is damaged: it names no directory that paths start from")
        return named_as_trained(load_recipe(self.path / RESOLVED, directory=Path(directory), parts=self.parts))

    @property
    def recipe_file(self) -> Path:
        """File of the resolved recipe."""
        return self.path / (RESOLVED if self.exported is None else RECIPE)

    @functools.cached_property
    def environment(self) -> dict[str, Any]:
        """Content of ``env.json``: versions, platform, and the directory that relative paths start from."""
        return read_environment(self.path) if self.exported is None else self.exported.environment

    @property
    def status(self) -> dict[str, Any]:
        """Content of ``status.json``: recipe, state, step, seconds, training_seconds, best.

        The state is running, interrupted, trained, finished or failed.
        """
        return read_status(self.path) if self.exported is None else self.exported.status

    @property
    def training_seconds(self) -> float | None:
        """Seconds of training, without the evaluation after it; of all attempts, where an older run says no more."""
        status = self.status
        seconds = status.get("training_seconds", status.get("seconds"))
        return None if seconds is None else float(seconds)

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
        return read_evaluation(self.path) if os.path.lexists(self.path / EVALUATION) else None

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl; damaged lines, and a last one cut off by a kill, are left out."""
        return read_rows(self.path)

    def rows_to_draw(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl, thinned evenly where there are more than a picture needs."""
        return read_rows(self.path, most=DRAWN_ROWS)

    @functools.cached_property
    def checkpoint(self) -> Checkpoint:
        """Checkpoint that `which` asks for, verified.

        Raises:
            CheckpointError: there is no such checkpoint, or it is damaged.
        """
        if self.exported is not None:
            return self.exported.checkpoint()
        words = ["gebm-kit", "train", str(self.path / "resolved.yaml"), "--out", str(self.path), "--resume"]
        return chosen_checkpoint(self.checkpoints, self.which, f"Resume training with `{shlex.join(words)}`.")

    @functools.cached_property
    def dataset(self) -> Dataset:
        """Dataset that the run was trained on."""
        return open_dataset(self.recipe)

    @property
    def value_range(self) -> tuple[float, float] | None:
        """Value range of the data, or None; read from the checkpoint, so that sampling does not need the data."""
        found = self._facts.get("value_range")
        return None if found is None else (float(found[0]), float(found[1]))

    def units(self, *, needed: bool) -> TableUnits | None:
        """Return names and units of the columns of a table, or None if the data are not a table.

        Args:
            needed: whether a run of an earlier version, whose checkpoint lacks them, opens its data for them.

        Raises:
            CheckpointError: they are damaged.
            DataError: the data of a run of an earlier version can't be read.
        """
        facts = self.checkpoint.state["facts"]
        if "units" not in facts:
            return getattr(self.dataset, "units", None) if needed else None
        try:
            return None if facts["units"] is None else TableUnits.from_dict(facts["units"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.checkpoint.path}: the units of the table are damaged: {error}") from error

    def measurements(self, *, needed: bool) -> HasMeasured | None:
        """Return what turns draws into measurements: `units`, or a dataset without them that has `measured`; else None.

        Such a dataset is opened when it is used.

        Args:
            needed: as for `units`.

        Raises:
            CheckpointError, DataError: as for `units`.
        """
        units = self.units(needed=needed)
        measured = units is None and self.checkpoint.state["facts"].get("measured")
        return UnitsOfDataset(lambda: self.dataset, self.path) if measured else units

    @functools.cached_property
    def model(self) -> GEBM:
        """Model that sampling uses, with averaged weights where there are any; on the CPU, in eval mode.

        Raises:
            CheckpointError: the checkpoint is damaged or does not fit the recipe.
        """
        facts = self._facts
        places = {"directory": self.recipe.directory, "run_directory": self.path}
        model = build_model(self.recipe, {**facts, **_tuples(facts), **places})
        parts = self.checkpoint.tensors
        if "ema" not in parts:
            raise CheckpointError(f"{self.checkpoint.path} is damaged: it has no ema.safetensors")
        tensors, averages = dict(parts["model"]), parts["ema"]
        tensors |= {name: averages[name] for name in tensors if name in averages}
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointError(f"{self.checkpoint.path} does not fit the recipe: {error}") from error
        model.to("cpu")  # modules of the caller's may be where they were trained
        model.class_names = self.class_names if model.num_classes is not None else None
        return model.eval()

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """What the data call their classes, in the order of their indices; None where they have no names.

        Raises:
            CheckpointError: the names are damaged.
        """
        return class_names_in(self._facts, self.checkpoint.path)

    @property
    def _facts(self) -> dict[str, Any]:
        facts = self.checkpoint.state.get("facts")
        if not isinstance(facts, dict):
            raise CheckpointError(f"{self.checkpoint.path} is damaged: it holds no facts about the data")
        return facts


def named_as_trained(recipe: Recipe) -> Recipe:
    """Return a recipe that was read from a run's ``resolved.yaml`` under the name it was trained by; others unchanged."""
    if recipe.path is None or recipe.path.name != RESOLVED:
        return recipe
    try:
        name = read_status(recipe.path.parent).get("recipe")
    except CheckpointError:
        name = None
    return dataclasses.replace(recipe, name=name) if name else recipe


def _tuples(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) for k, v in facts.items() if isinstance(v, list)}


def load_run(
    path: str | Path,
    checkpoint: str = LAST,
    *,
    base: Any = None,
    energy: Any = None,
    data: Any = None,
    valid: Any = None,
    test: Any = None,
    loss: Any = None,
    sampler: Any = None,
    final_energy: Any = None,
) -> Run:
    """Open a run directory.

    Args:
        checkpoint: ``last`` (the newest whole one), ``best`` (see ``train.keep_best``), or ``step-N``.
        base, energy, data, valid, test, loss, sampler: the objects that `gebm_kit.fit` was given, which a run can't rebuild.
            Base and energy get the run's weights when its model is read. Data are needed for what looks at them alone.
        final_energy: the energy of ``train.final``, if it was an object.

    Raises:
        UsageError: ``checkpoint`` is none of these; the run was trained on objects that are not given, or on other data; or
            an object is given for a part that the run builds itself.
        CheckpointError: ``path`` is not a run directory.
    """
    run = open_run(path, checkpoint)
    given = {
        "base": base,
        "energy": energy,
        "data": data,
        "loss": loss,
        "sampler": sampler,
        "final_energy": final_energy,
    }
    given = {name: part for name, part in given.items() if part is not None}
    if not given and not names_objects(run.recipe_file):
        return run
    return dataclasses.replace(run, parts=parts_for(run.recipe, given, valid, test))


def open_run(path: str | Path, checkpoint: str = LAST, parts: Parts | None = None) -> Run:
    """Open a run directory without asking for the Python objects that it may have been trained on.

    Args:
        parts: these objects, by their keys in the recipe.

    Raises:
        UsageError, CheckpointError: as for `load_run`.
    """
    check_path("a run", path)
    path = fetched(path) if isinstance(path, str) and is_place(path) else path
    if not isinstance(checkpoint, str):
        raise UsageError(f"checkpoint must be last, best or step-N, got {shown(checkpoint)}")
    path = user_path(path, what="the run")
    hint = "`gebm-kit train` makes run directories, runs/<recipe>/<time>."
    try:
        if is_exported(path):
            return _open_exported(path, checkpoint, parts)
        missing = [name for name in (RESOLVED, STATUS, ENVIRONMENT) if not (path / name).is_file()]
        if missing:
            what = "does not exist" if not path.exists() else f"is not a run directory: it has no {missing[0]}"
            raise CheckpointError(f"{path} {what}", hint=hint)
    except OSError as error:  # no permission, a name that is too long
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}", hint=hint) from error
    return Run(path, check_word(checkpoint), parts or {})


def _open_exported(path: Path, checkpoint: str, parts: Parts | None) -> Run:
    run = Run(path, LAST, parts or {})
    if checkpoint != LAST:
        raise UsageError(f"{path} is an exported folder, which holds one checkpoint; leave {shown(checkpoint)} out")
    _ = run.exported  # its config.json is read, and refused if it is damaged
    return run


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


def remove_leftovers(run: Run) -> None:
    """Remove the temporary files that killed processes left in the run directory; those of living processes stay.

    Call it before writing to the run. Links are not followed.
    """
    if run.exported is not None:
        return
    for name in ("", "figures", "samples", "base", "energy"):
        for folder, inner, _ in os.walk(run.path / name):
            if not os.path.islink(folder):
                remove_temporary_files(Path(folder))
            if not name:
                inner.clear()


def newest_run(root: str | Path = RUNS) -> Run:
    """Open the newest finished run under ``root``.

    Raises:
        UsageError: there is no finished run.
    """
    runs = [run for run in _runs(user_path(root)) if run.state == "finished"]
    if not runs:
        raise UsageError(
            f"there is no finished run under {root}/", hint="Train one with `gebm-kit train quickstart`, or name a run."
        )
    return max(runs, key=_changed)


def unfinished_runs(recipe_name: str, root: Path = RUNS) -> list[Run]:
    """Return the runs of a recipe that can be resumed, newest first."""
    runs = [run for run in _runs(root / recipe_name) if run.state != "finished"]
    return sorted(runs, key=_changed, reverse=True)


def _changed(run: Run) -> float:
    return (run.path / STATUS).stat().st_mtime


def _runs(root: Path) -> list[Run]:
    found = []
    for path in run_directories(root) if os.path.isdir(root) else ():
        try:
            run = open_run(path)
            _ = run.state
        except GebmKitError:
            continue
        if run.exported is None:
            found.append(run)
    return found
