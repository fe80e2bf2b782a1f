"""How well a model tells another dataset from its own.

References:
    A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks. D. Hendrycks, K. Gimpel,
    ICLR 2017. https://arxiv.org/abs/1610.02136 (the area under the ROC curve as the figure of merit)
    Do Deep Generative Models Know What They Don't Know? E. Nalisnick et al., ICLR 2019. https://arxiv.org/abs/1810.09136
    (why the log-density of a flow alone is not reliable)
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import yaml
from torch import Tensor

from gebm_kit.core.components import Range, Registered, check_arguments, parameters
from gebm_kit.core.errors import DataError, RecipeError, UsageError, nearest
from gebm_kit.core.interfaces import Dataset, EvalContext, HasDensity, HasStandardisation, Metric
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.plugins import installed

MODEL_ROWS = 1024
"""Rows that pass through the model at a time: more take more memory, fewer make more calls."""


class OodAuroc(Metric):
    """``P(s(x') > s(x)) + P(s(x') = s(x)) / 2``, x a held-out row and x' a row of another dataset's test part.

    This is the area under the ROC curve of a score s that tells the two datasets apart: 1/2 is chance, 1 certainty, and
    below 1/2 the other dataset looks more like the data than the data do. The score is the energy E(x). If the base has a
    density b, there are two more: minus the model's log-density up to a constant, ``E(x) - log b(x)``, and minus the base's,
    ``-log b(x)``, which shows what the energy adds. Without a density the only value is ``ood-auroc``; with one there are
    ``ood-auroc.energy``, ``ood-auroc.density`` and ``ood-auroc.base``. They are properties of the model, not of draws, at
    inverse temperature 1.

    If the model's own dataset standardises, it standardises rows of the other one too: the other's ``standardise`` is
    switched off, and columns are matched by name if the other has all the names, otherwise by their order.

    Args:
        dataset: name of the other dataset.
        options: its parameters, as words ``key=value``, for instance ``["path=other.csv"]``.
        num_rows: most rows of each dataset, taken from its start.

    Raises:
        RecipeError: the dataset has no such option, or an option is not written as ``key=value``.
        UsageError: an argument is out of its range.
        DataError: (from `check`) the other dataset can't be read, or its rows have another shape.
    """

    ratio: ClassVar[bool] = False
    of_model: ClassVar[bool] = True
    lower_is_better: ClassVar[bool | None] = False

    def __init__(
        self,
        dataset: str,
        options: list[str] = [],  # noqa: B006  (read only)
        num_rows: Annotated[int, Range(2, None)] = 10_000,
    ) -> None:
        check_arguments(self, num_rows=num_rows)
        self.name, self.num_rows = dataset, num_rows
        self._record = installed().registry.get("dataset", dataset)
        self._options = _parsed(options, self._record)
        self._other: tuple[Dataset, Tensor] | None = None

    def check(self, dataset: Dataset) -> None:
        self.rows(dataset)

    def __call__(self, context: EvalContext) -> dict[str, float]:
        if context.model is None:
            raise UsageError("metric ood-auroc is a property of a model, and there is none here")
        if context.dataset is None:
            raise UsageError("metric ood-auroc needs the dataset that the model was trained on, and there is none here")
        inside = _scores(context.model, context.reference[: self.num_rows])
        outside = _scores(context.model, self.rows(context.dataset))
        found = {name: auroc(inside[name], outside[name]) for name in inside}
        if len(found) == 1:
            return {"ood-auroc": found["energy"]}
        return {f"ood-auroc.{name}": value for name, value in found.items()}

    def protocol(self, context: EvalContext) -> dict[str, Any]:
        found = {"dataset": self.name, "reference": min(len(context.reference), self.num_rows)}
        return found if context.dataset is None else {**found, "rows": len(self.rows(context.dataset))}

    def rows(self, own: Dataset) -> Tensor:
        """Return the other dataset's test rows, preprocessed like ``own``, the model's dataset; (N, *D)."""
        if self._other is None or self._other[0] is not own:
            self._other = (own, self._read(own))
        return self._other[1]

    def _read(self, own: Dataset) -> Tensor:
        known: object = own
        options, target = dict(self._options), self._record.load()
        if isinstance(known, HasStandardisation) and "standardise" in parameters(target):
            options["standardise"] = False
        try:
            other = target(**options)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"metric ood-auroc: dataset {self.name!r} can't be built: {error}") from error
        rows: Tensor = other.split("test").first(self.num_rows)
        if isinstance(known, HasStandardisation) and rows.ndim == 2:
            rows = _matched(rows, getattr(other, "columns", ()), known.columns, self.name)
            rows = known.standardised(rows)
        if tuple(rows.shape[1:]) != tuple(own.data_shape):
            raise DataError(
                f"metric ood-auroc: rows of {self.name!r} have shape {tuple(rows.shape[1:])}, but the model's data "
                f"have {tuple(own.data_shape)}"
            )
        return rows


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Return ``P(outside > inside) + P(outside = inside) / 2`` over all pairs, from sorted scores; (N,), (M,) -> float."""
    ordered = inside.sort().values
    below = torch.searchsorted(ordered, outside, right=False)
    up_to = torch.searchsorted(ordered, outside, right=True)
    return float((below + up_to).double().mean()) / (2 * len(inside))


def _scores(model: GEBM, rows: Tensor) -> dict[str, Tensor]:
    """Return each score by name, high where the model does not expect data; (N, *D) -> (N,) float64 each."""
    device = next(model.parameters(), rows).device
    base: object = model.base
    energies, densities = [], []
    with LatentPotential(model, block_size=MODEL_ROWS), torch.no_grad():
        for part in rows.split(MODEL_ROWS):
            x = part.to(device, model.dtype)
            energies.append(model.energy(x).cpu().double())
            if isinstance(base, HasDensity):
                densities.append(base.log_prob(x).cpu().double())
    energy = torch.cat(energies)
    if not densities:
        return {"energy": energy}
    log_base = torch.cat(densities)
    return {"energy": energy, "density": energy - log_base, "base": -log_base}


def _matched(rows: Tensor, names: tuple[str, ...], wanted: tuple[str, ...], source: str) -> Tensor:
    """Return the other dataset's columns in the order of the model's."""
    if set(wanted) <= set(names):
        return rows[:, [names.index(name) for name in wanted]]
    if rows.shape[1] != len(wanted):
        raise DataError(
            f"metric ood-auroc: {source!r} has {rows.shape[1]} columns, but the model has {len(wanted)}: {', '.join(wanted)}"
        )
    return rows


def _parsed(words: list[str], record: Registered) -> dict[str, Any]:
    """Return the values of ``key=value`` words; each key must be a parameter of the dataset's constructor."""
    known = [name for name, parameter in parameters(record.load()).items() if not parameter.injected]
    found: dict[str, Any] = {}
    for word in words:
        key, sign, text = word.partition("=")
        if not sign or key not in known:
            problem = nearest(key, known) if sign else "write key=value"
            raise RecipeError(f"metric ood-auroc: dataset {record.component.name!r} has no option {word!r}; {problem}")
        try:
            found[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"metric ood-auroc: the option {word!r} can't be read") from error
    return found
