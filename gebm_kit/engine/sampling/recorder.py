"""What is recorded while chains run, and the convergence diagnostics computed from the records."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.interfaces import Info
from gebm_kit.engine.sampling.convergence import MIN_STEPS, measure, nested_rhat, slowest_direction

MAX_TRACE_STEPS = 200
"""Steps that a trace holds: all of those in the default settings, and twice as many. Longer runs are thinned out."""


MAX_TRACE_COORDINATES = 32
"""Coordinates that a trace holds. Every one costs the diagnostics two sorts and four Fourier transforms."""


MAX_TRACE_NUMBERS = 2**22
"""Numbers that the traces of all blocks hold together, 16 MiB in float32."""


# --- recording -------------------------------------------------------------------------------------------------------
def quantities(state: Any, *, caches_tilt: bool = False) -> Tensor:
    """Return what is recorded of each chain: up to 32 evenly spaced coordinates, then the potential U; (C, Q).

    Args:
        state: a kernel's state.
        caches_tilt: whether its ``value`` is the tilt rather than U.
    """
    position: Tensor = state.position
    chosen = torch.as_tensor(_chosen(position.shape[1]), device=position.device)
    value = potential_of(position, state.value, caches_tilt)
    return torch.cat([position.index_select(1, chosen), value.unsqueeze(1).to(position)], dim=1)


def potential_of(position: Tensor, value: Tensor, caches_tilt: bool) -> Tensor:
    """Return ``U = |z|²/2 + tilt`` of chains from what their kernel caches, (C,)."""
    return value + 0.5 * position.square().sum(1) if caches_tilt else value


def _chosen(latent_dim: int) -> list[int]:
    count = min(latent_dim, MAX_TRACE_COORDINATES)
    return [round(i * (latent_dim - 1) / max(count - 1, 1)) for i in range(count)]


class Recorder:
    """Gathers what the diagnostics need while one block of chains runs, on its device, without waiting for it.

    Three limits bound the memory of all blocks. A trace holds every step, or evenly spaced ones beyond
    `MAX_TRACE_STEPS`. It holds at most `MAX_TRACE_COORDINATES` coordinates. Of the run's chains it holds evenly spaced
    ones, as many as keep the traces of all blocks together below `MAX_TRACE_NUMBERS` numbers.

    Args:
        total_steps: steps that will be added.
        example: a state of the block's chains, for shapes, type and device.
        num_chains: chains of the whole run; None: this block is the only one.
        first_chain: index in the run of this block's first chain.
        start: the block's `quantities` before warm-up, (C, Q), for nested R-hat; None: no nested R-hat.
        caches_tilt: whether ``value`` of a state is the tilt; the potential U is recorded either way.
    """

    def __init__(
        self,
        total_steps: int,
        example: Any,
        *,
        num_chains: int | None = None,
        first_chain: int = 0,
        start: Tensor | None = None,
        caches_tilt: bool = False,
    ) -> None:
        self._caches_tilt = caches_tilt
        position: Tensor = example.position
        self._chains, latent_dim = position.shape
        coordinates = _chosen(latent_dim)
        self._every = -(-total_steps // MAX_TRACE_STEPS)
        rows = total_steps // max(self._every, 1)
        numbers = (num_chains or self._chains) * rows * (len(coordinates) + 1)
        stride = max(-(-numbers // MAX_TRACE_NUMBERS), 1)
        self._coordinates = torch.as_tensor(coordinates, device=position.device)
        self._kept = torch.arange(-first_chain % stride, self._chains, stride, device=position.device)
        self._trace = position.new_empty(rows, len(self._kept), len(coordinates) + 1)
        self._start = None if start is None else start.to(position).index_select(0, self._kept)
        self._acceptance = torch.zeros((), dtype=torch.float64, device=position.device)
        self._diverged = torch.zeros((), dtype=torch.int64, device=position.device)
        self._steps = self._recorded = 0

    def add(self, state: Any, info: Info) -> None:
        """Record one step."""
        self._steps += 1
        self._acceptance += info.acceptance.sum(dtype=torch.float64)
        self._diverged += info.diverged.sum()
        if self._steps % self._every == 0 and self._recorded < len(self._trace):
            row = self._trace[self._recorded]
            position, value = (t.index_select(0, self._kept) for t in (state.position, state.value))
            row[:, :-1] = position.index_select(1, self._coordinates)
            row[:, -1] = potential_of(position, value, self._caches_tilt)
            self._recorded += 1

    @property
    def acceptance(self) -> float:
        """Mean acceptance over chains and steps so far; waits for the device."""
        return float(self._acceptance) / max(self._steps * self._chains, 1)

    @property
    def divergences(self) -> int:
        """Number of divergent steps so far; waits for the device."""
        return int(self._diverged)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything recorded so far, on the CPU: to save, to gather from ranks, or to give to `summarise`.

        ``trace`` (rows, kept chains, Q), ``start`` (kept chains, Q) where there is one, sums of ``acceptance`` and
        ``divergences`` over chains and steps, the recorded ``coordinates``, and the numbers of ``chains`` and
        ``steps``.
        """
        found = {
            "trace": self._trace[: self._recorded].to("cpu", copy=True),
            "acceptance": self._acceptance.cpu().clone(),
            "divergences": self._diverged.cpu().clone(),
            "coordinates": self._coordinates.cpu().clone(),
            "chains": torch.tensor(self._chains),
            "steps": torch.tensor(self._steps),
        }
        return found if self._start is None else found | {"start": self._start.cpu().clone()}

    def load(self, tensors: Mapping[str, Tensor]) -> Recorder:
        """Resume from the `tensors` of a recorder made with the same arguments, on any device.

        Raises:
            ValueError: the tensors belong to another run.
        """
        trace = tensors["trace"]
        if trace.shape[1:] != self._trace.shape[1:] or len(trace) > len(self._trace):
            raise ValueError(f"a trace of shape {tuple(trace.shape)} does not fit one of {tuple(self._trace.shape)}")
        self._steps, self._recorded = int(tensors["steps"]), len(trace)
        self._trace[: self._recorded] = trace.to(self._trace)
        self._acceptance = tensors["acceptance"].to(self._acceptance, copy=True)
        self._diverged = tensors["divergences"].to(self._diverged, copy=True)
        self._start = tensors["start"].to(self._trace) if "start" in tensors else None
        return self


def mean_acceptance(records: Sequence[Mapping[str, Tensor]]) -> float:
    """Average the acceptance over all chains and steps, given the `Recorder.tensors` of all blocks."""
    rows = sum(int(record["chains"]) * int(record["steps"]) for record in records)
    return sum(float(record["acceptance"]) for record in records) / max(rows, 1)


def total_divergences(records: Sequence[Mapping[str, Tensor]]) -> int:
    """Count the divergent steps, given the `Recorder.tensors` of all blocks."""
    return sum(int(record["divergences"]) for record in records)


# --- summaries -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Convergence:
    """The worst value of each diagnostic over the quantities of a trace; `Diagnostics` explains them."""

    rhat_max: float
    nested_rhat_max: float
    ess_min: float
    ess_tail_min: float
    mcse_max: float
    stuck_chains: int


def summarise(records: Sequence[Mapping[str, Tensor]], num_chains: int) -> Convergence:
    """Compute the diagnostics from the `Recorder.tensors` of all blocks, in the order of the blocks.

    Effective sample sizes, errors and stuck chains are scaled from the recorded chains to all ``num_chains``.
    """
    trace, start = side_by_side(records)
    found = convergence(trace, start)
    scale = num_chains / max(trace.shape[1], 1)
    return dataclasses.replace(
        found,
        ess_min=found.ess_min * scale,
        ess_tail_min=found.ess_tail_min * scale,
        mcse_max=found.mcse_max / math.sqrt(scale),
        stuck_chains=round(found.stuck_chains * scale),
    )


def side_by_side(records: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor | None]:
    """Put the chains of all blocks side by side, up to the step that every block has reached.

    Returns the trace, (N, C, Q), and the start, (C, Q), or None when a block has none.
    """
    steps = min(len(record["trace"]) for record in records)
    trace = torch.cat([record["trace"][:steps] for record in records], dim=1)
    if any("start" not in record for record in records):
        return trace, None
    return trace, torch.cat([record["start"] for record in records])


def convergence(trace: Tensor, start: Tensor | None = None) -> Convergence:
    """Compute the diagnostics of a trace (N, C, Q), whose last quantity is the potential, for chains that started at
    (C, Q).

    A single chain is cut into two halves, which stand for two chains. A quantity that never changes, or is not finite,
    gives an R-hat of inf and an effective sample size of 0. The exception is a last quantity that is the same in every
    chain, as on a flat potential; it is left out. Fewer than four steps give NaN.
    """
    steps, num_chains, num = trace.shape
    if steps < MIN_STEPS * (2 if num_chains == 1 else 1) or num_chains == 0:
        return Convergence(math.nan, math.nan, math.nan, math.nan, math.nan, 0)
    if num_chains == 1:
        trace, start = torch.cat([trace[: steps // 2], trace[-(steps // 2) :]], dim=1), None
    still = (trace == trace[:1]).all(0)
    stuck = int(still.all(1).sum()) if num_chains > 1 else int(still.all())
    if num > 1 and bool((trace[..., -1] == trace[0, 0, -1]).all()):
        trace, still, start = trace[..., :-1], still[:, :-1], None if start is None else start[:, :-1]
        coordinates = slice(None)
    else:
        coordinates = slice(None, -1 if num > 1 else None)
    if bool(still.all(0).any()) or not bool(torch.isfinite(trace).all()):
        nested = math.nan if start is None else math.inf
        return Convergence(math.inf, nested, 0.0, 0.0, math.inf, stuck)
    found = measure(trace, start)
    nested = float(found.nested_rhat.max())
    if start is not None and not math.isnan(nested) and len(found.rhat[coordinates]) > 1:
        slowest = slowest_direction(trace[..., coordinates]).to(trace)
        along = nested_rhat(
            (trace[..., coordinates] @ slowest).unsqueeze(2), (start[:, coordinates] @ slowest).unsqueeze(1)
        )
        nested = max(nested, float(along))
    return Convergence(
        rhat_max=float(found.rhat.max()),
        nested_rhat_max=nested,
        ess_min=float(found.ess_bulk.min()),
        ess_tail_min=float(found.ess_tail.min()),
        mcse_max=1 / math.sqrt(float(found.ess_mean[coordinates].min())),
        stuck_chains=stuck,
    )


# --- equipartition ---------------------------------------------------------------------------------------------------
class Equipartition(NamedTuple):
    """The mean of ``z_i dU/dz_i`` over draws and coordinates, and its standard error."""

    mean: float
    se: float


def slope(tilt: Tensor, grad: Tensor) -> Tensor:
    """Return 1 if any gradient of the tilt, (N, Z), is not 0, else 0; then -min and max of the tilt, (N,); (3,) float64.

    The largest values over blocks of draws show whether the tilt varies without a gradient; see `is_flat`.
    """
    return torch.stack([(grad != 0).any().double(), -tilt.double().min(), tilt.double().max()])


NO_SLOPE = torch.tensor([0.0, -math.inf, -math.inf], dtype=torch.float64)
"""`slope` of no draws."""


def is_flat(slopes: Sequence[Tensor]) -> bool:
    """Return whether the energy of all draws has no gradient although it varies, given the `slope` of every block."""
    if not slopes:
        return False
    steep, low, high = torch.stack(list(slopes)).amax(0).tolist()
    return not steep and -low < high


UNKNOWN = Equipartition(math.nan, math.nan)
"""Equipartition where integration by parts does not hold: without a gradient, or beside a wall of infinite energy."""


def equipartition_sums(z: Tensor, grad: Tensor) -> Tensor:
    """Compute sums for the mean of ``z_i dU/dz_i``, which add up over blocks of draws: (N, Z), (N, Z) -> (3,) float64.

    Integration by parts gives E[z_i dU/dz_i] = 1 for every coordinate under exp(-U). ULA with step h on a standard
    normal shows 1 / (1 - h/2). With b each draw's mean over coordinates, the sums are N, sum b and sum b².
    """
    b = (z * grad).mean(1).double()
    return torch.stack([b.new_tensor(len(b)), b.sum(), b.square().sum()])


def equipartition(sums: Tensor, independent: float) -> Equipartition:
    """Compute mean and standard error from `equipartition_sums`; at most ``independent`` draws count as independent."""
    count, total, squares = sums.tolist()
    mean = total / count
    variance = max(squares / count - mean**2, 0.0)
    known = independent > 1 and count > 1
    return Equipartition(mean, math.sqrt(variance / min(count, independent)) if known else math.nan)
