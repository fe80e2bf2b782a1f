"""Scalars, pictures and tables for MLflow (``pip install 'gebm-kit[mlflow]'``)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from gebm_kit.core.components import Injected
from gebm_kit.core.interfaces import Logger
from gebm_kit.core.progress import warn
from gebm_kit.core.tracking import (
    Names,
    default_name,
    flat,
    keep_id,
    own_folder,
    plain_name,
    tracked_id,
    tracker_package,
    variables,
)

MAX_PARAM = 500
"""Longest value of a parameter, in characters: the limit of MLflow's older servers."""

ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}
"""Variables that hold while MLflow works: it reports nothing to its makers, and writes files without a database."""


class MlFlow(Logger):
    """Logger of an MLflow run: metrics, the recipe as parameters and ``recipe.json``, pictures and tables as artifacts.

    By default the run is written to files in ``mlruns/`` of the run directory, without a server. Every row is on disk when
    training continues, so that a killed run loses none. ``MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri
    runs/x/mlruns`` shows it, from the full package ``mlflow``; MLflow 3 asks for that variable. A resumed run continues
    its MLflow run; steps that are trained again have two values, of which MLflow shows the later one last.

    Names are made fit for trackers (docs/trackers.md). Values of parameters are cut after 500 characters; ``recipe.json``
    has them whole.

    Args:
        experiment: name of MLflow's experiment; it is made if it does not exist.
        run_name: name of the run; null: that of the run directory.
        tracking_uri: where to write: a server's address, a database or a folder, as MLflow understands it; null:
            ``mlruns/`` of the run directory.
        tags: tags of the run, each ``key=value``.
        images: whether to write pictures too.
        run_directory: directory of the run.

    Raises:
        PluginError: MLflow is not installed.
        UsageError: ``mlruns/`` is or holds a symbolic link.
    """

    def __init__(
        self,
        experiment: str = "gebm-kit",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: tuple[str, ...] = (),
        images: bool = True,
        *,
        run_directory: Annotated[Path, Injected],
    ) -> None:
        self.images, self._names = images, Names()
        module = _package()
        store = tracking_uri or _store(Path(run_directory)).as_uri()
        name = default_name(run_directory) if run_name is None else plain_name(run_name)
        with variables(ENVIRONMENT):
            self._client = module.MlflowClient(tracking_uri=store)
            self.run_id = self._continued(run_directory) or self._begun(plain_name(experiment), name, tags)
        keep_id(run_directory, "mlflow", self.run_id)

    @classmethod
    def check(cls) -> None:
        _package()

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        if not scalars:
            return
        metric, now = _package().entities.Metric, int(time.time() * 1000)
        rows = [metric(self._names.metric(name), float(value), now, step) for name, value in scalars.items()]
        with variables(ENVIRONMENT):
            self._client.log_batch(self.run_id, metrics=rows)

    def log_config(self, config: Mapping[str, Any]) -> None:
        names, param = Names(), _package().entities.Param
        with variables(ENVIRONMENT):
            known = self._client.get_run(self.run_id).data.params  # MLflow refuses another value for a parameter
            values = {names.metric(f"recipe.{key}").removeprefix("recipe/"): text for key, text in flat(config).items()}
            new = [param(key, text[:MAX_PARAM]) for key, text in values.items() if key not in known]
            for start in range(0, len(new), 100):  # MLflow takes at most 100 at once
                self._client.log_batch(self.run_id, params=new[start : start + 100])
            self._client.log_dict(self.run_id, dict(config), "recipe.json")

    def log_image(self, step: int, name: str, path: Path) -> None:
        if self.images:
            from PIL import Image

            with variables(ENVIRONMENT), Image.open(path) as picture:
                picture.load()
                self._client.log_image(self.run_id, picture, f"{self._names.figure(name)}-{step:07d}.png")

    def log_table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[str | float | None]]
    ) -> None:
        table = {"columns": list(columns), "data": [list(row) for row in rows]}  # the orientation "split" of pandas
        with variables(ENVIRONMENT):
            self._client.log_dict(self.run_id, table, f"{self._names.table(name)}-{step:07d}.json")

    def close(self) -> None:
        with variables(ENVIRONMENT):
            self._client.set_terminated(self.run_id)

    def _continued(self, run_directory: Path) -> str | None:
        found = tracked_id(run_directory, "mlflow")
        if found is None:
            return None
        try:
            self._client.update_run(found, status="RUNNING")
        except _package().exceptions.MlflowException:  # the store was removed, or is another one
            return None
        return found

    def _begun(self, experiment: str, name: str, tags: Sequence[str]) -> str:
        known = self._client.get_experiment_by_name(experiment)
        number = self._client.create_experiment(experiment) if known is None else known.experiment_id
        pairs = {plain_name(key): value for key, _, value in (tag.partition("=") for tag in tags)}
        return self._client.create_run(number, tags=pairs, run_name=name).info.run_id


def _store(run_directory: Path) -> Path:
    """Return the folder of files in a run directory: ``mlruns``, or the next one that was not made in another place.

    MLflow keeps absolute paths: it would go on writing pictures to where the run directory was before it was moved, or to
    where somebody else wants them.
    """
    for number in itertools.count(1):
        place = own_folder(run_directory / ("mlruns" if number == 1 else f"mlruns-{number}"))
        kept = [line for meta in place.rglob("meta.yaml") for line in meta.read_text("utf-8", "replace").splitlines()]
        uris = [line.partition(": ")[2] for line in kept if line.startswith(("artifact_location:", "artifact_uri:"))]
        if all(uri.startswith(f"{place.as_uri()}/") and ".." not in uri for uri in uris):
            return place
        warn(f"{place} was made in another place; MLflow's run is begun again, in a folder beside it")
    raise AssertionError


def _package() -> Any:
    return tracker_package("mlflow", "mlflow", ENVIRONMENT)
