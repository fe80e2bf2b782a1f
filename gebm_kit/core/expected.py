"""What is known of published data before they are downloaded, so that a dry run can count without them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Expected:
    """Images that a dataset will have, in [-1, 1] as bytes.

    Attributes:
        shape: (C, H, W) of each.
        train: how many of them are for training.
        num_classes: of their labels; None: they have none.
    """

    shape: tuple[int, int, int]
    train: int
    num_classes: int | None = None


@runtime_checkable
class IsPublished(Protocol):
    """A dataset class whose files are the same for everybody."""

    @classmethod
    def expected(cls, parameters: Mapping[str, Any]) -> Expected | None:
        """What it will hold, by the parameters of its constructor; None where that is not known."""
        ...
