"""How the engine tells whoever is watching what it does; only the command line turns this into text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


class GebmKitWarning(UserWarning):
    """Something the user should know, in words: the command line prints it, Python's warnings filter applies."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One report of progress.

    Attributes:
        stage: what is going on: ``train``, ``warmup``, ``sample``, ``evaluate``.
        step, total: how far, in steps of that stage.
        scalars: current values worth showing, by name (loss, kale, acceptance).
    """

    stage: str
    step: int
    total: int
    scalars: Mapping[str, float] = field(default_factory=dict)


OnProgress = Callable[[Progress], None]


def ignore(progress: Progress) -> None:
    """The default: nobody watches."""
