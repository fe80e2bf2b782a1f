"""Compare all losses on 8 and 25 Gaussians, on digits, and on Gaussians of known divergence, as markdown tables.

    python -m benchmarks.losses [--cache DIR] [--losses NAME ...] [--problems NAME ...] [--threads 1] [--table]

Each run is a shipped recipe, shortened, with only the loss replaced; rates and penalties stay. The exception is
`wasserstein`, which has WGAN-GP's penalty. Records are kept in ``--cache``, one JSON a run; only missing ones are made,
so an interrupted study resumes. ``--table`` prints existing records and makes nothing. A toy run takes about half a
minute to a minute of one core, the whole study about an hour and a half.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import torch

from benchmarks.losses.problems import LOSSES, PROBLEMS
from benchmarks.losses.study import jobs
from benchmarks.losses.table import markdown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    problems = [*PROBLEMS, "gaussians"]
    parser.add_argument("--cache", type=Path, default=Path("runs/benchmark-losses"))
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=LOSSES, metavar="NAME")
    parser.add_argument("--problems", nargs="+", default=problems, choices=problems)
    parser.add_argument("--seeds", type=int, help="only the first so many")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print existing records, run nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", UserWarning)
    work = [job for job in jobs(options.losses, options.problems) if options.seeds is None or job.seed < options.seeds]
    for job in work if not options.table else []:
        if job.record(options.cache) is None:
            record = job.run()
            job.save(options.cache, record)
            seen = record.get("error") or record.get("final") or record.get("ratios")
            print(
                f"{job.problem}, {job.loss}, seed {job.seed}: {record['cpu_seconds']:.0f} s of one core, {seen}",
                file=sys.stderr,
                flush=True,
            )
    records = [record for job in work if (record := job.record(options.cache)) is not None]
    print(markdown(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
