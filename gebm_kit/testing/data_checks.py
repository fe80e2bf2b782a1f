"""Checks of what every dataset must do, which plugin authors run on their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gebm_kit.core import contracts
from gebm_kit.core.interfaces import (
    Dataset,
    HasDensity,
    HasLabels,
    HasMeasured,
    HasModes,
    HasStandardisation,
    HasStoredRows,
    HasUnits,
    SplitName,
)
from gebm_kit.engine.datasets import contract
from gebm_kit.testing.conformance import conformance

PARTS: tuple[SplitName, ...] = ("train", "valid", "test")

ROWS = 8
"""Rows that are read in another order."""


@conformance("dataset")
def check_dataset(dataset: Dataset, *, disjoint: bool = True) -> None:
    """Check a dataset: facts, three parts that share no row, rows by index, range, labels and stored rows.

    Rows must satisfy ``batch(i)_k = batch([i_k])_0``: finite, floating-point, inside ``value_range``, the same at
    every call. What else it offers is checked too: labels, ``decode(stored(i)) = batch(i)``, modes, a density,
    standardisation, and ``measured(standardised(m)) = m`` for measurements ``m = measured(rows)``.

    Args:
        dataset: the dataset, small enough that some hundred rows are read at once.
        disjoint: whether held-out rows that are nearly all in the training part are refused.

    Raises:
        AssertionError: a check failed, or the signature is not valid; the message names dataset, package, file and line.

    Example:
        >>> from gebm_kit.data.digits import Digits
        >>> check_dataset(Digits())
    """
    contract.check_dataset(dataset, disjoint=disjoint)
    for name in PARTS:
        split = dataset.split(name)
        size = len(split)
        assert size > 0, f"its part {name} is empty"
        last = torch.tensor([size - 1, 0, size // 2, 0][: max(1, min(size, 4))])
        rows: Any = split.batch(last)
        contracts.check_dataset_rows(dataset, rows, last, name)
        assert torch.equal(rows, split.batch(last)), f"two calls of split({name!r}).batch with the same indices differ"
        one_by_one = torch.cat([split.batch(index) for index in last.split(1)])
        assert torch.allclose(rows, one_by_one), (
            f"split({name!r}).batch gives a row other values if others come with it"
        )
        first: Any = split.first(min(ROWS, size))
        assert torch.equal(first, split.batch(torch.arange(min(ROWS, size)))), (
            f"split({name!r}).first is not the first rows"
        )
        assert len(dataset.split(name)) == size, f"split({name!r}) has another size at the second call"
        assert torch.equal(dataset.split(name).batch(last), rows), f"split({name!r}) has other rows at the second call"
        if isinstance(split, HasStoredRows):
            decoded: Any = split.decode(split.stored(last))
            assert torch.equal(decoded, rows), f"in part {name}, decode(stored(indices)) is not batch(indices)"
            everything = split.stored(None)
            assert len(everything) == size, f"in part {name}, stored(None) has {len(everything)} rows of {size}"
    _check_capabilities(dataset)


def _check_capabilities(dataset: Dataset) -> None:
    rows = dataset.split("train").first(ROWS)
    if isinstance(dataset, HasLabels):
        count: object = dataset.num_classes
        assert isinstance(count, int) and count >= 1, f"num_classes must be a whole number >= 1, but it is {count!r}"
    contracts.check_class_names(dataset)
    if isinstance(dataset, HasDensity):
        values: Any = dataset.log_prob(rows)
        assert isinstance(values, Tensor) and tuple(values.shape) == (len(rows),), (
            f"log_prob must return (B,), but it returns {contracts.said(values)}"
        )
    if isinstance(dataset, HasModes):
        centres: Any = dataset.mode_centres
        assert isinstance(centres, Tensor) and tuple(centres.shape[1:]) == tuple(dataset.data_shape), (
            f"mode_centres must be (M, *D), but they are {contracts.said(centres)}"
        )
        assert dataset.mode_std > 0, f"mode_std must be positive, but it is {dataset.mode_std!r}"
    if isinstance(dataset, HasStandardisation):
        names: Any = dataset.columns
        assert len(names) == dataset.data_shape[0], (
            f"columns has {len(names)} names for {dataset.data_shape[0]} columns"
        )
        assert isinstance(dataset.log_det, float), (
            f"log_det must be a float, but it is {contracts.said(dataset.log_det)}"
        )
    if isinstance(dataset, HasMeasured) and len(dataset.data_shape) == 1:
        _check_measured(dataset, rows)


MEASURED_ERROR = 1e-5
"""Largest difference of measurements that go there and back, relative to their spread and to their size."""


def _check_measured(checked: object, rows: Tensor) -> None:
    dataset: Any = checked
    before, width = rows.clone(), dataset.data_shape[0]
    names: Any = dataset.columns
    assert isinstance(names, tuple) and all(isinstance(name, str) for name in names) and len(names) == width, (
        f"columns must be a tuple of {width} names, but it is {names!r}"
    )
    found: Any = dataset.measured(rows)
    assert isinstance(found, Tensor) and found.is_floating_point() and tuple(found.shape) == tuple(rows.shape), (
        f"measured must return numbers of shape {tuple(rows.shape)}, but it returns {contracts.said(found)}"
    )
    assert torch.equal(rows, before), "measured changes the rows that it is given"
    assert bool(found.isfinite().all()), "measured returns values that are not finite for rows of the training part"
    one_by_one = torch.cat([dataset.measured(row) for row in rows.split(1)])
    assert torch.allclose(found.double(), one_by_one.double(), rtol=1e-9, atol=0), (
        "measured gives a row other values if others come with it"
    )
    if isinstance(checked, HasUnits):
        assert torch.equal(found.double(), dataset.units.measured(rows)), "measured and units.measured differ"
    if isinstance(checked, HasStandardisation):
        again: Any = dataset.measured(dataset.standardised(found)).double()
        spread = (found.amax(0) - found.amin(0) + found.abs()).double()
        far = ((again - found).abs() > MEASURED_ERROR * spread).nonzero()
        assert not len(far), (
            f"measured is not the inverse of standardised: in column {names[int(far[0, 1])]!r}, "
            f"measured(standardised({float(found[tuple(far[0])]):g})) is {float(again[tuple(far[0])]):g}"
        )
