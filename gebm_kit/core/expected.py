"""Facts about published datasets that are known before the download, so that a dry run can do without the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Expected:
    """Images that a dataset will hold, as bytes that are scaled to [-1, 1].

    Attributes:
        shape: (C, H, W) of each image.
        train: number of images for training.
        num_classes: number of label classes; None: no labels.
        class_names: what the classes are called; None where they have no names.
    """

    shape: tuple[int, int, int]
    train: int
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None


@runtime_checkable
class IsPublished(Protocol):
    """A dataset class whose files are the same for everybody."""

    @classmethod
    def expected(cls, parameters: Mapping[str, Any]) -> Expected | None:
        """Return what the dataset will hold with these constructor parameters; None where that is not known."""
        ...
