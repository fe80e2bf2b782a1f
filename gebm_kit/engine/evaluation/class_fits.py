"""KALE, log-partition and likelihood of a model's classes, and what they are for all classes together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gebm_kit.engine.evaluation.classification import NORMAL
from gebm_kit.engine.likelihood.log_partition import LogPartition
from gebm_kit.engine.likelihood.model_fit import Energies, ModelFit
from gebm_kit.engine.likelihood.nll import Likelihood, MeanNll


@dataclass(frozen=True)
class ClassFit:
    """The fit of one class, the energies behind it, and its held-out rows; without any, ``fit`` has no KALE to be used."""

    fit: ModelFit
    energies: Energies
    rows: int


def overall_fit(fits: Mapping[int, ClassFit], weights: Tensor, *, weighted: bool = False) -> ModelFit:
    """Return the mean KALE and likelihood over the data's classes, and the log-partition of all classes.

    Args:
        weights: the model's class weights, (K,).
        weighted: whether means are taken by these weights, and not by the classes' rows.
    """
    test: list[tuple[float, float]] = []
    train: list[tuple[float, float]] = []
    likelihoods: list[tuple[Likelihood, float]] = []
    for label, found in fits.items():
        share = float(weights[label]) if weighted else None
        if found.rows:
            test.append((found.fit.kale_test, found.rows if share is None else share))
            if found.fit.nll is not None:
                likelihoods.append((found.fit.nll, found.rows if share is None else share))
        if found.fit.kale_train is not None and found.fit.kale_train_rows:
            train.append((found.fit.kale_train, found.fit.kale_train_rows if share is None else share))
    shares = weights.double().cpu()[list(fits)]
    return ModelFit(
        kale_train=_mean(train) if train else None,
        kale_test=_mean(test),
        log_partition=_joined([found.fit.log_partition for found in fits.values()], shares / shares.sum()),
        nll=_likelihood(likelihoods),
        kale_train_rows=sum(found.fit.kale_train_rows or 0 for found in fits.values()) if train else None,
    )


def overall_energies(fits: Mapping[int, ClassFit], weights: Tensor, *, weighted: bool = False) -> Energies:
    """Return energies of all classes: data by their rows, base draws in the classes' shares, draws by set.

    ``weighted`` is as in `overall_fit`; then as many rows of data are used as all shares allow.
    """
    shares = weights.double().cpu()
    each = {label: found.energies for label, found in fits.items()}
    most = max(float(shares[label]) for label in each)
    base = [found.base[: round(len(found.base) * float(shares[k]) / most)] for k, found in each.items()]
    draws = torch.cat([found.draws for found in each.values() if found.draws is not None], dim=1)
    rows = {label: found.energies.data for label, found in fits.items() if found.rows}
    if weighted:
        least = min(len(found) / float(shares[label]) for label, found in rows.items())
        rows = {label: found[: max(round(least * float(shares[label])), 1)] for label, found in rows.items()}
    return Energies(torch.cat(base), torch.cat(list(rows.values())), None, draws)


def _mean(values: Sequence[tuple[float, float]]) -> float:
    """Return the mean of values by their numbers of rows, or their shares; NaN without any."""
    total = sum(weight for _, weight in values)
    return sum(value * weight for value, weight in values) / total if total else math.nan


def _likelihood(parts: Sequence[tuple[Likelihood, float]]) -> Likelihood | None:
    """Return the mean likelihood of rows given their class, by the classes' weights; their errors are independent."""
    if not parts:
        return None
    total = sum(weight for _, weight in parts)

    def mean(name: str) -> MeanNll:
        each: list[tuple[float, MeanNll]] = [(weight / total, getattr(part, name)) for part, weight in parts]
        value = sum(share * found.value for share, found in each)
        se = math.sqrt(sum((share * found.se) ** 2 for share, found in each))
        return MeanNll(value, se, value - NORMAL * se, value + NORMAL * se)

    first, rows = parts[0][0], sum(part.num_rows for part, _ in parts)
    return Likelihood(mean("gebm"), mean("base"), mean("difference"), first.space, first.log_det, rows)


def _joined(parts: Sequence[LogPartition], shares: Tensor) -> LogPartition:
    """Return ``log sum_y pi_y exp(A_y)`` with its error by the delta method; the rest is the worst of the classes."""
    values = torch.tensor([part.value for part in parts], dtype=torch.float64) + shares.log()
    errors = torch.tensor([part.se for part in parts], dtype=torch.float64)
    kept = shares > 0
    return LogPartition(
        value=float(torch.logsumexp(values[kept], 0)),
        se=float((torch.softmax(values[kept], 0) * errors[kept]).square().sum().sqrt()),
        ess=min(part.ess for part in parts),
        pareto_k=max(part.pareto_k for part in parts),
        num_draws=sum(part.num_draws for part in parts),
        method=parts[0].method if len({part.method for part in parts}) == 1 else "importance-sampling",
        degrees=min(part.degrees for part in parts),
        reason="the log-partitions of the classes, weighted by their shares",
    )
