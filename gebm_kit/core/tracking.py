"""What loggers for experiment trackers share: names that every tracker accepts, and the id of a run in a tracker.

Names. A tracker shows metrics in groups, opened by a slash. The first dot of a name opens one, so ``eval.gebm.mmd`` becomes
``eval/gebm.mmd``; a name without a dot is in the group ``train``. Groups hold no groups: some trackers keep a metric in a
file, and a file can't be a folder too. Letters, digits, spaces and ``_ - .`` stay, every other character becomes ``_``. A
name of more than `MAX_NAME` characters is cut, and ends in eight digits of its SHA-256. So does a name that another one has
become already.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from gebm_kit.core.errors import GebmKitError, PluginError, UsageError
from gebm_kit.core.files import make_directory, write_json
from gebm_kit.core.progress import warn
from gebm_kit.core.reading import read_json_file

MAX_NAME = 120
"""Longest name that is handed to a tracker, in characters."""

IDS = "trackers.json"
"""File in the run directory with the id of the run in every tracker."""

RUN_FOLDER = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]+(-\d+)?")
"""Names of run directories that the kit chose."""


class Names:
    """Names as trackers accept them; see above. Each name keeps the one that it was given first."""

    def __init__(self) -> None:
        self._given: dict[str, str] = {}

    def metric(self, name: str) -> str:
        """Return a metric's name, in its group."""
        group, _, rest = (name if "." in name else f"train.{name}").partition(".")
        return self._unique(name, f"{_tidy(group) or '_'}/{_tidy(rest) or '_'}")

    def figure(self, name: str) -> str:
        """Return a picture's name, in the group ``figures``."""
        return self.metric(f"figures.{name}")

    def table(self, name: str) -> str:
        """Return a table's name, in the group ``tables``."""
        return self.metric(f"tables.{name}")

    def _unique(self, name: str, tidy: str) -> str:
        if name not in self._given:
            taken = tidy in self._given.values()
            self._given[name] = _cut(tidy, name, always=taken)
        return self._given[name]


def plain_name(name: str) -> str:
    """Return the name of a run, project or tag by the rule above, without groups."""
    return _cut(_tidy(name) or "_", name)


def default_name(run_directory: Path) -> str:
    """Return the default name of a run: that of its directory, after the recipe's where the kit chose the directory."""
    path = Path(os.path.abspath(run_directory))
    return plain_name(f"{path.parent.name}-{path.name}" if RUN_FOLDER.fullmatch(path.name) else path.name)


def _tidy(text: str) -> str:
    return re.sub(r"[^\w\-. ]", "_", text).strip(" .")


def _cut(tidy: str, name: str, *, always: bool = False) -> str:
    if len(tidy) <= MAX_NAME and not always:
        return tidy
    return f"{tidy[: MAX_NAME - 9].rstrip(' ./')}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}"


# --- the run in the tracker ------------------------------------------------------------------------------------------
def tracked_id(run_directory: Path, tracker: str) -> str | None:
    """Return the id that this run has in a tracker; None for a run that the tracker has not seen."""
    found = _ids(run_directory).get(tracker)
    return found if isinstance(found, str) and re.fullmatch(r"[0-9A-Za-z_-]{1,64}", found) else None


def keep_id(run_directory: Path, tracker: str, run_id: str) -> None:
    """Keep the id that this run has in a tracker, for when it is resumed."""
    write_json(Path(run_directory) / IDS, {"schema": 1, **_ids(run_directory), tracker: run_id})


def new_id() -> str:
    """Return a new id; no random numbers of the run are used."""
    return secrets.token_hex(8)


def _ids(run_directory: Path) -> dict[str, Any]:
    path = Path(run_directory) / IDS
    if not path.exists():
        return {}
    try:
        found = read_json_file(path, follow=False)
    except GebmKitError as error:
        warn(f"{error.message}; trackers show this run as a new one")
        return {}
    return found if isinstance(found, dict) else {}


def own_folder(folder: Path, *, levels: int | None = None) -> Path:
    """Make a tracker's folder in a run directory, and return its absolute path.

    Args:
        levels: how many levels of the folder are searched for links; None: all.

    Raises:
        UsageError: the folder, or something in it, is a symbolic link: a run from somebody else could lead anywhere.
    """
    place = Path(os.path.abspath(folder))
    make_directory(place)
    for parent, folders, files in os.walk(place):
        for name in (*folders, *files):
            if os.path.islink(os.path.join(parent, name)):
                raise UsageError(
                    f"{os.path.join(parent, name)} is a symbolic link; nothing is written through it",
                    hint=f"Remove it, or {place} as a whole.",
                )
        if levels is not None and len(Path(parent).relative_to(place).parts) + 1 >= levels:
            folders.clear()
    return place


# --- packages and what they change -----------------------------------------------------------------------------------
def tracker_package(package: str, extra: str, environment: Mapping[str, str | None]) -> ModuleType:
    """Import a tracker's package, with variables of the environment set for that time.

    Raises:
        PluginError: it is not installed; the hint says what to install.
    """
    try:
        with variables(environment):
            return importlib.import_module(package)
    except ImportError as error:
        raise PluginError(
            f"logger {extra!r} needs the package {package}, which can't be imported: {error}",
            hint=f"Install it with `pip install 'gebm-kit[{extra}]'`, or train without it: loggers=[].",
        ) from error


@contextlib.contextmanager
def variables(environment: Mapping[str, str | None], keep: tuple[str, ...] = ()) -> Iterator[None]:
    """Set variables of the environment (None: remove) inside the block, and set all but ``keep`` back after it."""
    before = dict(os.environ)
    try:
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        yield
    finally:
        for name in set(os.environ) - set(before) - set(keep):
            del os.environ[name]
        os.environ.update(before)


def flat(config: Mapping[str, Any]) -> dict[str, str]:
    """Return nested data as text by dotted key; items of a list have their number as key."""
    found: dict[str, str] = {}
    waiting: list[tuple[str, Any]] = [("", config)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, Mapping | list | tuple) and value:
            inner = value.items() if isinstance(value, Mapping) else enumerate(value)
            waiting += [(f"{key}.{name}".lstrip("."), each) for name, each in inner]
        else:
            found[key] = "null" if value is None else str(value)
    return dict(sorted(found.items()))
