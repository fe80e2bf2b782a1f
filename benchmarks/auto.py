"""Compare `auto` with every sampler that it chooses among: the cost of an effective draw, on trained models.

    python -m benchmarks.auto [--recipes quickstart ...] [--run DIR ...] [--steps 600] [--samplers imh isir ...]
                              [--seeds 0 1] [--threads 1] [--out DIR] [--json]

Each recipe is trained briefly (``train.steps`` of ``--steps``, ``train.final.steps`` of a third of it). Each ``--run`` is
taken as it is. Every sampler then draws with its defaults and the recipe's settings. The cost is that of everything:
pilot, attempts that failed, warm-up, steps and decoding. A gradient counts as three evaluations. The effective size is the
diagnostics' ``ess_min``, the smallest bulk one over coordinates and U. The best single sampler is the cheapest one whose
draws converged. Goal: `auto` costs at most 1.2 times as much, and its draws converged or are said not to have.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import gebm_kit as gk
from gebm_kit.engine.run_directory.run import Run

RECIPES = ("quickstart", "twenty_five_gaussians", "eight_gaussians", "checkerboard", "redwine")
SAMPLERS = ("imh", "isir", "sir", "hmc", "chees", "smc")
GRADIENT = 3
"""Evaluations that a gradient counts as."""


def trained(recipe: str, steps: int, out: Path) -> Run:
    """Train a recipe briefly, unless it is there already."""
    final = f"train.final.steps={steps // 3}"
    path = out / recipe.replace("/", "-")
    return gk.train(
        recipe, [f"train.steps={steps}", final, "eval.num_sets=2", "eval.num_samples=200"], out=path, resume=True
    )


def measured(run: Run, sampler: str, seed: int) -> dict[str, Any]:
    """Draw, and return the costs of an effective draw."""
    began = time.process_time()
    found = gk.sample(run, sampler=sampler, seed=seed).diagnostics
    seconds = time.process_time() - began
    evaluations = found.forward_evals + GRADIENT * found.grad_evals
    return {
        "evaluations": evaluations / found.ess_min if found.ess_min else float("inf"),
        "milliseconds": 1000 * seconds / found.ess_min if found.ess_min else float("inf"),
        "converged": found.converged,
        "drew": found.sampler,
        "reason": found.sampler_reason,
        "rhat_max": found.rhat_max,
        "ess_min": found.ess_min,
    }


def compared(run: Run, samplers: list[str], seeds: list[int]) -> dict[str, Any]:
    """Measure all samplers and `auto`; medians over the seeds."""
    rows: dict[str, Any] = {}
    for name in [*samplers, "auto"]:
        found = [measured(run, name, seed) for seed in seeds]
        costs = {key: statistics.median(row[key] for row in found) for key in ("evaluations", "milliseconds")}
        rows[name] = {**found[0], **costs, "converged": sum(row["converged"] for row in found)}
    single = {name: row for name, row in rows.items() if name != "auto" and row["converged"] == len(seeds)}
    best = {
        key: min(single, key=lambda name: single[name][key], default=None) for key in ("evaluations", "milliseconds")
    }
    ratios = {key: rows["auto"][key] / single[name][key] if name else None for key, name in best.items()}
    return {"samplers": rows, "best": best, "ratio": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES))
    parser.add_argument("--run", nargs="*", type=Path, default=[])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-auto"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", UserWarning)
    runs = {str(path): gk.load_run(path) for path in options.run}
    runs |= {recipe: trained(recipe, options.steps, options.out) for recipe in options.recipes}
    found = {name: compared(run, options.samplers, options.seeds) for name, run in runs.items()}
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print("| model | sampler | evaluations | CPU ms | converged | R-hat |\n|---|---|---|---|---|---|")
    for name, result in found.items():
        for sampler, row in result["samplers"].items():
            drew = f"auto ({row['drew']})" if sampler == "auto" else sampler
            done = f"{row['converged']} of {len(options.seeds)}"
            costs = f"{row['evaluations']:.1f} | {row['milliseconds']:.3f}"
            print(f"| {name} | {drew} | {costs} | {done} | {row['rhat_max']:.3f} |")
        ratio, best = result["ratio"], result["best"]
        said = ", ".join(
            f"{key} {ratio[key]:.2f} ({best[key]})" if best[key] else f"{key}: no single sampler converged"
            for key in ratio
        )
        print(f"| {name} | auto over best | {said} | | | |")


if __name__ == "__main__":
    main()
