"""Running chains: where they start, which states are kept, and what is recorded on the way."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Sampler
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.engine.devices import resolve_device
from gebm_kit.engine.diagnostics import Recorder, equipartition_sums, quantities
from gebm_kit.engine.draws import SampleSettings
from gebm_kit.engine.progress import OnProgress, Progress, warn
from gebm_kit.engine.warmup import REPORT_EVERY, warm_up

START_ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class ChainsRun:
    """What running the chains gave.

    Attributes:
        z: kept states in normal coordinates, last ones first, on the device, (N, Z).
        chain: which chain each comes from, (N,) int64 on the CPU.
        records: of the recorder, over all steps after warm-up.
        grad_evals: gradients spent after warm-up, in rows.
        step_size: the frozen value of what was tuned, nan without.
        warmup_divergences: divergent steps during warm-up.
    """

    z: Tensor
    chain: Tensor
    records: tuple[dict[str, Tensor], ...]
    grad_evals: int
    step_size: float
    warmup_divergences: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """Kept states as draws, on the CPU: x (N, *D), z in the base's coordinates (N, Z), and sums for equipartition (3,)."""

    x: Tensor
    z: Tensor
    equipartition: Tensor


def run_chains(
    potential: LatentPotential,
    sampler: Sampler,
    settings: SampleSettings,
    generator: torch.Generator,
    dtype: torch.dtype,
    on_progress: OnProgress,
) -> ChainsRun:
    """Start, warm up, freeze, run and keep."""
    state = start(potential, sampler, settings.chains, generator, dtype)
    begun = quantities(state)
    warm = warm_up(sampler, state, potential, generator, settings.warmup, on_progress=on_progress)
    sampler, state = warm.sampler, warm.state
    grads_before, total = potential.grad_evals, settings.total_steps
    recorder = Recorder(total, state, start=begun)
    first_kept = total - 1 - (settings.kept - 1) * settings.thin
    kept = []
    for step in range(total):
        state, info = sampler.step(state, potential, generator)
        recorder.add(state, info)
        if step >= first_kept and (total - 1 - step) % settings.thin == 0:
            kept.append(state.position)
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == total:
            on_progress(Progress("sample", step + 1, total, {"acceptance": recorder.acceptance}))
    num_samples, chains = settings.num_samples, settings.chains
    return ChainsRun(
        z=torch.cat(kept[::-1])[:num_samples],
        chain=torch.arange(chains).repeat(settings.kept)[:num_samples],
        records=(recorder.tensors(),),
        grad_evals=potential.grad_evals - grads_before,
        step_size=math.nan if sampler.tunable is None else float(getattr(sampler, sampler.tunable.name)),
        warmup_divergences=warm.divergences,
    )


def start(
    potential: LatentPotential, sampler: Sampler, num_chains: int, generator: torch.Generator, dtype: torch.dtype
) -> Any:
    """The sampler's state at prior draws whose potential is finite, (C, Z).

    Points without a finite potential are drawn again, a few times; those that are left then start from a finite one.

    Raises:
        UsageError: the potential is finite nowhere.
    """
    shape = (num_chains, potential.model.latent_dim)
    z = torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)
    for attempt in range(START_ATTEMPTS):
        state = sampler.init(z, potential, generator)
        usable = _finite(state)
        bad = int((~usable).sum())
        if bad == 0:
            return state
        if bad == num_chains:
            raise UsageError(
                f"the energy is not finite at any of {num_chains} points drawn from the base: it returned "
                f"{float(state.value[0])} at the first",
                hint="Look at energy(base(z)) for z drawn from the prior; training may have diverged.",
            )
        if attempt == 0:
            warn(f"the energy is not finite at {bad} of {num_chains} starting points, which were drawn again.")
        fresh = torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)
        z = torch.where(usable.unsqueeze(1), z, fresh)
    finite = z[usable]
    picks = torch.randint(len(finite), (num_chains,), generator=generator, device=generator.device)
    return sampler.init(torch.where(usable.unsqueeze(1), z, finite[picks]), potential, generator)


def _finite(state: Any) -> Tensor:
    """Which chains have a finite value and, where the kernel caches one, a finite gradient; (C,) bool."""
    usable: Tensor = torch.isfinite(state.value)
    grad = getattr(state, "grad", None)
    return usable if grad is None else usable & torch.isfinite(grad).all(1)


def decode(potential: LatentPotential, z: Tensor, rows: int) -> Decoded:
    """Draws ``x = G(z)`` of states in normal coordinates (N, Z), evaluated ``rows`` at a time as the chains were."""
    x, codes, balances = [], [], []
    for part in z.split(rows):
        x.append(potential.data(part).cpu())
        codes.append(potential.prior.from_normal(part).cpu())
        balances.append(equipartition_sums(part, potential.value_and_grad(part).grad).cpu())
    return Decoded(torch.cat(x), torch.cat(codes), torch.stack(balances).sum(0))


@contextmanager
def placed(model: GEBM, device: torch.device | str | None) -> Iterator[tuple[torch.device, torch.dtype]]:
    """The model on ``device`` (None: where it is) for the block, then back; yields the device and its floating type."""
    parts = itertools.chain(
        model.base.parameters(), model.base.buffers(), model.energy.parameters(), model.energy.buffers()
    )
    example = next((t for t in parts if t.is_floating_point()), None)
    home = torch.device("cpu") if example is None else example.device
    dtype = torch.get_default_dtype() if example is None else example.dtype
    there = home if device is None else resolve_device(device)
    if there == home:
        yield there, dtype
        return
    model.to(there)
    try:
        yield there, dtype
    finally:
        model.to(home)
