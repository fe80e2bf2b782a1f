"""Test the quickstart's claim on several seeds: GEBM against its own base, a GAN of the same networks, and held-out data.

    python benchmarks/quickstart.py [--seeds 0 1 2] [--threads 2] [--out DIR] [KEY=VALUE ...]

For every seed it trains ``recipes/quickstart.yaml``, and the same networks as a logistic GAN for the same number of
cycles. The GAN has R1 at the weight that suits it, and the same moving average. Every cycle of the GAN has a base
update, while a cycle of the quickstart's final phase has an energy update of twice the batch. The table has the seconds
of both. Fréchet distances are on classifier features against the test part, extrapolated to infinite N, over
independent draw sets.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import torch

import gebm_kit as gk

GAN = ["loss=logistic", "train.steps=6000", "train.final.steps=0", "train.penalty={name: r1, weight: 2.0, every: 4}"]


def trained(out: Path, overrides: list[str]) -> dict[str, Any]:
    """Return the evaluation of a run in ``out`` with the seconds it took; train it if it is not there yet."""
    run = gk.train("quickstart", overrides, out=out, resume=True)
    assert run.evaluation is not None
    return {**run.evaluation, "seconds": run.status["seconds"]}


def shown(entry: dict[str, Any]) -> str:
    interval = "" if entry["low"] is None else f" ({entry['low']:.3f}-{entry['high']:.3f})"
    return f"{entry['value']:.3f}{interval}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-quickstart"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*", default=[])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", UserWarning)
    rows = []
    for seed in options.seeds:
        common = [f"train.seed={seed}", *options.overrides]
        gebm = trained(options.out / f"gebm-{seed}", common)
        gan = trained(options.out / f"gan-{seed}", common + GAN)
        rows.append({"seed": seed, "gebm": gebm, "gan": gan})
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print("| seed | held-out | base | GEBM | GEBM / base, paired | GAN alone | KALE train / test | s GEBM / GAN |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        table, gan = row["gebm"]["metrics"], row["gan"]["metrics"]
        print(
            f"| {row['seed']} | {shown(table['data']['frechet'])} | {shown(table['base']['frechet'])} "
            f"| {shown(table['gebm']['frechet'])} | {shown(table['ratio']['frechet'])} | {shown(gan['base']['frechet'])} "
            f"| {row['gebm']['kale_train']:.2f} / {row['gebm']['kale_test']:.2f} "
            f"| {row['gebm']['seconds']:.0f} / {row['gan']['seconds']:.0f} |"
        )


if __name__ == "__main__":
    main()
