"""Measure what the check of a run's components costs before its first step.

    python benchmarks/contract_check.py [--threads 1] [--repeats 5] RECIPE ...

For each recipe (default: three): the seconds of the checks of dataset, components and
checkpoint that `train` makes before its first step, the first time and the median of the later times. Data that are not
here are replaced by random images of their shape, as in a dry run. Goal: 1 s on digits, 3 s on an SNGAN at 32x32.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import torch

from gebm_kit.config.load import load_recipe
from gebm_kit.engine.datasets.contract import check_dataset
from gebm_kit.engine.training import dry_run
from gebm_kit.engine.training.contract import check_training
from gebm_kit.engine.training.trainer import Trainer


def seconds(name: str, repeats: int) -> list[float]:
    """Measure the checks of one recipe, several times."""
    recipe = load_recipe(name, ["device=cpu"])
    dataset = dry_run._dataset(recipe)
    trainer = Trainer(recipe, dataset, torch.device("cpu"))
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        check_dataset(dataset, disjoint=not isinstance(dataset, dry_run.StandIn))
        check_training(trainer, dataset)
        found.append(time.perf_counter() - start)
    return found


def main() -> None:
    """Print a table of the recipes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=["quickstart", "cifar10_sngan_small", "cifar10_sngan"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    print("| recipe | first, s | later, median s |")
    print("|---|---|---|")
    for name in arguments.recipes:
        first, *later = seconds(name, arguments.repeats)
        print(f"| `{name}` | {first:.2f} | {statistics.median(later):.2f} |", flush=True)


if __name__ == "__main__":
    main()
