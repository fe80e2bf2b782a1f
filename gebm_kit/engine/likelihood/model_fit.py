"""KALE of a model on training and held-out data, its log-partition and, with a density, its likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core import estimators
from gebm_kit.core.files import finite_or_none
from gebm_kit.core.interfaces import Split
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.progress import OnProgress, ignore
from gebm_kit.core.seeds import stream
from gebm_kit.engine.datasets.held_out import every_row
from gebm_kit.engine.likelihood.estimate_log_partition import Method, estimate_log_partition
from gebm_kit.engine.likelihood.log_partition import ENERGY_ROWS, LogPartition
from gebm_kit.engine.likelihood.nll import Likelihood, Space, likelihood, log_base_density
from gebm_kit.engine.sampling.settings import SampleSettings

NUM_DRAWS = 20_000
"""Base draws behind A by importance sampling, and as many again behind Pareto k and the mean over the base in KALE."""


@dataclass(frozen=True, slots=True)
class ModelDraws:
    """Draws of the GEBM in independent ``sets``, (M, *D) each, and the number of independent draws that all are worth."""

    sets: list[Tensor]
    effective: float


@dataclass(frozen=True, slots=True)
class ModelFit:
    """Figures of the tilt ``beta E`` that was sampled.

    Attributes:
        kale_train, kale_test: ``1 - beta E_P[E] - A - E_B[exp(-(beta E + A))]`` on training data (None without any) and on
            the reference. A comes from one set of base draws and the mean over B from another, so that the expectation is a
            lower bound of KL(P || B) whatever A turned out to be. Where the weights of base draws are too heavy-tailed for
            that mean and A comes from annealing, it is set to 1, its value at the true A.
        log_partition: A(beta).
        nll: negative log-likelihoods of the reference; None where the base has no density.
    """

    kale_train: float | None
    kale_test: float
    log_partition: LogPartition
    nll: Likelihood | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; what is not finite is null."""
        return {
            "kale_train": finite_or_none(self.kale_train),
            "kale_test": finite_or_none(self.kale_test),
            "log_partition": self.log_partition.as_dict(),
            "nll": None if self.nll is None else self.nll.as_dict(),
        }

    def scalars(self) -> dict[str, float]:
        """Values alone, for loggers."""
        values = {"kale_test": self.kale_test, "log_partition": self.log_partition.value}
        if self.nll is not None:
            values["nll"] = self.nll.gebm.value
        return values if self.kale_train is None else {"kale_train": self.kale_train, **values}


def model_fit(
    model: GEBM,
    train: Split | None,
    test: Tensor,
    settings: SampleSettings,
    device: torch.device,
    *,
    draws: ModelDraws | None = None,
    method: Method = "auto",
    space: Space = "standardised",
    log_det: float | None = None,
    on_progress: OnProgress = ignore,
) -> ModelFit:
    """Energies of base draws, training data and held-out data, and what follows from them.

    Args:
        draws: of the GEBM, to check A by bridge sampling where nothing is annealed.
        method: how A is estimated.
        space, log_det: see `gebm_kit.engine.likelihood.nll.Likelihood`.
    """
    beta = settings.inverse_temperature
    dtype = model.dtype
    generator = torch.Generator(device).manual_seed(stream(settings.seed, "model fit").initial_seed())
    with LatentPotential(model, beta, block_size=settings.block_size or ENERGY_ROWS) as potential:
        first, second = base_tilts(potential, generator, dtype)
        of_test = beta * energies(model, test, device, dtype)
        of_train = None
        if train is not None:
            of_train = beta * energies(model, every_row(train, "training data"), device, dtype)
        of_draws = None
        if draws is not None:
            of_draws = beta * torch.stack([energies(model, part, device, dtype) for part in draws.sets])
        estimate = estimate_log_partition(
            potential,
            first,
            second,
            generator,
            dtype,
            method=method,
            model_tilt=of_draws,
            effective=math.nan if draws is None else draws.effective,
            on_progress=on_progress,
        )
        log_base = log_base_density(model, test, device, dtype)
    return ModelFit(
        kale_train=None if of_train is None else _kale(of_train, second, estimate),
        kale_test=_kale(of_test, second, estimate),
        log_partition=estimate,
        nll=None if log_base is None else likelihood(log_base, of_test, estimate, log_det, space),
    )


def base_tilts(potential: LatentPotential, generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``beta E`` at two independent sets of base draws, (`NUM_DRAWS`,) each, float64 on the CPU."""
    shape = (2 * NUM_DRAWS, potential.model.latent_dim)
    z = torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)
    first, second = potential.tilt(z).cpu().double().chunk(2)
    return first, second


def _kale(tilt: Tensor, base: Tensor, estimate: LogPartition) -> float:
    if estimate.method == "smc":
        return -float(tilt.mean()) - estimate.value
    return float(estimators.kale(tilt, base, torch.tensor(estimate.value, dtype=torch.float64)))


def energies(model: GEBM, rows: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """``E(x)`` in float64; the model is frozen by the caller's potential."""
    with torch.no_grad():
        return torch.cat([model.energy(part.to(device, dtype)).cpu().double() for part in rows.split(ENERGY_ROWS)])
