"""What says how a run's data were prepared: the dataset itself, or the units in the checkpoint where it is not at hand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gebm_kit.config.supplied import ABSENT, SuppliedNode
from gebm_kit.core.progress import warn
from gebm_kit.core.units import TableUnits

if TYPE_CHECKING:
    from gebm_kit.engine.run_directory.run import Run

PLAIN = ("numpy.", "torch.")
"""Beginnings of the classes of rows that a model sees as they are, if nothing says how they were read."""


def known_data(run: Run) -> Any:
    """Return the dataset of a run, or what stands in for it where the run was trained on rows in Python that are not given.

    Scores and densities of other rows need only what was done to the data. For a table that is in the checkpoint, and a
    warning says what can't be looked for; None stands in for plain rows of another shape, to which nothing was done.

    Raises:
        UsageError: the data are not given, and the run does not keep what was done to them.
        DataError: the data can't be read.
    """
    node = run.recipe.data
    if not isinstance(node, SuppliedNode) or node.part is not ABSENT:
        return run.dataset
    facts = run.checkpoint.state["facts"]
    if facts.get("units") is not None:
        found = data_of(run)
    elif not facts.get("measured") and _is_plain(node) and len(run.model.data_shape) != 1:
        found = None
    else:
        return run.dataset  # it raises, and says what to give
    warn(
        f"the run's data ({node.title}) are not given: rows are read in the units that the run keeps, and rows far outside "
        "the training data are not looked for; gk.load_run(path, data=...) has them"
    )
    return found


def _is_plain(node: SuppliedNode) -> bool:
    facts = node.parameters
    return str(facts.get("class", "")).startswith(PLAIN) and "sha256" in facts and "reading" not in facts


def data_of(run: Run) -> Any:
    """Return what says how a run's data were prepared: the units in its checkpoint, or the dataset for other data."""
    units = run.units(needed=True) if len(run.model.data_shape) == 1 else None
    if not isinstance(units, TableUnits):
        return run.dataset
    plain = units.mean == (0.0,) * len(units.mean) and units.std == (1.0,) * len(units.std)
    return _Named(units) if plain else _Standardised(units)


class _Named:
    """A table as its file has it."""

    def __init__(self, units: TableUnits) -> None:
        self.units = units


class _Standardised(_Named):
    """A table that was standardised, see `HasStandardisation`."""

    def __init__(self, units: TableUnits) -> None:
        super().__init__(units)
        self.columns = units.columns
        self.log_det = -sum(map(math.log, units.std))

    def standardised(self, rows: Tensor) -> Tensor:
        """Return measurements as the model sees them; (N, D) -> (N, D) float32."""
        return self.units.seen(rows)
