"""Paths of this machine, which an exported folder must not hold: only the last name of each is kept."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from gebm_kit.core.files import remove_tree
from gebm_kit.engine.run_directory.exported import machine_path


def last_name(text: str) -> str:
    """Return the last name of a path."""
    return PureWindowsPath(text).name or PurePosixPath(text).name or "data"


def without_paths(tree: Any, found: dict[str, str] | None = None, key: str = "") -> Any:
    """Return plain data with the last name in place of every path of this machine.

    Args:
        found: gets each path, by its key, with the name that took its place.
    """
    if isinstance(tree, dict):
        return {k: without_paths(v, found, f"{key}.{k}" if key else str(k)) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_paths(v, found, f"{key}[{i}]") for i, v in enumerate(tree)]
    if not isinstance(tree, str) or not machine_path(tree):
        return tree
    if found is not None:
        found[key] = tree
    return last_name(tree)


def rename_copies(folder: Any, paths: dict[str, str]) -> None:
    """Rename copies of files whose names begin with a digest of the path as given, after that path has been shortened."""
    for path in set(paths.values()):
        old, new = (hashlib.sha256(text.encode()).hexdigest()[:8] for text in (path, last_name(path)))
        for file in folder.glob(f"{old}-{last_name(path)}*") if folder.is_dir() else ():
            target = file.with_name(new + file.name[8:])
            remove_tree(target)
            file.rename(target)
