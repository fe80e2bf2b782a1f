"""Count modes and high-quality points on the grid of 25 Gaussians, for several seeds: base against GEBM.

    python benchmarks/twenty_five_gaussians.py [--seeds 0 1 2] [--threads 2] [--out DIR] [KEY=VALUE ...]

The grid is {-4, -2, 0, 2, 4}^2 with standard deviation 0.05. A point has high quality within four standard deviations
of a mode. A mode is covered if 20 of 10,000 draws are such points. Values are means over independent draw sets, and
seconds include the evaluation.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch

import gebm_kit as gk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-twenty-five-gaussians"))
    parser.add_argument("overrides", nargs="*", default=[])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", UserWarning)
    print("| seed | modes, base | modes, GEBM | high quality, base | high quality, GEBM | s |")
    print("|---|---|---|---|---|---|")
    for seed in options.seeds:
        overrides = [f"train.seed={seed}", *options.overrides]
        run = gk.train("twenty_five_gaussians", overrides, out=options.out / str(seed), resume=True)
        assert run.evaluation is not None
        base, gebm = run.evaluation["metrics"]["base"], run.evaluation["metrics"]["gebm"]
        covered, quality = "modes.covered", "modes.high_quality"
        print(
            f"| {seed} | {base[covered]['value']:g} | {gebm[covered]['value']:g} "
            f"| {base[quality]['value']:.3f} | {gebm[quality]['value']:.3f} | {run.status['seconds']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
