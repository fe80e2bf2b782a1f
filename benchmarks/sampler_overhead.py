"""Measure a sampler's step against the bare value-and-grad of the same potential, as ratios from one run.

    python benchmarks/sampler_overhead.py [--json] [--repetitions N] [--threads N] [--device NAME]

The bare reference is written by hand: parameters frozen, one forward, one ``torch.autograd.grad`` of the summed
potential. A step that spends L gradients is compared with L bare evaluations of points of the same shape. Every
repetition times the reference and each sampler once, in turn, so that other work of the machine affects all of them
alike. The figure is the median over repetitions of the ratios within a repetition, with quartiles. On the CPU with one
thread, times are those of the process and not of the wall clock, so other programs on the machine do not count.

Goals: at most 1.05 for the convolutional model at 256 chains, at most 1.3 for the two-dimensional mlp at 1,024 chains.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from gebm_kit.bases.dcgan import DcganBase
from gebm_kit.bases.mlp import MlpBase
from gebm_kit.core.interfaces import Sampler
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.plugins import installed
from gebm_kit.energies.conv import ConvEnergy
from gebm_kit.energies.mlp import MlpEnergy

SAMPLERS = ("ula", "mala", "hmc", "klmc", "chees", "meads", "mclmc", "mams")
SLICE_SECONDS = 0.03  # about how long one timing lasts, so that the clock's resolution does not matter


@dataclass(frozen=True)
class Case:
    """A model to sample from, the number of chains, and the largest allowed ratio."""

    name: str
    model: GEBM
    num_chains: int
    goal: float


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    model: str
    chains: int
    sampler: str
    ratio: float
    low_quartile: float
    high_quartile: float
    bare_microseconds: float
    goal: float
    met: bool


def cases() -> list[Case]:
    """Build the two models with fresh weights, since their cost does not depend on training."""
    torch.manual_seed(0)
    image = (1, 28, 28)
    conv = GEBM(
        DcganBase(latent_dim=64, width=32, data_shape=image, value_range=(-1.0, 1.0)),
        ConvEnergy(width=32, data_shape=image),
    )
    mlp = GEBM(MlpBase(latent_dim=2, hidden=[128, 128], data_shape=(2,)), MlpEnergy(hidden=[128, 128], data_shape=(2,)))
    return [Case("conv 28x28", conv, 256, 1.05), Case("mlp 2-D", mlp, 1024, 1.3)]


def bare_evaluation(model: GEBM) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Compute ``U(z) = |z|^2 / 2 + E(G(z))`` and its gradient, by hand on a frozen model in eval mode."""

    def evaluate(z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        value = 0.5 * (z * z).sum(1) + model.energy(model.base(z))
        (grad,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), grad

    return evaluate


def timed(work: Callable[[], object], calls: int, device: torch.device) -> float:
    """Measure the seconds of one call, as the mean over ``calls``."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    began = clock()
    for _ in range(calls):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (clock() - began) / calls


class Chain:
    """A sampler with its state; calling it makes a step."""

    def __init__(self, sampler: Sampler, z: Tensor, potential: LatentPotential, generator: torch.Generator) -> None:
        self._sampler, self._potential, self._generator = sampler, potential, generator
        self._state = sampler.init(z, potential, generator)
        self._state, info = sampler.step(self._state, potential, generator)
        self.grads = info.grad_evals

    def __call__(self) -> None:
        self._state, _ = self._sampler.step(self._state, self._potential, self._generator)


def measure(case: Case, repetitions: int, device: torch.device) -> list[Row]:
    """Measure the case's rows, one for each sampler."""
    model = case.model.to(device)
    generator = torch.Generator(device).manual_seed(0)
    z = torch.randn(case.num_chains, model.latent_dim, generator=generator, device=device)
    registry = installed().registry
    with LatentPotential(model) as potential:
        bare = bare_evaluation(model)
        chains = {n: Chain(registry.get("sampler", n).load()(), z, potential, generator) for n in SAMPLERS}
        for work in (lambda: bare(z), *chains.values()):
            timed(work, 3, device)
        calls = max(1, round(SLICE_SECONDS / timed(lambda: bare(z), 3, device)))
        ratios: dict[str, list[float]] = {name: [] for name in chains}
        references = []
        for _ in range(repetitions):
            for name, chain in chains.items():
                # the reference is timed before and after each sampler, and the mean is used
                steps = max(1, round(calls / chain.grads))
                before = timed(lambda: bare(z), calls, device)
                step = timed(chain, steps, device)
                after = timed(lambda: bare(z), calls, device)
                references.append((before + after) / 2)
                ratios[name].append(step / chain.grads / references[-1])
    return [_row(case, name, values, statistics.median(references)) for name, values in ratios.items()]


def _row(case: Case, sampler: str, ratios: list[float], bare: float) -> Row:
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Row(
        case.name, case.num_chains, sampler, round(middle, 3), round(low, 3), round(high, 3), round(1e6 * bare, 1),
        case.goal, middle <= case.goal,
    )  # fmt: skip


def markdown(rows: list[Row]) -> str:
    """Return the table of docs/benchmarks/sampler-overhead.md."""
    lines = [
        "| model | chains | sampler | step / bare | quartiles | bare (µs) | goal |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.model} | {r.chains} | {r.sampler} | {r.ratio:.3f} | {r.low_quartile:.3f}–{r.high_quartile:.3f} "
        f"| {r.bare_microseconds:.0f} | ≤ {r.goal} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    rows = [row for case in cases() for row in measure(case, arguments.repetitions, device)]
    if arguments.json:
        host = {"torch": torch.__version__, "device": str(device), "threads": arguments.threads}
        print(json.dumps({"schema": 1, **host, "rows": [asdict(row) for row in rows]}))
    else:
        print(markdown(rows))
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
