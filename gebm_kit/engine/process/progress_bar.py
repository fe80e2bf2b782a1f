"""Progress of a verb that is called in Python: a bar on a terminal or in a notebook, a callback, or nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from gebm_kit.core.arguments import check_callback
from gebm_kit.core.errors import UsageError
from gebm_kit.core.progress import OnProgress, ignore
from gebm_kit.core.progress_lines import PlainProgress, is_terminal
from gebm_kit.core.progress_notebook import NotebookBars, in_notebook


def check_progress(progress: object, on_progress: object) -> None:
    """Check the two arguments of a verb, before anything is computed.

    Raises:
        UsageError: ``progress`` is not True, False or None; ``on_progress`` is neither None nor a function.
    """
    if progress is not None and not isinstance(progress, bool):
        raise UsageError(
            f"progress must be True, False or None (a bar on a terminal or in a notebook), got {progress!r}",
            hint="A function that is called with reports is given as on_progress.",
        )
    if on_progress is not None:
        check_callback("on_progress", on_progress)


@contextmanager
def progress_shown(progress: bool | None, on_progress: OnProgress | None) -> Iterator[OnProgress]:
    """Yield what is called with reports of progress while a verb works.

    - ``on_progress`` takes precedence: it is called, and nothing else is shown.
    - None: a bar in a notebook, or on stderr if that is a terminal; elsewhere nothing, so that scripts stay silent.
    - True: the same, and lines of text on stderr where it is not a terminal.
    - False: nothing.

    Only the first rank shows anything. A verb wraps all of its work, once; what it calls is handed the result.

    Example:
        >>> from gebm_kit.core.progress import Progress
        >>> with progress_shown(False, None) as report:
        ...     report(Progress("train", 1, 10))
    """
    check_progress(progress, on_progress)
    if on_progress is not None:
        yield on_progress
    elif progress is False or _rank() != 0:
        yield ignore
    elif in_notebook():
        with NotebookBars() as bars:
            yield bars
    elif sys.stderr is not None and is_terminal(sys.stderr):
        from rich.console import Console

        from gebm_kit.core.progress_bars import Bars

        with Bars(Console(stderr=True, highlight=False)) as lines:
            yield lines
    elif progress and sys.stderr is not None:
        with PlainProgress(_say) as plain:
            yield plain
    else:
        yield ignore


def _say(line: str) -> None:
    sys.stderr.write(f"gebm-kit: {line}\n")
    sys.stderr.flush()


def _rank() -> int:
    """Return this process's rank: that of its process group, or the one that torchrun gave it."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() and "WORLD_SIZE" in os.environ else 0
