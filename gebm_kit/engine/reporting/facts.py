"""What the files of a run directory say, read without building anything; whatever is damaged or missing is left out."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gebm_kit.config.supplied import PYTHON_OBJECT
from gebm_kit.core.errors import CheckpointError, DataError, GebmKitError
from gebm_kit.core.reading import read_file
from gebm_kit.engine.reporting.words import plain, printable
from gebm_kit.engine.run_directory.checkpoint_record import read_record as read_checkpoint
from gebm_kit.engine.run_directory.record import RunRecord, read_record
from gebm_kit.engine.run_directory.run_files import MAX_SMALL, RESOLVED, read_environment

RECIPE, OVERRIDES = "recipe.yaml", "overrides.txt"
"""Names of two more files."""


@dataclass(frozen=True)
class RunFacts:
    """A run as its files describe it.

    Attributes:
        record: status, resolved recipe, evaluation and log.
        environment: versions, platform and plugins.
        recipe_text, overrides: the recipe as it was read, and the words that changed it; "" where they are missing.
        sums: sha256 of files, by their names: of the recipe, and of the newest checkpoint.
        checkpoint: name of the newest checkpoint; "" without any.
        evaluated: name of the checkpoint that the evaluation is about; "" where it does not say.
    """

    record: RunRecord
    environment: dict[str, Any]
    recipe_text: str
    overrides: tuple[str, ...]
    sums: dict[str, str] = field(default_factory=dict)
    checkpoint: str = ""
    evaluated: str = ""

    @property
    def path(self) -> Path:
        return self.record.path

    @property
    def evaluation(self) -> dict[str, Any]:
        """The last evaluation; {} without one."""
        return self.record.evaluation or {}

    @property
    def name(self) -> str:
        """Name of the recipe, or else of the directory."""
        return plain(self.record.recipe or self.path.name, 120)

    @property
    def own_objects(self) -> bool:
        """Whether the run was trained on objects of Python, which its recipe can't make again."""
        return has_objects(self.record.resolved)

    def part(self, *names: str) -> Any:
        """Return a value of the resolved recipe; None where it is missing."""
        found: Any = self.record.resolved
        for name in names:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found

    def component(self, *names: str) -> str:
        """Name the component of a section, with what it was set to; "" where there is none."""
        node = self.part(*names)
        if not isinstance(node, Mapping):
            return plain(node) if node is not None else ""
        values = [
            f"{key} {_short(value)}"
            for key, value in node.items()
            if key not in ("name", "class") and value is not None
        ]
        own = node.get("name") == PYTHON_OBJECT
        name = plain(f"your own object {node.get('class', '')}" if own else node.get("name") or "?", 80)
        return plain(f"{name} ({', '.join(values)})" if values else name, 300)

    def command(self, verb: str, *words: str) -> str:
        """Write a command on this run for a shell."""
        return shlex.join(["gebm-kit", verb, str(self.path), *words])


def facts_of(path: Path) -> RunFacts:
    """Read a run directory, whatever its state.

    Raises:
        CheckpointError: ``path`` is not a run directory.
    """
    path = Path(os.path.abspath(path))
    record = read_record(path, damaged=True)
    try:
        environment = read_environment(path)
    except CheckpointError:
        environment = {}
    texts = {name: _bytes(path / name) for name in (RECIPE, RESOLVED, OVERRIDES)}
    sums = {name: hashlib.sha256(texts[name]).hexdigest() for name in (RECIPE, RESOLVED) if texts[name]}
    checkpoint, found = _checkpoint(path)
    overrides = texts[OVERRIDES].decode(errors="replace").splitlines()
    return RunFacts(
        record=record,
        environment=environment,
        recipe_text=printable(texts[RECIPE].decode(errors="replace")),
        overrides=tuple(printable(line) for line in overrides if line.strip()),
        sums=sums | {f"{checkpoint}/{plain(name)}": plain(digest) for name, digest in found.items()},
        checkpoint=checkpoint,
        evaluated=plain((record.evaluation or {}).get("checkpoint") or ""),
    )


def has_objects(resolved: Any) -> bool:
    """Return whether a resolved recipe names objects of Python somewhere."""
    if isinstance(resolved, Mapping):
        return resolved.get("name") == PYTHON_OBJECT or any(has_objects(value) for value in resolved.values())
    return isinstance(resolved, list) and any(has_objects(value) for value in resolved)


def _checkpoint(path: Path) -> tuple[str, dict[str, str]]:
    """Return the name of the newest checkpoint whose record can be read, and the checksums of its files."""
    try:
        folders = sorted((path / "checkpoints").glob("step-*"), reverse=True)
    except OSError:
        return "", {}
    for folder in folders:
        number = folder.name.removeprefix("step-")
        try:
            if number.isdecimal():
                return folder.name, dict(read_checkpoint(folder, int(number))["sha256"])
        except GebmKitError:
            continue
    return "", {}


def _bytes(path: Path) -> bytes:
    try:
        return read_file(path, limit=MAX_SMALL, error=DataError)
    except GebmKitError:
        return b""


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_short(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_short(item)}' for key, item in value.items())}}}"
    return str(value).lower() if isinstance(value, bool) else str(value)
