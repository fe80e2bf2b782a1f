"""How the engine tells whoever is watching what it does; only the command line turns this into text."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


class GebmKitWarning(UserWarning):
    """Something the user should know, in words: the command line prints it, Python's warnings filter applies."""


def warn(text: str) -> None:
    """Warn in the name of the caller outside the kit."""
    warnings.warn(text, GebmKitWarning, stacklevel=_frames_inside() + 1)


def _frames_inside() -> int:
    """Frames of the kit between the caller of `warn` and whoever called the kit."""
    frame, depth = sys._getframe(2), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).startswith("gebm_kit."):
        frame, depth = frame.f_back, depth + 1
    return depth


@dataclass(frozen=True, slots=True)
class Progress:
    """One report of progress.

    Attributes:
        stage: what is going on: ``train``, ``warmup``, ``sample``, ``evaluate``.
        step, total: how far, in steps of that stage; a total of -1 is not known.
        scalars: current values worth showing, by name (loss, kale, acceptance).
    """

    stage: str
    step: int
    total: int
    scalars: Mapping[str, float] = field(default_factory=dict)


OnProgress = Callable[[Progress], None]
"""A function that is called with every report of progress."""


def ignore(progress: Progress) -> None:
    """The default: nobody watches."""
