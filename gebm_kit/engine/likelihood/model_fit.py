"""KALE of a model on training and held-out data, its log-partition and, if the base has a density, its likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core import estimators
from gebm_kit.core.contracts import check_energy_output
from gebm_kit.core.interfaces import OnCodes, Split
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.progress import OnProgress, counted, ignore
from gebm_kit.core.seeds import stream
from gebm_kit.engine.datasets.held_out import evenly_spaced_rows
from gebm_kit.engine.likelihood.estimate_log_partition import Method, estimate_log_partition
from gebm_kit.engine.likelihood.log_partition import ROWS_AT_ONCE, LogPartition
from gebm_kit.engine.likelihood.nll import Likelihood, Space, likelihood, log_base_density
from gebm_kit.engine.sampling.settings import SampleSettings

NUM_DRAWS = 20_000
"""Base draws behind A by importance sampling. As many other draws are behind Pareto k and the mean over the base in KALE."""


@dataclass(frozen=True, slots=True)
class ModelDraws:
    """Draws of the GEBM in independent ``sets``, (M, *D) each; all sets are worth ``effective`` independent draws.

    ``effective`` is None for draws that do not follow the model, such as a refiner's: no bridge is built from them.
    """

    sets: list[Tensor]
    effective: float | None


@dataclass(frozen=True, slots=True)
class BaseDraws:
    """Base draws that other work made already, and the generator from which more codes are drawn.

    Attributes:
        sets: decoded draws ``x = G(z)``, (N, *D) each, on the CPU.
        codes: their codes z in normal coordinates, (N, Z) each, on the device.
        generator: the generator of the codes, on the device.
        energies: `shared_energies` of them, where these were computed already.
    """

    sets: Sequence[Tensor]
    codes: Sequence[Tensor]
    generator: torch.Generator
    energies: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Energies:
    """Energies E, without beta, float64 on the CPU.

    Attributes:
        base: of two independent halves of base draws, (2 N,). Shared base draws come first, in their order.
        data: of held-out rows, (N,).
        train: of training rows, or None.
        draws: of the GEBM's sets, (S, M), or None.
    """

    base: Tensor
    data: Tensor
    train: Tensor | None
    draws: Tensor | None


@dataclass(frozen=True, slots=True)
class ModelFit:
    """The fit of the tilt ``beta E`` that was sampled: KALE, the log-partition and the likelihood.

    Attributes:
        kale_train, kale_test: ``1 - beta E_P[E] - A - E_B[exp(-(beta E + A))]`` on training data (None without any) and on
            the reference. A comes from one set of base draws and the mean over B from another, so that the expectation is a
            lower bound of KL(P || B) for any estimate of A. Where A comes from annealing, the
            weights of base draws may be too heavy-tailed for that mean, so it is set to 1, its value at the true A.
        log_partition: A(beta).
        nll: negative log-likelihoods of the reference; None where the base has no density.
        kale_train_rows: training rows behind ``kale_train``, at most `MAX_ROWS` evenly spaced ones; None without any.
    """

    kale_train: float | None
    kale_test: float
    log_partition: LogPartition
    nll: Likelihood | None = None
    kale_train_rows: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON; a value that is not finite is null."""
        return {
            "kale_train": _finite(self.kale_train),
            "kale_train_rows": self.kale_train_rows,
            "kale_test": _finite(self.kale_test),
            "log_partition": self.log_partition.as_dict(),
            "nll": None if self.nll is None else self.nll.as_dict(),
        }

    def scalars(self) -> dict[str, float]:
        """Return the values alone, for loggers."""
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
    base: BaseDraws | None = None,
    method: Method = "auto",
    may_anneal: bool = True,
    space: Space = "standardised",
    log_det: float | None = None,
    num_draws: int | None = None,
    on_progress: OnProgress = ignore,
) -> tuple[ModelFit, Energies]:
    """Estimate A from base draws; compute KALE of training and held-out data and, with a density, the likelihood.

    Args:
        train: training data, of which at most `MAX_ROWS` evenly spaced rows are used; None without any.
        test: held-out rows, (N, *D).
        draws: draws of the GEBM, to check A by bridge sampling where nothing is annealed.
        base: base draws to begin with; None: all are drawn here.
        method, may_anneal: how A is estimated, as in `estimate_log_partition`.
        num_draws: base draws behind A, and as many others; None: `NUM_DRAWS`.
        space, log_det: see `gebm_kit.engine.likelihood.nll.Likelihood`.

    Returns:
        The fit, and the energies that it was computed from.
    """
    beta, dtype = settings.inverse_temperature, model.dtype
    generator = torch.Generator(device).manual_seed(stream(settings.seed, "model fit").initial_seed())
    with LatentPotential(model, beta, block_size=settings.block_size or ROWS_AT_ONCE) as potential:
        found = Energies(
            base=base_energies(potential, base, generator, dtype, on_progress, num_draws),
            data=energies(model, test, device, dtype),
            train=None if train is None else energies(model, evenly_spaced_rows(train, "training data"), device, dtype),
            draws=None if draws is None else _of_sets(model, draws.sets, device, dtype),
        )
        first, second = (beta * found.base).chunk(2)
        bridged = found.draws is not None and draws is not None and draws.effective is not None
        estimate = estimate_log_partition(
            potential,
            first,
            second,
            generator,
            dtype,
            method=method,
            may_anneal=may_anneal,
            model_tilt=beta * found.draws if bridged and found.draws is not None else None,
            effective=math.nan if draws is None or draws.effective is None else draws.effective,
            on_progress=on_progress,
        )
        log_base = log_base_density(model, test, device, dtype)
    fit = ModelFit(
        kale_train=None if found.train is None else _kale(beta * found.train, second, estimate),
        kale_test=_kale(beta * found.data, second, estimate),
        log_partition=estimate,
        nll=None if log_base is None else likelihood(log_base, beta * found.data, estimate, log_det, space),
        kale_train_rows=None if found.train is None else len(found.train),
    )
    return fit, found


def _of_sets(model: GEBM, sets: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Compute energies of sets of equal size, (S, M)."""
    return torch.stack([energies(model, part, device, dtype) for part in sets])


def base_energies(
    potential: LatentPotential,
    base: BaseDraws | None,
    generator: torch.Generator,
    dtype: torch.dtype,
    on_progress: OnProgress = ignore,
    num_draws: int | None = None,
) -> Tensor:
    """Compute E at ``2 num_draws`` base draws, (2 num_draws,) float64 on the CPU: those of ``base``, then further ones.

    A draw that is shared is not made again, and an energy that is known is not computed again.
    """
    wanted, known = 2 * (NUM_DRAWS if num_draws is None else num_draws), torch.empty(0, dtype=torch.float64)
    report = counted(on_progress, "log Z", wanted)
    if base is not None:
        generator = base.generator
        shared = shared_energies(potential, base, dtype, report) if base.energies is None else base.energies
        known = shared[:wanted]
    missing = wanted - len(known)
    if not missing:
        return known
    z = torch.randn(missing, potential.model.latent_dim, generator=generator, device=generator.device, dtype=dtype)
    return torch.cat([known, potential.energy(z, lambda done: report(len(known) + done)).cpu().double()])


def shared_energies(
    potential: LatentPotential, base: BaseDraws, dtype: torch.dtype, report: Callable[[int], None] = lambda done: None
) -> Tensor:
    """Compute E at the first ``2 NUM_DRAWS`` shared base draws, or at all if they are fewer, float64 on the CPU.

    The energy is that of a decoded row, or of its code for an energy on codes.
    """
    wanted = 2 * NUM_DRAWS
    if isinstance(potential.model.energy, OnCodes):
        return potential.energy(torch.cat(list(base.codes))[:wanted], report).cpu().double()
    room, rows = wanted, []
    for part in base.sets:
        if room > 0:
            rows.append(energies(potential.model, part[:room], base.generator.device, dtype))
            room -= len(rows[-1])
            report(wanted - room)
    return torch.cat(rows)


def base_tilts(
    potential: LatentPotential, generator: torch.Generator, dtype: torch.dtype, on_progress: OnProgress = ignore
) -> tuple[Tensor, Tensor]:
    """Compute ``beta E`` at two independent sets of base draws, (`NUM_DRAWS`,) each, float64 on the CPU."""
    shape = (2 * NUM_DRAWS, potential.model.latent_dim)
    z = torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)
    first, second = potential.tilt(z, counted(on_progress, "log Z", len(z))).cpu().double().chunk(2)
    return first, second


def _kale(tilt: Tensor, base: Tensor, estimate: LogPartition) -> float:
    """Compute KALE from ``beta E`` of data and of base draws; see `ModelFit`."""
    if estimate.method == "smc":
        return -float(tilt.mean()) - estimate.value
    return float(estimators.kale(tilt, base, torch.tensor(estimate.value, dtype=torch.float64)))


def energies(
    model: GEBM,
    rows: Tensor,
    device: torch.device,
    dtype: torch.dtype,
    report: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Compute ``E(x)`` of rows, (N, *D) -> (N,) float64 on the CPU. The caller's potential keeps the model frozen."""
    found, done = [], 0
    with torch.no_grad():
        for part in rows.split(ROWS_AT_ONCE):
            given = part.to(device, dtype, copy=True)  # the rows are scored by others too: whatever it does, they stay
            values = model.energy(given)
            check_energy_output(model.energy, values, len(part))
            found.append(values.cpu().double())
            report(done := done + len(part))
    return torch.cat(found)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
