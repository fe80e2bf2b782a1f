"""Creating a run directory, tidying up after a killed process, and keeping copies of the files of base and energy."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch

from gebm_kit.config.build import resolved_yaml
from gebm_kit.config.schema import Recipe
from gebm_kit.core.errors import CheckpointError, RunFailed, UsageError
from gebm_kit.core.files import make_directory, remove_temporary_files, write_atomic, write_json
from gebm_kit.core.interfaces import Base, Energy, HasSource
from gebm_kit.core.paths import user_path
from gebm_kit.core.plugins import installed
from gebm_kit.core.progress import warn
from gebm_kit.core.version import __version__
from gebm_kit.engine.process.lock import LOCK
from gebm_kit.engine.run_directory.checkpoint import remove_unfinished
from gebm_kit.engine.run_directory.lock import RunLock
from gebm_kit.engine.run_directory.run import RUNS, Run, remove_leftovers
from gebm_kit.engine.run_directory.run_files import STATUS

SOURCE_FOLDER, SCORER_FOLDER = "base", "energy"
"""Folders of a run directory that hold the copies of the base's file and of the energy's."""


def keep_sources(run: Path, base: Base, *energies: Energy | None) -> None:
    """Copy the files that a base and energies were read from to the run, so that the run needs no other file.

    The base's file goes to ``run``/base, and with it the others of a base that was read from a folder. Those of energies,
    and of parts of energies, go to ``run``/energy.

    Raises:
        RunFailed: a file changed after it was read, or the disk is full.
    """
    if isinstance(base, HasSource):
        for name, file in getattr(base, "source_parts", {}).items():
            _keep_part(run / SOURCE_FOLDER / name, file)
        _keep(run / SOURCE_FOLDER / base.source_file.name, base)
    parts = [part for energy in energies if energy is not None for part in energy.modules()]
    for part in parts:
        if isinstance(part, HasSource):
            _keep(run / SCORER_FOLDER / getattr(part, "source_copy", part.source_file.name), part)


def _keep(place: Path, part: HasSource) -> None:
    """Copy the file that ``part`` was read from to ``place``, with its sha256 beside it, unless it is there."""
    noted = place.with_name(f"{place.name}.sha256")
    if noted.is_file() and place.is_file():
        return
    content = part.source_file.read_bytes()
    if hashlib.sha256(content).hexdigest() != part.source_sha256:
        raise RunFailed(f"{part.source_file} was changed while it was being read", hint="Start again.")
    make_directory(place.parent)
    write_atomic(place, content)
    write_atomic(noted, f"{part.source_sha256}  {place.name}\n".encode())


def _keep_part(place: Path, file: Path) -> None:
    """Link a file of a base's folder to ``place``, or copy it where the disk allows no link, unless it is there.

    Its content is compared by the base's own sum over all files, which every checkpoint holds.

    Raises:
        RunFailed: the file has gone, or the disk is full.
    """
    if place.is_file():
        return
    make_directory(place.parent)
    partial = place.with_name(f".{place.name}-partial")
    try:
        partial.unlink(missing_ok=True)
        try:
            os.link(file.resolve(), partial)
        except OSError:  # another disk, or a file system without links
            shutil.copyfile(file, partial)
        partial.replace(place)
    except OSError as error:
        raise RunFailed(f"{file} can't be kept in the run: {error.strerror or error}") from error


_FILES = ("recipe.yaml", "overrides.txt", "resolved.yaml", "env.json", STATUS)
"""Files of a new run directory; ``status.json`` is written last."""


_FOLDERS = ("checkpoints", "samples", "figures")
"""Folders of a new run directory."""


def create_run(recipe: Recipe, out: str | Path | None, lock: RunLock, *, resume: bool = False) -> Run:
    """Create a new run directory and hold ``lock`` on it.

    ``status.json`` is written last, and makes the directory a run. A kill before that leaves a directory in which a run can
    be created again.

    Args:
        out: the run directory; None: a new one under ``runs/<recipe>/``.
        resume: whether a run there would have been resumed, had it been there when this process began.

    Raises:
        UsageError: ``out`` is not empty, is a file, can't be written, holds a link, or is used by another process.
    """
    if out is None:
        path = _new_directory(recipe)
    else:
        path = user_path(out)
        _check_free(path, lock, resume)
        make_directory(path)
    lock.hold(path)
    _check_free(path, lock, resume)  # another process may have been faster
    for name in os.listdir(path):
        if (path / name).is_symlink():
            raise UsageError(f"{path / name} is a symbolic link; nothing is written through it", hint="Remove it.")
    remove_temporary_files(path)
    for folder in _FOLDERS:
        make_directory(path / folder)
    write_atomic(path / "recipe.yaml", recipe.text.encode())
    write_atomic(path / "overrides.txt", "".join(f"{word}\n" for word in recipe.overrides).encode())
    write_resolved(path, recipe)
    write_json(path / "env.json", _environment(recipe))
    write_json(path / STATUS, {"recipe": recipe.name, "state": "running", "step": 0, "seconds": 0.0})
    return Run(path)


def is_unmade(path: Path) -> bool:
    """Return whether ``path`` is free for a new run: missing, empty, or left by a process killed while creating a run."""
    try:
        names = set(os.listdir(path))
    except FileNotFoundError:
        return not os.path.lexists(path)
    except OSError:  # a file, or no permission
        return False
    if not names:
        return True
    known = [*_FOLDERS, *_FILES, LOCK]
    beginnings = tuple(f".{name}-" for name in _FILES)
    ours = all(name in known or name.startswith(beginnings) for name in names)
    return LOCK in names and STATUS not in names and ours and not any((path / "checkpoints").glob("*"))


def _check_free(path: Path, lock: RunLock, resume: bool) -> None:
    """Raise if ``path`` is not free for a new run; if it holds one, the lock tells whether a process trains there."""
    if os.path.isdir(path) and not is_unmade(path):
        is_run = os.path.lexists(path / STATUS)
        if is_run and os.path.lexists(path / LOCK):  # nothing is written into a directory that is refused
            lock.hold(path)
        if is_run and resume:
            raise UsageError(
                f"another process made a run in {path} while this one was starting",
                hint="Repeat the command to resume it.",
            )
        raise UsageError(
            f"{path} is not empty" + (": it holds a run" if is_run else ""),
            hint="Add --resume to resume it, or choose another --out." if is_run else "Choose another --out.",
        )


def tidy(run: Run, name: str) -> None:
    """Remove what killed processes left half-written, and rewrite a damaged status file. The caller must hold the lock.

    Args:
        name: the recipe's name, for the status file.
    """
    remove_leftovers(run)
    remove_unfinished(run.checkpoints)
    try:
        _ = run.status
    except CheckpointError as error:
        warn(f"{error}; it is rewritten, without the seconds of earlier attempts")
        write_json(run.path / STATUS, {"recipe": name, "state": "interrupted", "step": 0, "seconds": 0.0})


def write_resolved(path: Path, recipe: Recipe) -> None:
    """Write the resolved recipe; resuming a run may change its settings for sampling and evaluation."""
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
