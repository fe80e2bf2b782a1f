"""What values of many rows look like in a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from gebm_kit.core.html import interval, table
from gebm_kit.engine.likelihood.log_partition import LogPartition


def rows_sections(columns: Mapping[str, Tensor], partition: LogPartition | None) -> Iterator[str]:
    """Yield the spread of each column, and log Z with its interval."""
    rows = [(name, len(values), *_spread(values)) for name, values in columns.items() if len(values)]
    yield table(("column", "rows", "least", "median", "largest"), rows)
    if partition is not None:
        yield table(("log Z", "method"), [(interval(partition.value, *partition.interval), partition.method)])


def _spread(values: Tensor) -> tuple[float, float, float]:
    ordered = values.detach().cpu().double().sort().values
    return float(ordered[0]), float(ordered[len(ordered) // 2]), float(ordered[-1])
