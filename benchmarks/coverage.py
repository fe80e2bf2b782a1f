"""Measure how often the 95 % interval of log Z covers the truth, with the automatic choice of method; prints a table.

    python benchmarks/coverage.py [--repeats 1000] [--targets NAME ...] [--cache DIR] [--table]

The targets are linear-Gaussian models, whose log Z has a formula, and two-dimensional models, whose log Z comes from
quadrature. They go from easy to hard: posteriors far narrower than the prior, wider than the prior (with weights of a
known Pareto k), bent, split into modes, wrinkled. Every repeat has its own base draws, pilot and replicates, and is an
estimate as `gebm-kit eval` makes it.

Records are kept in ``--cache``, one JSON a target, after every fifty repeats, so an interrupted study resumes. The
whole study takes about twenty minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gebm_kit.core.estimators import t_quantile
from gebm_kit.core.interfaces import Energy
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.seeds import stream
from gebm_kit.engine.likelihood.estimate_log_partition import estimate_log_partition
from gebm_kit.engine.likelihood.model_fit import base_tilts
from gebm_kit.testing.targets import IdentityBase, QuadraticEnergy, banana, linear_gaussian, two_modes

VERSION = 1
"""Version of the estimate; raise it when the estimate changes, so that older records are made again."""

SAVE_EVERY = 50

FEW = 20
"""Number of repeats below which no share is shown."""


@dataclass(frozen=True)
class Case:
    """A model in double precision, its inverse temperature and its log Z."""

    what: str
    model: GEBM
    beta: float
    truth: float


class Waves(Energy):
    """``E(x) = depth (cos(freq x_1) + cos(freq x_2))``: many modes of equal weight."""

    def __init__(self, depth: float, freq: float) -> None:
        super().__init__()
        self.depth, self.freq = depth, freq

    def forward(self, x: Tensor) -> Tensor:
        return self.depth * (self.freq * x).cos().sum(1)


class Ring(Energy):
    """``E(x) = sharpness (|x| - radius)² / 2``."""

    def __init__(self, radius: float, sharpness: float) -> None:
        super().__init__()
        self.radius, self.sharpness = radius, sharpness

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.sharpness * (x.norm(dim=1) - self.radius).square()


class Network(Energy):
    """A random network with one hidden layer of 32, times ``scale``."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(2 * torch.randn(32, 2, generator=generator, dtype=torch.float64))
        self.shift = nn.Parameter(torch.randn(32, generator=generator, dtype=torch.float64))
        self.last = nn.Parameter(scale / math.sqrt(32) * torch.randn(32, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.first.T + self.shift) @ self.last


def narrow(dim: int, stiffness: float) -> Callable[[], Case]:
    """Build a model with posterior precisions from 1 + stiffness / 100 to 1 + stiffness, off centre."""

    def case() -> Case:
        target = linear_gaussian(dim, stiffness=stiffness)
        what = f"linear-Gaussian, {dim}-d, curvature {stiffness:g}"
        return Case(what, target.model.double(), target.inverse_temperature, target.log_partition)

    return case


def wide(k: float) -> Callable[[], Case]:
    """Build ``E(x) = -k x² / 2`` in the first of two coordinates: the weights' Pareto k is k, and A = -log(1 - k) / 2."""

    def case() -> Case:
        energy = QuadraticEnergy(torch.tensor([[-k, 0.0], [0.0, 0.0]]).double(), torch.zeros(2).double())
        return Case(
            f"linear-Gaussian, wider than its base, k = {k:g}",
            GEBM(IdentityBase(2), energy),
            1.0,
            -0.5 * math.log(1 - k),
        )

    return case


def quadrature(energy: Energy, radius: float = 10.0, points: int = 4001) -> float:
    """Compute ``log ∫ N(x; 0, I) exp(-E(x)) dx`` on a square grid by the rectangle rule.

    On the whole plane that rule converges faster than any power of the spacing.
    """
    axis = torch.linspace(-radius, radius, points, dtype=torch.float64)
    rows = []
    with torch.no_grad():
        for x in axis.split(100):
            grid = torch.cartesian_prod(x, axis)
            rows.append(torch.logsumexp(-energy(grid) - 0.5 * grid.square().sum(1), 0))
    return float(torch.logsumexp(torch.stack(rows), 0)) + 2 * math.log(float(axis[1] - axis[0])) - math.log(2 * math.pi)


def plane(what: str, energy: Callable[[], Energy]) -> Callable[[], Case]:
    """Build a model on two standard-normal coordinates, with log Z by quadrature."""

    def case() -> Case:
        found = energy().double()
        return Case(f"2-d, {what}", GEBM(IdentityBase(2), found), 1.0, quadrature(found))

    return case


CASES: dict[str, Callable[[], Case]] = {
    "narrow-4-1": narrow(4, 1.0),
    "narrow-4-40": narrow(4, 40.0),
    "narrow-4-150": narrow(4, 150.0),
    "narrow-8-100": narrow(8, 100.0),
    "wide-0.3": wide(0.3),
    "wide-0.5": wide(0.5),
    "wide-0.6": wide(0.6),
    "wide-0.9": wide(0.9),
    "modes-3.6": plane("two modes 3.6 apart", lambda: two_modes(2, 3.6).model.energy),
    "modes-8": plane("two modes 8 apart", lambda: two_modes(2, 8.0).model.energy),
    "banana": plane("banana", lambda: banana().model.energy),
    "waves": plane("waves, depth 4", lambda: Waves(4.0, 4.0)),
    "ring": plane("ring of radius 3, thickness 0.05", lambda: Ring(3.0, 400.0)),
    "network": plane("random network, 10 times its size", lambda: Network(10.0)),
}


def measure(case: Case, seed: int) -> list[Any]:
    """Run one repeat: value, ends of the interval, method, Pareto k, bridge and its error."""
    generator = stream(seed, "coverage", case.what)
    with LatentPotential(case.model, case.beta) as potential:
        first, second = base_tilts(potential, generator, torch.float64)
        found = estimate_log_partition(potential, first, second, generator, torch.float64)
    return [found.value, *found.interval, found.method, found.pareto_k, found.bridge, found.bridge_se, found.particles]


def run(name: str, repeats: int, cache: Path) -> None:
    """Add to a target's record until it has ``repeats`` rows."""
    record = load(name, cache)
    rows = record["rows"]
    if len(rows) >= repeats:
        return
    case = CASES[name]()
    record |= {"what": case.what, "truth": case.truth}
    while len(rows) < repeats:
        began = time.process_time()
        rows += [measure(case, seed) for seed in range(len(rows), min(len(rows) + SAVE_EVERY, repeats))]
        record["cpu_seconds"] += time.process_time() - began
        path = cache / f"{name}.json"
        path.with_suffix(".partial").write_text(json.dumps(record))
        path.with_suffix(".partial").replace(path)
    print(f"{name}: {len(rows)} repeats, {record['cpu_seconds']:.0f} s of one core", file=sys.stderr, flush=True)


def load(name: str, cache: Path) -> dict[str, Any]:
    """Load a target's record so far."""
    path = cache / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found if found.get("version") == VERSION else {"version": VERSION, "rows": [], "cpu_seconds": 0.0}


HEADINGS = (
    "target", "log Z", "repeats", "by smc", "median half-width", "mean error",
    "covers", "of those weighed", "of those by smc", "bridge covers", "CPU s",
)  # fmt: skip


def table(names: list[str], cache: Path) -> str:
    """Format the coverage of each target, over all repeats and over the repeats by each method."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    for name in names:
        record = load(name, cache)
        rows, truth = record["rows"], record.get("truth", math.nan)
        if not rows:
            continue
        by: dict[str, list[list[Any]]] = {"importance-sampling": [], "smc": []}
        for row in rows:
            by[row[3]].append(row)
        cells = [
            record["what"],
            f"{truth + 0.0:.3f}",
            str(len(rows)),
            f"{100 * len(by['smc']) / len(rows):.0f} %",
            f"{sorted((r[2] - r[1]) / 2 for r in rows)[len(rows) // 2]:.3f}",
            f"{sum(r[0] for r in rows) / len(rows) - truth:+.4f}",
            *(share([r[1] <= truth <= r[2] for r in part]) for part in (rows, *by.values())),
            share([abs(r[5] - truth) <= t_quantile(9) * r[6] for r in by["smc"] if math.isfinite(r[5])]),
            f"{record['cpu_seconds']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def share(hits: list[bool]) -> str:
    """Format a share in percent, if there are enough repeats."""
    return f"{100 * sum(hits) / len(hits):.1f} %" if len(hits) >= FEW else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--targets", nargs="+", default=list(CASES), choices=CASES, metavar="NAME")
    parser.add_argument("--cache", type=Path, default=Path("runs/benchmark-coverage"))
    parser.add_argument("--table", action="store_true", help="print existing records, run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)
    options.cache.mkdir(parents=True, exist_ok=True)
    for name in options.targets if not options.table else []:
        run(name, options.repeats, options.cache)
    print(table(options.targets, options.cache))
    return 0


if __name__ == "__main__":
    sys.exit(main())
