"""Iterated sampling importance resampling: jumps to prior draws chosen by weight, each followed by Langevin moves."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import DIVERGENCE_THRESHOLD, Info, Potential, Sampler, Tunable
from gebm_kit.core.langevin import SplitPoint, energy_error_split, propose_split
from gebm_kit.core.tilt import tilt, tilt_and_grad


class IsirState(NamedTuple):
    """Chains at ``position`` (C, Z) with the cached tilt ``value`` (C,)."""

    position: Tensor
    value: Tensor


class _Local(NamedTuple):
    """Result of a step's Langevin moves.

    Attributes:
        state: chains after the moves.
        acceptance: mean acceptance probability of each chain's moves, (C,).
        moved: whether a chain accepted a move, (C,) bool.
        diverged: whether a move of a chain diverged, (C,) bool.
    """

    state: IsirState
    acceptance: Tensor
    moved: Tensor
    diverged: Tensor


class Isir(Sampler):
    """Iterated sampling importance resampling (i-SIR), followed by ``num_local`` moves of MALA.

    The jump, with z_1 the chain's own point, is

        z_2, ..., z_N ~ N(0, I),   z <- z_k with probability ∝ exp(-tilt(z_k)),   tilt = beta E(G(z)).

    A move (`gebm_kit.core.langevin`) goes to z' = z - h s² g + sqrt(2 h) s xi, g = grad U, with probability alpha:

        log alpha = U(z) - U(z') - d · (h/4 d - sqrt(h/2) xi),   d = s (g + g').

    The jumps are exact for every N >= 2 and cross between modes. The moves let each chain settle within its mode.
    s² = ``inverse_mass`` is a diagonal preconditioner of the moves (1 until warm-up sets it). The N - 1 candidates of
    all chains are evaluated together, or in the potential's blocks when it has a block size.

    ``acceptance`` is the probability of leaving the chain's own point for a candidate. A candidate without a finite tilt
    has weight zero. A step counts as divergent if it meets such a candidate or if a move's energy error exceeds 1000.

    Args:
        num_candidates: N, which includes the chain's own point; a step evaluates the model N - 1 times.
        num_local: MALA moves a step. They cost a gradient each, and one more at the point where they start; 0: no moves.
        step_size: h of the moves, a squared length in units of the prior's variance; tuned by warm-up until the moves
            have an acceptance of 0.574.

    Raises:
        UsageError: an argument is outside its range.

    References:
        Uniform ergodicity of the iterated conditional SMC and geometric ergodicity of particle Gibbs samplers.
        C. Andrieu, A. Lee, M. Vihola, Bernoulli 2018. https://arxiv.org/abs/1312.6432 (i-SIR)
        Local-global MCMC kernels: the best of both worlds. S. Samsonov, E. Lagutin, M. Gabrié, A. Durmus, A. Naumov,
        E. Moulines, NeurIPS 2022. https://arxiv.org/abs/2111.02702 (with local moves; applied to latent spaces of GANs)
    """

    caches_tilt: ClassVar[bool] = True

    def __init__(
        self,
        num_candidates: Annotated[int, Range(2, None)] = 8,
        num_local: Annotated[int, Range(0, None)] = 1,
        step_size: Annotated[float, Range(0, None, low_open=True)] = 0.1,
    ) -> None:
        check_arguments(self, num_candidates=num_candidates, num_local=num_local, step_size=step_size)
        self.num_candidates = num_candidates
        self.num_local = num_local
        self.step_size = step_size
        self.inverse_mass: Tensor | None = None

    @property
    def tunable(self) -> Tunable | None:
        """The step size of the moves, tuned to an acceptance of 0.574 with h below 1, as in MALA; None without moves."""
        return Tunable("step_size", target=0.574, low=1e-8, high=1.0) if self.num_local else None

    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> IsirState:
        """Start chains at ``z``, (C, Z)."""
        return IsirState(z, tilt(potential, z))

    def step(self, state: IsirState, potential: Potential, generator: torch.Generator) -> tuple[IsirState, Info]:
        """Choose among N points, then make the local moves, for every chain."""
        z, value = state
        num_new, (num_chains, latent_dim) = self.num_candidates - 1, z.shape
        shape = (num_new, num_chains, latent_dim)
        candidates = torch.randn(shape, generator=generator, dtype=z.dtype, device=z.device)
        new_values = tilt(potential, candidates.flatten(0, 1)).view(num_new, num_chains)
        finite = torch.isfinite(new_values)
        log_weights = torch.cat([-value.unsqueeze(0), torch.where(finite, -new_values, -math.inf)])
        # the largest of log w_k + Gumbel noise is k with probability ∝ w_k
        uniform = torch.rand(log_weights.shape, generator=generator, dtype=z.dtype, device=z.device)
        index = (log_weights - (-uniform.log()).log()).argmax(0, keepdim=True)
        rows = index.unsqueeze(2).expand(1, num_chains, latent_dim)
        chosen = IsirState(
            torch.cat([z.unsqueeze(0), candidates]).gather(0, rows).squeeze(0),
            -log_weights.gather(0, index).squeeze(0),
        )
        moved, diverged = index.squeeze(0) > 0, ~finite.all(0)
        acceptance, tuning = 1 - log_weights.softmax(0)[0], None
        if self.num_local:
            chosen, tuning, walked, failed = self._moves(chosen, potential, generator)
            moved |= walked
            diverged |= failed
        grad_evals = self.num_local + 1 if self.num_local else 0
        return chosen, Info(acceptance, moved & ~diverged, diverged, grad_evals, self.num_candidates - 1, tuning)

    def _moves(self, state: IsirState, potential: Potential, generator: torch.Generator) -> _Local:
        """Make ``num_local`` moves of MALA from ``state``."""
        h = self.step_size
        scale = 1.0 if self.inverse_mass is None else self.inverse_mass.sqrt()
        now = self._at(state.position, scale, potential)
        mean = torch.zeros_like(now.tilt)
        moved = torch.zeros_like(now.tilt, dtype=torch.bool)
        diverged = torch.zeros_like(moved)
        for _ in range(self.num_local):
            z = now.position
            noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
            end = self._at(propose_split(now, noise, h, scale), scale, potential)
            error = energy_error_split(now, end, noise, h)

            diverged |= error > DIVERGENCE_THRESHOLD
            acceptance = error.neg_().exp_().clamp_(max=1)
            accepted = torch.rand(len(z), generator=generator, dtype=z.dtype, device=z.device) < acceptance
            walks = accepted.unsqueeze(1)
            now = SplitPoint(
                torch.where(walks, end.position, z),
                torch.where(accepted, end.tilt, now.tilt),
                torch.where(walks, end.slope, now.slope),
            )
            moved |= accepted
            mean += acceptance / self.num_local
        return _Local(IsirState(now.position, now.tilt), mean.clamp_(max=1), moved, diverged)

    @staticmethod
    def _at(z: Tensor, scale: Tensor | float, potential: Potential) -> SplitPoint:
        """Evaluate the potential at ``z`` (C, Z), with the slope scaled by ``scale``."""
        value, grad = tilt_and_grad(potential, z)
        return SplitPoint(z, value, scale * (grad + z))
