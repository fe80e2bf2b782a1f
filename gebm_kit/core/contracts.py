"""What every component must do, checked one fact at a time: shapes, types, finite values, inputs left alone.

Each function raises an error whose one sentence names the component, its package, file and line, what it did and what is
allowed. The engine checks a run's components with them before the first step, and `gebm_kit.testing` checks a plugin's.
Checks of bases and energies lie in `gebm_kit.core.model_contracts`, those of samplers in `gebm_kit.core.sampler_contracts`.

Shapes: B rows, N draws, F features, ``*D`` data shape.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gebm_kit.core import interfaces
from gebm_kit.core.attribution import describe, is_foreign
from gebm_kit.core.errors import DataError
from gebm_kit.core.model_contracts import (
    broken,
    check_base_facts,
    check_base_output,
    check_energy_output,
    check_finite,
    check_gradient,
    check_repeatable,
    check_rows_independent,
    check_takes_labels,
    refuse_changed,
    said,
    same,
    untouched,
    versions,
)

__all__ = [
    "CLASSES",
    "broken",
    "check_base_facts",
    "check_base_output",
    "check_class_names",
    "check_dataset_facts",
    "check_dataset_rows",
    "check_energy_output",
    "check_features",
    "check_finite",
    "check_gradient",
    "check_kind",
    "check_labels",
    "check_loss_terms",
    "check_metric_values",
    "check_protocol",
    "check_repeatable",
    "check_rows_independent",
    "check_scalar",
    "check_state",
    "check_takes_labels",
    "refuse_changed",
    "said",
    "same",
    "untouched",
    "versions",
]

CLASSES: dict[str, type] = {
    "base": interfaces.Base,
    "energy": interfaces.Energy,
    "loss": interfaces.Loss,
    "penalty": interfaces.Penalty,
    "sampler": interfaces.Sampler,
    "dataset": interfaces.Dataset,
    "features": interfaces.FeatureMap,
    "metric": interfaces.Metric,
    "logger": interfaces.Logger,
}
"""The class that a component of each kind derives from."""


RESERVED = frozenset({"step"})
"""Columns of the log that no metric may replace."""


def check_kind(kind: str, component: object) -> None:
    """Check that a component derives from the class of its kind.

    Raises:
        PluginError: it does not.
    """
    needed = CLASSES[kind]
    if not isinstance(component, needed):
        raise broken(kind, component, f"must derive from gebm_kit.core.interfaces.{needed.__name__}, and does not")


# --- losses and penalties --------------------------------------------------------------------------------------------


def check_state(kind: str, module: nn.Module) -> None:
    """Check that a module's state consists of tensors, which is what a checkpoint holds.

    Raises:
        PluginError: it does not.
    """
    for name, value in module.state_dict().items():
        if is_lazy(value):
            what = f"has a lazy weight, {name!r}, whose shape is unknown until its first call"
            raise broken(
                kind, module, what, hint="Give its size in __init__: data_shape and latent_dim can be injected."
            )
        if not isinstance(value, Tensor):
            raise broken(
                kind,
                module,
                f"has {type(value).__name__} as {name!r} in its state_dict; a checkpoint holds tensors alone",
                hint="Return a tensor from get_extra_state, or keep the value in a buffer (register_buffer).",
            )


def check_loss_terms(loss: object, method: str, terms: Any) -> None:
    """Check what ``energy_loss`` or ``base_loss`` returns: `LossTerms` with a finite scalar and named scalar metrics.

    Args:
        loss: the loss, or a base whose own loss it is.
        method: name of the method that returned them.
        terms: what it returned.

    Raises:
        PluginError: it is something else.
    """
    if not isinstance(terms, interfaces.LossTerms):
        raise broken("loss", loss, f"returns {said(terms)} from {method}; it must return LossTerms(loss, metrics)")
    check_scalar("loss", loss, f"the loss of {method}", terms.loss)
    if not isinstance(terms.metrics, Mapping):
        raise broken("loss", loss, f"returns metrics of {method} as {said(terms.metrics)}; they must be named scalars")
    for name, value in terms.metrics.items():
        if not isinstance(name, str) or not name:
            raise broken("loss", loss, f"names a metric of {method} {name!r}; a name must be a word")
        if name in RESERVED:
            raise broken(
                "loss", loss, f"names a metric of {method} {name!r}, which the log keeps for itself: choose another"
            )
        if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
            raise broken("loss", loss, f"returns the metric {name!r} as {said(value)}; it must be a scalar tensor, ()")
        if value.requires_grad:
            raise broken(
                "loss",
                loss,
                f"returns the metric {name!r} with an autograd graph, which keeps the step's memory: detach it",
            )


def check_scalar(kind: str, component: object, what: str, value: Any) -> None:
    """Check that a value to minimise is a finite scalar tensor, ().

    Raises:
        PluginError: it is something else.
    """
    if not isinstance(value, Tensor) or value.shape != () or not value.is_floating_point():
        raise broken(kind, component, f"returns {said(value)} as {what}; it must be a floating-point scalar tensor, ()")
    if not bool(torch.isfinite(value)):
        raise broken(
            kind, component, f"returns {float(value.detach())} as {what} on the first batch; it must be finite"
        )


# --- datasets --------------------------------------------------------------------------------------------------------


def check_dataset_facts(dataset: object) -> None:
    """Check what a dataset states: ``data_shape`` and ``value_range``.

    Raises:
        PluginError: a fact is missing or of the wrong type.
    """
    shape, span = getattr(dataset, "data_shape", None), getattr(dataset, "value_range", None)
    if (
        not isinstance(shape, tuple | list | torch.Size)
        or not shape
        or not all(isinstance(n, int) and n > 0 for n in shape)
    ):
        raise broken("dataset", dataset, f"must set data_shape to a tuple of whole numbers, and it is {shape!r}")
    if span is None:
        return
    numbers = isinstance(span, tuple | list) and len(span) == 2 and all(isinstance(v, int | float) for v in span)
    if not numbers or not (math.isfinite(span[0]) and math.isfinite(span[1]) and span[0] < span[1]):
        raise broken("dataset", dataset, f"must set value_range to (low, high) or None, and it is {span!r}")


def check_dataset_rows(dataset: object, rows: Any, indices: Tensor, part: str) -> None:
    """Check what ``split(part).batch(indices)`` returns: finite floating-point rows (B, *D) inside the value range.

    Raises:
        PluginError: it is something else.
    """
    shape: tuple[int, ...] = tuple(dataset.data_shape)  # type: ignore[attr-defined]  # as `check_dataset_facts` has seen
    call, expected = f"split({part!r}).batch", (len(indices), *shape)
    if not isinstance(rows, Tensor):
        raise broken("dataset", dataset, f"returns {type(rows).__name__} from {call}; it must return a torch.Tensor")
    if tuple(rows.shape) != expected:
        raise broken("dataset", dataset, f"returns shape {tuple(rows.shape)} from {call}; it must be {expected}")
    if not rows.is_floating_point():
        raise broken("dataset", dataset, f"returns {rows.dtype} from {call}; it must return floating-point numbers")
    finite = torch.isfinite(rows.flatten(1)).all(1).cpu()
    if not bool(finite.all()):
        row = int(indices[int((~finite).nonzero()[0])])
        whose = f", in {describe(dataset, 'dataset')}" if is_foreign(dataset) else ""
        raise DataError(f"{part} data: row {row} holds a value that is not finite (NaN or infinity){whose}")
    span: tuple[float, float] | None = dataset.value_range  # type: ignore[attr-defined]
    if span is None:
        return
    low, high = float(rows.min()), float(rows.max())
    slack = 1e-5 * (span[1] - span[0])
    if low < span[0] - slack or high > span[1] + slack:
        raise broken(
            "dataset",
            dataset,
            f"states the value_range {tuple(span)}, but its part {part} has values from {low:.6g} to {high:.6g}",
            hint="Scale the data into the range, or set value_range to None or to the true one.",
        )


def check_labels(dataset: object, labels: Any, num_rows: int, part: str) -> None:
    """Check what ``labels(part)`` of a dataset with classes returns: (N,) int64 in [0, num_classes).

    Raises:
        PluginError: it is something else.
    """
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or tuple(labels.shape) != (num_rows,):
        what = f"returns {said(labels)} from labels({part!r}); it must be int64 of shape ({num_rows},)"
        raise broken("dataset", dataset, what)
    count = dataset.num_classes  # type: ignore[attr-defined]  # it has labels
    if num_rows and not (int(labels.min()) >= 0 and int(labels.max()) < count):
        seen = f"{int(labels.min())} to {int(labels.max())}"
        raise broken("dataset", dataset, f"has labels {seen} in part {part}; they must lie in 0 to {count - 1}")


def check_class_names(dataset: object) -> None:
    """Check the names of classes, if a dataset has them: (K,) different texts.

    Raises:
        PluginError: they are something else.
    """
    names: Any = getattr(dataset, "class_names", None)
    if names is None:
        return
    count = getattr(dataset, "num_classes", None)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        raise broken("dataset", dataset, "has class_names that are not texts")
    if len(names) != count:
        raise broken("dataset", dataset, f"has {len(names)} class_names and {count} classes")
    if len(set(names)) < len(names):
        twice = next(name for name, times in Counter(names).items() if times > 1)
        raise broken("dataset", dataset, f"calls two classes {twice!r}")


# --- batches ---------------------------------------------------------------------------------------------------------


def batch_copies(batch: interfaces.Batch) -> dict[str, Tensor]:
    """Return copies of a batch's rows by name, for `refuse_changed_batch`."""
    rows = {"x": batch.x, "z": batch.z, "x_base": batch.x_base, "negatives": batch.negatives}
    return {name: value.detach().clone() for name, value in rows.items() if value is not None}


def refuse_changed_batch(kind: str, component: object, batch: interfaces.Batch, kept: Mapping[str, Tensor]) -> None:
    """Raise if a component has changed the rows of a batch, of which ``kept`` holds the copies.

    Raises:
        PluginError: it has; the message names the rows.
    """
    for name, value in kept.items():
        if not same(getattr(batch, name).detach(), value):
            refuse_changed(kind, component, f"batch.{name}")


# --- evaluation ------------------------------------------------------------------------------------------------------


def check_metric_values(metric: object, values: Any) -> None:
    """Check what a metric returns: floats by name.

    Raises:
        PluginError: it is something else.
    """
    if not isinstance(values, Mapping):
        raise broken("metric", metric, f"returns {said(values)}; it must return floats by name")
    for name, value in values.items():
        if not isinstance(name, str) or isinstance(value, bool) or not isinstance(value, float | int):
            raise broken("metric", metric, f"returns {name!r}: {said(value)}; it must return floats by name")
        try:
            float(value)
        except OverflowError:
            raise broken("metric", metric, f"returns a whole number as {name!r} that no float holds") from None


def check_protocol(metric: object, protocol: Any) -> None:
    """Check that a metric's ``protocol`` is a mapping that can be written as JSON.

    Raises:
        PluginError: it is not.
    """
    try:
        if isinstance(protocol, Mapping) and json.dumps(dict(protocol)):
            return
    except (TypeError, ValueError, RecursionError):
        pass
    raise broken("metric", metric, f"returns {said(protocol)} from protocol; it must be a mapping of plain JSON values")


def check_features(features: object, values: Any, num_rows: int) -> None:
    """Check what a feature map returns: floating-point rows (N, F).

    Raises:
        PluginError: it is something else.
    """
    if not isinstance(values, Tensor) or values.ndim != 2 or len(values) != num_rows or not values.is_floating_point():
        what = f"returns {said(values)} for {num_rows} rows; it must return floating-point rows ({num_rows}, F)"
        raise broken("features", features, what)
