"""The check of a dataset on some of its rows, before anything is trained on it or scored against it."""

from __future__ import annotations

import torch
from torch import Tensor

from gebm_kit.core import contracts
from gebm_kit.core.attribution import describe, is_foreign
from gebm_kit.core.interfaces import Dataset, HasLabels, HasStoredRows, Split, SplitName
from gebm_kit.core.progress import warn
from gebm_kit.core.sources import HasSources

PARTS: tuple[SplitName, ...] = ("train", "valid", "test")

ROWS = 64
"""Rows that are read from each end of a part."""

COMPARED_BYTES = 2**26
"""Largest size of the training part, 64 MiB, of which all rows are compared with held-out ones; else those at its ends."""

COMPARED_ROWS = 20_000
"""Most rows of the training part that are compared."""

SHARED = 0.9
"""Share of the held-out rows looked at that are in the training part too, from which on the parts count as one. Discrete
data have some rows twice by chance."""


SOME = 0.1
"""Share from which on a warning says so, for a dataset that is not the kit's own."""


def check_dataset(dataset: Dataset, *, disjoint: bool = True) -> None:
    """Check what a dataset states and the rows at both ends of its parts: shape, type, finite values, range, labels.

    Args:
        disjoint: whether held-out rows that are all in the training part are refused.

    Raises:
        PluginError: a check failed; the message names the dataset, its package, file and line.
        DataError: a row is not finite.
    """
    contracts.check_kind("dataset", dataset)
    contracts.check_dataset_facts(dataset)
    contracts.check_class_names(dataset)
    for name in PARTS:
        split = _checked_split(dataset, name)
        ends = _ends(len(split))
        rows = split.batch(ends)
        contracts.check_dataset_rows(dataset, rows, ends, name)
        if is_foreign(dataset):
            _check_indices(dataset, split, rows, ends, name)
        if isinstance(dataset, HasLabels):
            contracts.check_labels(dataset, dataset.labels(name), len(split), name)
    if disjoint:
        _check_disjoint(dataset)


def _check_indices(dataset: Dataset, split: Split, rows: Tensor, indices: Tensor, name: SplitName) -> None:
    """Raise if a part gives other rows than those asked for; one whose rows change by chance can't be checked."""
    if contracts.same(split.batch(indices), rows) and not contracts.same(split.batch(indices.flip(0)), rows.flip(0)):
        what = f"returns rows from split({name!r}).batch that don't follow the indices; row i belongs to indices[i]"
        raise contracts.broken("dataset", dataset, what)


def _checked_split(dataset: Dataset, name: SplitName) -> Split:
    split: object = dataset.split(name)
    if not isinstance(split, Split):
        what = f"returns {type(split).__name__} from split({name!r}); it must return a gebm_kit.core.interfaces.Split"
        raise contracts.broken("dataset", dataset, what)
    return split


def _ends(size: int) -> Tensor:
    """Return the indices of the first and last `ROWS` rows."""
    return torch.arange(size) if size <= 2 * ROWS else torch.cat([torch.arange(ROWS), torch.arange(size - ROWS, size)])


def _check_disjoint(dataset: Dataset) -> None:
    """Raise if nearly all held-out rows that are looked at are rows of the training part."""
    train = dataset.split("train")
    row = _stored(train, torch.arange(1))
    small = len(train) <= COMPARED_ROWS and row.numel() * row.element_size() * len(train) <= COMPARED_BYTES
    all_of_it = small and not isinstance(dataset, HasSources)
    known = _keys(_stored(train, torch.arange(len(train)) if all_of_it else _ends(len(train))))
    for name in ("valid", "test"):
        split = dataset.split(name)
        seen = _keys(_stored(split, _ends(len(split))))
        shared = len(seen & known)
        if len(seen) > 1 and shared >= SHARED * len(seen):
            raise contracts.broken(
                "dataset",
                dataset,
                f"has {shared} of {len(seen)} rows looked at in its part {name} in its part train too; parts share no row",
                hint="Held-out rows that were trained on make every score look better than it is.",
            )
        if shared >= SOME * len(seen) > 1 and is_foreign(dataset):
            warn(
                f"{describe(dataset, 'dataset')} has {shared} of {len(seen)} rows looked at in its part {name} in its part "
                "train too: scores look better than they are"
            )


def _stored(split: Split, indices: Tensor) -> Tensor:
    return split.stored(indices) if isinstance(split, HasStoredRows) else split.batch(indices)


def _keys(rows: Tensor) -> set[bytes]:
    flat = rows.detach().cpu().flatten(1).contiguous().view(torch.uint8).numpy()
    return {row.tobytes() for row in flat}
