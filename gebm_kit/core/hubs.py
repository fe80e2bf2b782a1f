"""Hubs: places on a network that models are passed on through, each with a scheme such as ``hub://`` and a plugin behind it.

A plugin offers hubs as records `Hub` among its components. Nothing here imports torch.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gebm_kit.core.components import Hub
from gebm_kit.core.errors import PluginError, UsageError, nearest, shown
from gebm_kit.core.plugins import installed

FILES = ("*.safetensors", "*.json", "*.yaml", "*.png", "*.sha256", "README.md")
"""Files that pass through a hub: weights, plain data, pictures, sums, and the model card."""

PROGRAM = "program.pt2"
"""The program, which passes only if it is asked for."""

PLACE = re.compile(r"([a-z][a-z0-9+.-]*)://([^@\s]*)(?:@(\S+))?")
"""A place: scheme, repository, and perhaps a revision."""

REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")

FIRST_PARTY = {"hub": "gebm-kit-hf"}
"""This project's plugin packages, by the scheme that each offers."""


class ModelHub(Protocol):
    """What a plugin's hub does. Its class is built without arguments."""

    def fetch(self, repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
        """Return a folder with the repository's files that match the patterns.

        Raises:
            DataError: there is no such repository or revision, or it can't be reached.
        """
        ...

    def push(
        self, folder: Path, repository: str, files: Sequence[str], *, private: bool | None, revision: str | None
    ) -> str:
        """Write files of a folder to the repository, made if needed, in one commit; returns the address.

        Raises:
            UsageError: nobody is logged in, or may not write there.
            RunFailed: it can't be reached.
        """
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """A repository on a hub: scheme, repository, and a revision or None."""

    scheme: str
    repository: str
    revision: str | None


def is_place(word: object) -> bool:
    """Return whether a word names a place on a hub: ``hub://OWNER/NAME``."""
    return isinstance(word, str) and re.match(r"[a-z][a-z0-9+.-]*://", word) is not None


def place_of(word: str, scheme: str = "hub") -> Place:
    """Read a place; a word without a scheme is a repository of ``scheme``.

    Raises:
        UsageError: it is not a place.
    """
    match = PLACE.fullmatch(word if is_place(word) else f"{scheme}://{word}")
    if match is None or not REPOSITORY.fullmatch(match[2]) or ".." in match[2]:
        raise UsageError(f"{shown(word)} is not a repository; allowed: OWNER/NAME, perhaps with @REVISION after it")
    if match[3] is not None and (not REVISION.fullmatch(match[3]) or ".." in match[3]):
        raise UsageError(f"{shown(match[3])} is not a revision; allowed: a branch, a tag or a commit")
    return Place(match[1], match[2], match[3])


def hub_of(scheme: str) -> ModelHub:
    """Return the hub behind a scheme.

    Raises:
        UsageError: no plugin that is known offers the scheme.
        PluginError: the plugin that offers it is not installed, or is broken.
    """
    registry = installed().registry
    record: Hub | None = registry.hubs.get(scheme)
    if record is None:
        package = FIRST_PARTY.get(scheme)
        if package is None:
            raise UsageError(f"{scheme}:// is not a hub; {nearest(scheme, [*registry.hubs, *FIRST_PARTY])}")
        note = registry.missing_notes.get(package)
        raise PluginError(
            f"{scheme}:// needs the plugin {package!r}, which is not installed"
            if note is None
            else f"{scheme}:// is not available: {note}",
            hint=f"Install it with `pip install {package}`." if note is None else "",
        )
    module, _, attribute = record.target.partition(":")
    try:
        made: Any = getattr(importlib.import_module(module), attribute)()
    except Exception as error:  # a plugin's own code
        raise PluginError(f"the hub {scheme}:// can't be used: {type(error).__name__}: {error}") from error
    hub: ModelHub = made
    return hub


def fetched(word: str, *, program: bool = False) -> Path:
    """Return a folder with the files of a place.

    Args:
        program: whether its program is fetched too.

    Raises:
        UsageError, PluginError: as for `place_of` and `hub_of`.
        DataError: as for `ModelHub.fetch`.
    """
    place = place_of(word)
    return hub_of(place.scheme).fetch(place.repository, place.revision, [*FILES, *([PROGRAM] if program else [])])
