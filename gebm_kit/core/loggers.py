"""The interface of loggers, and how scalars leave the device for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


class Logger(ABC):
    """Where a run's numbers and pictures go. What a logger raises is a warning to the user, and never stops training."""

    @classmethod
    def check(cls) -> None:
        """Called before anything is trained or written; raises PluginError when a package that it needs is missing."""
        return

    @abstractmethod
    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Values by name after ``step`` cycles. Training and evaluation log: a step may come twice, with other names."""

    def log_config(self, config: Mapping[str, Any]) -> None:
        """The resolved recipe as plain data, once, before anything else; again when a run is resumed."""
        return

    def log_image(self, step: int, name: str, path: Path) -> None:
        """A picture (PNG) that was written to ``path``."""
        return

    def close(self) -> None:
        """The last call, however training ends."""
        return


def named_scalars(metrics: Mapping[str, Tensor]) -> Iterator[tuple[str, float]]:
    """Read metrics off the device; the one place where training waits for it."""
    for name, value in metrics.items():
        yield name, float(value)
