"""The interface of a latent sampler: its potential, its state, what a step reports, and what warm-up may tune.

Shapes: C chains, Z latent size, K numbers that an adaptation gathers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError


class ValueAndGrad(NamedTuple):
    """A function's value at each chain, (C,), and its gradient, (C, Z)."""

    value: Tensor  # (C,)
    grad: Tensor  # (C, Z)


@runtime_checkable
class Potential(Protocol):
    """``U(z)``, minus a log-density up to a constant, evaluated on all chains at once. Gradients carry no graph."""

    def value(self, z: Tensor) -> Tensor:
        """Compute U; (C, Z) -> (C,)."""
        ...

    def value_and_grad(self, z: Tensor) -> ValueAndGrad:
        """Compute U and its gradient; (C, Z) -> (C,), (C, Z)."""
        ...


@runtime_checkable
class TiltedPotential(Potential, Protocol):
    """A potential split as ``U(z) = |z|^2 / 2 + tilt(z)``: a standard-normal prior times ``exp(-tilt)``.

    Kernels which know the prior (kick-rotate HMC, pCN) use the tilt alone.
    """

    def tilt(self, z: Tensor) -> Tensor:
        """Compute the tilt; (C, Z) -> (C,)."""
        ...

    def tilt_and_grad(self, z: Tensor) -> ValueAndGrad:
        """Compute the tilt and its gradient; (C, Z) -> (C,), (C, Z)."""
        ...


class Info(NamedTuple):
    """What one step reports about each chain.

    Attributes:
        acceptance: acceptance probability of the proposal, (C,), in [0, 1]; 1 for kernels without a correction.
        accepted: whether the chain moved to its proposal, (C,), bool; False in a step that diverged.
        diverged: whether the proposal was not finite or its energy error exceeded 1000, and was rejected for that;
            (C,), bool. A kernel that tries several points in a step reports True when it rejected any of them for that
            reason.
        grad_evals: gradients of the potential that the step spent on each chain, a Python int.
        forward_evals: values (without gradient) that it spent on each chain, a Python int.
        tuning: what warm-up averages instead of the acceptance, (C,), in [0, 1], for kernels without a correction.
        statistics: per-chain numbers whose sums the sampler's `Adaptation` reads, (C, K); None outside warm-up.
        impossible: whether the proposal was rejected because it left the support, (C,), bool: the potential is not finite
            there, or jumps by more than 1000 without any force on the way. No step size could have saved it, so warm-up
            leaves it out of the mean that tunes the step. None: every proposal counts.
    """

    acceptance: Tensor
    accepted: Tensor
    diverged: Tensor
    grad_evals: int
    forward_evals: int = 0
    tuning: Tensor | None = None
    statistics: Tensor | None = None
    impossible: Tensor | None = None


class State(Protocol):
    """A kernel's state: a NamedTuple of tensors with at least these fields. It is saved and restored field by field."""

    @property
    def position(self) -> Tensor:
        """(C, Z), in normal coordinates."""
        ...

    @property
    def value(self) -> Tensor:
        """Cached value of what the kernel evaluates (U, or the tilt), (C,)."""
        ...


@dataclass(frozen=True, slots=True)
class Tunable:
    """A constructor parameter that warm-up may set.

    Attributes:
        name: attribute of the sampler, a float.
        target: acceptance that dual averaging aims at.
        low, high: bounds, so that a flat tilt can't drive the value to infinity.
        harmonic: whether the acceptance is averaged over chains harmonically, as the target of ChEES assumes.
    """

    name: str
    target: float
    low: float
    high: float
    harmonic: bool = False


class Adaptation(ABC):
    """Tunes what a sampler has beyond its `Tunable`: a trajectory length, a damping, a ladder. Each warm-up has its own
    object.

    Chains run in blocks, so an adaptation learns from sums over blocks. After every warm-up step the engine asks for
    each block's `statistics` and adds them up in the order of the blocks, over all ranks. It hands the sums to
    `update`, which returns the sampler for the next step. The draws therefore depend neither on how many blocks run at
    once nor on the number of ranks.
    """

    @abstractmethod
    def statistics(self, sampler: Sampler, before: Any, after: Any, info: Info) -> Tensor:
        """Sum over one block's chains whatever `update` needs; (K,) float64 on the chains' device, without waiting for
        it.

        Args:
            before, after: the block's states around the step that ``sampler`` made.
        """

    @abstractmethod
    def update(self, sampler: Sampler, sums: Tensor, num_chains: int, progress: float) -> Sampler:
        """Return the sampler for the next step, given the sums over all ``num_chains`` chains, (K,) float64 on the CPU.

        Args:
            progress: share of warm-up done with this step, in (0, 1].
        """

    def freeze(self, sampler: Sampler) -> Sampler:
        """Return the sampler to draw with: averaged values, no more gathering. Called once, after the last `update`."""
        return sampler


DIVERGENCE_THRESHOLD = 1000.0
"""Energy error above which a proposal counts as divergent (Stan's and blackjax's convention)."""


class Sampler(ABC):
    """A latent sampler in the manner of blackjax: pure functions of a small state, all chains of a block in one batch.

    ``init`` and ``step`` draw every random number from the generator handed in and never wait for the device: no
    ``.item()``, no boolean-mask indexing, no Python branch on data. Parameters that warm-up tunes live on the sampler
    and are replaced, never mutated (`tuned`).

    A *kernel* is warmed up, frozen and stepped; its states are draws. A *population* method or a *refiner* starts from
    prior draws and is stepped until `finished`; its last positions are the draws. It starts again when more draws are
    needed.

    Attributes:
        family: ``kernel`` (chains), ``population`` (weights and resampling), ``refiner`` (moves points, no target) or
            ``directive`` (`SamplerDirective`: the engine puts another sampler in its place).
        exact: whether draws are unbiased for the target once warm-up is frozen.
        coupled: whether chains exchange information when drawing; coupled chains stay in one block.
        caches_tilt: whether a state's ``value`` and ``grad`` are those of the tilt where the potential is split, as kernels
            cache them that know the prior; else they are those of the whole potential U.
        min_chains: fewest chains that the algorithm needs, its tuning included.
        has_ladder: whether it moves from the prior to the target by itself, so that warm-up need not temper the start.
        rows_a_chain: prior draws for each chain that a step evaluates at once, where `in_blocks` has set their number.
        priors: names of the priors that it serves. All priors are images of a normal, so kernels serve all of them by
            default.
        tunable: what warm-up may tune by the acceptance, or None.
    """

    family: ClassVar[Literal["kernel", "population", "refiner", "directive"]] = "kernel"
    exact: ClassVar[bool] = True
    coupled: ClassVar[bool] = False
    caches_tilt: ClassVar[bool] = False
    min_chains: ClassVar[int] = 1
    has_ladder: ClassVar[bool] = False
    rows_a_chain: int = 1
    priors: ClassVar[frozenset[str]] = frozenset({"normal", "uniform", "sphere"})

    @property
    def tunable(self) -> Tunable | None:
        return None

    @classmethod
    def needs_one_block(cls) -> bool:
        """Return whether all chains of a run stay in one block, as for coupled kernels, populations and refiners.

        Such chains are neither cut into blocks nor split into independent sets afterwards: each set is a run of its
        own.
        """
        return cls.coupled or cls.family != "kernel"

    def in_blocks(self, num_chains: int, rows: int) -> Sampler:
        """Return the sampler that draws from the same law in fewer, larger steps for ``num_chains`` chains.

        Evaluations of a few rows waste most of their time. A sampler whose step may well evaluate more prior draws for each
        chain returns a copy that evaluates up to ``rows`` of them at once; all others return themselves.
        """
        return self

    def longer(self, factor: int) -> Sampler | None:
        """Return a population method that spends ``factor`` times as much on each draw, to come closer to its target.

        An evaluation compares its draws with those of the method itself, as it compares a kernel's chains with themselves
        ``factor`` times as long. None: there is no such method, as for refiners, or chains are continued instead.
        """
        return None

    def adaptation(self) -> Adaptation | None:
        """Return a new object that tunes, during warm-up, what `tunable` does not cover; None if there is nothing more."""
        return None

    @abstractmethod
    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> Any:
        """Return the state of chains at ``z``, (C, Z). Populations and refiners may rely on ``z`` being prior draws."""

    @abstractmethod
    def step(self, state: Any, potential: Potential, generator: torch.Generator) -> tuple[Any, Info]:
        """Make one transition of every chain."""

    def finished(self, state: Any) -> Tensor | None:
        """Return whether a population or refiner has finished, () bool on the device; None for kernels,
        which never finish."""
        return None

    def log_partition(self, state: Any) -> Tensor | None:
        """Return the estimate of ``A = log E_eta[exp(-tilt)]`` that comes with the draws, (), or None."""
        return None

    def log_weights(self, state: Any) -> Tensor | None:
        """Return the logarithms of the importance weights behind the draws, (N,), for their Pareto k; or None."""
        return None

    def summary(self, state: Any) -> Mapping[str, Tensor]:
        """Return further named numbers for the diagnostics, each (): rungs of a ladder, swap rates, violated bounds."""
        return {}

    def tuned(self, **values: Any) -> Sampler:
        """Return a copy with the named attributes replaced.

        ``inverse_mass`` takes a tensor (Z,); see the sampler's docstring.
        """
        import copy

        twin = copy.copy(self)
        for name, value in values.items():
            if not hasattr(twin, name):
                raise AttributeError(f"{type(self).__name__} has no parameter {name!r}")
            setattr(twin, name, value)
        return twin


class AnnealedSampler(Sampler):
    """A population method that moves from the prior to the target in levels, by a plan that other populations can
    follow.

    One population finds the plan, a row of numbers for each level. Populations that follow it learn nothing from their
    own particles, which makes their estimates of the partition function Z unbiased.
    """

    @abstractmethod
    def learnt(self, state: Any) -> Tensor:
        """Return the plan's row for the last step, (K,) float64."""

    @abstractmethod
    def frozen(self, plan: Tensor, groups: int = 1) -> AnnealedSampler:
        """Return a copy that follows ``plan``, one row a step;
        each of ``groups`` equal blocks of chains is a population."""

    @abstractmethod
    def log_partitions(self, state: Any) -> Tensor:
        """Return each population's estimate of A, (groups,)."""


class SamplerDirective(Sampler):
    """A request to choose a sampler, which the engine replaces by a sampler that can draw before anything is drawn.

    Attributes:
        max_rhat: largest R-hat of draws that are accepted.
        budget: evaluations that all attempts after the first may take together, as a multiple of the first one's.
        candidates: names of the samplers to choose among.
    """

    family: ClassVar[Literal["kernel", "population", "refiner", "directive"]] = "directive"
    max_rhat: float
    budget: float
    candidates: tuple[str, ...]

    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> Any:
        """Raise: a directive has no chains."""
        raise self._refusal()

    def step(self, state: Any, potential: Potential, generator: torch.Generator) -> tuple[Any, Info]:
        """Raise: a directive has no chains."""
        raise self._refusal()

    def _refusal(self) -> UsageError:
        return UsageError(
            f"{type(self).__name__} chooses a sampler and is not one itself, so it can't be stepped",
            hint="Hand it to gebm_kit.sample or gebm_kit.evaluate; to step chains yourself, use Hmc or another kernel.",
        )
