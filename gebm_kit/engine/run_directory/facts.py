"""What a checkpoint says of the data and the loss, so that the model is rebuilt without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gebm_kit.config.build import data_facts
from gebm_kit.config.schema import Recipe
from gebm_kit.core.class_names import class_names_of
from gebm_kit.core.errors import CheckpointError
from gebm_kit.core.interfaces import Dataset
from gebm_kit.core.units import HasMeasured, HasUnits


def facts_for_checkpoint(recipe: Recipe, dataset: Dataset, log_ratio: bool, *, final: bool = False) -> dict[str, Any]:
    """Return what a checkpoint keeps to rebuild the model without its data and its loss.

    Args:
        log_ratio: whether the trained energy is a log density ratio (`GEBM.log_ratio`).
        final: whether the energy and its log-partition are those of the final phase.
    """
    facts = {k: v for k, v in data_facts(recipe, dataset).items() if k != "directory"}
    units = dataset.units.as_dict() if isinstance(dataset, HasUnits) else None
    names = class_names_of(dataset)
    named: dict[str, Any] = {} if names is None else {"class_names": list(names)}
    if units is None and isinstance(dataset, HasMeasured):
        named["measured"] = True
    return facts | {"log_ratio": log_ratio, "units": units, "final": final} | named


def units_of(dataset: Dataset) -> HasMeasured | None:
    """Return what turns the data of a table into measurements: its `TableUnits`, or the dataset itself; else None."""
    found: object = dataset
    if isinstance(found, HasUnits):
        return found.units
    return found if isinstance(found, HasMeasured) else None


def class_names_in(facts: Mapping[str, Any], checkpoint: Path) -> tuple[str, ...] | None:
    """Return the names of classes among the facts of a checkpoint; None where they have no names.

    Raises:
        CheckpointError: the names are damaged.
    """
    names, count = facts.get("class_names"), facts.get("num_classes")
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) != count:
        raise CheckpointError(f"{checkpoint} is damaged: its class_names are not the names of its classes")
    return tuple(names)


@dataclass(frozen=True)
class UnitsOfDataset:
    """Names and measurements by the dataset of a run, which is opened when they are used.

    Attributes:
        open: returns the dataset.
        run: the run directory, for messages.
    """

    open: Callable[[], Dataset]
    run: Path

    @property
    def columns(self) -> tuple[str, ...]:
        return self._of_data.columns

    def measured(self, rows: Tensor) -> Tensor:
        """Return what the dataset's `measured` returns, (N, D) float64.

        Raises:
            DataError: the data can't be read.
        """
        return self._of_data.measured(rows.cpu()).double()

    @property
    def _of_data(self) -> HasMeasured:
        found = units_of(self.open())
        if found is None:
            raise CheckpointError(f"{self.run}: the dataset of this run has no `measured` any more")
        return found
