"""Train an SNGAN-sized GEBM on 32x32 images: the kit against a plain loop that follows the paper's algorithm.

    python -m benchmarks.training_sngan [--threads 2] [--repetitions 3] [--batch 64] [--every 1 4 8] [--no-memory]
        [--processor-time] [--json]

A cycle is 5 energy updates with a gradient penalty on interpolates, then one base update and the base's moving average.

The plain loop calls the energy twice (data, base draws), applies the penalty at every update, and uses torch's default
Adam. Its gradients also go into frozen parts. Base draws of the energy step carry their graph, so its backward pass
runs through the base. The backward pass of the base step fills the energy's gradients too. The careful loop takes base
draws of the energy step without gradient, and is otherwise like the plain one.

**Speed**: a cycle of each in turn, so that a busy machine slows all. The figure is the median of the ratios to the
plain loop of the same round. With ``--processor-time`` the processor time of all threads counts instead of the clock's;
use it with one thread on a machine that is busy with other things. Goals: 1.15 with the penalty at every update, 2 with
a lazy one.

**Memory**: peak resident memory of a separate process that trains two cycles. Goal: 1.1 times the plain loop's.

References:
    Generalized Energy Based Models. M. Arbel, L. Zhou, A. Gretton, ICLR 2021. https://arxiv.org/abs/2003.05033 (Algorithm 1)
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.langevin import sngan
from benchmarks.training_cycle import Images
from gebm_kit.config.check import check
from gebm_kit.config.tree import parse
from gebm_kit.engine.training.trainer import Trainer

SHAPE = (3, 32, 32)
ENERGY_STEPS = 5
WEIGHT = 0.1
GOALS = {"every update": 1.15, "lazy": 2.0, "memory": 1.1}

RECIPE = """
schema: 1
data: {{name: digits}}
base: {{name: sngan, latent_dim: 128}}
energy: {{name: sngan}}
loss: {{name: kale}}
train: {{penalty: {{name: gradient, weight: {weight}, every: {every}}}, batch_size: {batch}, start_steps: 0}}
"""

Cycle = Callable[[], None]


def kit_cycle(batch: int, every: int) -> Cycle:
    """Return the trainer's own cycle."""
    recipe = check(parse(RECIPE.format(weight=WEIGHT, every=every, batch=batch), name="sngan"), directory=Path())
    torch.manual_seed(0)
    trainer = Trainer(recipe, Images(SHAPE), torch.device("cpu"))
    return lambda: void(trainer.cycle())


def void(_: object) -> None:
    return


def plain_cycle(batch: int, *, careful: bool = False) -> Cycle:
    """Return the hand-written cycle."""
    made = sngan().train()
    base, energy = made.base, made.energy
    rows = Images(SHAPE).split("train").first(2000)
    log_partition = nn.Parameter(torch.zeros(()))
    energy_optimizer = torch.optim.Adam([*energy.parameters(), log_partition], 2e-4, betas=(0.5, 0.999))
    base_optimizer = torch.optim.Adam(base.parameters(), 2e-4, betas=(0.5, 0.999))
    average = copy.deepcopy(list(base.parameters()))

    def draws() -> Tensor:
        return base(torch.randn(batch, base.latent_dim))

    def cycle() -> None:
        for _ in range(ENERGY_STEPS):
            x = rows[torch.randint(len(rows), (batch,))]
            if careful:
                with torch.no_grad():
                    x_base = draws()
            else:
                x_base = draws()
            shifted = energy(x_base) + log_partition
            loss = energy(x).mean() + log_partition + torch.exp(-shifted).mean() - 1
            share = torch.rand(batch, 1, 1, 1)
            between = (share * x + (1 - share) * x_base.detach()).requires_grad_()
            (grad,) = torch.autograd.grad(energy(between).sum(), between, create_graph=True)
            loss = loss + WEIGHT * grad.flatten(1).square().sum(1).mean()
            energy_optimizer.zero_grad()
            loss.backward()
            energy_optimizer.step()
        base_optimizer.zero_grad()
        (-torch.logsumexp(-energy(draws()), 0)).backward()
        base_optimizer.step()
        with torch.no_grad():
            for mean, parameter in zip(average, base.parameters(), strict=True):
                mean.lerp_(parameter, 1e-3)

    return cycle


def contender(name: str, batch: int) -> Cycle:
    """Build a contender by its name in the table: plain, careful, or kit-K with a penalty every K updates."""
    kind, _, every = name.partition("-")
    return kit_cycle(batch, int(every)) if kind == "kit" else plain_cycle(batch, careful=kind == "careful")


def cycles_of(name: str) -> int:
    """Return the cycles to time at once: a penalty every K updates is due exactly five times in K cycles."""
    kind, _, every = name.partition("-")
    return int(every) if kind == "kit" else 1


def measure_speed(names: list[str], batch: int, repetitions: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """Measure the seconds a cycle of each, in turn, and the ratios to the plain loop of the same round."""
    cycles = {name: contender(name, batch) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(repetitions + 1):
        for name, cycle in cycles.items():
            count = cycles_of(name) if repetition else 1
            start = clock()
            for _ in range(count):
                cycle()
            if repetition:  # the first round warms up
                seconds[name].append((clock() - start) / count)
    rows = []
    for name in names:
        ratios = [p / s for p, s in zip(seconds["plain"], seconds[name], strict=True)]
        rows.append(
            {
                "name": name,
                "seconds": statistics.median(seconds[name]),
                "ratio": statistics.median(ratios),
                "low": min(ratios),
                "high": max(ratios),
            }
        )
    return rows


def peak_bytes(name: str, batch: int, threads: int) -> int:
    """Measure the peak resident memory of a separate process that trains two cycles."""
    command = [sys.executable, "-m", "benchmarks.training_sngan", "--peak", name]
    done = subprocess.run(
        [*command, "--batch", str(batch), "--threads", str(threads)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--every", type=int, nargs="+", default=[1, 4, 8], help="of the kit's penalties")
    parser.add_argument("--careful", action="store_true", help="time the careful loop too")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        cycle = contender(options.peak, options.batch)
        for _ in range(2):
            cycle()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return 0
    clock = time.process_time if options.processor_time else time.perf_counter
    names = ["plain", *(["careful"] if options.careful else []), *(f"kit-{every}" for every in options.every)]
    peaks = {}
    if not options.no_memory:
        peaks = {name: peak_bytes(name, options.batch, options.threads) for name in names}
    rows = measure_speed(names, options.batch, options.repetitions, clock) if options.repetitions else []
    report = {"schema": 1, "threads": options.threads, "batch": options.batch, "speed": rows, "peak_bytes": peaks}
    if options.json:
        print(json.dumps({**report, "goals": GOALS}, indent=2))
        return 0
    if rows:
        print("| loop | s a cycle | speed over the plain loop (lowest-highest) |\n|---|---|---|")
        for row in rows:
            print(f"| {row['name']} | {row['seconds']:.2f} | {row['ratio']:.2f} ({row['low']:.2f}-{row['high']:.2f}) |")
    if peaks:
        print("\n| loop | peak memory, MiB | over the plain loop's |\n|---|---|---|")
        for name, peak in peaks.items():
            print(f"| {name} | {peak / 2**20:.0f} | {peak / peaks['plain']:.3f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
