"""What sampling works on: a job, cut into units that need one another no longer, and a keeper of what they give.

A unit is a block of chains after warm-up, or some islands of a population. It is stepped, gives draws from time to time, and
at the end leaves its records for the diagnostics. Which process runs it, and when, changes nothing.
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
        """So far."""
        return cls(potential.grad_evals, potential.forward_evals)

    @classmethod
    def read(cls, tensor: Tensor) -> Counts:
        """The inverse of `tensor`."""
        return cls(*(int(value) for value in tensor.tolist()))

    def tensor(self) -> Tensor:
        """(2,) int64."""
        return torch.tensor([self.grad_evals, self.forward_evals])

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.grad_evals + other.grad_evals, self.forward_evals + other.forward_evals)

    def __sub__(self, other: Counts) -> Counts:
        return Counts(self.grad_evals - other.grad_evals, self.forward_evals - other.forward_evals)


class Starts(NamedTuple):
    """Latent codes that chains start from in turn, (N, Z), and what identifies the data that they encode."""

    codes: Tensor
    digest: str


@dataclass(frozen=True)
class SamplingJob:
    """One sampling.

    Attributes:
        potential, sampler, settings: what is drawn, and how.
        device, dtype: of the chains.
        layout: of the chains in blocks.
        ranks: who shares the work.
        probed: evaluations that laying them out took.
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
    """What a sampling says of its draws: diagnostics, and `Recorder.tensors` of the blocks where there are recorders."""

    diagnostics: Diagnostics
    records: Sequence[Mapping[str, Tensor]] = ()


class Unit(Protocol):
    """A part of the work that one process does."""

    @property
    def number(self) -> int:
        """From 0; draws of a unit of a lower number come first in the shards."""
        ...

    @property
    def step(self) -> int:
        """How far it is; what it says below is whole between two steps."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What it needs to go on from here, besides its records."""
        ...

    def records(self) -> dict[str, Tensor]:
        """What it leaves for the diagnostics, so far."""
        ...


class Keeper(Protocol):
    """Where draws go, and what is kept of units that are interrupted, if anything."""

    def begun(self) -> Saved | None:
        """What `begin` saved, or None to begin at the beginning."""
        ...

    def begin(self, units: Sequence[Unit], shared: Callable[[], Saved]) -> None:
        """All units of this rank stand at their beginning; ``shared`` is what they have in common."""
        ...

    def saved(self, number: int) -> tuple[int, Mapping[str, Tensor]] | None:
        """Step, and state and records together, of an interrupted unit, with which its draws go on; None without."""
        ...

    def add(self, unit: Unit, part: Part) -> None:
        """Take in draws of a unit."""
        ...

    def check(self, unit: Unit | None) -> None:
        """Raises when sampling was asked to stop, after ``unit``, between two steps, is saved."""
        ...

    def finish(self, unit: Unit) -> None:
        """A unit has come to its end."""
        ...

    def records(self, count: int) -> list[Mapping[str, Tensor]]:
        """Of all ``count`` units of all ranks, in their order; called once all of this rank's are finished."""
        ...
