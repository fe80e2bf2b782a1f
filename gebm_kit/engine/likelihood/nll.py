"""Log-densities and negative log-likelihoods of a model whose base has a density.

    log q(x) = log b(x) - beta E(x) - A(beta)

A is an estimate. Its error is the same for all rows, so it does not average out over them.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.estimators import t_quantile
from gebm_kit.core.files import plain
from gebm_kit.core.interfaces import Dataset, HasDensity, HasStandardisation
from gebm_kit.core.model import GEBM
from gebm_kit.engine.likelihood.log_partition import ROWS_AT_ONCE, LogPartition

Space = Literal["standardised", "raw"]


@dataclass(frozen=True, slots=True)
class MeanNll:
    """A mean over rows, in nats, with its standard error and 95 % interval (Student's t)."""

    value: float
    se: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Negative log-likelihoods of held-out rows.

    Attributes:
        gebm: mean of ``-log q``; its error combines the sampling of rows and the error of A.
        base: mean of ``-log b``.
        difference: GEBM minus base, row by row; negative where the energy helps.
        space: ``raw``: likelihoods of measurements as in the file; ``standardised``: of data as the model sees it.
        log_det: log |det| of the map from raw to standardised data, in nats; None where it is not known.
        num_rows: held-out rows.
    """

    gebm: MeanNll
    base: MeanNll
    difference: MeanNll
    space: str
    log_det: float | None
    num_rows: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON; a value that is not finite is null."""
        return plain(asdict(self))

    @classmethod
    def restored(cls, found: dict[str, Any]) -> Likelihood:
        """Build a likelihood from its ``dataclasses.asdict``."""
        means = {name: MeanNll(**found[name]) for name in ("gebm", "base", "difference")}
        return cls(**{**found, **means})


def likelihood(
    log_base: Tensor, tilt: Tensor, partition: LogPartition, log_det: float | None, space: Space
) -> Likelihood:
    """Compute mean negative log-likelihoods in ``space``.

    With d_i = -log b(x_i) + beta E(x_i), the NLL is ``mean d + A`` and its variance ``var(d) / n + se(A)²``, with
    Satterthwaite's degrees of freedom.

    Args:
        log_base: ``log b`` of n rows, (n,) float64, in the model's space.
        tilt: ``beta E`` of the same rows, (n,).
        log_det: see `Likelihood`; added to log-densities in ``raw``.
    """
    shift = -_shift(log_det, space)
    gebm = _mean(-log_base + tilt, partition.value + shift, partition.se, partition.degrees)
    difference = _mean(tilt, partition.value, partition.se, partition.degrees)
    return Likelihood(gebm, _mean(-log_base, shift), difference, space, log_det, len(tilt))


def _mean(values: Tensor, offset: float, se: float = 0.0, degrees: int = 1) -> MeanNll:
    """Compute the mean of ``values`` (n,) plus ``offset``, whose standard error is ``se`` with ``degrees`` of freedom."""
    num = len(values)
    of_rows = float(values.std()) / math.sqrt(num) if num > 1 else math.nan
    total = math.hypot(of_rows, se)
    parts = of_rows**4 / max(num - 1, 1) + se**4 / degrees
    half = t_quantile(max(int(total**4 / parts), 1)) * total if parts > 0 else total
    value = float(values.mean()) + offset
    return MeanNll(value, total, value - half, value + half)


def _shift(log_det: float | None, space: Space) -> float:
    """Return what log-densities in ``space`` exceed those in the model's space by."""
    if space == "standardised":
        return 0.0
    assert log_det is not None, "check_space was not called"
    return log_det


def log_det_of(dataset: Dataset) -> float | None:
    """Return log |det dy/dx| of a dataset's preprocessing x -> y, in nats; None where the dataset does not state it."""
    known: object = dataset
    return known.log_det if isinstance(known, HasStandardisation) else None


def check_space(dataset: Dataset, space: Space) -> None:
    """Raise if the dataset can't give likelihoods in this space.

    Raises:
        UsageError: ``raw``, for a dataset that does not state the Jacobian of its preprocessing.
    """
    if space == "raw" and log_det_of(dataset) is None:
        raise UsageError(
            f"nll.space=raw needs a dataset that states the Jacobian of its preprocessing, and {type(dataset).__name__} "
            "states none; allowed: standardised, the data as the model sees it",
            hint="The dataset tabular states it.",
        )


def log_base_density(model: GEBM, rows: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """Compute ``log b`` of rows, (N, *D) -> (N,) float64 on the CPU; None where the base has no density.

    The caller's potential keeps the model in eval mode.
    """
    base: object = model.base
    if not isinstance(base, HasDensity):
        return None
    with torch.no_grad():
        return torch.cat([base.log_prob(part.to(device, dtype)).double().cpu() for part in rows.split(ROWS_AT_ONCE)])
