"""KALE of a model on training and held-out data, and its log-partition."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core import estimators
from gebm_kit.core.interfaces import Split
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.seeds import stream
from gebm_kit.engine.draws import SampleSettings
from gebm_kit.engine.held_out import every_row
from gebm_kit.engine.log_partition import LogPartition, from_tilt, warn_of_tail

NUM_DRAWS = 20_000
"""Base draws behind A, and as many again behind the mean over the base in KALE."""

BLOCK = 1024


@dataclass(frozen=True, slots=True)
class ModelFit:
    """Figures of the tilt ``beta E`` that was sampled.

    Attributes:
        kale_train, kale_test: ``1 - beta E_P[E] - A - E_B[exp(-(beta E + A))]`` on training data (None without any) and on
            the reference. A comes from one set of base draws and the mean over B from another, so that the expectation is a
            lower bound of KL(P || B) whatever A turned out to be.
        log_partition: A(beta).
    """

    kale_train: float | None
    kale_test: float
    log_partition: LogPartition

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; what is not finite is null."""
        estimate = self.log_partition
        return {
            "kale_train": _finite(self.kale_train),
            "kale_test": _finite(self.kale_test),
            "log_partition": {
                "value": _finite(estimate.value),
                "se": _finite(estimate.se),
                "method": estimate.method,
                "ess": _finite(estimate.ess),
                "pareto_k": _finite(estimate.pareto_k),
                "num_draws": estimate.num_draws,
            },
        }

    def scalars(self) -> dict[str, float]:
        """Values alone, for loggers."""
        values = {"kale_test": self.kale_test, "log_partition": self.log_partition.value}
        return values if self.kale_train is None else {"kale_train": self.kale_train, **values}


def model_fit(
    model: GEBM, train: Split | None, test: Tensor, settings: SampleSettings, device: torch.device
) -> ModelFit:
    """Energies of base draws, training data and held-out data, and what follows from them."""
    beta = settings.inverse_temperature
    example = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator(device).manual_seed(stream(settings.seed, "model fit").initial_seed())
    z = torch.randn(2 * NUM_DRAWS, model.latent_dim, generator=generator, device=device, dtype=example.dtype)
    with LatentPotential(model, block_size=settings.block_size or BLOCK) as potential:
        base = beta * potential.energy(z).cpu().double()
        of_test = beta * _energies(model, test, device, example.dtype)
        of_train = None
        if train is not None:
            of_train = beta * _energies(model, every_row(train, "training data"), device, example.dtype)
    first, second = base[:NUM_DRAWS], base[NUM_DRAWS:]
    log_partition = estimators.log_partition(first)
    estimate = from_tilt(first)
    warn_of_tail(estimate)
    return ModelFit(
        kale_train=None if of_train is None else float(estimators.kale(of_train, second, log_partition)),
        kale_test=float(estimators.kale(of_test, second, log_partition)),
        log_partition=estimate,
    )


def _energies(model: GEBM, rows: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """``E(x)`` in float64; the model is frozen by the caller's potential."""
    with torch.no_grad():
        return torch.cat([model.energy(part.to(device, dtype)).cpu().double() for part in rows.split(BLOCK)])


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
