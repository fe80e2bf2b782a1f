"""Measure the wall time of ``gebm-kit --help`` and ``gebm-kit list``, the median of ten starts, beside a bare Python.

    python benchmarks/startup.py

Goal: 0.4 s, and torch not imported.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

STARTS = 10
PROGRAM = [sys.executable, "-c", "import sys; from gebm_kit.cli.app import main; sys.exit(main())"]
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "gebm-kit --help": [*PROGRAM, "--help"],
    "gebm-kit list": [*PROGRAM, "list"],
}


def seconds(command: list[str]) -> float:
    """Measure the wall time of one start."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    print("| command | median s | fastest s | slowest s |")
    print("|---|---|---|---|")
    for name, command in COMMANDS.items():
        seconds(command)  # fills the file cache and writes bytecode
        times = [seconds(command) for _ in range(STARTS)]
        print(f"| `{name}` | {statistics.median(times):.3f} | {min(times):.3f} | {max(times):.3f} |")


if __name__ == "__main__":
    main()
