"""A pilot: base draws and their weights, from which the cost of independence proposals follows before any chain runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gebm_kit.core.estimators import PARETO_K_LIMIT, effective_sample_size, pareto_k
from gebm_kit.core.interfaces import SamplerDirective
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.seeds import stream
from gebm_kit.engine.process.devices import placed
from gebm_kit.engine.process.memory import enough_memory
from gebm_kit.engine.sampling.blocks import activation_bytes, rows_for_bytes
from gebm_kit.engine.sampling.contract import check_contract
from gebm_kit.engine.sampling.energy_checks import PROBED, check_finite_start
from gebm_kit.engine.sampling.interfaces import Counts
from gebm_kit.engine.sampling.settings import SampleSettings

MOST_DRAWS = 4096
"""Draws of a pilot, at most: enough for a Pareto k with a standard error of about 0.07."""

FEWEST_DRAWS = 1024
"""Draws of a pilot, at least; in between, as many as draws are asked for."""

REACH_LIMIT = 1.0
"""Pareto k from which the weights have no mean, as far as their tail tells: independence proposals never settle."""

FEWEST_EFFECTIVE = 50.0
"""Effective draws behind the pilot's weighted means, at least, for these to be relied on."""

GROUPS = 256
"""Groups of candidates over which the probability that `isir` stays is averaged."""


@dataclass(frozen=True, slots=True)
class Pilot:
    """Base draws with their weights under the model, on the CPU.

    Attributes:
        log_weights: ``-tilt``, (N,) float64; -inf where that is not finite.
        potential: ``U(z) = |z|²/2 + tilt``, (N,) float64.
        has_gradient: whether the energy has a gradient with respect to z, or is constant.
        device: ``cpu`` or ``cuda``, where it was computed.
        latent_dim: Z.
        spent: evaluations of the model.
    """

    log_weights: Tensor
    potential: Tensor
    has_gradient: bool
    device: str
    latent_dim: int
    spent: Counts

    @property
    def size(self) -> int:
        """Number of draws."""
        return len(self.log_weights)

    @property
    def is_flat(self) -> bool:
        """Whether all weights are equal: the model is its base."""
        return bool((self.log_weights == self.log_weights[0]).all())

    @property
    def pareto_k(self) -> float:
        """Pareto k of the weights; -inf when they are equal."""
        return -math.inf if self.is_flat else pareto_k(self.log_weights)

    @property
    def effective(self) -> float:
        """Number of independent draws of the model that the pilot is worth."""
        return float(effective_sample_size(self.log_weights))

    @property
    def trusted(self) -> bool:
        """Whether base draws cover the model, so that their weighted means are close to the model's."""
        return self.pareto_k < PARETO_K_LIMIT and self.effective >= FEWEST_EFFECTIVE

    @property
    def reaches(self) -> bool:
        """Whether independence proposals may reach all of the model: worth a trial where `trusted` is in doubt."""
        return self.pareto_k < REACH_LIMIT and self.effective >= FEWEST_EFFECTIVE

    def mean_potential(self) -> tuple[float, float]:
        """Estimate E[U] under the model by importance weights, with its standard error."""
        p, u = self.log_weights.softmax(0), torch.where(self.log_weights.isfinite(), self.potential, 0.0)
        mean = (p * u).sum()
        return float(mean), float((p.square() * (u - mean).square()).sum().sqrt())


def take_pilot(
    model: GEBM, directive: SamplerDirective, settings: SampleSettings, device: torch.device | str | None
) -> Pilot:
    """Draw from the base and weigh the draws, in blocks; the same seed gives the same pilot.

    Raises:
        UsageError: the energy is finite nowhere.
        PluginError: base or energy do not do what their kind must.
        RunFailed: the device is out of memory.
    """
    num = min(max(settings.num_samples, FEWEST_DRAWS), MOST_DRAWS)
    with placed(model, device) as (where, dtype), enough_memory(where, "in the pilot", "Set block_size to fewer."):
        check_contract(model, directive, where)
        with LatentPotential(model, settings.inverse_temperature) as potential:
            rows = settings.block_size or rows_for_bytes(activation_bytes(potential, where, dtype), where)
            potential.block_size = min(rows, num)
            generator = torch.Generator(where).manual_seed(stream(settings.seed, "sample", "pilot").initial_seed())
            z = torch.randn(num, model.latent_dim, generator=generator, device=where, dtype=dtype)
            return _weighed(potential, z, potential.tilt(z), where)


def pilot_of_draws(
    model: GEBM, codes: Tensor, energies: Tensor, settings: SampleSettings, device: torch.device
) -> Pilot:
    """Weigh base draws whose energies are known; only the gradient of a few is computed.

    Args:
        codes: z in normal coordinates, (N, Z), on the device.
        energies: E at them, without beta, (N,).

    Raises:
        UsageError: the energy is finite nowhere.
    """
    with LatentPotential(model, settings.inverse_temperature, block_size=settings.block_size) as potential:
        return _weighed(potential, codes, potential.inverse_temperature * energies, device)


def _weighed(potential: LatentPotential, z: Tensor, tilts: Tensor, where: torch.device) -> Pilot:
    """Return the pilot of draws z, (N, Z), with ``beta E`` at them, (N,)."""
    check_finite_start(tilts, None)
    values, squares = tilts.double().cpu(), z.double().square().sum(1).cpu()
    finite = torch.isfinite(values)
    flat = bool((values[finite] == values[finite][0]).all())
    slopes = potential.tilt_and_grad(z[finite.to(z.device)][:PROBED]).grad
    has_gradient = flat or bool((slopes != 0).any())
    log_weights = torch.where(finite, -values, -math.inf)
    return Pilot(log_weights, 0.5 * squares + values, has_gradient, where.type, z.shape[1], Counts.of(potential))


# --- what the weights say about independence proposals ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stays:
    """The probability that a chain stays where it is in one step, for chains at each pilot draw.

    Attributes:
        weights: probability of the draw under the model, (N,).
        leaves: probability of leaving it in a step, (N,).
    """

    weights: Tensor
    leaves: Tensor

    @property
    def acceptance(self) -> float:
        """Mean probability of leaving, in equilibrium."""
        return float((self.weights * self.leaves).sum())

    @property
    def autocorrelation_time(self) -> float:
        """``E[(1 + R) / (1 - R)]`` with R the probability of staying: what is left is independent of where a chain was."""
        return float((self.weights * (2 - self.leaves) / self.leaves).sum())

    def forgets(self, remaining: float, most: int) -> int:
        """Return after how many steps the share of the mass that has never moved is at most ``remaining``."""
        steps = 1
        stay = (1 - self.leaves).clamp(0, 1)
        if float((self.weights * stay).sum()) <= remaining:
            return 0 if float(stay.max()) == 0 else 1
        while steps < most and float((self.weights * stay**steps).sum()) > remaining:
            steps *= 2
        return min(steps, most)


def independence_stays(pilot: Pilot) -> Stays:
    """Compute how chains of `imh` leave each draw: with the mean over proposals w' of ``min(1, w' / w)``."""
    log_w = pilot.log_weights
    ordered = log_w.sort().values
    w = (ordered - ordered[-1]).exp()
    below = w.cumsum(0)  # sum of the weights up to each, which are accepted in proportion
    places = torch.arange(len(w) - 1, -1, -1, dtype=torch.float64)  # how many are larger, and always accepted
    leaves = (below / w.clamp(min=torch.finfo(torch.float64).tiny) + places) / len(w)
    return Stays(w / w.sum(), leaves.clamp(1e-12, 1))


def candidates_stay(pilot: Pilot, num_candidates: int) -> Stays:
    """Compute how chains of `isir` leave each draw: with the mean of ``S / (w + S)``, S the sum of N - 1 other weights."""
    w = (pilot.log_weights - pilot.log_weights.max()).exp()
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(w), (GROUPS, num_candidates - 1), generator=generator)
    sums = w[picks].sum(1)
    leaves = (sums / (w.unsqueeze(1) + sums).clamp(min=torch.finfo(torch.float64).tiny)).mean(1)
    return Stays(w / w.sum(), leaves.clamp(1e-12, 1))
