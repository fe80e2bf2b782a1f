"""What a latent sampler is: the potential it walks on, its state and report, what warm-up may tune.

Shapes: C chains, Z latent size, K numbers that an adaptation gathers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


class ValueAndGrad(NamedTuple):
    """A function's value at each chain, (C,), and its gradient, (C, Z)."""

    value: Tensor
    grad: Tensor


@runtime_checkable
class Potential(Protocol):
    """``U(z)``, minus a log-density up to a constant, evaluated on all chains at once. Gradients carry no graph."""

    def value(self, z: Tensor) -> Tensor:
        """(C, Z) -> (C,)."""
        ...

    def value_and_grad(self, z: Tensor) -> ValueAndGrad:
        """(C, Z) -> (C,), (C, Z)."""
        ...


@runtime_checkable
class TiltedPotential(Potential, Protocol):
    """A potential split as ``U(z) = |z|^2 / 2 + tilt(z)``: a standard-normal prior times ``exp(-tilt)``.

    Kernels which know the prior (kick-rotate HMC, pCN) use the tilt alone.
    """

    def tilt(self, z: Tensor) -> Tensor:
        """(C, Z) -> (C,)."""
        ...

    def tilt_and_grad(self, z: Tensor) -> ValueAndGrad:
        """(C, Z) -> (C,), (C, Z)."""
        ...


class Info(NamedTuple):
    """What one step says about each chain.

    Attributes:
        acceptance: acceptance probability of the proposal, (C,), in [0, 1]; 1 for kernels without a correction.
        accepted: whether the chain moved to its proposal, (C,), bool; False in a step that diverged.
        diverged: non-finite proposal or energy error above 1000; rejected, (C,), bool. A kernel that looks at several
            points a step says so when it rejected any of them for that reason.
        grad_evals: gradients of the potential that the step spent on each chain, a Python int.
        forward_evals: values (without gradient) that it spent on each chain, a Python int.
        tuning: what warm-up averages in place of the acceptance, (C,), in [0, 1], for kernels without a correction.
        statistics: per-chain numbers whose sums the sampler's `Adaptation` reads, (C, K); None outside warm-up.
    """

    acceptance: Tensor
    accepted: Tensor
    diverged: Tensor
    grad_evals: int
    forward_evals: int = 0
    tuning: Tensor | None = None
    statistics: Tensor | None = None


class State(Protocol):
    """A kernel's state: a NamedTuple of tensors that holds at least these. Saved and restored field by field."""

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
        harmonic: average the acceptance over chains harmonically, as the target of ChEES assumes, not arithmetically.
    """

    name: str
    target: float
    low: float
    high: float
    harmonic: bool = False


class Adaptation(ABC):
    """Tunes what a sampler has beyond its `Tunable`: a trajectory length, a damping, a ladder. One object a warm-up.

    Chains run in blocks, so what is learnt from them goes through sums. After every warm-up step the engine asks for each
    block's `statistics`, adds them up in the order of the blocks (over all ranks), and hands the sums to `update`, whose
    sampler makes the next step. The draws then depend neither on how many blocks run at once nor on the number of ranks.
    """

    @abstractmethod
    def statistics(self, sampler: Sampler, before: Any, after: Any, info: Info) -> Tensor:
        """Sums over one block's chains of whatever `update` needs, (K,) float64 on the chains' device; no waiting for it.

        Args:
            before, after: the block's states around the step that ``sampler`` made.
        """

    @abstractmethod
    def update(self, sampler: Sampler, sums: Tensor, num_chains: int, progress: float) -> Sampler:
        """The sampler for the next step, from the sums over all ``num_chains`` chains: (K,) float64 on the CPU.

        Args:
            progress: share of warm-up done with this step, in (0, 1].
        """

    def freeze(self, sampler: Sampler) -> Sampler:
        """The sampler to draw with, once, after the last `update`: averaged values, nothing gathered any more."""
        return sampler


DIVERGENCE_THRESHOLD = 1000.0
"""Energy error above which a proposal counts as divergent (Stan's and blackjax's convention)."""


class Sampler(ABC):
    """A latent sampler in the manner of blackjax: pure functions of a small state, all chains of a block in one batch.

    ``init`` and ``step`` draw every random number from the generator handed in and never wait for the device: no
    ``.item()``, no boolean-mask indexing, no Python branch on data. Parameters that warm-up tunes live on the sampler and
    are replaced, never mutated (`tuned`).

    A *kernel* is warmed up, frozen and stepped; its states are draws. A *population* method or a *refiner* starts from prior
    draws, is stepped until `finished`, and its last positions are the draws; for more of them it starts again.

    Attributes:
        family: ``kernel`` (chains), ``population`` (weights and resampling) or ``refiner`` (moves points, no target).
        exact: whether draws are unbiased for the target once warm-up is frozen.
        coupled: whether chains exchange information when drawing; coupled chains stay in one block.
        min_chains: fewest chains that the algorithm (its tuning included) can do with.
        has_ladder: whether it goes from the prior to the target by itself, so that warm-up need not help it to.
        priors: prior names served; all priors are images of a normal, so kernels serve all unless they say otherwise.
        tunable: what warm-up may tune by the acceptance, or None.
    """

    family: ClassVar[Literal["kernel", "population", "refiner"]] = "kernel"
    exact: ClassVar[bool] = True
    coupled: ClassVar[bool] = False
    min_chains: ClassVar[int] = 1
    has_ladder: ClassVar[bool] = False
    priors: ClassVar[frozenset[str]] = frozenset({"normal", "uniform", "sphere"})

    @property
    def tunable(self) -> Tunable | None:
        return None

    @classmethod
    def needs_one_block(cls) -> bool:
        """Whether all chains of a run stay in one block: those of coupled kernels, populations and refiners do.

        Such chains are neither cut into blocks nor split into independent sets afterwards: each set is a run of its own.
        """
        return cls.coupled or cls.family != "kernel"

    def adaptation(self) -> Adaptation | None:
        """A fresh object that tunes whatever else warm-up should tune, or None."""
        return None

    @abstractmethod
    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> Any:
        """State of chains at ``z``: (C, Z). Populations and refiners may count on ``z`` being prior draws."""

    @abstractmethod
    def step(self, state: Any, potential: Potential, generator: torch.Generator) -> tuple[Any, Info]:
        """One transition of every chain."""

    def finished(self, state: Any) -> Tensor | None:
        """Whether a population or refiner has arrived, () bool on the device; None for kernels, which never do."""
        return None

    def log_partition(self, state: Any) -> Tensor | None:
        """Estimate of ``A = log E_eta[exp(-tilt)]`` that comes with the draws, (), or None."""
        return None

    def log_weights(self, state: Any) -> Tensor | None:
        """Logarithms of the importance weights behind the draws, (N,), for their Pareto k; or None."""
        return None

    def summary(self, state: Any) -> Mapping[str, Tensor]:
        """Further named numbers, each (), that go with the diagnostics: rungs of a ladder, swap rates, bounds broken."""
        return {}

    def tuned(self, **values: Any) -> Sampler:
        """A copy with the named attributes replaced; ``inverse_mass`` takes a tensor (Z,), see the sampler's docstring."""
        import copy

        twin = copy.copy(self)
        for name, value in values.items():
            if not hasattr(twin, name):
                raise AttributeError(f"{type(self).__name__} has no parameter {name!r}")
            setattr(twin, name, value)
        return twin


class AnnealedSampler(Sampler):
    """A population method that goes from the prior to the target by levels, and whose way there can be kept for others.

    One population finds a plan, a row of numbers for each level. Populations that follow it learn nothing from their own
    particles, which makes their estimates of the partition function Z unbiased.
    """

    @abstractmethod
    def learnt(self, state: Any) -> Tensor:
        """The plan's row of the last step, (K,) float64."""

    @abstractmethod
    def frozen(self, plan: Tensor, groups: int = 1) -> AnnealedSampler:
        """A copy that follows ``plan``, one row a step, with chains in ``groups`` equal blocks: a population each."""

    @abstractmethod
    def log_partitions(self, state: Any) -> Tensor:
        """Each population's estimate of A, (groups,)."""
