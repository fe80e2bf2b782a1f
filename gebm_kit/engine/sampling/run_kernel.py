"""Kernels: blocks of chains are warmed up together, the sampler is frozen, then each block runs to its end in turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.interfaces import Sampler
from gebm_kit.core.model import LatentPotential
from gebm_kit.core.plugins import component_name
from gebm_kit.core.progress import Progress
from gebm_kit.engine.sampling.blocks import Layout, block_generator
from gebm_kit.engine.sampling.chains import Chains, Ends
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.draws import Part, decode
from gebm_kit.engine.sampling.energy_checks import check_digits, check_gradient, lost_digits, warn_of_lost_digits
from gebm_kit.engine.sampling.interfaces import Counts, Keeper, Outcome, SamplingJob, Saved
from gebm_kit.engine.sampling.recorder import (
    NO_SLOPE,
    UNKNOWN,
    Recorder,
    equipartition,
    is_flat,
    mean_acceptance,
    quantities,
    summarise,
    total_divergences,
)
from gebm_kit.engine.sampling.saved_state import changes, reading_state, restored_state, state_tensors, with_changes
from gebm_kit.engine.sampling.settings import SampleSettings
from gebm_kit.engine.sampling.starting_points import start_counted, starts_of, warn_of_redrawn
from gebm_kit.engine.sampling.tempered_start import TEMPERED_SHARE, tempered_start
from gebm_kit.engine.sampling.warmup import REPORT_EVERY, warm_up_blocks


@dataclass(frozen=True, slots=True)
class Warm:
    """The result of warm-up: the frozen sampler; over all blocks, divergent steps, evaluations and points drawn again."""

    sampler: Sampler
    divergences: int
    counts: Counts
    redrawn: int = 0

    def saved(self, original: Sampler) -> Saved:
        """Return what warm-up changed on the ``original`` sampler, to save it."""
        tensors, changed = changes(self.sampler, original)
        return tensors | {"counts": self.counts.tensor()}, {
            "sampler": changed,
            "divergences": self.divergences,
            "redrawn": self.redrawn,
        }

    @classmethod
    def restored(cls, saved: Saved, original: Sampler, device: torch.device) -> Warm:
        """Read back what `saved` returned."""
        tensors, record = saved
        sampler = with_changes(original, tensors, record["sampler"], device)
        return cls(sampler, record["divergences"], Counts.read(tensors["counts"]), record.get("redrawn", 0))


def run_kernel(job: SamplingJob, keeper: Keeper, seconds: Callable[[], float]) -> Outcome:
    """Start, warm up, freeze, and run this rank's blocks; the diagnostics cover all blocks of all ranks."""
    begun = keeper.begun()
    if begun is None:
        warm, runs = warmed(job, keeper)
        keeper.begin(runs, lambda: warm.saved(job.sampler))
    else:
        with reading_state():
            warm = Warm.restored(begun, job.sampler, job.device)
            runs = [_restored(job, warm.sampler, block, keeper) for block in job.ranks.mine(job.layout.num_blocks)]
    run_blocks(job, runs, keeper, "sample")
    outcome = diagnosed(job, warm, keeper.records(job.layout.num_blocks), seconds())
    return outcome._replace(chains=chains_at_end(job, warm.sampler, runs, job.settings.warmup))


def run_blocks(job: SamplingJob, runs: Sequence[BlockRun], keeper: Keeper, stage: str) -> None:
    """Run this rank's blocks to their ends, one after another; progress is reported as ``stage``."""
    done, total = sum(run.step for run in runs), sum(run.total for run in runs)

    def watch(run: BlockRun) -> None:
        nonlocal done
        done += 1
        keeper.check(run)
        if run.step % REPORT_EVERY == 0 or run.step == run.total:
            job.ranks.poll()
            job.on_progress(Progress(stage, done, total, {"acceptance": run.recorder.acceptance}))

    for run in runs:
        for part in run.parts(watch):
            keeper.add(run, part)
        keeper.finish(run)


def chains_at_end(job: SamplingJob, sampler: Sampler, runs: Sequence[BlockRun], before: int) -> Chains:
    """Return the ends of this rank's chains, which had made ``before`` steps when the ``runs`` began."""
    ends = {run.number: Ends(run.chains, run.generator.get_state()) for run in runs}
    return Chains(sampler, job.settings, job.layout, before + job.settings.total_steps, ends)


def warmed(job: SamplingJob, keeper: Keeper) -> tuple[Warm, list[BlockRun]]:
    """Start this rank's blocks, from the prior or from encodings, and warm them up together with those of all ranks.

    A rank without blocks runs the first block through warm-up too, but its sums are not counted.
    """
    layout, potential, settings = job.layout, job.potential, job.settings
    mine = list(job.ranks.mine(layout.num_blocks))
    before = Counts.of(potential)
    states, generators, redrawn = [], [], []
    for block in mine or [0]:
        generator = block_generator(settings.seed, block, job.device)
        codes = None if job.starts is None else starts_of(job.starts.codes, layout.first(block), layout.rows)
        state, bad = start_counted(potential, job.sampler, layout.rows, generator, job.dtype, codes)
        states.append(state)
        generators.append(generator)
        redrawn.append(torch.tensor([bad], dtype=torch.float64))

    def reduce(rows: Sequence[Tensor]) -> Tensor:
        keeper.check(None)
        return job.ranks.sum_over_blocks(rows, layout.num_blocks)

    num_redrawn, num_chains = int(reduce(redrawn)[0]), layout.num_blocks * layout.rows
    warn_of_redrawn(num_redrawn, num_chains)
    check_digits(torch.cat([state.value for state in states]))
    check_gradient(potential, job.sampler, states[0])
    watch = _Watch(job, keeper)
    # under a weak tilt, chains would drift away from the encodings that they start at
    share = round(TEMPERED_SHARE * settings.warmup) if job.starts is None else 0
    early = tempered_start(
        job.sampler, states, potential, generators, share, reduce=reduce, on_step=watch.tempered(share)
    )
    starts = [quantities(state, caches_tilt=job.sampler.caches_tilt) for state in early.states]
    rest = settings.warmup - early.steps
    ended = warm_up_blocks(
        early.sampler, early.states, potential, generators, rest, reduce=reduce, on_progress=watch.tuned(early.steps)
    )
    rows = [torch.zeros(2, dtype=torch.float64) for _ in states]
    rows[0] += (Counts.of(potential) - before).tensor()
    warm = Warm(ended.sampler, early.divergences + ended.divergences, Counts.read(reduce(rows)), num_redrawn)
    warn_of_lost_digits(int(reduce(lost_digits(ended.states))[0]), num_chains, job.dtype)
    runs = [
        block_run(job, ended.sampler, block, state, generator, start)
        for block, state, generator, start in zip(mine, ended.states, generators, starts, strict=False)
    ]
    return warm, runs


@dataclass(frozen=True, slots=True)
class _Watch:
    """Reports the progress of the two parts of warm-up as one."""

    job: SamplingJob
    keeper: Keeper

    def tempered(self, steps: int) -> Callable[[int, Sampler], None]:
        """Return the callback for a tempered start of ``steps`` steps."""

        def on_step(step: int, sampler: Sampler) -> None:
            if step % REPORT_EVERY == 0 or step == steps:
                size = {} if sampler.tunable is None else {sampler.tunable.name: getattr(sampler, sampler.tunable.name)}
                self._report(step, size)

        return on_step

    def tuned(self, before: int) -> Callable[[Progress], None]:
        """Return the callback for tuning, which follows ``before`` steps."""
        return lambda report: self._report(before + report.step, report.scalars)

    def _report(self, step: int, scalars: Mapping[str, float]) -> None:
        self.keeper.check(None)
        self.job.on_progress(Progress("warmup", step, self.job.settings.warmup, scalars))


def block_run(
    job: SamplingJob,
    sampler: Sampler,
    block: int,
    state: object,
    generator: torch.Generator,
    start: Tensor | None = None,
) -> BlockRun:
    """Make a block's run at the end of warm-up; ``start`` holds its `quantities` before warm-up, (C, Q)."""
    layout = job.layout
    recorder = Recorder(
        job.settings.total_steps,
        state,
        num_chains=layout.num_blocks * layout.rows,
        first_chain=layout.first(block),
        start=start,
        caches_tilt=sampler.caches_tilt,
    )
    return BlockRun(block, sampler, job.potential, job.settings, layout, state, generator, recorder)


def _restored(job: SamplingJob, sampler: Sampler, block: int, keeper: Keeper) -> BlockRun:
    """Restore a block's run as it was saved."""
    found = keeper.saved(block)
    assert found is not None, f"warm-up is over and block {block} was not saved"
    step, tensors = found
    fields = {name.removeprefix("state."): tensor for name, tensor in tensors.items() if name.startswith("state.")}
    generator = block_generator(job.settings.seed, block, job.device)
    before = Counts.of(job.potential)
    example = sampler.init(fields["position"].to(job.device), job.potential, generator)
    spent = Counts.of(job.potential) - before
    job.potential.grad_evals -= spent.grad_evals  # made only to learn the type of a state, so not counted
    job.potential.forward_evals -= spent.forward_evals
    generator.set_state(tensors["generator"])
    run = block_run(job, sampler, block, restored_state(example, fields), generator)
    run.restore(step, tensors)
    return run


def diagnosed(job: SamplingJob, warm: Warm, records: Sequence[Mapping[str, Tensor]], seconds: float) -> Outcome:
    """Compute the diagnostics of all blocks together."""
    settings, sampler = job.settings, warm.sampler
    recorded, steps, checks, sums = block_records(records)
    found = summarise(recorded, job.layout.chains)
    spent = steps + checks + warm.counts + job.probed
    flat = is_flat([record["slope"] for record in records if "slope" in record])
    # integration by parts needs a gradient, and no wall of infinite energy
    balance = UNKNOWN if flat or warm.redrawn else equipartition(sums, found.ess_min)
    diagnostics = Diagnostics(
        sampler=component_name("sampler", sampler),
        num_samples=settings.num_samples,
        num_chains=job.layout.chains,
        warmup_steps=settings.warmup,
        steps=settings.total_steps,
        acceptance=mean_acceptance(recorded),
        divergences=total_divergences(recorded),
        rhat_max=found.rhat_max,
        nested_rhat_max=found.nested_rhat_max,
        ess_min=found.ess_min,
        ess_tail_min=found.ess_tail_min,
        ess_per_grad=found.ess_min / steps.grad_evals if steps.grad_evals else math.nan,
        mcse_max=found.mcse_max,
        stuck_chains=found.stuck_chains,
        grad_evals=spent.grad_evals,
        forward_evals=spent.forward_evals,
        seconds=seconds,
        inverse_temperature=float(settings.inverse_temperature),
        seed=settings.seed,
        step_size=math.nan if sampler.tunable is None else float(getattr(sampler, sampler.tunable.name)),
        warmup_divergences=warm.divergences,
        equipartition=balance.mean,
        equipartition_se=balance.se,
        log_partition=_mean(records, "log_partition"),
        details={
            name.removeprefix("summary."): _mean(records, name) for name in records[0] if name.startswith("summary.")
        },
        family=sampler.family,
    )
    return Outcome(diagnostics, recorded)


def _mean(records: Sequence[Mapping[str, Tensor]], name: str) -> float:
    """Average over the blocks, which have one size; NaN when the sampler does not report the number."""
    found = [record[name].double() for record in records if name in record]
    return float(torch.stack(found).mean()) if found else math.nan


class BlockRun:
    """A `Unit`: one block's chains, from the end of warm-up to their last states.

    Attributes:
        number: number of the block.
        chains, generator: the kernel's state, and the generator of its further random numbers.
        step: steps made so far.
        total: steps to make.
        recorder: recorder of those steps.
        balance: sums of `equipartition_sums` over the draws so far, (3,) float64 on the CPU.
        slope: largest values of `slope` over the draws so far, (3,) float64 on the CPU.
        steps, checks: evaluations so far, of steps and of decoding draws.
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
        self.slope = NO_SLOPE
        self.steps, self.checks = Counts(), Counts()
        self._sampler, self._potential, self._settings, self._layout = sampler, potential, settings, layout

    def parts(self, watch: Callable[[BlockRun], None]) -> Iterator[Part]:
        """Step to the end, and yield every kept state, decoded, as soon as it is reached.

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
        """Return chains and generator."""
        return {f"state.{k}": v for k, v in state_tensors(self.chains).items()} | {
            "generator": self.generator.get_state()
        }

    def records(self) -> dict[str, Tensor]:
        """Return the records of the steps and draws so far; `block_records` reads them."""
        recorded = {f"recorder.{name}": tensor for name, tensor in self.recorder.tensors().items()}
        found = recorded | {
            "steps": self.steps.tensor(),
            "checks": self.checks.tensor(),
            "balance": self.balance,
            "slope": self.slope,
        }
        estimate = self._sampler.log_partition(self.chains)
        said = {f"summary.{name}": value for name, value in self._sampler.summary(self.chains).items()}
        return found | said | ({} if estimate is None else {"log_partition": estimate})

    def restore(self, step: int, records: Mapping[str, Tensor]) -> None:
        """Resume at ``step``, from the `records` up to it."""
        (recorded,), self.steps, self.checks, self.balance = block_records([records])
        self.step, self.slope = step, records.get("slope", NO_SLOPE)
        self.recorder.load(recorded)

    def _decode(self, age: int) -> Part | None:
        """Decode the draws of the current state, which ``age`` later kept states will follow;
        None when none is kept."""
        layout, first = self._layout, self._layout.first(self.number)
        place = age * layout.chains + first
        rows = min(layout.kept(self.number), self._settings.num_samples - place)
        if rows <= 0:
            return None
        before = Counts.of(self._potential)
        decoded = decode(self._potential, self.chains.position, layout.rows)
        self.checks += Counts.of(self._potential) - before
        self.balance += decoded.balance
        self.slope = torch.maximum(self.slope, decoded.slope)
        return Part(place, decoded.x[:rows], decoded.z[:rows], torch.arange(first, first + rows))


def block_records(records: Sequence[Mapping[str, Tensor]]) -> tuple[list[dict[str, Tensor]], Counts, Counts, Tensor]:
    """Read the `BlockRun.records` of all blocks.

    Returns each block's `Recorder.tensors`; and summed over all blocks the evaluations of steps, the evaluations of
    decoding draws, and the `equipartition_sums`.
    """
    recorded = [
        {name.removeprefix("recorder."): tensor for name, tensor in record.items() if name.startswith("recorder.")}
        for record in records
    ]
    steps = sum((Counts.read(record["steps"]) for record in records), Counts())
    checks = sum((Counts.read(record["checks"]) for record in records), Counts())
    return recorded, steps, checks, torch.stack([record["balance"] for record in records]).sum(0)
