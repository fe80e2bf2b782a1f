"""Scalars, pictures and tables for Trackio (``pip install 'gebm-kit[trackio]'``)."""

from __future__ import annotations

import contextlib
import html
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from gebm_kit.core.components import Injected
from gebm_kit.core.interfaces import Logger
from gebm_kit.core.paths import user_path
from gebm_kit.core.tracking import (
    Names,
    default_name,
    keep_id,
    new_id,
    own_folder,
    plain_name,
    tracked_id,
    tracker_package,
    variables,
)

REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_DATASET_ID", "TRACKIO_BUCKET_ID", "SYSTEM")
"""Variables by which Trackio would write elsewhere than to local files."""

ENVIRONMENT: dict[str, str | None] = dict.fromkeys(REMOTE)


class Trackio(Logger):
    """Logger of a local Trackio project: a SQLite database in ``trackio/`` of the run directory.

    No server is started and nothing is sent. ``TRACKIO_DIR=runs/x/trackio trackio show`` opens the dashboard. Runs with
    the same ``folder`` are shown together. Every row is in the database when training continues, so that a killed run loses
    none. A resumed run continues its Trackio run; steps that are trained again have two rows.

    Names are made fit for trackers (docs/trackers.md).

    Args:
        project: name of Trackio's project.
        run_name: name of the run; null: that of the run directory.
        folder: folder of the database, relative to the directory where the command is started; null: ``trackio/`` of the
            run directory.
        images: whether to write pictures too.
        run_directory: directory of the run.
        directory: directory that ``folder`` is relative to.

    Raises:
        PluginError: Trackio is not installed.
        UsageError: the folder can't be made, or holds a symbolic link.
    """

    def __init__(
        self,
        project: str = "gebm-kit",
        run_name: str | None = None,
        folder: str | None = None,
        images: bool = True,
        *,
        run_directory: Annotated[Path, Injected],
        directory: Annotated[Path, Injected] = Path(),
    ) -> None:
        self.images, self._names = images, Names()
        self.project = plain_name(project)
        self.name = default_name(run_directory) if run_name is None else plain_name(run_name)
        self._module = _package()
        self.folder = own_folder(Path(run_directory) / "trackio" if folder is None else directory / user_path(folder))
        storage = self._module.SQLiteStorage
        with self._working():
            storage.validate_project_name(self.project)
            self._database = sqlite3.connect(storage.init_db(self.project), check_same_thread=False)
        # Held open: SQLite waits for the disk whenever the last connection to a database closes, and Trackio opens one a row
        self._database.execute("SELECT count(*) FROM metrics").fetchone()
        self.run_id = tracked_id(run_directory, "trackio") or new_id()
        keep_id(run_directory, "trackio", self.run_id)

    @classmethod
    def check(cls) -> None:
        _package()

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        if scalars:
            self._write(step, {self._names.metric(name): float(value) for name, value in scalars.items()})

    def log_config(self, config: Mapping[str, Any]) -> None:
        self._write(0, {}, {**config, "_Username": None, "_Group": None})

    def log_image(self, step: int, name: str, path: Path) -> None:
        if self.images:
            with self._working():
                picture = self._module.Image(path, caption=plain_name(name))
                picture._save(self.project, self.name, step)
            self._write(step, {self._names.figure(name): picture._to_dict()})

    def log_table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[str | float | None]]
    ) -> None:
        with self._working():
            cells = [
                [html.escape(cell, quote=False) if isinstance(cell, str) else cell for cell in row] for row in rows
            ]
            table = self._module.Table(columns=list(columns), data=cells)  # text cells are shown as Markdown
            content = table._to_dict(self.project, self.name, step)
        self._write(step, {self._names.table(name): content})

    def close(self) -> None:
        self._database.close()

    def _write(self, step: int, row: dict[str, Any], config: dict[str, Any] | None = None) -> None:
        """Write a row at once: Trackio's own `log` writes from a thread, half a second later."""
        storage = self._module.SQLiteStorage
        with self._working():
            storage.bulk_log(self.project, self.name, [row], steps=[step], config=config, run_id=self.run_id)

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        """Let Trackio work in this logger's folder: it reads TRACKIO_DIR once, when it is imported."""
        at, loaded = self._module.utils.TRACKIO_DIR, len(sys.modules)
        places = _places(at)
        try:
            for module, name, inside in places:
                setattr(module, name, self.folder / inside)
            with variables(ENVIRONMENT):
                yield
        finally:
            for module, name, inside in places if len(sys.modules) == loaded else _places(self.folder):
                setattr(module, name, at / inside)


def _places(folder: Path) -> list[tuple[ModuleType, str, Path]]:
    """Return where Trackio's modules keep paths in a folder: module, name, and path inside the folder."""
    return [
        (module, name, value.relative_to(folder))
        for module in [module for name, module in list(sys.modules.items()) if name.startswith("trackio")]
        for name, value in list(vars(module).items())
        if isinstance(value, Path) and value.is_relative_to(folder)
    ]


def _package() -> Any:
    return tracker_package("trackio", "trackio", ENVIRONMENT)
