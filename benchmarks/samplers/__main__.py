"""Compare the kit's samplers with blackjax and numpyro: effective samples per gradient and per second, as ratios.

    python -m venv peers && peers/bin/pip install blackjax numpyro arviz-stats        # an environment of their own
    python -m benchmarks.samplers --python peers/bin/python [--seeds 5] [--targets gaussian mlp ...] [--json] [--quick]

Both sides

- evaluate the same function (values and gradients are checked in float64 to 1e-5 before anything is timed);
- start the same number of chains at the same points, and keep the same number of draws;
- tune by their own warm-up, and run in float32 on two threads.

For every target and seed a process of the kit and one of the peers take turns, so that other work of the machine
affects both. Compilation and warm-up are not timed. The effective sample size is arviz-stats' bulk one over all chains,
the smallest over dimensions, for all samplers. Gradients are counted for each chain, and each chain of NUTS counts its
own.

Records are kept in ``--cache``, one JSON for each target, sampler and seed. Only missing ones are made, so an
interrupted run resumes and new samplers are added. ``--again NAME`` makes a sampler's records again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.samplers.records import load_record, record_path
from benchmarks.samplers.table import as_json, markdown, ratios_of, rows_of
from benchmarks.samplers.targets import TARGETS, Target

AGREEMENT = 1e-5
QUICK = 0.1
ROOT = Path(__file__).parents[2]

KIT = ("hmc", "hmc-long", "mala", "chees", "meads", "mams", "klmc", "ula", "mclmc")
PEERS = (
    "blackjax-hmc", "blackjax-mala", "blackjax-nuts", "blackjax-chees", "blackjax-chees-diagonal", "blackjax-meads",
    "blackjax-mams", "blackjax-mclmc", "numpyro-hmc", "numpyro-nuts",
)  # fmt: skip


class Sides:
    """The two sides, and how a process of each is started."""

    def __init__(self, peers_python: str, cache: Path, threads: int) -> None:
        self.cache, self.threads = cache.resolve(), threads
        self._commands = {
            "kit": [sys.executable, "-m", "benchmarks.samplers.kit"],
            "peers": [peers_python, "-m", "benchmarks.samplers.peers"],
        }

    def run(self, side: str, target: Target, *arguments: str) -> str:
        """Run a process and return its output; its stderr is passed through.

        Raises:
            subprocess.CalledProcessError: it failed as a whole.
        """
        command = [*self._commands[side], "--target", target.name, "--exports", str(self.cache / "exports")]
        command += ["--threads", str(self.threads), *arguments]
        counts = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        environment = {**os.environ, **counts, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout

    def prepare(self, target: Target) -> None:
        """Train and export what is missing, and compare the two sides' functions.

        Raises:
            SystemExit: they differ.
        """
        if not (self.cache / "exports" / f"{target.name}.reference.npz").exists():
            say(f"{target.name}: preparing")
            self.run("kit", target, "--prepare")
        difference = float(self.run("peers", target, "--check"))
        say(f"{target.name}: values and gradients of the two sides differ by {difference:.1e}, relatively")
        if not difference <= AGREEMENT:
            raise SystemExit(f"{target.name}: the two sides evaluate different functions ({difference:.1e})")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="interpreter of the peers' environment")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--samplers", nargs="+", help="only these: kit-hmc, blackjax-nuts, ...")
    parser.add_argument("--again", nargs="+", default=[], help="make the records of these samplers again")
    parser.add_argument("--cache", type=Path, default=Path("runs/benchmark-samplers"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="short runs of two seeds, to see that it works")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    scale, seeds = (QUICK, min(options.seeds, 2)) if options.quick else (1.0, options.seeds)
    sides = Sides(options.python, options.cache, options.threads)
    folder = sides.cache / ("quick" if options.quick else "records")
    wanted = {"kit": [f"kit-{name}" for name in KIT], "peers": list(PEERS)}
    targets = [TARGETS[name].scaled(scale) for name in options.targets]
    for target in targets:
        sides.prepare(target)
    for target in targets:
        for name in options.again:
            for seed in range(seeds):
                record_path(folder, name, target, seed).unlink(missing_ok=True)
        for seed in range(seeds):
            for side, names in wanted.items():
                missing = [
                    n for n in names
                    if (options.samplers is None or n in options.samplers) and not load_record(folder, n, target, seed)
                ]  # fmt: skip
                if missing:
                    began = time.perf_counter()
                    short = [n.removeprefix("kit-") for n in missing]
                    common = ["--seed", str(seed), "--out", str(folder), "--scale", str(scale)]
                    sides.run(side, target, *common, "--samplers", *short)
                    say(f"{target.name}, seed {seed}, {side}: {time.perf_counter() - began:.0f} s")
    records = [
        record
        for target in targets
        for name in wanted["kit"] + wanted["peers"]
        for seed in range(seeds)
        if (record := load_record(folder, name, target, seed)) is not None
    ]
    rows = rows_of(records)
    ratios = ratios_of(records, rows)
    print(json.dumps(as_json(rows, ratios), indent=2) if options.json else markdown(rows, ratios))
    return 0


if __name__ == "__main__":
    sys.exit(main())
