"""The interface of loggers, and how scalars leave the device for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor


class Logger(ABC):
    """Where a run's numbers, pictures and tables go. An exception in a logger becomes a warning and never stops training."""

    @classmethod
    def check(cls) -> None:
        """Check that the logger can be used. Called before anything is trained or written.

        Raises:
            PluginError: a package that it needs is missing.
        """
        return

    @abstractmethod
    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record values by name after ``step`` cycles.

        A step may come twice, from training and evaluation, with other names.
        """

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Record the resolved recipe, as plain data.

        Called once, before anything else, and again when a run is resumed.
        """
        return

    def log_image(self, step: int, name: str, path: Path) -> None:
        """Record a picture (PNG) that was written to ``path``."""
        return

    def log_table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[str | float | None]]
    ) -> None:
        """Record a table, such as that of an evaluation; a cell is text, a number or None, and may be NaN or infinite."""
        return

    def close(self) -> None:
        """Finish. This is the last call, however training ends."""
        return


def named_scalars(metrics: Mapping[str, Tensor]) -> Iterator[tuple[str, float]]:
    """Read metrics off the device; the one place where training waits for it."""
    for name, value in metrics.items():
        yield name, float(value)
