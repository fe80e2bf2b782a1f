"""Test whether a lazy penalty trains as good a model as one at every update, on Fashion-MNIST with a quarter of the width.

    python -m benchmarks.lazy_penalty [--every 1 4 8] [--seeds 0 1 2] [--data DIR] [--steps 500] [--threads 1] [--json]

The model is the recipe fashion_mnist with base and energy of width 8. It runs 500 cycles of the main phase and no other
phase, without averaged weights. The penalty is r1 with weight 1 at every k-th energy update, and then k times as
strong. The score is the Fréchet distance on the recipe's classifier features against the test part, of base draws and
of GEBM draws. Goal: the mean over seeds with a lazy penalty is not worse than with the full one, beyond the spread
between seeds.

The data are the four files of Debian's package dataset-fashion-mnist, in ``--data``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

import gebm_kit as gk

OVERRIDES = [
    "base.width=8",
    "energy.width=8",
    "ema.decay=0",
    "train.final.steps=0",
    "optim.energy.lr=4.0e-4",
    "optim.base.lr=4.0e-4",
    "train.checkpoint_every=100000",
    "eval={metrics: [frechet], num_samples: 2000, num_sets: 2}",
    "sample={num_samples: 2000, num_chains: 250, warmup: 40, steps: 40, thin: 5}",
]


def measure(every: int, seed: int, steps: int, data: Path | None) -> dict[str, Any]:
    """Train and evaluate one model."""
    words = [f"train.steps={steps}", f"train.seed={seed}", f"train.penalty={{name: r1, weight: 1.0, every: {every}}}"]
    words += [f"data.path={data}"] if data else []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # short chains warn that they have not mixed
        run = gk.train("fashion_mnist", [*OVERRIDES, *words], out=Path(folder) / "run")
        metrics = run.evaluation["metrics"]
        rows = [row for row in run.metrics() if "kale" in row]
        seconds = run.status["seconds"]
    return {
        "every": every,
        "seed": seed,
        "base": metrics["base"]["frechet"]["value"],
        "gebm": metrics["gebm"]["frechet"]["value"],
        "kale": rows[-1]["kale"],
        "seconds": seconds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for seed in options.seeds:
        for every in options.every:
            rows.append(measure(every, seed, options.steps, options.data))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps({"schema": 1, "steps": options.steps, "rows": rows}, indent=2))
        return 0
    print(
        "| penalty every | Fréchet, base: mean (each seed) | Fréchet, GEBM: mean (each seed) | s a run |\n|---|---|---|---|"
    )
    for every in options.every:
        mine = [row for row in rows if row["every"] == every]
        cells = []
        for part in ("base", "gebm"):
            values = [row[part] for row in mine]
            cells.append(f"{statistics.mean(values):.2f} ({', '.join(f'{v:.2f}' for v in values)})")
        print(f"| {every} | {cells[0]} | {cells[1]} | {statistics.mean(row['seconds'] for row in mine):.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
