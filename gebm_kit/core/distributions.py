"""Installed distributions and their entry points, read one by one, so that one that is damaged hides no other."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gebm_kit.core.components import canonical
from gebm_kit.core.isolation import first_words
from gebm_kit.core.reading import read_file

MAX_ENTRY_POINTS = 2**20
"""Largest ``entry_points.txt`` that is read, in bytes. Those of large packages have some kilobytes."""

MAX_METADATA = 16 * 2**20
"""Largest ``METADATA`` that is read, in bytes: a package's long description is part of it."""


@dataclass(frozen=True, slots=True)
class Found:
    """One entry point of the kit's group, or a distribution whose entry points can't be read.

    Attributes:
        distribution, version: of the package that declares it.
        entry: the entry point; None: it can't be read.
        problem: why it can't be read.
    """

    distribution: str
    version: str
    entry: importlib.metadata.EntryPoint | None
    problem: str = ""


def found_entry_points(
    group: str, distributions: Iterable[importlib.metadata.Distribution] | None = None
) -> list[Found]:
    """Return every entry point of ``group``, sorted by distribution and name.

    Of two distributions with one name, the first on the module search path counts, as for imports.

    Args:
        group: the group of entry points.
        distributions: None: all that are installed.
    """
    found: list[Found] = []
    seen: set[str] = set()
    for dist in _each(importlib.metadata.distributions() if distributions is None else distributions):
        try:
            folder = getattr(dist, "_path", None)  # standard distributions have it; others are asked for their text
            stem = _stem(folder)
            if stem and stem in seen:
                continue
            if not stem:
                stem = canonical(str(dist.metadata["Name"]))
                if stem in seen:
                    continue
            seen.add(stem)
            found += _of(dist, folder if isinstance(folder, Path) else None, group)
        except Exception as error:  # whatever its finder does
            found.append(Found(_fallback_name(dist), "", None, f"it can't be read: {_said(error)}"))
    return sorted(found, key=lambda each: (each.distribution, each.entry.name if each.entry is not None else ""))


def _each(distributions: Iterable[importlib.metadata.Distribution]) -> Iterator[importlib.metadata.Distribution]:
    """Yield the distributions until a finder of somebody else fails."""
    with contextlib.suppress(Exception):
        yield from distributions


def _of(dist: importlib.metadata.Distribution, folder: Path | None, group: str) -> Iterator[Found]:
    """Yield the entry points of one distribution; nothing is parsed unless the group's name is in the text."""
    try:
        if folder is not None and folder.is_dir():
            file = folder / "entry_points.txt"
            content = read_file(file, limit=MAX_ENTRY_POINTS) if file.exists() else b""
        else:
            content = (dist.read_text("entry_points.txt") or "").encode(errors="replace")
        if group.encode() not in content:
            return
        entries = list(dist.entry_points.select(group=group))
    except Exception as error:
        yield Found(*identity(dist), None, f"its entry_points.txt can't be read: {_said(error)}")
        return
    if entries:
        name, version = identity(dist)
        for entry in entries:
            yield Found(name, version, entry)


def identity(dist: importlib.metadata.Distribution | None, default: str = "") -> tuple[str, str]:
    """Return the name and version of a distribution; the name of its folder if its metadata are damaged.

    Args:
        dist: the distribution.
        default: the name if nothing says one.
    """
    if dist is None:
        return default, ""
    fallback = _fallback_name(dist, default)
    try:
        folder = getattr(dist, "_path", None)
        if isinstance(folder, Path) and folder.is_dir():
            read_file(
                folder / "METADATA" if (folder / "METADATA").exists() else folder / "PKG-INFO", limit=MAX_METADATA
            )
        metadata = dist.metadata
        return first_words(metadata["Name"] or fallback, 100), first_words(dist.version or "", 100)
    except Exception:  # no metadata, or none that can be read
        return fallback, ""


def _stem(folder: object) -> str:
    name = getattr(folder, "name", "")
    stem = name.rpartition(".")[0] if isinstance(name, str) else ""
    return canonical(stem.partition("-")[0])


def _fallback_name(dist: importlib.metadata.Distribution, default: str = "") -> str:
    return first_words(_stem(getattr(dist, "_path", None)) or default or "unknown", 100)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_words(error)}".rstrip(": ")
