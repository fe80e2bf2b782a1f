"""Reports of progress, notes and warnings. Reports become text in `progress_bars`, `progress_lines` and `notebooks`."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


class GebmKitWarning(UserWarning):
    """Something that the user should know. The command line prints it; Python's warnings filter applies."""


NOTES = logging.getLogger("gebm_kit")
"""The logger of notes. The command line prints them on stderr; Python's `logging` shows them from the level INFO on."""


def note(text: str) -> None:
    """Report something that is as it should be and still worth knowing, such as what a dataset read."""
    NOTES.info("%s", text)


def warn(text: str) -> None:
    """Emit a `GebmKitWarning` that points at the caller outside the kit."""
    warnings.warn(text, GebmKitWarning, stacklevel=_frames_inside() + 1)


def _frames_inside() -> int:
    """Count the kit's frames between the caller of `warn` and the code that called the kit."""
    frame, depth = sys._getframe(2), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).startswith("gebm_kit."):
        frame, depth = frame.f_back, depth + 1
    return depth


STAGES = {
    "fit": "parts that learn from the data beforehand, such as feature maps and classifiers",
    "train": "training: the first phase of the base, the main phase and the final one",
    "warmup": "warm-up of the sampler",
    "sample": "chains or populations",
    "base": "draws of the base",
    "calibrate": "the search for beta",
    "features": "features of the data",
    "evaluate": "metrics",
    "longer": "metrics of longer chains",
    "trace": "a metric along the chains",
    "log Z": "energies of base draws, for log Z",
    "ladder": "the steps of an annealed log Z, whose number is not known beforehand",
    "anneal": "an annealed log Z",
    "rows": "rows that are scored",
    "score": "base draws that a tilt scores",
    "ascend": "gradient ascent of a tilt",
    "prepare": "images that are decoded",
}
"""Stages that report progress, and what runs in them."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One report of progress.

    Attributes:
        stage: what runs, see `STAGES`.
        step, total: steps of that stage done and in all; a total of -1 is unknown.
        scalars: current values worth showing, by name (loss, kale, acceptance).
    """

    stage: str
    step: int
    total: int
    scalars: Mapping[str, float] = field(default_factory=dict)


OnProgress = Callable[[Progress], None]
"""A function that is called with every report of progress."""


def counted(on_progress: OnProgress, stage: str, total: int) -> Callable[[int], None]:
    """Return a function that reports how many of ``total`` rows are done, as steps of ``stage``."""
    return lambda done: on_progress(Progress(stage, min(done, total), total))


def ignore(progress: Progress) -> None:
    """Ignore a report; the default."""
