"""Running chains: where they start, how a block of them goes on after warm-up, and which states become draws."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.errors import RunFailed, UsageError
from gebm_kit.core.interfaces import Sampler
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.progress import warn
from gebm_kit.engine.blocks import Layout
from gebm_kit.engine.devices import resolve_device
from gebm_kit.engine.diagnostics import Recorder, equipartition_sums
from gebm_kit.engine.draws import Part, SampleSettings
from gebm_kit.engine.job import Counts
from gebm_kit.engine.saved_state import state_tensors

START_ATTEMPTS = 10


class BlockRun:
    """One block's chains after warm-up, on the way to their last states.

    Attributes:
        number: of the block.
        chains, generator: the kernel's state and the random numbers to come.
        step: steps made so far.
        total: steps to make.
        recorder: of those steps.
        balance: sums of `equipartition_sums` over the draws so far, (3,) float64 on the CPU.
        steps, checks: evaluations of steps, and of looking at draws, so far.
    """

    def __init__(
        self,
        number: int,
        sampler: Sampler,
        potential: LatentPotential,
        settings: SampleSettings,
        layout: Layout,
        chains: Any,
        generator: torch.Generator,
        recorder: Recorder,
    ) -> None:
        self.number, self.chains, self.generator, self.recorder = number, chains, generator, recorder
        self.step, self.total = 0, settings.total_steps
        self.balance = torch.zeros(3, dtype=torch.float64)
        self.steps, self.checks = Counts(), Counts()
        self._sampler, self._potential, self._settings, self._layout = sampler, potential, settings, layout

    def parts(self, watch: Callable[[BlockRun], None]) -> Iterator[Part]:
        """Step to the end; every state that is kept, decoded, as soon as it is reached.

        Args:
            watch: called after every step; what it raises ends the iteration between two steps.
        """
        while self.step < self.total:
            before = Counts.of(self._potential)
            self.chains, info = self._sampler.step(self.chains, self._potential, self.generator)
            self.steps += Counts.of(self._potential) - before
            self.recorder.add(self.chains, info)
            self.step += 1
            age, rest = divmod(self.total - self.step, self._settings.thin)
            if rest == 0 and age < self._settings.kept and (part := self._decode(age)) is not None:
                yield part
            watch(self)

    def state(self) -> dict[str, Tensor]:
        """Chains and generator."""
        return {f"state.{k}": v for k, v in state_tensors(self.chains).items()} | {
            "generator": self.generator.get_state()
        }

    def records(self) -> dict[str, Tensor]:
        """Of the steps and draws so far; `block_records` reads them."""
        recorded = {f"recorder.{name}": tensor for name, tensor in self.recorder.tensors().items()}
        found = recorded | {"steps": self.steps.tensor(), "checks": self.checks.tensor(), "balance": self.balance}
        estimate = self._sampler.log_partition(self.chains)
        said = {f"summary.{name}": value for name, value in self._sampler.summary(self.chains).items()}
        return found | said | ({} if estimate is None else {"log_partition": estimate})

    def restore(self, step: int, records: Mapping[str, Tensor]) -> None:
        """Go on at ``step``, up to which the `records` go."""
        (recorded,), self.steps, self.checks, self.balance = block_records([records])
        self.step = step
        self.recorder.load(recorded)

    def _decode(self, age: int) -> Part | None:
        """The draws of the present state, which ``age`` later ones of each chain follow; None when none of it is kept."""
        layout, first = self._layout, self._layout.first(self.number)
        place = age * layout.chains + first
        rows = min(layout.kept(self.number), self._settings.num_samples - place)
        if rows <= 0:
            return None
        before = Counts.of(self._potential)
        decoded = decode(self._potential, self.chains.position, layout.rows)
        self.checks += Counts.of(self._potential) - before
        self.balance += decoded.balance
        return Part(place, decoded.x[:rows], decoded.z[:rows], torch.arange(first, first + rows))


def block_records(records: Sequence[Mapping[str, Tensor]]) -> tuple[list[dict[str, Tensor]], Counts, Counts, Tensor]:
    """What blocks' `BlockRun.records` say: each one's `Recorder.tensors`; and over all of them evaluations of steps and of
    looking at draws, and sums of `equipartition_sums`."""
    recorded = [
        {name.removeprefix("recorder."): tensor for name, tensor in record.items() if name.startswith("recorder.")}
        for record in records
    ]
    steps = sum((Counts.read(record["steps"]) for record in records), Counts())
    checks = sum((Counts.read(record["checks"]) for record in records), Counts())
    return recorded, steps, checks, torch.stack([record["balance"] for record in records]).sum(0)


def start(
    potential: LatentPotential, sampler: Sampler, num_chains: int, generator: torch.Generator, dtype: torch.dtype
) -> Any:
    """The sampler's state at prior draws whose potential is finite, (C, Z).

    Points without a finite potential are drawn again, a few times; those that are left then start from a finite one.

    Raises:
        UsageError: the potential is finite nowhere.
    """
    state, redrawn = start_counted(potential, sampler, num_chains, generator, dtype)
    warn_of_redrawn(redrawn, num_chains)
    return state


def start_counted(
    potential: LatentPotential,
    sampler: Sampler,
    num_chains: int,
    generator: torch.Generator,
    dtype: torch.dtype,
    codes: Tensor | None = None,
) -> tuple[Any, int]:
    """`start`, and how many points had to be drawn again; ``codes``, (C, Z), take the place of the first prior draws."""
    shape, redrawn = (num_chains, potential.model.latent_dim), 0
    z = torch.randn(shape, generator=generator, device=generator.device, dtype=dtype) if codes is None else codes
    for attempt in range(START_ATTEMPTS):
        state = sampler.init(z, potential, generator)
        usable = _finite(state)
        bad = int((~usable).sum())
        if bad == 0:
            return state, redrawn
        if attempt == 0:
            redrawn = bad
        fresh = torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)
        z = torch.where(usable.unsqueeze(1), z, fresh)
    if bad == num_chains:
        raise UsageError(
            f"the energy is not finite at any of {num_chains} points drawn from the base: it returned "
            f"{float(state.value[0])} at the first",
            hint="Look at energy(base(z)) for z drawn from the prior; training may have diverged.",
        )
    finite = z[usable]
    picks = torch.randint(len(finite), (num_chains,), generator=generator, device=generator.device)
    return sampler.init(torch.where(usable.unsqueeze(1), z, finite[picks]), potential, generator), redrawn


def warn_of_redrawn(redrawn: int, num_chains: int) -> None:
    """Say how many starting points had no finite energy, if any."""
    if redrawn:
        warn(f"the energy is not finite at {redrawn} of {num_chains} starting points, which were drawn again.")


def _finite(state: Any) -> Tensor:
    """Which chains have a finite value and, where the kernel caches one, a finite gradient; (C,) bool."""
    usable: Tensor = torch.isfinite(state.value)
    grad = getattr(state, "grad", None)
    return usable if grad is None else usable & torch.isfinite(grad).all(1)


@dataclass(frozen=True, slots=True)
class Decoded:
    """States as draws, on the CPU: x (N, *D), z in the base's coordinates (N, Z), sums of `equipartition_sums` (3,)."""

    x: Tensor
    z: Tensor
    balance: Tensor


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


@contextmanager
def enough_memory(device: torch.device, chains: int) -> Iterator[None]:
    """Turn running out of memory inside the block, on the device or beside it, into an error of the kit.

    Args:
        chains: that are evaluated at once.

    Raises:
        RunFailed: it is out of memory.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if type(error) is RuntimeError and "can't allocate memory" not in str(error):
            raise
        raise RunFailed(
            f"{device} is out of memory with blocks of {chains} chains",
            hint="Set block_size (sample.block_size on the command line) to fewer; the draws then come in other blocks.",
        ) from error
