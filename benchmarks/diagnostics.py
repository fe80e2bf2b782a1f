"""Time the diagnostics of a trace with this kit and with arviz-stats, and measure how far the two values are apart.

    python benchmarks/diagnostics.py [--steps N] [--chains C] [--quantities Q]

The trace has AR(1) chains that reject three steps in ten, in float32 as samplers record it: 200 steps, 500 chains, 33
quantities. Times are processor time on one thread, the least of five runs (arviz-stats: two). This kit's time includes
nested R-hat; arviz-stats has none that sorts chains by their start.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gebm_kit.engine.sampling.convergence import ess_bulk, measure, rhat


def trace_of(steps: int, chains: int, quantities: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    trace = torch.randn(steps, chains, quantities, generator=generator)
    stays = torch.rand(steps, chains, 1, generator=generator) < 0.3
    for before, now, stay in zip(trace, trace[1:], stays[1:], strict=False):
        now.copy_(torch.where(stay, before, 0.8 * before + 0.6 * now))
    return trace


def timed(function: Callable[[], Mapping[str, Any]], runs: int) -> tuple[float, Mapping[str, Any]]:
    best = float("inf")
    for _ in range(runs):
        began = time.process_time()
        found = function()
        best = min(best, time.process_time() - began)
    return best, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"steps": 200, "chains": 500, "quantities": 33}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    from arviz_stats.base.array import array_stats

    trace = trace_of(options.steps, options.chains, options.quantities)
    wide, axes = trace.double().numpy(), {"chain_axis": 1, "draw_axis": 0}
    theirs: dict[str, Callable[[], Any]] = {
        "rhat": lambda: array_stats.rhat(wide, method="rank", **axes),
        "ess_bulk": lambda: array_stats.ess(wide, method="bulk", **axes),
        "ess_tail": lambda: array_stats.ess(wide, method="tail", prob=(0.05, 0.95), **axes),
        "mcse_mean": lambda: array_stats.mcse(wide, method="mean", **axes),
    }
    ours: dict[str, Callable[[], Mapping[str, Any]]] = {
        "rhat, ess_bulk": lambda: {"rhat": rhat(trace), "ess_bulk": ess_bulk(trace)},
        "rhat, ess_bulk, ess_tail, mcse_mean": lambda: measure(trace, trace[0])._asdict(),
    }
    print("| numbers | this kit (s) | arviz-stats (s) | ratio | largest relative difference |")
    print("|---|---|---|---|---|")
    for title, function in ours.items():
        names = title.split(", ")
        own, found = timed(function, 5)
        other, expected = timed(lambda names=names: {name: theirs[name]() for name in names}, 2)
        apart = max(float(np.abs(np.asarray(found[n]) / expected[n] - 1).max()) for n in names)
        print(f"| {title} | {own:.2f} | {other:.2f} | {other / own:.1f} | {apart:.1e} |", flush=True)


if __name__ == "__main__":
    main()
