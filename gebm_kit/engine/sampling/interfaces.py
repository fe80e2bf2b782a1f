"""What sampling works on: a job, its independent units of work, and the keeper of their draws.

A unit is a block of chains after warm-up, or some islands of a population. It is stepped, yields draws from time to
time, and leaves its records for the diagnostics at the end. The result does not depend on which process runs it, or
when.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gebm_kit.core.interfaces import Sampler
from gebm_kit.core.model import LatentPotential
from gebm_kit.core.progress import OnProgress
from gebm_kit.engine.process.distributed import Ranks
from gebm_kit.engine.sampling.blocks import Layout
from gebm_kit.engine.sampling.chains import Chains
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.draws import Part
from gebm_kit.engine.sampling.settings import SampleSettings

Saved = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by name, and plain data."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows on which the model was evaluated with and without gradient."""

    grad_evals: int = 0
    forward_evals: int = 0

    @classmethod
    def of(cls, potential: LatentPotential) -> Counts:
        """Return the counts of ``potential`` so far."""
        return cls(potential.grad_evals, potential.forward_evals)

    @classmethod
    def read(cls, tensor: Tensor) -> Counts:
        """Read back what `tensor` made."""
        return cls(*(int(value) for value in tensor.tolist()))

    def tensor(self) -> Tensor:
        """Return the counts as a tensor, (2,) int64."""
        return torch.tensor([self.grad_evals, self.forward_evals])

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.grad_evals + other.grad_evals, self.forward_evals + other.forward_evals)

    def __sub__(self, other: Counts) -> Counts:
        return Counts(self.grad_evals - other.grad_evals, self.forward_evals - other.forward_evals)


class Starts(NamedTuple):
    """Latent codes that chains start from in turn, (N, Z), and the digest of the data that they encode."""

    codes: Tensor
    digest: str


@dataclass(frozen=True)
class SamplingJob:
    """Everything that one sampling needs.

    Attributes:
        potential, sampler, settings: what is drawn, and how.
        device, dtype: device and type of the chains.
        layout: how the chains are cut into blocks.
        ranks: the processes that share the work.
        on_progress: called with reports of progress.
        probed: evaluations spent on finding the layout.
        starts: where chains start; None: at draws of the prior.
    """

    potential: LatentPotential
    sampler: Sampler
    settings: SampleSettings
    device: torch.device
    dtype: torch.dtype
    layout: Layout
    ranks: Ranks
    on_progress: OnProgress
    probed: Counts
    starts: Starts | None = None


class Outcome(NamedTuple):
    """The diagnostics of a sampling, the `Recorder.tensors` of its blocks when it has recorders, and its chains' ends."""

    diagnostics: Diagnostics
    records: Sequence[Mapping[str, Tensor]] = ()
    chains: Chains | None = None


class Unit(Protocol):
    """A block of chains, or a group of islands: a unit of work that one process does from beginning to end."""

    @property
    def number(self) -> int:
        """Number of the unit, from 0; shards are in the order of the units."""
        ...

    @property
    def step(self) -> int:
        """Steps done so far. `state` and `records` are consistent between two steps."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return what the unit needs to resume from here, besides its records."""
        ...

    def records(self) -> dict[str, Tensor]:
        """Return what the unit has recorded so far for the diagnostics."""
        ...


class Keeper(Protocol):
    """Where draws go, and where the state of interrupted units is saved, if anywhere."""

    def begun(self) -> Saved | None:
        """Return what `begin` saved, or None when sampling starts from the beginning."""
        ...

    def begin(self, units: Sequence[Unit], shared: Callable[[], Saved]) -> None:
        """Take note that all units of this rank are ready to start; ``shared`` returns what they have in common."""
        ...

    def saved(self, number: int) -> tuple[int, Mapping[str, Tensor]] | None:
        """Return the step of an interrupted unit, and its state and records together; None when nothing was saved."""
        ...

    def add(self, unit: Unit, part: Part) -> None:
        """Store draws of a unit."""
        ...

    def check(self, unit: Unit | None) -> None:
        """Raise when sampling was asked to stop, once ``unit`` is saved; called between two steps."""
        ...

    def finish(self, unit: Unit) -> None:
        """Take note that a unit has finished."""
        ...

    def records(self, count: int) -> list[Mapping[str, Tensor]]:
        """Return the records of all ``count`` units of all ranks, in order;
        called when this rank's units are finished."""
        ...
