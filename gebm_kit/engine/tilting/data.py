"""The data of a tilt: a dataset by its name, node or file, or rows as a caller has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gebm_kit.config.build import build
from gebm_kit.config.schema import ComponentNode
from gebm_kit.core.interfaces import Dataset, HasStandardisation
from gebm_kit.core.paths import user_path
from gebm_kit.engine.datasets.guess import TABLES, data_node
from gebm_kit.engine.datasets.held_out import HeldOut
from gebm_kit.engine.likelihood.row_sources import as_seen
from gebm_kit.engine.likelihood.run_data import data_of
from gebm_kit.engine.run_directory.run import Run
from gebm_kit.engine.tilting.subjects import Generator


def opened_data(data: Any, directory: Path, generator: Generator) -> Dataset | None:
    """Open the data that a name, a file, a node, rows or an object mean.

    Raises:
        UsageError: they mean none.
        DataError: rows that do not fit the generator.
    """
    if data is None or isinstance(data, Dataset):
        return data
    run = generator if isinstance(generator, Run) else None
    is_word = isinstance(data, str | Path | ComponentNode)
    measured = run is not None and isinstance(data, str | Path) and user_path(data).suffix.lower() in TABLES
    if measured:
        data = directory / user_path(data)
    if not is_word or (run is not None and measured and isinstance(data_of(run), HasStandardisation)):
        rows = as_seen(
            data, "data", run, None if run is None else run.model, or_else="a dataset, its name or its node"
        )[0]
        return HeldOut(rows)
    node = data if isinstance(data, ComponentNode) else data_node(str(data))
    found: Dataset = build("dataset", node, {"directory": directory})
    return found
